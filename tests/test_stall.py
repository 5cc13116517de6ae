"""Executors that never begin: the user is told what is being waited for."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from distributed import LocalCluster
from support import ramp, states

import flowmap
from flowmap.clusters import Dask
from flowmap.stall import StallWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have executors begin soon."""
    monkeypatch.setattr("flowmap.stall.PATIENCE_SECONDS", 0.1)


@contextlib.contextmanager
def at_warning(react: Callable[[], object], seconds: float = 30) -> Iterator[list[str]]:
    """React to the first warning, or in the end without one; give all of them."""
    told: list[str] = []
    reacted = threading.Lock()

    def once() -> None:
        if reacted.acquire(blocking=False):
            react()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            once()

    handler, timer = Handler(), threading.Timer(seconds, once)
    logger = logging.getLogger("flowmap")
    logger.addHandler(handler)
    timer.start()
    try:
        yield told
    finally:
        timer.cancel()
        timer.join()
        logger.removeHandler(handler)


class Late(Executor):
    """Begins nothing until it is let go."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Keep a call."""
        future: Future[Any] = Future()
        self.calls.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    def let_go(self) -> None:
        """Do what was submitted."""
        for call in self.calls:
            call()


def make(folder: Path) -> flowmap.Target:
    """Allocate a job of three segments, one of which was begun before."""
    target = flowmap.allocate(folder / "a.npy", 9, "f8", segments=3)

    def failing(_out: NDArray[Any], _block: flowmap.Block) -> None:
        raise ValueError

    with pytest.raises(flowmap.FlowmapError):
        flowmap.fill_segment(target.segments[0], failing)
    return target


def test_an_executor_that_does_not_begin(tmp_path: Path) -> None:
    """It is named, once, and still waited for."""
    target, late = make(tmp_path), Late()
    with at_warning(late.let_go) as told:
        assert len(flowmap.fill(target, ramp, executor=late)) == 3
    (text,) = told
    assert text.startswith(f"None of the 3 segments of {target.path} has begun 0.1 seconds")
    assert "workers of the executor (Late)" in text


def test_a_long_block_is_no_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that is being computed has been claimed: nothing is said."""
    target, looked = make(tmp_path), threading.Event()
    real = StallWatch.look

    def look(self: StallWatch) -> None:
        real(self)
        looked.set()

    monkeypatch.setattr(StallWatch, "look", look)

    def long(out: NDArray[Any], _block: flowmap.Block) -> None:
        assert looked.wait(60)
        out[...] = 1

    with at_warning(looked.set) as told, ThreadPoolExecutor(1) as pool:
        flowmap.fill(target, long, executor=pool)
    assert told == []


@pytest.fixture
def empty_cluster() -> Iterator[str]:
    """Start a Dask scheduler without workers; return its address."""
    with LocalCluster(n_workers=0, protocol="tcp://", dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_a_scheduler_without_workers(tmp_path: Path, empty_cluster: str) -> None:
    """Its address is given, and what starts a worker; SIGTERM still ends the run."""
    target = make(tmp_path)
    with (
        at_warning(lambda: os.kill(os.getpid(), signal.SIGTERM)) as told,
        pytest.raises(SystemExit),
    ):
        flowmap.fill(target, ramp, executor=empty_cluster)
    assert f"has no workers: start one with `dask worker {empty_cluster}`" in told[0]
    assert states(target) == ["failed", "pending", "pending"]


def test_stopping_without_workers(empty_cluster: str) -> None:
    """What waits is cancelled where no worker can refuse it."""
    pool = Dask(0, empty_cluster)
    future = pool.submit(abs, -1)
    stopping = threading.Thread(target=pool.stop, daemon=True)
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()
    assert future.cancelled()
