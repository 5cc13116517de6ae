"""Filling a whole job: on processes, threads and other pools; deaths, failures and Ctrl-C."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import weakref
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import (
    Unloadable,
    environment,
    logged,
    logged_rows,
    members,
    ramp,
    rows,
    run,
    script,
    start,
    states,
    until_gone,
)

import flowmap
from flowmap.errors import (
    FillerError,
    FillerNotFoundError,
    InvalidArgumentError,
    OtherWorkError,
    SegmentsFailedError,
    WorkerDiedError,
    WrongTypeError,
)
from flowmap.locks import header_lock
from flowmap.sidecar import Sidecar
from flowmap.storage import buffer_of
from flowmap.workers import Processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from flowmap.progress import Progress
    from flowmap.segments import Block
    from flowmap.target import Target


def make(folder: Path, n_rows: int = 40, **how: Any) -> Target:
    """Allocate a job of ten segments."""
    how = {"segments": 10, "block_rows": 3} | how
    return flowmap.allocate(folder / "a.npy", n_rows, "f8", **how)


def check_whole(target: Target) -> None:
    """Compare with what `ramp` fills."""
    assert flowmap.validate(target).sealed
    np.testing.assert_array_equal(np.load(target.path), np.sqrt(np.arange(target.shape[0])))


@contextlib.contextmanager
def pool_of(kind: str) -> Iterator[Any]:
    """Open an executor of some kind, or give its name."""
    if kind == "spawn":
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            yield pool
    elif kind == "threads of concurrent.futures":
        with ThreadPoolExecutor(2) as pool:
            yield pool
    elif kind == "opened":
        with flowmap.executor("processes", workers=2) as pool:
            yield pool
    else:
        yield kind


@pytest.mark.parametrize(
    "kind", ["processes", "threads", "dask", "spawn", "threads of concurrent.futures", "opened"]
)
def test_any_executor_fills_the_job(tmp_path: Path, kind: str) -> None:
    """Named executors and those of concurrent.futures give the same bytes."""
    target = make(tmp_path)
    log = tmp_path / "log"
    flowmap.fill_segment(target.segments[4], logged, {"log": str(log)})
    log.unlink()
    with pool_of(kind) as pool:
        records = flowmap.fill(target, logged, {"log": str(log)}, executor=pool)
        assert sorted(record.index for record in records) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert flowmap.fill(target, logged, {"log": str(log)}, executor=pool) == []
    starts = sorted(logged_rows(log))
    assert starts == sorted(
        row
        for segment in target.segments
        if segment.index != 4
        for row in range(segment.start, segment.stop, 3)
    )
    check_whole(target)
    assert not Sidecar.of(target.path).run.exists()


@pytest.mark.parametrize(
    ("kind", "workers"), [*itertools.product(["processes", "threads"], [1, 2, 5]), ("dask", 3)]
)
def test_any_number_of_workers(tmp_path: Path, kind: Any, workers: int) -> None:
    """More workers than processors, and one alone."""
    target = make(tmp_path)
    flowmap.fill(target.path, "support:ramp", executor=kind, workers=workers)
    check_whole(target)


def test_a_job_without_segments(tmp_path: Path) -> None:
    """Nothing to fill is filled at once."""
    target = flowmap.allocate(tmp_path / "a.npy", 0, "f8")
    assert flowmap.fill(target, ramp) == []


def test_closures_travel(tmp_path: Path) -> None:
    """A function made here, with what it holds, runs in a worker process."""
    target = make(tmp_path)
    scale, here = 1.0, os.getpid()

    def closure(out: NDArray[Any], block: Block) -> None:
        assert os.getpid() != here
        out[...] = scale * rows(block)

    flowmap.fill(target, closure, workers=1)
    check_whole(target)
    other = flowmap.allocate(tmp_path / "b.npy", 8, "f8", segments=2)
    flowmap.fill(other, lambda out, block: out.fill(block.start), workers=1)
    assert other.asarray().tolist() == [0] * 4 + [4] * 4


SCRIPT = """
import sys
import numpy as np
import flowmap

print("imported", flush=True)

@flowmap.filler
def mine(out, block, *, power):
    out[...] = np.arange(block.start, block.stop) ** power

target = flowmap.allocate(sys.argv[1], 12, "f8", segments=4)
flowmap.fill(target, mine, {"power": 0.5}, executor=sys.argv[2], workers=2)
print(flowmap.validate(target).ok)
"""


@pytest.mark.parametrize("kind", ["processes", "threads", "dask"])
def test_an_unguarded_script(tmp_path: Path, kind: str) -> None:
    """A filler of a script travels, and its file is not run again in the workers."""
    file = tmp_path / "unguarded.py"
    file.write_text(textwrap.dedent(SCRIPT))
    path = tmp_path / "a.npy"
    child = run([sys.executable, str(file), str(path), kind])
    assert child.returncode == 0, child.stderr
    assert child.stdout == "imported\nTrue\n"
    np.testing.assert_array_equal(np.load(path), np.sqrt(np.arange(12)))


def test_a_name_in_a_script_is_the_same_work(tmp_path: Path) -> None:
    """A worker process records the work under the name that the script's function has."""
    file = tmp_path / "unguarded.py"
    file.write_text(textwrap.dedent(SCRIPT))
    child = run([sys.executable, str(file), str(tmp_path / "a.npy"), "processes"])
    assert child.returncode == 0, child.stderr
    works = flowmap.open_target(tmp_path / "a.npy").status()["work"]
    (recorded,) = Sidecar.of(tmp_path / "a.npy").folder.glob("work-*.json")
    assert set(works) == {recorded.stem.removeprefix("work-")}
    assert '"unguarded:mine"' in recorded.read_text()


@flowmap.filler(volatile=("mark", "times"))
def deadly(out: NDArray[Any], block: Block, *, row: int, mark: str, times: int) -> None:
    """Kill the process in which a row is computed, the first times."""
    if block.start <= row < block.stop:
        file = Path(mark)
        deaths = len(file.read_text()) if file.exists() else 0
        if deaths < times:
            file.write_text("x" * (deaths + 1))
            os.kill(os.getpid(), signal.SIGKILL)
    out[...] = rows(block)


def test_a_killed_worker_costs_a_retry(tmp_path: Path) -> None:
    """The segment in hand is tried again on a new worker, and nothing else is."""
    target = make(tmp_path)
    mark = tmp_path / "deaths"
    arguments = {"row": 21, "mark": str(mark), "times": 2}
    flowmap.fill(target, deadly, arguments, workers=2)
    assert mark.read_text() == "xx"
    check_whole(target)
    assert target.status()["attempt"].tolist() == [1, 1, 1, 1, 1, 3, 1, 1, 1, 1]


def test_a_segment_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    """It fails with its name; the others are done; a second run does only it."""
    target = make(tmp_path)
    arguments = {"row": 21, "mark": str(tmp_path / "deaths"), "times": 3}
    with pytest.raises(SegmentsFailedError, match=r"segment 0005 \[20:24\]") as caught:
        flowmap.fill(target, deadly, arguments, workers=2)
    assert list(caught.value.failures) == [5]
    assert isinstance(caught.value.failures[5], WorkerDiedError)
    assert [segment.index for segment in target.pending()] == [5]
    (failed,) = target.status()[target.status()["state"] == "failed"]
    assert failed["index"] == 5
    assert failed["reason"] == "the worker process died, 3 times over"
    (record,) = flowmap.fill(target, deadly, arguments, workers=2)
    assert record.index == 5
    check_whole(target)


@flowmap.filler(volatile=("bad",))
def failing(out: NDArray[Any], block: Block, *, bad: list[int]) -> None:
    """Fail on some rows."""
    for row in bad:
        if block.start <= row < block.stop:
            raise ValueError(f"row {row} is bad")
    out[...] = rows(block)


@pytest.mark.parametrize("kind", ["processes", "threads", "spawn"])
def test_failing_segments_do_not_stop_the_others(tmp_path: Path, kind: str) -> None:
    """They are named with their reasons; the second run fills only them."""
    target = make(tmp_path)
    with pool_of(kind) as pool:
        with pytest.raises(SegmentsFailedError) as caught:
            flowmap.fill(target, failing, {"bad": [1, 30]}, executor=pool)
        assert sorted(caught.value.failures) == [0, 7]
        assert all(isinstance(e, FillerError) for e in caught.value.failures.values())
        text = str(caught.value)
        assert text.startswith(f"2 of 10 segments of {target.path} failed:")
        assert "segment 0000 [0:4]" in text
        assert "row 30 is bad" in text
        assert "fills only those" in text
        assert [s.index for s in target.pending()] == [0, 7]
        records = flowmap.fill(target, failing, {"bad": []}, executor=pool)
    assert sorted(record.index for record in records) == [0, 7]
    check_whole(target)


def test_arguments_that_fail_are_mended_by_an_overwrite(tmp_path: Path) -> None:
    """Where the job is pinned to them the message says so; where it is not, others may do."""
    path, wrong = tmp_path / "out.npy", {"start": 255}
    asked: dict[str, Any] = {"shape": 9, "dtype": "u1", "segments": 3}
    pinned = flowmap.allocate(path, **asked, filler="arange", arguments=wrong)
    with pytest.raises(SegmentsFailedError, match="begins that anew") as caught:
        flowmap.fill(pinned, "arange", wrong, executor="threads")
    assert "exist='overwrite'" in str(caught.value)
    right = {"start": 247}
    anew = flowmap.allocate(path, **asked, filler="arange", arguments=right, exist="overwrite")
    assert len(flowmap.fill(anew, "arange", right, executor="threads")) == 3

    free = flowmap.allocate(tmp_path / "free.npy", **asked)
    with pytest.raises(SegmentsFailedError) as caught:
        flowmap.fill(free, "arange", wrong, executor="threads")
    assert "overwrite" not in str(caught.value)
    assert len(flowmap.fill(free, "arange", right, executor="threads")) == 3


def test_many_failures_are_counted(tmp_path: Path) -> None:
    """The message names ten of them; the error holds all."""
    target = make(tmp_path, segments=40)
    with pytest.raises(SegmentsFailedError, match="and 30 more") as caught:
        flowmap.fill(target, failing, {"bad": list(range(40))}, executor="threads")
    assert len(caught.value.failures) == 40


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_progress_adds_up(tmp_path: Path, kind: Any) -> None:
    """Each call is told a state that follows from the one before, the last one the end."""
    target = make(tmp_path)
    flowmap.fill_segment(target.segments[2], failing, {"bad": []})
    told: list[Progress] = []
    with pytest.raises(SegmentsFailedError):
        flowmap.fill(target, failing, {"bad": [0]}, executor=kind, progress=told.append)
    assert len(told) == 10
    assert (told[0].segments_done, told[0].rows_done) == (1, 4)
    last = told[-1]
    assert (last.segments_done, last.segments_failed, last.segments) == (9, 1, 10)
    assert (last.rows_done, last.rows, last.bytes_done, last.nbytes) == (36, 40, 288, 320)
    for one, two in itertools.pairwise(told):
        counts = [p.segments_done + p.segments_failed for p in (one, two)]
        assert counts[1] == counts[0] + 1
        assert two.rows_done >= one.rows_done
        assert two.seconds >= one.seconds >= 0


def test_a_callback_that_raises_ends_the_run(tmp_path: Path) -> None:
    """Its error comes through; the job can be taken up."""
    target = make(tmp_path)

    def stop(progress: Progress) -> None:
        if progress.segments_done == 3:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        flowmap.fill(target, ramp, executor="processes", workers=1, progress=stop)
    assert "done" in states(target)
    flowmap.fill(target, ramp, executor="threads")
    check_whole(target)


@pytest.mark.parametrize(
    ("executor", "workers", "error"),
    [
        ("processes", 0, InvalidArgumentError),
        ("threads", -1, InvalidArgumentError),
        ("processes", 1.5, WrongTypeError),
        ("threads", "2", WrongTypeError),
        ("dusk", None, InvalidArgumentError),
        (None, None, InvalidArgumentError),
        (3, None, InvalidArgumentError),
    ],
)
def test_nonsense_is_refused(
    tmp_path: Path, executor: Any, workers: Any, error: type[Exception]
) -> None:
    """No such executor, or no such number of workers: nothing is filled."""
    target = make(tmp_path)
    with pytest.raises(error, match=r"workers|executor"):
        flowmap.fill(target, ramp, executor=executor, workers=workers)
    assert not target.status()["attempt"].any()
    assert not Sidecar.of(target.path).run.exists()


def test_workers_of_a_pool_of_ones_own(tmp_path: Path) -> None:
    """An executor that is passed in has its workers, and is left open."""
    target = make(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(InvalidArgumentError, match="workers"):
            flowmap.fill(target, ramp, executor=pool, workers=2)
        flowmap.fill(target, ramp, executor=pool)
        assert pool.submit(int, "3").result() == 3


def test_other_work_is_refused_at_once(tmp_path: Path) -> None:
    """A job that was begun with other arguments is not mixed, whatever is pending."""
    target = make(tmp_path)
    flowmap.fill_segment(target.segments[0], ramp)
    with pytest.raises(
        OtherWorkError, match=r"1 segments done by .*ramp\(\) version 1; you gave .*failing"
    ):
        flowmap.fill(target, failing, {"bad": []}, executor="threads")
    assert target.status()["attempt"].sum() == 1


FORKS = """
import os, sys
import flowmap
forked = []
os.register_at_fork(after_in_child=lambda: forked.append(1))
from support import logged

def fill(out, block):
    assert not forked, "a worker was forked from a process that has threads"
    out[...] = block.start

target = flowmap.allocate(sys.argv[1], 12, "f8", segments=4)
flowmap.fill(target, fill, workers=2)
"""


def test_workers_are_not_forked(tmp_path: Path) -> None:
    """A worker shares no memory with its parent: it was executed anew."""
    child = run(script(FORKS, tmp_path / "a.npy"))
    assert child.returncode == 0, child.stderr


SLOW = """
import os, signal, sys, time
import numpy as np
import flowmap

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.1

@flowmap.filler
def slow(out, block):
    sys.stdout.write("worker\\n")
    sys.stdout.flush()
    out[...] = np.sqrt(np.arange(block.start, block.stop))
    time.sleep(seconds)

if __name__ == "__main__":
    target = flowmap.allocate(sys.argv[1], 400, "f8", segments=10, block_rows=2)
    flowmap.fill(target, slow, executor=sys.argv[2], workers=2)
"""


def begin_slow(folder: Path, kind: str, *more: object) -> subprocess.Popen[str]:
    """Start a slow fill in a process group of its own; return when blocks are being filled."""
    child = start(script(SLOW, folder / "a.npy", kind, *more), start_new_session=True)
    assert child.stdout is not None
    for _ in range(6):
        line = child.stdout.readline()
        assert line.startswith("worker"), line
    return child


@pytest.mark.parametrize(
    ("kind", "presses"),
    [("processes", 1), ("processes", 3), ("threads", 1), ("threads", 3), ("dask", 3)],
)
def test_ctrl_c_leaves_nothing_running(tmp_path: Path, kind: str, presses: int) -> None:
    """SIGINT to the whole group, as a terminal sends it, ends it all; the job goes on later."""
    child = begin_slow(tmp_path, kind)
    for _ in range(presses):
        os.killpg(child.pid, signal.SIGINT)
        time.sleep(0.02)
    output, _ = child.communicate(timeout=60)
    assert child.returncode not in (0, None)
    assert "KeyboardInterrupt" in output
    assert not until_gone(child.pid)
    target = flowmap.open_target(tmp_path / "a.npy")
    if presses == 1:
        assert not Sidecar.of(target.path).run.exists()
    before = target.status()
    assert 0 < before["rows_done"].sum() < 400
    kind = "threads" if kind == "dask" else kind  # its cluster has shown what it can
    again = run(script(SLOW, target.path, kind, 0))
    assert again.returncode == 0, again.stderr
    check_whole(target)


def test_second_ctrl_c_ends_all_workers() -> None:
    """One that comes while the workers are being ended leaves none of them."""
    pool = Processes(2)
    futures = [pool.submit(time.sleep, 600) for _ in range(2)]
    while len(workers := [s.worker.pid for s in pool._seats if s.worker is not None]) < 2:
        time.sleep(0.01)

    def pressed(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    futures[0].add_done_callback(pressed)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.end()
    finally:
        signal.signal(signal.SIGINT, handler)
    deadline = time.monotonic() + 60
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.kill(worker, 0)
                time.sleep(0.01)
            raise AssertionError(worker)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=60)


def outcome(future: Future[Any]) -> BaseException | None:
    """Return what a future ended with, also where it was cancelled."""
    try:
        return future.exception(60)
    except CancelledError as error:
        return error


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """After `kill -9` of the run its workers end by themselves, in the middle of a block."""
    child = begin_slow(tmp_path, "processes", 1)
    assert len(members(child.pid)) >= 3
    child.kill()
    child.wait()
    assert not until_gone(child.pid)
    assert child.stdout is not None
    child.stdout.close()
    again = run(script(SLOW, tmp_path / "a.npy", "threads", 0))
    assert again.returncode == 0, again.stderr
    check_whole(flowmap.open_target(tmp_path / "a.npy"))


FILL_SOME = """
import sys
import flowmap
target = flowmap.open_target(sys.argv[1])
for segment in target.segments[int(sys.argv[2]) :: int(sys.argv[3])]:
    flowmap.fill_segment(segment, "support:ramp")
"""


def test_many_processes_fill_at_once(tmp_path: Path) -> None:
    """Programs started by hand, each with its own segments, which share pages: exact."""
    target = make(tmp_path, 40_001, segments=64, block_rows=7)
    children = [start(script(FILL_SOME, target.path, k, 6)) for k in range(6)]
    for child in children:
        output, _ = child.communicate(timeout=100)
        assert child.returncode == 0, output
    check_whole(target)


HOLD_LOCK = """
import pathlib, sys
from flowmap.locks import header_lock
from flowmap.storage import buffer_of
with header_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def header_locked(target: Target) -> Iterator[None]:
    """Hold the header lock in another process."""
    command = script(HOLD_LOCK, Sidecar.of(target.path).folder)
    with start(command, stdin=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield
        finally:
            child.communicate()


def test_filling_takes_no_lock(tmp_path: Path) -> None:
    """With the header lock held elsewhere for good, segments are filled and validated."""
    target = make(tmp_path)
    with header_locked(target):
        child = run(script(FILL_SOME, target.path, 0, 2))
        assert child.returncode == 0, child.stderr
        for segment in target.pending():
            flowmap.fill_segment(segment, ramp)
        check_whole(target)
        flowmap.reset(target, 3)
        flowmap.write_segment(target.segments[3], np.sqrt(np.arange(12, 16)))


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_run_that_has_begun_needs_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """Its lease once taken, a run fills, refreshes and ends with the lock held elsewhere."""
    monkeypatch.setattr("flowmap.lease.REFRESH", 0.01)
    target = make(tmp_path)
    with contextlib.ExitStack() as stack:

        def hold(progress: Progress) -> None:
            if progress.segments_done == 0:
                stack.enter_context(header_locked(target))

        flowmap.fill(target, ramp, executor=kind, workers=2, progress=hold)
        assert not Sidecar.of(target.path).run.exists()
    check_whole(target)
    with header_lock(Sidecar.of(target.path).folder, timeout=10):
        pass


def test_an_executor_for_a_flow(tmp_path: Path) -> None:
    """`executor()` opens one for a block, which ends it, also by an exception."""
    target = make(tmp_path)
    pids: set[int] = set()

    def use(pool: Executor) -> None:
        pids.update(pool.submit(os.getpid).result() for _ in range(4))
        pool.submit(flowmap.fill_segment, target.segments[0], ramp).result()
        raise LookupError

    with pytest.raises(LookupError), flowmap.executor("processes", workers=2) as pool:
        use(pool)
    assert pids
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert states(target)[0] == "done"


def test_idle_workers_that_die_are_replaced(tmp_path: Path) -> None:
    """A worker that is killed between two tasks costs neither."""
    with flowmap.executor("processes", workers=1) as pool:
        for _ in range(3):
            os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        assert pool.submit(int, "7").result() == 7


def test_what_cannot_be_pickled_fails_its_task(tmp_path: Path) -> None:
    """A filler that cannot travel is an error of the run, and does not hang it."""
    target = make(tmp_path)
    descriptor = (tmp_path / "file").open("w")

    def holds(out: NDArray[Any], block: Block) -> None:
        descriptor.write("no")

    with descriptor, pytest.raises(SegmentsFailedError, match="pickle"):
        flowmap.fill(target, holds, workers=1)
    assert not target.status()["attempt"].any()


def test_a_worker_knows_where_to_import_from() -> None:
    """What this module's children import is what this process tests."""
    child = run(script("import flowmap; print(flowmap.__file__)"))
    assert child.stdout.strip() == flowmap.__file__
    assert environment()["PYTHONPATH"]


def raises_with_block(out: NDArray[Any], block: Block) -> None:
    """Fail while holding the block."""
    out[...] = 1
    raise ValueError("this very line")


def test_failures_keep_no_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors of a run hold no buffers, and still show the filler's own line."""
    buffers: list[weakref.ref[Any]] = []

    def watched(nbytes: int) -> NDArray[np.uint8]:
        buffer = buffer_of(nbytes)
        buffers.append(weakref.ref(buffer.base))
        return buffer

    monkeypatch.setattr("flowmap.blocks.buffer_of", watched)
    target = flowmap.allocate(
        tmp_path / "a.npy", 32 * 2**17, "f8", segments=32, block_rows=2**17
    )
    with pytest.raises(SegmentsFailedError) as caught:
        flowmap.fill(target, raises_with_block, executor="threads", workers=2)
    assert len(caught.value.failures) == 32
    assert buffers
    gc.collect()
    assert not [one for one in buffers if one() is not None]
    for error in caught.value.failures.values():
        assert 'raise ValueError("this very line")' in "".join(
            traceback.format_exception(error)
        )


def test_a_refused_executor_takes_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be is refused before the run is announced."""
    target = make(tmp_path)
    monkeypatch.delattr("flowmap.executors.leased")  # a NameError to whoever asks for it
    refused: list[dict[str, Any]] = [{"executor": "dusk"}, {"workers": 0}]
    for how in refused:
        with pytest.raises(InvalidArgumentError):
            flowmap.fill(target, ramp, **how)


def test_a_closed_pool_is_told(tmp_path: Path) -> None:
    """A pool that was shut down is an argument that cannot be."""
    target = make(tmp_path)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(InvalidArgumentError, match="takes no more work"):
        flowmap.fill(target, ramp, executor=pool)


def test_a_pool_that_closes_midway_is_left_no_work(tmp_path: Path) -> None:
    """What was submitted before the pool refused is cancelled."""
    target = make(tmp_path)
    futures: list[Future[Any]] = []

    class Closing(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if len(futures) == 3:
                raise RuntimeError("closed")
            futures.append(Future())
            return futures[-1]

    with pytest.raises(InvalidArgumentError, match="closed"):
        flowmap.fill(target, ramp, executor=Closing())
    assert all(future.cancelled() for future in futures)


def test_what_a_worker_cannot_load_is_no_death(tmp_path: Path) -> None:
    """It is told at once, with the reason, and the next task finds a worker."""
    with flowmap.executor("processes", workers=1) as pool:
        with pytest.raises(FillerNotFoundError, match=r"cannot load.*only where") as caught:
            pool.submit(print, Unloadable()).result()
        assert len(str(caught.value)) < 500
        assert pool.submit(abs, -1).result() == 1


def test_programs_of_a_filler_have_their_path(tmp_path: Path) -> None:
    """What protects a worker while it starts is not inherited by what the filler starts."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "<f8", segments=2)

    def fill(out: NDArray[Any], block: Block) -> None:
        out[...] = "PYTHONSAFEPATH" in os.environ

    flowmap.fill(target, fill, workers=1)
    assert not np.load(target.path).any()
