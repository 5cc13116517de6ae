"""What commands say comes next: each a command that works as it is printed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from flowmap.cli.output import quoted
from flowmap.errors import FillerError, FlowmapError, SegmentsFailedError, printable
from flowmap.failures import clean_traceback, failure_of
from flowmap.marks import name_of
from flowmap.recalling import recorded_filler
from flowmap.tracebacks import traceback_text
from flowmap.write import write_segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flowmap.segments import Segment
    from flowmap.target import Target


def how_to_fill(path: Any, target: Target) -> str:
    """Return the command that fills what is missing of a target.

    Args:
        path: Path of the target, as the user wrote it.
        target: The target.
    """
    known = recorded_filler(target)
    if known == name_of(write_segment):
        return "flowmap.write_segment() in Python, as for the other segments"
    return f"flowmap fill {quoted(path)}{'' if known else ' --filler FILE.py:FUNCTION'}"


def how_to_see_why(path: Any, target: Target, indices: Iterable[int]) -> str | None:
    """Return the sentence that names the command for a traceback; None if there is none.

    Args:
        path: Path of the target, as the user wrote it.
        target: The target.
        indices: Numbers of the segments that failed.
    """
    attempts = target.status()["attempt"]
    for index in indices:
        if failure_of(target.job, index, int(attempts[index])) is not None:
            return f"For the traceback: flowmap status {quoted(path)} --segment {index}"
    return None


def note_lines(error: FlowmapError) -> None:
    """Let an error show the lines of the user's code that caused it, if there are any."""
    clean_traceback(error)
    if error.__cause__ is not None:
        error.add_note(printable(traceback_text(error.__cause__)).rstrip())


def note_traceback(
    error: FlowmapError, path: Any, target: Target, chosen: Sequence[Segment] | None
) -> None:
    """Let the error of a failing fill name the command that shows a traceback, if there is one.

    Args:
        error: The error.
        path: Path of the target, as the user wrote it.
        target: The target.
        chosen: The segments that were to be filled; None for all of them.
    """
    if isinstance(error, SegmentsFailedError):
        indices = list(error.failures)
    elif isinstance(error, FillerError):
        indices = [segment.index for segment in chosen or ()]
    else:
        return
    with contextlib.suppress(FlowmapError):  # the target is gone: the error itself counts
        if sentence := how_to_see_why(path, target, indices):
            error.add_note(sentence)
