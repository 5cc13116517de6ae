"""Why segments failed, kept whole: the ledger has room for a line."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, Final

from flowmap.documents import publish_json, read_json
from flowmap.errors import cut, printable, said
from flowmap.sidecar import FORMAT, Sidecar

if TYPE_CHECKING:
    from flowmap.job import Job

_LONGEST: Final = 20_000  # characters of a traceback that are kept

_CALLERS: Final = frozenset({"flowmap.write", "flowmap.work"})
"""The modules that call a filler: what failed is not in these."""


def record_failure(job: Job, index: int, attempt: int, error: BaseException) -> None:
    """Keep why an attempt at a segment failed, in place of what was kept of earlier ones.

    Args:
        job: The job.
        index: Of the segment.
        attempt: Its number.
        error: What ended it.

    Raises:
        OSError: It cannot be written.
    """
    document = {
        "format": FORMAT,
        "job": job.id,
        "attempt": attempt,
        "reason": said(error),
        "traceback": cut("".join(_lines(error)), _LONGEST),
    }
    publish_json(Sidecar.of(job.path).failure(index), document)


def _lines(error: BaseException) -> list[str]:
    """Return the lines of a traceback, from where the filler was called."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_globals.get("__name__") in _CALLERS:
        found = found.tb_next
    return traceback.format_exception(type(error), error, found)


def failure_of(job: Job, index: int, attempt: int) -> dict[str, Any] | None:
    """Return what was kept of an attempt at a segment: "reason" and "traceback", or None.

    Args:
        job: The job.
        index: Of the segment.
        attempt: Its number.
    """
    try:
        found = read_json(Sidecar.of(job.path).failure(index))
    except (OSError, ValueError):
        return None
    known = {"job": job.id, "attempt": attempt}
    ours = all(found.get(name) == value for name, value in known.items())
    texts = {name: found.get(name) for name in ("reason", "traceback")}
    if not (ours and all(isinstance(text, str) for text in texts.values())):
        return None
    return {name: printable(str(text)) for name, text in texts.items()}
