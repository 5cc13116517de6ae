"""Workers end with the process that started them, and with nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support import script, start, until_gone

import flowmap
from flowmap.stopping import is_asked
from flowmap.workers import Processes

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

GREEDY = """
import ctypes, sys
import flowmap

def greedy(out, block):
    print("worker", flush=True)
    ctypes.PyDLL(None).sleep(600)  # keeps the GIL

target = flowmap.allocate(sys.argv[1], 4, "f8", segments=2)
flowmap.fill(target, greedy, executor=sys.argv[2], workers=2)
"""


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_a_worker_that_holds_the_gil_ends_with_its_run(tmp_path: Path, kind: str) -> None:
    """After `kill -9` of the run, though no thread of the worker can run."""
    child = start(script(GREEDY, tmp_path / "a.npy", kind), start_new_session=True)
    assert child.stdout is not None
    try:
        assert [child.stdout.readline() for _ in range(2)] == ["worker\n"] * 2
        child.kill()
        child.wait()
        assert not until_gone(child.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()


def held(mark: Path, gate: Path) -> int:
    """Say that a worker has begun, and wait; return which worker it is."""
    mark.touch()
    while not gate.exists():
        time.sleep(0.01)
    return os.getpid()


def until_asked(mark: Path) -> int:
    """Say that a worker has begun, and go on for a while after it was asked to stop."""
    mark.touch()
    while not is_asked():
        time.sleep(0.01)
    time.sleep(0.5)
    return os.getpid()


def until_there(mark: Path) -> None:
    """Wait for a file."""
    while not mark.exists():
        time.sleep(0.01)


def test_a_worker_finishes_its_block(tmp_path: Path) -> None:
    """The pool's idle threads end at once when it is stopped; the block in hand is finished."""
    pool = Processes(2)
    gate = tmp_path / "gate"
    other = pool.submit(held, tmp_path / "held", gate)
    until_there(tmp_path / "held")
    last = pool.submit(until_asked, tmp_path / "asked")
    until_there(tmp_path / "asked")
    gate.touch()
    idle = other.result()
    pool.stop()
    assert last.result() != idle


def test_a_worker_outlives_the_thread_that_opened_its_pool() -> None:
    """What is opened and used in a thread goes on with the same workers after its end."""
    with contextlib.ExitStack() as stack:
        pools: list[Executor] = []
        pids: list[int] = []

        def opening() -> None:
            pools.append(stack.enter_context(flowmap.executor("processes", workers=1)))
            pids.append(pools[0].submit(os.getpid).result())

        thread = threading.Thread(target=opening)
        thread.start()
        thread.join()
        pids += [pools[0].submit(os.getpid).result() for _ in range(3)]
        assert len(set(pids)) == 1
