"""Pools of workers that can be ended at once, and that lose only the task a death cost.

Both are `concurrent.futures.Executor`s with two methods more: `stop()` waits for the blocks in
hand, `end()` does not.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from flowmap.errors import InvalidArgumentError, StoppedError, WorkerDiedError
from flowmap.machine import thread_limits
from flowmap.parcels import Packing, call_with_kept, keep
from flowmap.segments import Segment
from flowmap.starting import cannot_start, start, starting_threads
from flowmap.worker_processes import WorkerGoneError, WorkerNotStartedError, WorkerProcess
from flowmap.write import STOP, forget_frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowmap.parcels import Parcel

P = ParamSpec("P")
T = TypeVar("T")

TRIES: Final = 3
"""How often a task is tried whose worker dies: a death may be another's fault (memory)."""

_WAKE_SECONDS: Final = 1
"""The longest that a signal may have to wait for the main thread."""

_AGAIN_SECONDS: Final = 1
"""How long to wait before a worker that could not be started is tried again."""


class Threads(ThreadPoolExecutor):
    """Threads of this process; a filler is asked to stop before its next block.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        self._stop = threading.Event()
        super().__init__(workers, "flowmap", initializer=STOP.set, initargs=(self._stop,))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in the next thread that is free.

        Raises:
            InvalidArgumentError: The system allows no more threads; the pool is stopped.
        """
        if self._stop.is_set():
            raise CancelledError
        try:
            with starting_threads():
                return super().submit(fn, *args, **kwargs)
        except InvalidArgumentError:
            self._stop.set()  # Python has queued the task all the same, and nobody waits for it
            raise

    @property
    def ended(self) -> bool:
        """Whether it was stopped or ended, so that what was cancelled is no failure."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Cancel what waits and what comes, and wait for the blocks in hand."""
        self._stop.set()
        self.shutdown(cancel_futures=True)

    end = stop  # a thread cannot be killed


@dataclass(frozen=True, slots=True)
class _Task:
    """What was submitted, and the work that it goes with."""

    future: Future[Any]
    parcel: Parcel | None
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """Its segment's name, for messages."""
        named = (each.name for each in self.args if isinstance(each, Segment))
        return next(named, getattr(self.fn, "__name__", str(self.fn)))


class Processes(Executor):
    """Warm worker processes, each replaced by itself when it dies.

    Calls are pickled with cloudpickle, so that functions of a script or a notebook travel. A
    work that is the last argument of a call is sent to each worker once. Each worker has a
    thread of this process, which alone starts it, uses it and ends it.

    Args:
        workers: How many.
        tries: How often a task is tried whose worker dies.
        sharing: How many workers share the processors; None for as many as these are.

    Attributes:
        processes: How many there are.

    Raises:
        InvalidArgumentError, StorageError: No worker can be started here.
    """

    def __init__(self, workers: int, tries: int = TRIES, sharing: int | None = None) -> None:
        self.processes = workers
        self.tries = tries
        self.limits = thread_limits(sharing or workers)
        self.tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self.is_ending = False
        self.fault: Exception | None = None
        self._packing = Packing()
        self._guard = threading.Lock()
        self._futures: set[Future[Any]] = set()  # that are not done
        self._seats: list[_Seat] = []
        self._cancelled = False
        self._closed = False
        # The first is made now: what keeps it from starting is one error, before any segment.
        first: Future[None] = Future()
        self._add_seat(first)
        try:
            first.result()
        except BaseException:  # Ctrl-C, too
            self.end()
            raise

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function in the next worker that is free.

        Raises:
            InvalidArgumentError: Not all of the workers can be started.
        """
        future: Future[T] = Future()
        try:
            args, parcel = self._packing.part(args)
        except PicklingError as error:
            future.set_exception(error)
            return future
        with self._guard:
            if self._cancelled:
                raise CancelledError
            if self.fault is not None:
                raise self.fault
            if self._closed:
                raise RuntimeError("the pool is closed")
            if len(self._seats) < min(len(self._futures) + 1, self.processes):
                self._add_seat()
            self._futures.add(future)
            self.tasks.put(_Task(future, parcel, fn, args, kwargs))
        future.add_done_callback(self._futures.discard)
        return future

    def _add_seat(self, first: Future[None] | None = None) -> None:
        seat = _Seat(self, first)
        start(seat)
        self._seats.append(seat)

    @property
    def ended(self) -> bool:
        """Whether it was stopped or ended, so that what was cancelled is no failure."""
        return self._cancelled

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers when they have done what was submitted."""
        self._close(cancel_futures=cancel_futures)
        if wait:
            self._join()

    def stop(self) -> None:
        """Cancel what waits and what comes, and let the workers end after the block in hand."""
        self._cancelled = True
        self._close(cancel_futures=True)
        self._join()

    def end(self) -> None:
        """Cancel what waits and what comes, and kill the workers."""
        self._cancelled = self.is_ending = True
        self._close(cancel_futures=True)
        self._join()

    def fail(self, fault: Exception) -> None:
        """Fail what waits and what comes: a worker cannot be started."""
        self.fault = fault
        for task in self._waiting():
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(fault)

    def _close(self, *, cancel_futures: bool) -> None:
        with self._guard:
            self._closed = True
            for _ in self._seats:
                self.tasks.put(None)
        if cancel_futures:
            for task in self._waiting():
                task.future.cancel()
                task.future.set_running_or_notify_cancel()  # else `wait` never returns

    def _waiting(self) -> list[_Task]:
        """Take what waits out of the queue."""
        found = []
        with self._guard, contextlib.suppress(queue.Empty):
            while True:
                if (task := self.tasks.get_nowait()) is not None:
                    found.append(task)
        with self._guard:
            for _ in self._seats if self._closed else ():
                self.tasks.put(None)
        return found

    def _join(self) -> None:
        for seat in self._seats:
            while seat.is_alive():
                seat.join(_WAKE_SECONDS)


class _Seat(threading.Thread):
    """A thread with its worker process.

    A daemon: a pool that nobody ends does not keep the program from ending.

    Args:
        pool: Whose tasks it takes.
        first: To be told whether the worker could be started; None to start it for a task.
    """

    def __init__(self, pool: Processes, first: Future[None] | None) -> None:
        super().__init__(name="flowmap-worker", daemon=True)
        self.worker: WorkerProcess | None = None
        self._pool = pool
        self._first = first
        self._asked: WorkerProcess | None = None

    def run(self) -> None:
        """Do what a worker thread does: task for task, until the pool ends."""
        try:
            if self._first is None or self._has_begun(self._first):
                while self._has_done_next():
                    pass
        finally:
            if self.worker is not None:
                end = self.worker.kill if self._pool.ended else self.worker.leave
                end()

    def _has_begun(self, first: Future[None]) -> bool:
        self._first = None
        try:
            self.worker = WorkerProcess(self._look, self._pool.limits)
        except BaseException as error:  # noqa: BLE001 -- that of who opens the pool
            is_limit = isinstance(error, WorkerNotStartedError)
            first.set_exception(cannot_start("a worker process", error) if is_limit else error)
            return False
        first.set_result(None)
        return True

    def _has_done_next(self) -> bool:
        """Do the next task; return False if there is none to come."""
        task = self._pool.tasks.get()
        if task is None:
            return False
        if task.future.set_running_or_notify_cancel():
            try:
                result = self._result_of(task)
            except BaseException as error:  # noqa: BLE001 -- that of who submitted it
                forget_frames(error)  # which keep what was sent
                task.future.set_exception(error)
                del task
            else:
                task.future.set_result(result)
        return True

    def _look(self, worker: WorkerProcess) -> None:
        """Do what the pool asks for while a worker computes."""
        if self._pool.is_ending:
            worker.kill()
        elif self._pool.ended and self._asked is not worker:
            self._asked = worker
            worker.ask_to_stop()

    def _result_of(self, task: _Task) -> Any:
        death: Exception
        for _ in range(self._pool.tries):
            try:
                if self.worker is None:
                    self.worker = WorkerProcess(self._look, self._pool.limits)
                return self._call(self.worker, task)
            except (StoppedError, WorkerGoneError) as error:  # it takes no more
                if self.worker is not None:
                    self.worker.kill()
                    self.worker = None
                if self._pool.ended:
                    raise error if isinstance(error, StoppedError) else CancelledError from None
                death = error
            if isinstance(death, WorkerNotStartedError):
                time.sleep(_AGAIN_SECONDS)
        if isinstance(death, WorkerNotStartedError):
            fault = cannot_start("a worker process", death)
            self._pool.fail(fault)
            raise fault
        often = f", {self._pool.tries} times over" if self._pool.tries > 1 else ""
        raise WorkerDiedError(
            f"{task.name}: the worker process died{often} ({death}). The filler "
            "crashed it, or the system killed it, as it does when memory runs out; "
            "fewer workers or smaller blocks may help."
        ) from death

    def _call(self, worker: WorkerProcess, task: _Task) -> Any:
        if task.parcel is None:
            return worker.call(task.name, task.fn, *task.args, **task.kwargs)
        if worker.has != task.parcel.key:
            worker.has = None
            worker.call(task.name, keep, task.parcel, task.name)
            worker.has = task.parcel.key
        return worker.call(task.name, call_with_kept, task.fn, *task.args, **task.kwargs)
