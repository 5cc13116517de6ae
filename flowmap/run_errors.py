"""The error of a run some of whose segments failed: each cause once, with its segments."""

from __future__ import annotations

import re
from pickle import PicklingError
from typing import TYPE_CHECKING, Final

from flowmap import human
from flowmap.errors import FillerNotFoundError, FlowmapError, SegmentsFailedError, said
from flowmap.failures import clean_traceback
from flowmap.wording import overwriting, setting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from flowmap.segments import Segment
    from flowmap.target import Target

_SHOWN: Final = 10
"""Causes that a message names."""

_PLACE: Final = re.compile(
    r"segment \d+ \[\d+:\d+\](, rows \d+ to \d+)?(: | (?=was (cancelled|stopped)))"
)
"""What tells the messages of two segments apart that failed for the same cause."""


def failed(
    target: Target, failures: Mapping[Segment, BaseException], *, ended: str = ""
) -> SegmentsFailedError:
    """Return the error of a run some of whose segments failed; its cause is that of the first.

    Args:
        target: The target.
        failures: Why each of the segments failed.
        ended: Why the run was ended before all segments were tried, if it was.
    """
    done = int((target.status()["state"] == "done").sum())
    ordered = sorted(failures.items(), key=lambda item: item[0].index)
    lines = [
        f"{len(ordered)} of {len(target.segments)} segments of {target.path} failed:",
        *_causes(ordered),
        *([ended] if ended else []),
        f"{done} are done. Running the same again fills only those that are missing.",
        *_other_arguments(target),
    ]
    failure = SegmentsFailedError(
        "\n".join(lines), failures={segment.index: error for segment, error in ordered}
    )
    failure.__cause__ = ordered[0][1]
    return failure


def _causes(ordered: list[tuple[Segment, BaseException]]) -> list[str]:
    """Return a line for each cause, that of the most segments first."""
    groups: dict[str, list[tuple[Segment, str]]] = {}
    for segment, error in ordered:
        clean_traceback(error)
        reason = _reason(segment, error)
        groups.setdefault(_PLACE.sub("", reason, count=1), []).append((segment, reason))
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = [f"  - {_line(cause, group)}" for cause, group in largest[:_SHOWN]]
    if left := sum(len(group) for _, group in largest[_SHOWN:]):
        lines.append(f"  - and {left} more")
    return lines


def _line(cause: str, group: list[tuple[Segment, str]]) -> str:
    if len(group) == 1:
        return group[0][1]
    indices = human.ranges(segment.index for segment, _ in group)
    return f"{len(group)} segments ({indices}): {cause}"


def _reason(segment: Segment, error: BaseException) -> str:
    text = str(error) if isinstance(error, FlowmapError) else said(error)
    if isinstance(error, PicklingError):
        text += f"; pass arguments that can be pickled, or use {setting(executor='threads')}"
    return text if segment.name in text else f"{segment.name}: {text}"


def _other_arguments(target: Target) -> list[str]:
    """Say what a job that is pinned to its work makes of changed arguments."""
    if target.job.work is None:
        return []
    return [f"Other arguments are another job: {overwriting()} begins that anew."]


def check_loadable(
    target: Target, failures: Mapping[Segment, BaseException], pool: Executor, *, done: int
) -> None:
    """End a run that has filled nothing, since no worker process can load the filler.

    A worker of a cluster is known by its name, so that one of several that cannot load the
    filler, and so fails fast, does not end what the others may fill.

    Args:
        target: The target.
        failures: Why segments have failed so far.
        pool: The executor; one that is not flowmap's own may have any number of processes.
        done: How many segments this run has filled so far.

    Raises:
        SegmentsFailedError: Each worker has failed to load it.
    """
    processes: int | None = getattr(pool, "processes", None)
    if done or processes is None or len(failures) < processes:
        return
    if not all(isinstance(e, FillerNotFoundError | PicklingError) for e in failures.values()):
        return
    where = {getattr(error, "worker", segment.name) for segment, error in failures.items()}
    if len(where) >= processes:
        ended = "No worker can load the filler: the run was ended, and tried no other segments."
        raise failed(target, failures, ended=ended)
