"""Ending a run in an executor of the user's, whose futures may refuse to be cancelled.

What was submitted there is called sooner or later, in whatever process. So each call looks at
the lease before it begins, and before each block.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from flowmap.errors import StoppedError
from flowmap.lease import is_over
from flowmap.write import STOP, fill_work

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment
    from flowmap.work import Work
    from flowmap.write import StopSign

_LOOK_SECONDS: Final = 1
"""The shortest time between two looks at the lease."""


class RunEnd:
    """The end of a run, as its workers see it, in place of an event.

    Args:
        path: Path of the target.
        token: Token of the run's lease.
        outer: What stops the thread as well, such as the end of its pool.
    """

    def __init__(self, path: Path, token: str, outer: StopSign | None = None) -> None:
        self._path = path
        self._token = token
        self._outer = outer
        self._next_look = 0.0
        self._is_over = False

    def is_set(self) -> bool:
        """Return whether the run is over."""
        if not self._is_over and time.monotonic() >= self._next_look:
            self._is_over = is_over(self._path, self._token)
            self._next_look = time.monotonic() + _LOOK_SECONDS
        return self._is_over or (self._outer is not None and self._outer.is_set())


def fill_for_run(segment: Segment, work: Work, token: str) -> SegmentRecord:
    """Fill one segment as `fill_work` does, as long as its run is not over.

    Raises:
        StoppedError: The run is over. Blocks that were written are kept.
    """
    end = RunEnd(segment.path, token, STOP.get())
    if end.is_set():
        raise StoppedError(f"{segment.name}: its run ended before the segment began.")
    before = STOP.set(end)
    try:
        return fill_work(segment, work)
    finally:
        STOP.reset(before)


def cancel(futures: Iterable[Future[Any]]) -> bool:
    """Cancel the futures that can be cancelled; return whether any is left."""
    asked = list(futures)
    for future in asked:
        # parsl's raise a NotImplementedError, which would take the place of a Ctrl-C.
        with contextlib.suppress(Exception):
            future.cancel()
    return not all(future.done() for future in asked)
