"""A Dask cluster as a pool of workers: one of this machine, or one that runs already.

The workers need the filler's package and the file system that the target lies on; no Prefect,
and no way to its server.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures import wait as _wait
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from uuid import uuid4
from weakref import WeakSet

import cloudpickle

from flowmap.errors import (
    ClusterError,
    FillerNotFoundError,
    StoppedError,
    WorkerDiedError,
    cut,
    said,
)
from flowmap.extras import extra
from flowmap.segments import Segment
from flowmap.write import STOP

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

SCHEMES: Final = ("tcp://", "tls://", "ucx://", "ws://", "wss://", "inproc://")
"""How the address of a cluster that runs begins."""

_DEATHS: Final = 2
"""How many a task may cost before it is given up, as in `workers.Processes`."""

_LOOK_SECONDS: Final = 0.1

_STOPS: Final[dict[str, threading.Event]] = {}
"""In a worker: by run, whether its fillers are to stop before their next block."""


class Dask(Executor):
    """Workers of a Dask cluster, which lose only the task that a death cost.

    Args:
        workers: How many processes of this machine, each with one thread, make a cluster of
            their own, where `address` is None.
        address: Of the scheduler of a cluster that runs; it is left as it is.

    Raises:
        MissingExtraError: Dask is not installed.
        ClusterError: There is no cluster to be had.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        self._run = uuid4().hex
        self._futures: WeakSet[Future[Any]] = WeakSet()
        self._cancelled = False
        self._distributed = extra("distributed", "dask")
        self._closing = contextlib.ExitStack()
        try:
            self._client = self._connected(workers, address)
        except BaseException:
            self._closing.close()
            raise

    def _connected(self, workers: int, address: str | None) -> Any:
        try:
            cluster = address or self._closing.enter_context(self._own(workers))
            return self._closing.enter_context(
                self._distributed.Client(cluster, set_as_default=False)
            )
        except (OSError, RuntimeError) as error:
            where = f"at {address}" if address else "of this machine"
            raise ClusterError(
                f"There is no Dask cluster {where}: {said(error).rstrip('.')}. Start one with "
                "`dask scheduler` and `dask worker`, or use executor='processes'."
            ) from error

    def _own(self, workers: int) -> Any:
        """Return a cluster whose processes do not run the user's script again."""
        deploy = extra("distributed.deploy.subprocess", "dask")
        return deploy.SubprocessCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            worker_kwargs={"memory_limit": 0, "dashboard": False},
        )

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in the next worker that is free."""
        if self._cancelled:
            raise CancelledError
        name = next((a.name for a in args if isinstance(a, Segment)), fn.__name__)
        future: Future[T] = Future()
        self._futures.add(future)
        try:
            call = cloudpickle.dumps((fn, args, kwargs))
        except Exception as error:  # noqa: BLE001 -- whatever an argument raises
            future.set_exception(error)
            return future
        task = self._client.submit(
            _run_there, self._run, name, call, key=f"{name}-{uuid4().hex}", pure=False
        )
        future.add_done_callback(lambda ended: ended.cancelled() and task.cancel())
        task.add_done_callback(lambda _: self._settle(name, future, task))
        return future

    def _settle(self, name: str, future: Future[Any], task: Any) -> None:
        """Hand on how a task ended."""
        if not future.set_running_or_notify_cancel():
            return
        if task.status == "finished":
            future.set_result(task.result())
        elif task.status == "error":
            future.set_exception(self._told(name, task.exception()))
        else:  # cancelled, or lost with its scheduler
            future.set_exception(CancelledError() if self._cancelled else self._lost(name))

    def _told(self, name: str, error: BaseException) -> BaseException:
        if not isinstance(error, self._distributed.KilledWorker):
            return error
        told = WorkerDiedError(
            f"{name}: the worker died, each time that it was tried ({cut(said(error))}). The "
            "filler crashed it, or the system killed it, as it does when memory runs out; "
            "fewer workers or smaller blocks may help."
        )
        told.__cause__ = error
        return told

    def _lost(self, name: str) -> BaseException:
        return ClusterError(f"{name}: the Dask cluster is gone. Run again: what is done is kept.")

    @property
    def ended(self) -> bool:
        """Whether it was stopped or ended, so that what was cancelled is no failure."""
        return self._cancelled

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, or end it where it is its own, when all that was submitted is done."""
        if cancel_futures:
            for future in list(self._futures):
                future.cancel()
        if wait:
            _wait(list(self._futures))
            self._leave()

    def stop(self) -> None:
        """Cancel what waits and what comes, and leave after the blocks in hand."""
        self._cancelled = True
        while running := [future for future in list(self._futures) if not future.done()]:
            self._tell_all()  # again and again, since a worker may have been starting
            _wait(running, _LOOK_SECONDS)
        self._leave()

    def end(self) -> None:
        """Cancel what waits and what comes; kill the workers, or let them stop in their time."""
        self._cancelled = True
        self._tell_all()
        for future in list(self._futures):
            future.cancel()
        self._leave()

    def _tell_all(self) -> None:
        with contextlib.suppress(Exception):  # a worker that is dying
            self._client.run(_stop_here, self._run, on_error="ignore")

    def _leave(self) -> None:
        self._closing.close()


def _run_there(run: str, name: str, call: bytes) -> Any:
    """Call what was submitted, in a worker."""
    stop = _STOPS.setdefault(run, threading.Event())
    if stop.is_set():
        raise StoppedError(f"{name} was stopped before it began.")
    try:
        fn, args, kwargs = cloudpickle.loads(call)
    except Exception as error:
        raise FillerNotFoundError(
            f"{name}: a worker cannot load the filler or its arguments ({said(error)}). Put "
            "them into a module that can be imported there too."
        ) from error
    before = STOP.set(stop)
    try:
        return fn(*args, **kwargs)
    finally:
        STOP.reset(before)


def _stop_here(run: str) -> None:
    """Let the fillers of a run that this worker has stop before their next block."""
    _STOPS.setdefault(run, threading.Event()).set()
