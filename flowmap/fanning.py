"""Fanning the segments of a job out to an executor, each in a task run of its own."""

from __future__ import annotations

import heapq
import queue
import time
from collections import deque
from concurrent.futures import CancelledError, Executor, Future
from typing import TYPE_CHECKING, Final, Self

from prefect.states import Completed, Failed
from prefect.utilities.math import clamped_poisson_interval

from flowmap.errors import StoppedError, said
from flowmap.failures import clean_traceback, record_death
from flowmap.stopping import refuse_if_asked
from flowmap.task_runs import SECONDS_UNTOLD, SegmentRun
from flowmap.tasks import RETRY_SECONDS, cancelled, cut_short, fill_task, worth_a_retry
from flowmap.write import fill_work

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment
    from flowmap.stall import StallWatch
    from flowmap.work import Work

_SPARE: Final = 4
"""Segments handed out beyond the workers, so that none of these waits for the next."""


class FanOut:
    """Hands segments to an executor, and tells Prefect what becomes of each.

    A segment begins when it is handed out; there are never more under way than the executor
    has workers, and a few. The `with` block encloses that of the executor: its end tells
    Prefect of those that were under way when the run was cut short.

    Args:
        work: What fills the segments.
        width: How many the executor fills at once.
    """

    def __init__(self, work: Work, width: int) -> None:
        self._work = work
        self._most = width + _SPARE
        self._ended: queue.SimpleQueue[Future[SegmentRecord]] = queue.SimpleQueue()
        self._under_way: dict[Future[SegmentRecord], SegmentRun] = {}
        self._delayed: list[tuple[float, int, SegmentRun]] = []  # a heap, the next one first
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_why: object) -> None:
        for future, run in self._under_way.items():
            filled = future.done() and not future.cancelled() and future.exception() is None
            run.end(Completed() if filled else cancelled())
        for _due, _index, run in self._delayed:
            run.end(cancelled())

    def fill(
        self, executor: Executor, segments: Iterable[Segment], watch: StallWatch | None = None
    ) -> Iterator[tuple[Segment, BaseException | None]]:
        """Fill segments; yield each when it has ended for good, with why it failed if it did.

        A fault that may pass is tried again, some time later.

        Args:
            executor: Where they are filled.
            segments: In the order in which they are handed out.
            watch: Warns if none of them begins.

        Raises:
            StoppedError: The process was asked to stop.
        """
        waiting = deque(segments)
        while waiting or self._under_way or self._delayed:
            refuse_if_asked()
            while self._delayed and self._delayed[0][0] <= time.monotonic():
                _, _, run = heapq.heappop(self._delayed)
                run.begin_again()
                self._hand_out(executor, run)
            while waiting and len(self._under_way) < self._most:
                self._hand_out(executor, SegmentRun(waiting.popleft(), fill_task))
            self._show()
            future = self._next_ended(watch)
            if future is None:
                continue
            run = self._under_way[future]  # and there until it is told, for a Ctrl-C meanwhile
            error = CancelledError() if future.cancelled() else future.exception()
            if error is None:
                run.end(Completed())
            elif isinstance(error, CancelledError | StoppedError):
                error = _end_cut_short(run, executor)
            elif not self._delay(run, error):
                _end_failed(run, error)
            del self._under_way[future]
            if not run.waits:
                yield run.segment, error

    def _next_ended(self, watch: StallWatch | None) -> Future[SegmentRecord] | None:
        """Return what has ended; None if nothing does for a while."""
        try:
            future = self._ended.get(timeout=self._patience())
        except queue.Empty:
            if watch is not None:
                watch.look()
            return None
        if watch is not None:
            watch.end()
        return future

    def _hand_out(self, executor: Executor, run: SegmentRun) -> None:
        try:
            future = executor.submit(fill_work, run.segment, self._work)
        except CancelledError as error:
            future = Future()
            future.set_exception(error)
        self._under_way[future] = run
        future.add_done_callback(self._ended.put)

    def _show(self) -> None:
        """Have the server told of those that have been running for a while."""
        if time.monotonic() - self._shown_at >= SECONDS_UNTOLD / 2:
            self._shown_at = time.monotonic()
            for run in self._under_way.values():
                run.show()

    def _patience(self) -> float:
        patience = SECONDS_UNTOLD / 2
        if self._delayed:
            patience = min(patience, max(0.0, self._delayed[0][0] - time.monotonic()))
        return patience

    def _delay(self, run: SegmentRun, error: BaseException) -> bool:
        """Put a segment aside whose fault may pass, if it has tries left."""
        if run.tries > len(RETRY_SECONDS) or not worth_a_retry(error):
            return False
        seconds = clamped_poisson_interval(RETRY_SECONDS[run.tries - 1], 1)
        run.log.warning("It is tried again in %.1f seconds: %s", seconds, said(error))
        run.wait(seconds)
        due = time.monotonic() + seconds
        heapq.heappush(self._delayed, (due, run.segment.index, run))
        return True


def _end_cut_short(run: SegmentRun, executor: Executor) -> StoppedError:
    error = cut_short(run.segment, executor)
    if error is not None:
        _end_failed(run, error)
        return error
    run.end(cancelled())
    return StoppedError(f"{run.segment.name} was cancelled.")


def _end_failed(run: SegmentRun, error: BaseException) -> None:
    record_death(run.segment, error)
    clean_traceback(error)
    run.log.error("%s", said(error), exc_info=error)
    run.end(Failed(message=said(error)))
