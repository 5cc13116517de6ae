"""SIGTERM, and what batch systems send before a time limit: nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import CancelledError, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import logged_rows, members, run, script, start, states, stop_oneself, until_gone

import flowmap
from flowmap import stopping
from flowmap.errors import StoppedError
from flowmap.sidecar import Sidecar
from flowmap.workers import Processes

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]
ROWS = 40

FILL = """
import os, sys, time
from pathlib import Path
import numpy as np
import flowmap
import flowmap.write
from flowmap import stopping

path, log, kind = sys.argv[1:4]

def asked():
    stop = flowmap.write.STOP.get()
    return stopping.is_asked() or (stop is not None and stop.is_set())

@flowmap.filler(volatile=("log", "gate"))
def gated(out, block, *, log, gate):
    sys.stdout.write(f"worker {os.getpid()}\\n")
    sys.stdout.flush()
    while not Path(gate).exists():
        time.sleep(0.01)
    while Path(gate).read_text() != "go on" and not asked():  # else all may be filled before
        time.sleep(0.01)
    with open(log, "a") as file:
        file.write(f"{block.start}\\n")
    out[...] = np.sqrt(np.arange(block.start, block.stop))

if __name__ == "__main__":
    target = flowmap.allocate(path, 40, "f8", segments=4, block_rows=2)
    arguments = {"log": log, "gate": f"{path}.gate"}
    if kind == "segment":
        for segment in target.pending():
            flowmap.fill_segment(segment, gated, arguments)
    else:
        flowmap.fill(target, gated, arguments, executor=kind, workers=2)
"""


@contextlib.contextmanager
def begun(folder: Path, kind: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a fill whose blocks wait at a gate; yield it, and who fills the first of them."""
    command = script(FILL, folder / "a.npy", folder / "log", kind)
    child = start(command, start_new_session=True)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("worker"), line
        yield child, int(line.split()[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def end(child: subprocess.Popen[str], folder: Path, gate: str = "stop") -> str:
    """Open the gate for the blocks being written; return what the fill prints until it ends.

    Behind a gate that says "stop", each block waits until its process is asked to stop.
    """
    (folder / "a.npy.gate").write_text(gate)
    output, _ = child.communicate(timeout=60)
    return output


def check_goes_on(folder: Path, kind: str) -> None:
    """Run the fill again: it computes each row that is missing, and none twice."""
    (folder / "a.npy.gate").write_text("go on")
    kind = "threads" if kind == "dask" else kind  # its cluster has shown what it can
    again = run(script(FILL, folder / "a.npy", folder / "log", kind))
    assert again.returncode == 0, again.stderr
    assert sorted(logged_rows(folder / "log")) == list(range(0, ROWS, 2))
    np.testing.assert_array_equal(np.load(folder / "a.npy"), np.sqrt(np.arange(ROWS)))
    assert flowmap.validate(folder / "a.npy").sealed


# A cluster takes long to start: it gets each signal once, and each way to be told of it.
@pytest.mark.parametrize(
    ("number", "kind", "whom"),
    [
        *itertools.product(SIGNALS[:2], ["processes", "threads", "segment"], ["run", "all"]),
        *((number, "processes", "all") for number in SIGNALS[2:]),
        (signal.SIGUSR2, "segment", "run"),
        (signal.SIGXCPU, "threads", "run"),
        (signal.SIGTERM, "dask", "all"),
        (signal.SIGUSR1, "dask", "run"),
    ],
)
def test_blocks_in_hand_are_finished(
    tmp_path: Path, number: signal.Signals, kind: str, whom: str
) -> None:
    """What is in hand becomes durable, the lease goes, and the exit code says to come again."""
    with begun(tmp_path, kind) as (child, _):
        for _ in range(2):  # a second one changes nothing
            os.kill(child.pid, number) if whom == "run" else os.killpg(child.pid, number)
        output = end(child, tmp_path)
        assert child.returncode == os.EX_TEMPFAIL, output
        assert "run again" in output
        assert "Traceback" not in output
        assert not until_gone(child.pid)
    target = flowmap.open_target(tmp_path / "a.npy")
    assert not Sidecar.of(target.path).run.exists()
    with target.job.ledger() as ledger:
        records = [ledger.read(s.index, s.start, s.stop) for s in target.segments]
    assert {"pending"} <= {record.state for record in records} <= {"pending", "done"}
    assert sum(record.rows_durable for record in records) == 2 * len(
        logged_rows(tmp_path / "log")
    )
    assert logged_rows(tmp_path / "log")
    if kind == "segment":  # the signal was there before the gate was open
        assert logged_rows(tmp_path / "log") == [0]
    check_goes_on(tmp_path, kind)


def test_one_worker_is_replaced(tmp_path: Path) -> None:
    """A signal that only one worker gets, as of a guard of memory, costs nothing."""
    with begun(tmp_path, "processes") as (child, worker):
        assert worker != child.pid
        os.kill(worker, signal.SIGTERM)
        output = end(child, tmp_path, "go on")
        assert child.returncode == 0, output
        assert worker not in members(child.pid)
    assert sorted(logged_rows(tmp_path / "log")) == list(range(0, ROWS, 2))
    assert states(flowmap.open_target(tmp_path / "a.npy")) == ["done"] * 4


def until_asked() -> None:
    """Do what a fill does: go on until it is asked to stop."""
    while not stopping.is_asked():
        time.sleep(0.01)
    raise StoppedError("asked")


@pytest.mark.parametrize("begun", [True, False])
def test_workers_that_are_starting_stop_too(begun: bool) -> None:
    """Who has a task is asked, however early; what waits is cancelled, what comes refused."""
    pool = Processes(2)
    if begun:
        pool.submit(os.getpid).result()
    futures = [pool.submit(until_asked) for _ in range(4)]
    pool.stop()
    for future in futures:
        with pytest.raises((StoppedError, CancelledError)):
            future.result(timeout=0)
    with pytest.raises(CancelledError):
        pool.submit(until_asked)


def test_a_handler_of_ones_own_stays() -> None:
    """What handles the signals already goes on to; what did not is as before in the end."""
    seen: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with stopping.stoppable():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert seen == [signal.SIGUSR1]
        assert not stopping.is_asked()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, old)


STORM = """
import os, sys
from flowmap import stopping

stopping._SAME_SECONDS = 3600  # a busy machine takes its time for so many
with stopping.stoppable():
    if os.fork() == 0:
        for _ in range(20_000):
            os.kill(os.getppid(), int(sys.argv[1]))
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_that_come_in_the_middle_of_one(number: signal.Signals) -> None:
    """A batch system sends them to each process and to its group, microseconds apart."""
    child = run(script(STORM, int(number)))
    assert child.returncode == os.EX_TEMPFAIL, child.stderr


AGAIN = """
import ctypes, os, sys
import flowmap
import flowmap.write

def endless(out, block):
    print("worker", flush=True)
    lock = ctypes.create_string_buffer(64)  # a pthread_mutex_t, which no signal wakes
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)

target = flowmap.allocate(sys.argv[1], 4, "f8", segments=2)
if sys.argv[2] == "share":
    flowmap.fill_share(target, "all", endless)
else:
    flowmap.fill(target, endless, executor=sys.argv[2], workers=1)
"""


def handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process handles a signal, as its line SigCgt in proc(5) says."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = status.partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("kind", ["processes", "threads", "dask", "share"])
def test_a_second_sigterm_ends_a_run_at_once(tmp_path: Path, kind: str) -> None:
    """Its default action does, whatever the filler is at, and no worker is left behind."""
    child = start(script(AGAIN, tmp_path / "a.npy", kind), start_new_session=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "worker\n"
        child.send_signal(signal.SIGUSR1)  # asks as well, and is no SIGTERM
        child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while handles(child.pid, signal.SIGTERM) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == -signal.SIGTERM
        assert not until_gone(child.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert not flowmap.open_target(tmp_path / "a.npy").status()["rows_done"].any()


def test_a_signal_of_a_forked_process_is_its_own() -> None:
    """It ends the child, and does not count as the first of its parent."""
    child = run(script(FORKED))
    assert child.returncode == 0, child.stderr


FORKED = """
import os, signal, time
from flowmap import stopping

with stopping.stoppable():
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGTERM
    time.sleep(2 * stopping._SAME_SECONDS)
    assert not stopping.is_asked()
    with open("/proc/self/status") as status:
        caught = status.read().partition("SigCgt:")[2].split()[0]
    assert int(caught, 16) >> (signal.SIGTERM - 1) & 1
"""


def test_a_share_claims_nothing_more(tmp_path: Path) -> None:
    """It ends after the block being written, though each block is the last of its segment."""
    target = flowmap.allocate(tmp_path / "a.npy", 6, "f8", segments=3)

    def last(_out: np.ndarray[Any, Any], _block: flowmap.Block) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        flowmap.fill_share(target, "all", last)
    assert ended.value.code == os.EX_TEMPFAIL
    assert target.status()["attempt"].tolist() == [1, 0, 0]
    assert states(target) == ["done", "pending", "pending"]


def test_a_share_gives_a_segment_back_and_ends(tmp_path: Path) -> None:
    """A segment that has more blocks stays as far as it is; no other is claimed."""
    target = flowmap.allocate(tmp_path / "a.npy", 6, "f8", segments=3, block_rows=1)

    def last(_out: np.ndarray[Any, Any], _block: flowmap.Block) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        flowmap.fill_share(target, "all", last)
    assert target.status()["attempt"].tolist() == [1, 0, 0]
    assert target.status()["rows_done"].tolist() == [1, 0, 0]


def test_only_the_main_thread_takes_signals() -> None:
    """In another thread nothing is taken, and nothing fails."""
    taken: list[Any] = []

    def look() -> None:
        with stopping.stoppable():
            taken.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert taken == [signal.SIG_DFL]


def test_what_ends_by_itself_exits_too() -> None:
    """A block that was at its end when the signal came has heard it all the same."""

    def end() -> None:
        with stopping.stoppable():
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(SystemExit) as ended:
        end()
    assert ended.value.code == os.EX_TEMPFAIL
    assert not stopping.is_asked()


def test_a_worker_of_somebody_elses_pool_does_not_exit() -> None:
    """It fails its task, and the process that has the pool goes on."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert isinstance(pool.submit(stop_oneself).exception(), StoppedError)


READING = """
import ctypes, os, sys
from flowmap import stopping

stopping.prepare_worker([])
sys.stdout.write("ready\\n")
sys.stdout.flush()
print(ctypes.CDLL(None).read(0, ctypes.create_string_buffer(1), 1), stopping.is_asked())
"""


def test_system_calls_of_a_filler_go_on() -> None:
    """What a filler in C waits for is not interrupted by the signal that a worker notes."""
    with start(script(READING), stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        stat = Path(f"/proc/{child.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":  # proc(5): it waits
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate("x", timeout=60)
    assert output == "1 True\n"


def test_a_validation_stops(tmp_path: Path) -> None:
    """A validation within a run ends before the next piece, and leaves no verdict."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    for segment in target.segments:
        flowmap.write_segment(segment, np.ones(5))

    def validate() -> None:
        with stopping.stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
            flowmap.validate(target)

    with pytest.raises(SystemExit) as ended:
        validate()
    assert ended.value.code == os.EX_TEMPFAIL
    assert isinstance(ended.value.__cause__, StoppedError)
    assert not Sidecar.of(target.path).seal.exists()
    assert flowmap.validate(target).sealed


def test_an_error_without_a_signal_stays_itself() -> None:
    """Only who was asked to stop exits."""
    with pytest.raises(StoppedError, match="by itself"), stopping.stoppable():
        raise StoppedError("by itself")


def test_a_handler_that_is_named_is_replaced() -> None:
    """Prefect's raises wherever the main thread is; it is there again afterwards."""

    def raising(*_: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, raising)
    try:
        with pytest.raises(SystemExit), stopping.stoppable(instead_of=raising):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is raising
    finally:
        signal.signal(signal.SIGTERM, before)
