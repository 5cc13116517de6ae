"""Naming segments, and shares of them, in text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from flowmap.errors import InvalidArgumentError, cut
from flowmap.wording import either

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowmap.segments import Segment
    from flowmap.target import Target

_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_RANGE: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_SHARE: Final = re.compile(r"([0-9]{1,18})-of-([0-9]{1,18})")


def segments_of(target: Target, names: Sequence[str]) -> list[Segment]:
    """Return the segments that some names stand for, each once, in order.

    "7" is the segment with that number, counted from 0 as everywhere; "10-19" are ten; "1,5,7"
    are three; "all" are all. "3-of-64" is the third of 64 shares of all segments, counted from
    1 as Snakemake does: of as many shares as there are segments each is one segment; of fewer,
    some neighbours; of more, some are none.

    Args:
        target: The target.
        names: What they are called.

    Raises:
        InvalidArgumentError: A name stands for no segments of this target.
    """
    count = len(target.segments)
    parts = [part.strip() for name in names for part in name.split(",")]
    indices = {index for part in parts for index in _indices(part, count, target)}
    return [target.segments[index] for index in sorted(indices)]


def _indices(name: str, count: int, target: Target) -> range:
    if name == "all":
        return range(count)
    if share := _SHARE.fullmatch(name):
        item, items = map(int, share.groups())
        if 1 <= item <= items:
            return range((item - 1) * count // items, item * count // items)
        raise InvalidArgumentError(_no_share(name, item, items))
    if _NUMBER.fullmatch(name) and int(name) < count:
        return range(int(name), int(name) + 1)
    if (ends := _RANGE.fullmatch(name)) and int(ends[1]) <= int(ends[2]) < count:
        return range(int(ends[1]), int(ends[2]) + 1)
    there = f"has 0 to {count - 1}" if count else "has none"
    raise InvalidArgumentError(
        f"{cut(repr(name))} names no segments of {target.path}, which {there}. Write a number, "
        "7, several, 1,5,7, a range, 10-19, or a share, 3-of-64."
    )


def _no_share(name: str, item: int, items: int) -> str:
    if not items:
        return f"{name!r} is a share of none. Write how many shares there are, as in 1-of-8."
    last = f"{items}-of-{items}"
    why = f"{name!r} is not a share: shares count from 1, so write 1-of-{items} to {last}."
    if item:
        return why
    task = either(
        f"f\"{{int(os.environ['SLURM_ARRAY_TASK_ID']) + 1}}-of-{items}\"",
        f'"$((SLURM_ARRAY_TASK_ID + 1))-of-{items}"',
    )
    return f"{why} In a job array that counts from 0, write {task}."
