"""How far a fill is, counted and reported."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowmap.failures import record_death
from flowmap.write import forget_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment
    from flowmap.target import Target


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a fill, passed to its callback after each segment.

    Attributes:
        segments_done: Segments that are done, those of earlier runs included.
        segments_failed: Segments that failed in this run.
        segments: Segments of the job.
        rows_done: Rows of the segments that are done.
        rows: Rows of the target.
        bytes_done: Bytes of the segments that are done.
        nbytes: Bytes of the target's data.
        seconds: Since this run began.
    """

    segments_done: int
    segments_failed: int
    segments: int
    rows_done: int
    rows: int
    bytes_done: int
    nbytes: int
    seconds: float


class Tally:
    """Counter of the segments that have ended, which reports progress."""

    def __init__(
        self,
        target: Target,
        pending: Sequence[Segment],
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self.records: list[SegmentRecord] = []
        self.failures: dict[Segment, BaseException] = {}
        self._target = target
        self._progress = progress
        self._began = time.monotonic()
        self._segments_done = len(target.segments) - len(pending)
        self._rows_done = target.job.layout.rows - sum(segment.rows for segment in pending)
        self._tell()

    def count(self, segment: Segment, future: Future[SegmentRecord]) -> None:
        """Count a segment whose future has ended, and report."""
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self.records.append(future.result())
            self._segments_done += 1
            self._rows_done += segment.rows
        else:
            record_death(segment, error)
            forget_frames(error)
            self.failures[segment] = error
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            layout = self._target.job.layout
            self._progress(
                Progress(
                    segments_done=self._segments_done,
                    segments_failed=len(self.failures),
                    segments=len(self._target.segments),
                    rows_done=self._rows_done,
                    rows=layout.rows,
                    bytes_done=self._rows_done * layout.row_bytes,
                    nbytes=layout.nbytes,
                    seconds=time.monotonic() - self._began,
                )
            )
