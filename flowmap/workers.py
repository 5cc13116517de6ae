"""Pools of workers that can be ended at once, and that lose only the task a death cost.

Both are `concurrent.futures.Executor`s with two methods more: `stop()` waits for the blocks in
hand, `end()` does not.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from weakref import WeakSet

from loky.process_executor import ProcessPoolExecutor, ShutdownExecutorError

from flowmap.errors import FillerNotFoundError, StoppedError, WorkerDiedError, cut
from flowmap.machine import thread_limits
from flowmap.parcels import Packing, call_with_kept, keep
from flowmap.segments import Segment
from flowmap.stopping import shield_children
from flowmap.wording import setting
from flowmap.worker_processes import call, check_may_start, new_pool
from flowmap.write import STOP

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    from flowmap.parcels import Parcel

P = ParamSpec("P")
T = TypeVar("T")

TRIES: Final = 3
"""How often a task is tried whose worker dies: a death may be another's fault (memory)."""

_LOOK_SECONDS: Final = 0.1
"""How long to wait between two looks at the workers that are to stop."""


class Threads(ThreadPoolExecutor):
    """Threads of this process; a filler is asked to stop before its next block.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        self._stop = threading.Event()
        super().__init__(workers, "flowmap", initializer=STOP.set, initargs=(self._stop,))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in the next thread that is free."""
        if self._stop.is_set():
            raise CancelledError
        return super().submit(fn, *args, **kwargs)

    @property
    def ended(self) -> bool:
        """Whether it was stopped or ended, so that what was cancelled is no failure."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Cancel what waits and what comes, and wait for the blocks in hand."""
        self._stop.set()
        self.shutdown(cancel_futures=True)

    end = stop  # a thread cannot be killed


class Processes(Executor):
    """Warm worker processes, each replaced by itself when it dies.

    loky starts them with fork and exec: safe under threads, and the user's script is not
    run again in them. It pickles with cloudpickle, so that functions of a script or a
    notebook travel. One pool of one process each, since a pool is broken as a whole. One
    thread starts them all and ends last: Linux kills a worker with the thread that started it.
    A work that is the last argument of a call is sent to each worker once.

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
        check_may_start()
        self.processes = workers
        self._limits = thread_limits(sharing or workers)
        self._tries = tries
        self._idle: queue.SimpleQueue[ProcessPoolExecutor | None] = queue.SimpleQueue()
        self._pools: dict[ProcessPoolExecutor, str | None] = {}  # with the work that it has
        self._packing = Packing()
        self._futures: WeakSet[Future[Any]] = WeakSet()
        self._guard = threading.Lock()
        self._ended = False
        self._cancelled = False
        self._threads = ThreadPoolExecutor(workers, "flowmap", initializer=shield_children)
        self._starter = ThreadPoolExecutor(1, "flowmap-starter", initializer=shield_children)
        # The first is made now: what keeps it from starting is one error, before any segment.
        self._idle.put(self._starter.submit(self._start).result())
        for _ in range(workers - 1):
            self._idle.put(None)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function in the next worker that is free."""
        if self._cancelled:
            raise CancelledError
        try:
            args, parcel = self._packing.part(args)
        except PicklingError as error:
            unsent: Future[T] = Future()
            unsent.set_exception(error)
            return unsent
        future = self._threads.submit(self._run, parcel, fn, args, kwargs)
        self._futures.add(future)
        return future

    def _run(
        self,
        parcel: Parcel | None,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> T:
        name = next(
            (a.name for a in args if isinstance(a, Segment)), getattr(fn, "__name__", fn)
        )
        pool = self._idle.get()
        try:
            death: Exception
            for _ in range(self._tries):
                pool = pool or self._start()
                try:
                    if parcel is None:
                        result: T = self._call(pool, fn, *args, **kwargs)
                    else:
                        self._deliver(pool, parcel, str(name))
                        result = self._call(pool, call_with_kept, fn, *args, **kwargs)
                except ShutdownExecutorError:  # by end()
                    raise CancelledError from None
                except StoppedError as error:  # by a signal: this worker takes no more
                    self._forget(pool)
                    pool = None
                    if self._cancelled:
                        raise
                    death = error
                except BrokenExecutor as error:
                    death = error
                    self._forget(pool)
                    pool = None
                    if "un-serialize" in str(error):  # no death, and no retry would help
                        raise FillerNotFoundError(
                            f"{name}: a worker cannot load the filler or its arguments "
                            f"({_cause_of(error)}). Put them into a module that can be "
                            f"imported there too, or use {setting(executor='threads')}."
                        ) from (error.__cause__ or error)
                else:
                    return result
        finally:
            self._idle.put(pool)
        often = f", {self._tries} times over" if self._tries > 1 else ""
        raise WorkerDiedError(
            f"{name}: the worker process died{often} ({_first_line(death)}). The filler "
            "crashed it, or the system killed it, as it does when memory runs out; "
            "fewer workers or smaller blocks may help."
        ) from death

    def _deliver(self, pool: ProcessPoolExecutor, parcel: Parcel, name: str) -> None:
        """Send a work to a worker, unless that is what the worker was sent last."""
        if self._pools.get(pool) != parcel.key:
            self._pools[pool] = None
            self._call(pool, keep, parcel, name)
            self._pools[pool] = parcel.key

    def _call(
        self,
        pool: ProcessPoolExecutor,
        fn: Callable[P, T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        # A submission may start a process: the first, or one in place of another.
        task: Future[T] = self._starter.submit(pool.submit, call, fn, *args, **kwargs).result()
        return task.result()

    def _start(self) -> ProcessPoolExecutor:
        with self._guard:
            if self._ended or self._cancelled:
                raise CancelledError
            pool = new_pool(self._limits)
            self._pools[pool] = None
            return pool

    def _forget(self, pool: ProcessPoolExecutor) -> None:
        with self._guard:
            self._pools.pop(pool, None)
            if self._ended:
                raise CancelledError
        pool.shutdown(kill_workers=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers when they have done what was submitted."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._end_pools(kill=False)
            self._starter.shutdown()

    @property
    def ended(self) -> bool:
        """Whether it was stopped or ended, so that what was cancelled is no failure."""
        return self._cancelled

    def stop(self) -> None:
        """Cancel what waits and what comes, and let the workers end after the block in hand."""
        self._cancelled = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        told: set[int] = set()
        while running := [f for f in list(self._futures) if not f.done()]:
            for process in self._processes():  # one may have been starting at the last look
                if process.pid is not None and process.pid not in told:
                    told.add(process.pid)
                    process.terminate()
            wait(running, _LOOK_SECONDS)
        self._end_pools(kill=True)
        self._threads.shutdown()
        self._starter.shutdown()

    def _processes(self) -> list[BaseProcess]:
        with self._guard:
            pools = list(self._pools)
        # There is no public way to them.
        return [process for pool in pools for process in list((pool._processes or {}).values())]  # noqa: SLF001

    def end(self) -> None:
        """Cancel what waits and what comes, and kill the workers."""
        self._cancelled = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._end_pools(kill=True)
        self._threads.shutdown()
        self._starter.shutdown()

    def _end_pools(self, *, kill: bool) -> None:
        with self._guard:
            self._ended = True
            pools = list(self._pools)
        # In a thread, which no Ctrl-C reaches: a second one would leave some to the end of the
        # interpreter, which waits for their workers.
        ending = threading.Thread(target=_end_all, args=(pools,), kwargs={"kill": kill})
        ending.start()
        ending.join()


def _end_all(pools: list[ProcessPoolExecutor], kill: bool) -> None:
    for pool in pools:
        pool.shutdown(kill_workers=kill)


def _first_line(error: BaseException) -> str:
    return cut(str(error).strip().partition("\n")[0].partition(". ")[0], 100)


def _cause_of(error: BaseException) -> str:
    """Return the last line of the traceback that the worker sent along, if it did."""
    text = str(error.__cause__ or "").strip(' \n"')
    return cut(text.splitlines()[-1] if text else _first_line(error))
