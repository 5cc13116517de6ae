"""Ending a run in an executor of somebody else's, whose futures cannot be cancelled."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support import logged_rows, ramp, script, start, states

import flowmap
from flowmap.cancellation import fill_for_run
from flowmap.errors import StoppedError
from flowmap.lease import is_over, leased
from flowmap.sidecar import Sidecar
from flowmap.work import Work
from flowmap.write import STOP

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

REFUSING = """
import signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import flowmap
from support import logged

signal.signal(signal.SIGINT, signal.default_int_handler)
path, log, gate, way = sys.argv[1:]

def refuse():
    if way == "raises":
        raise NotImplementedError("Cancel not implemented")
    return False

class Refusing(ThreadPoolExecutor):
    def submit(self, fn, /, *args, **kwargs):
        future = super().submit(fn, *args, **kwargs)
        future.cancel = refuse
        return future

def gated(out, block):
    logged(out, block, log=log)
    print("begun\\n", end="", flush=True)  # in one piece: another thread prints, too
    while not Path(gate).exists():
        time.sleep(0.01)

target = flowmap.open_target(path)
with Refusing(2) as pool:
    try:
        flowmap.fill(target, gated, executor=pool)
    except BaseException as error:
        print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize("way", ["raises", "returns False"])
def test_ctrl_c_where_nothing_can_be_cancelled(tmp_path: Path, way: str) -> None:
    """It comes through at once, and of what was submitted nothing more begins."""
    target = flowmap.allocate(tmp_path / "a.npy", 40, "f8", segments=10, block_rows=4)
    log, gate = tmp_path / "log", tmp_path / "gate"
    child = start(script(REFUSING, target.path, log, gate, way))
    assert child.stdout is not None
    try:
        assert [child.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "KeyboardInterrupt\n"
    finally:
        gate.touch()  # its pool goes on with what was submitted
        output, _ = child.communicate(timeout=100)
    assert output == ""
    assert sorted(logged_rows(log)) == [0, 4]
    assert states(target) == ["done"] * 2 + ["pending"] * 8
    assert Sidecar.of(target.path).run.exists()
    flowmap.reset(target, [0, 1])  # which other work has done
    flowmap.fill(target, ramp, executor="threads")
    assert set(states(target)) == {"done"}
    assert not Sidecar.of(target.path).run.exists()


def test_a_lease_says_that_its_run_is_over(tmp_path: Path) -> None:
    """It was given back with work left, or another run took it; no lease is no word."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8")
    path = target.path
    with leased(target.job, "first") as first:
        assert not is_over(path, first.token)
        first.note_work_left()
    assert is_over(path, first.token)
    with leased(target.job, "second") as second:
        assert is_over(path, first.token)
        assert not is_over(path, second.token)
    assert not is_over(path, second.token)


def test_a_run_that_ends_stops_before_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block that is being filled is kept; a segment that has not begun computes nothing."""
    monkeypatch.setattr("flowmap.cancellation._LOOK_SECONDS", 0)
    target = flowmap.allocate(tmp_path / "a.npy", 8, "f8", segments=2, block_rows=2)
    with leased(target.job, "run") as lease:

        def last(out: NDArray[Any], block: flowmap.Block) -> None:
            out[...] = 1
            lease.note_work_left()
            lease.end()

        work = Work.of(last)
        with pytest.raises(StoppedError, match="was stopped"):
            fill_for_run(target.segments[0], work, lease.token)
        with pytest.raises(StoppedError, match=r"0001 \[4:8\]: its run ended before"):
            fill_for_run(target.segments[1], work, lease.token)
    assert target.status()["rows_done"].tolist() == [2, 0]
    assert states(target) == ["pending"] * 2


def test_the_end_of_a_pool_stops_it_too(tmp_path: Path) -> None:
    """A pool of flowmap's own that is passed in says so to its threads in its own way."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", segments=1, block_rows=2)
    ended = threading.Event()

    def last(_out: NDArray[Any], _block: flowmap.Block) -> None:
        ended.set()

    before = STOP.set(ended)
    try:
        with pytest.raises(StoppedError, match="was stopped"):
            fill_for_run(target.segments[0], Work.of(last), "of no lease")
    finally:
        STOP.reset(before)
    assert target.status()["rows_done"].tolist() == [2]
