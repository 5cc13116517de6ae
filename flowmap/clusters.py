"""A Dask cluster as a pool of workers: one of this machine, or one that runs already.

The workers need the filler's package and the file system that the target lies on; no Prefect,
and no way to its server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as _wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from uuid import uuid4
from weakref import WeakSet

from flowmap import pickling
from flowmap.dask_connection import Connection
from flowmap.errors import ClusterError, StoppedError, WorkerDiedError, said
from flowmap.extras import extra
from flowmap.parcels import Packing, Parcel, loaded
from flowmap.segments import Segment
from flowmap.stopping import refuse_if_asked
from flowmap.workers import TRIES
from flowmap.write import STOP

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

_LOOK_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 5
_SPREAD_SECONDS: Final = 30  # another's workers may be busy

_SCHEMES: Final = ("tcp://", "tls://", "ucx://", "ws://", "wss://", "inproc://")


@dataclass(frozen=True, slots=True)
class _Here:
    """What a worker knows of a run: what it has in hand, and whether that is to stop."""

    stop: threading.Event = field(default_factory=threading.Event)
    in_hand: set[object] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Call:
    """What was submitted: a pickled call, and the work that it goes with."""

    name: str
    pickled: bytes
    parcel: Parcel | None


_RUNS: Final[defaultdict[str, _Here]] = defaultdict(_Here)
"""In a worker: the runs that it works for."""


def address_of(name: object) -> str | None:
    """Return the address of the cluster that an executor's name stands for, if one runs.

    "dask" is the cluster that Dask is configured for ("scheduler-address", as by the variable
    DASK_SCHEDULER_ADDRESS), like the one that `distributed.Client()` finds.

    Raises:
        MissingExtraError: Dask is not installed.
    """
    if name == "dask":
        address: str | None = extra("dask.config", "dask").get("scheduler-address", None)
        return address
    return name if isinstance(name, str) and name.startswith(_SCHEMES) else None


class Dask(Executor):
    """Workers of a Dask cluster, each death of which costs only what that worker had in hand.

    A worker may have several tasks, and its death does not say whose fault it was. What died
    is therefore tried again one at a time, when nothing else is left that could kill it. So a
    segment that keeps killing its worker fails by itself.

    A work that is the last argument of a call is a task of its own, on which the calls depend:
    so the scheduler has it once, and can have it made again when the worker that had it dies;
    workers get it from each other, once each; and Dask drops it when this client is gone.

    Args:
        workers: How many processes of this machine, each with one thread, make a cluster of
            their own, where `address` is None.
        address: Of the scheduler of a cluster that runs; it is left as it is.

    Raises:
        MissingExtraError: Dask is not installed.
        ClusterError: There is no cluster to be had.

    Attributes:
        width: How many functions it runs at once, with the workers that it has at first.
        processes: How many processes these are.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        self._run = uuid4().hex
        self._futures: WeakSet[Future[Any]] = WeakSet()
        self._cancelled = False
        self._killed: type[Exception] = extra("distributed", "dask").KilledWorker
        self._connection = Connection(workers, address)
        self._client = self._connection.client
        threads = self._connection.threads
        self.width, self.processes = workers or sum(threads.values()), workers or len(threads)
        self._again = ThreadPoolExecutor(1, "flowmap-again")
        self._first_tries: WeakSet[Future[Any]] = WeakSet()
        self._count = itertools.count()
        self._packing = Packing()
        self._guard = threading.Lock()
        self._sent: tuple[Parcel | None, Any] = (None, None)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function in the next worker that is free."""
        if self._cancelled:
            raise CancelledError
        segment = next((a for a in args if isinstance(a, Segment)), None)
        name = segment.name if segment else getattr(fn, "__name__", str(fn))
        future: Future[T] = Future()
        try:
            args, parcel = self._packing.part(args)
            call = _Call(name, pickling.dumps((fn, args, kwargs)), parcel)
        except Exception as error:  # noqa: BLE001 -- whatever an argument raises
            future.set_exception(error)
            return future
        task = self._task(future, call)
        self._first_tries.add(task)
        task.add_done_callback(partial(self._first_end, future, call))
        # Last: a signal's exception may cut this short, and nothing would end the future.
        self._futures.add(future)
        return future

    def _task(self, future: Future[Any], call: _Call) -> Future[Any]:
        """Send a call to the cluster, under a key that Dask's dashboard shows."""
        # All of one group, as Dask tells it by the first part: it keeps these to itself until
        # a worker is free.
        key = (f"fill-{self._run}", call.name, next(self._count))
        sent = None if call.parcel is None else self._sent_work(call.parcel)
        there = self._client.submit(
            _run_there, self._run, call.name, call.pickled, sent, key=key
        )
        future.add_done_callback(lambda ended: ended.cancelled() and there.cancel())
        task: Future[Any] = Future()
        self._client.loop.add_callback(_hand_on, there, task)
        return task

    def _sent_work(self, parcel: Parcel) -> Any:
        """Return Dask's future of a work in the cluster; send the work there if need be."""
        with self._guard:
            last, there = self._sent
            # The worker that had it in hand may have been killed by something else.
            if last is not parcel or there.status == "error":
                key = (f"work-{self._run}", next(self._count))
                with _any_size():
                    there = self._client.submit(Parcel, parcel.data, key=key)
                self._spread(there)
                self._sent = parcel, there
            return there

    def _spread(self, there: Any) -> None:
        """Have every worker get a work, before a call begins in the first that has it.

        Workers get it from each other, and no worker answers while its filler keeps the GIL.
        """
        with contextlib.suppress(Exception):  # the calls get it later, or say what is wrong
            if self._connection.ask(self._client.nthreads, _ANSWER_SECONDS):
                self._connection.ask(
                    lambda: self._client.replicate([there]), _SPREAD_SECONDS, refuse_if_asked
                )

    def _first_end(self, future: Future[Any], call: _Call, task: Future[Any]) -> None:
        """Hand on how a task ended, or try it again where it may have died for another."""
        if self._died(task) and not self._cancelled:
            self._again.submit(self._try_again, future, call)
        else:
            self._settle(future, call.name, task)

    def _died(self, task: Future[Any]) -> bool:
        return isinstance(task.exception(), self._killed)

    def _try_again(self, future: Future[Any], call: _Call) -> None:
        for _ in range(TRIES - 1):
            while first := next((t for t in list(self._first_tries) if not t.done()), None):
                if self._cancelled:
                    future.cancel()
                    return
                _wait([first], _LOOK_SECONDS)
            task = self._task(future, call)
            _wait([task])
            if not self._died(task) or self._cancelled:
                break
        self._settle(future, call.name, task)

    def _settle(self, future: Future[Any], name: str, task: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        error = task.exception()
        if error is None:
            future.set_result(task.result())
        elif isinstance(error, CancelledError) and not self._cancelled:
            future.set_exception(
                ClusterError(
                    f"{name}: the Dask cluster is gone. Run again: what is done is kept."
                )
            )
        elif isinstance(error, self._killed):
            told = WorkerDiedError(
                f"{name}: the worker died, {TRIES} times over, also when it had nothing else. "
                "The filler crashed it, or the system killed it, as it does when memory runs "
                "out; fewer workers or smaller blocks may help."
            )
            told.__cause__ = error
            future.set_exception(told)
        else:
            future.set_exception(error)

    def advice(self) -> str:
        """Say what to look at where no function begins."""
        scheduler = f"The Dask scheduler at {self._client.scheduler.address}"
        try:
            workers = len(self._connection.ask(self._client.nthreads, _ANSWER_SECONDS))
        except Exception as error:  # noqa: BLE001 -- whatever a lost connection raises
            return f"{scheduler} does not answer ({said(error)}): look at its log."
        if not workers:
            start = f"dask worker {self._client.scheduler.address}"
            return f"{scheduler} has no workers: start one with `{start}`."
        return f"{scheduler} has {workers} workers: look whether they have other work to do."

    @property
    def ended(self) -> bool:
        """Whether it was stopped or ended, so that what was cancelled is no failure."""
        return self._cancelled

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, or end its own, when all that was submitted is done."""
        if cancel_futures:
            self._cancel()
        if wait:
            _wait(list(self._futures))
            self._leave()

    def stop(self) -> None:
        """Cancel what waits and what comes, and leave after the blocks in hand."""
        self._cancelled = True
        while any(told := self._tell(_stop_here, patient=True)) or not all(
            f.done() for f in self._futures
        ):
            if not told:  # there is no worker that could end what waits
                self._cancel()
            time.sleep(_LOOK_SECONDS)
        self._leave()

    def end(self) -> None:
        """Cancel what waits and what comes; kill its own workers, others stop in their time."""
        self._cancelled = True
        self._tell(_stop_here)
        self._cancel()
        self._leave()

    def _cancel(self) -> None:
        for future in list(self._futures):
            future.cancel()

    def _tell(self, what: Callable[[str], int], *, patient: bool = False) -> list[int]:
        """Call a function in each worker; return what they say, as far as they are there.

        A worker whose filler keeps the GIL does not answer. A patient caller waits for it as
        long as the scheduler answers.
        """
        with contextlib.suppress(Exception):  # the scheduler is gone, or does not answer
            answer = self._connection.begin(
                lambda: self._client.run(what, self._run, on_error="ignore")
            )
            while patient and not _wait([answer], _ANSWER_SECONDS).done:
                self._connection.ask(self._client.nthreads, _ANSWER_SECONDS)
            return list(answer.result(_ANSWER_SECONDS).values())
        return []

    def _leave(self) -> None:
        self._tell(_forget_here)
        self._again.shutdown(cancel_futures=True)
        self._connection.close()


def _any_size() -> contextlib.AbstractContextManager[object]:
    """Keep Dask from warning that a work is large, which is the user's to decide."""
    limit = {"distributed.admin.large-graph-warning-threshold": sys.maxsize}
    setting: contextlib.AbstractContextManager[object] = extra("dask.config", "dask").set(limit)
    return setting


async def _hand_on(there: Any, task: Future[Any]) -> None:
    """Wait for a future of Dask's, in its loop, and tell one of Python's how it ended.

    The futures of Dask's own executor never end when the worker dies that a result is fetched
    from and the second computation, which Dask begins by itself, fails.
    """
    try:
        task.set_result(await there)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- whatever it raises
        # Of the function; anything else means that it was cancelled, or the cluster is gone.
        task.set_exception(error if there.status == "error" else CancelledError())


def _run_there(run: str, name: str, call: bytes, parcel: Parcel | None) -> Any:
    """Call what was submitted, in a worker; with the work that came with it, if one did."""
    here, this = _RUNS[run], object()
    here.in_hand.add(this)
    before = STOP.set(here.stop)
    try:
        if here.stop.is_set():
            raise StoppedError(f"{name} was stopped before it began.")
        fn, args, kwargs = loaded(call, name)
        return fn(*args, *([] if parcel is None else [parcel.load(name)]), **kwargs)
    finally:
        STOP.reset(before)
        here.in_hand.discard(this)


def _stop_here(run: str) -> int:
    """Let the fillers of a run stop before their next block; return how many there are."""
    _RUNS[run].stop.set()
    return len(_RUNS[run].in_hand)


def _forget_here(run: str) -> int:
    _RUNS.pop(run, None)
    return 0
