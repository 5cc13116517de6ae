"""Why a segment failed, kept whole beside the ledger, which has room for a line."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import subprocess
import sys
import traceback
import types
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from support import Unloadable, environment

import flowmap
from flowmap import liveness, pickling
from flowmap.claims import Claim
from flowmap.errors import (
    FillerNotFoundError,
    FlowmapError,
    SegmentsFailedError,
    WorkerDiedError,
)
from flowmap.failures import failure_of, record_death
from flowmap.run_errors import check_loadable
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from numpy.typing import NDArray

    from flowmap.segments import Segment
    from flowmap.target import Target

LONG = "the detector was asleep " * 10


@flowmap.filler(volatile=("password", "says"))
def broken(
    out: NDArray[Any], block: flowmap.Block, password: str = "", says: str = LONG
) -> None:
    """Fail in the second segment."""
    if block.start == 10:
        raise ValueError(says)
    out[...] = 1


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Return a target of four segments."""
    return flowmap.allocate(tmp_path / "out.npy", 40, "<f8", segments=4)


def fail(target: Target, **arguments: str) -> None:
    """Fill the second segment, in vain."""
    with pytest.raises(flowmap.FlowmapError):
        flowmap.fill_segment(target.segments[1], broken, arguments)


def test_reason_and_traceback_are_kept(target: Target) -> None:
    """Of the attempt that failed, and without what is told nowhere."""
    fail(target, password="tell nobody")
    row = target.status()[1]
    kept = failure_of(target.job, 1, row["attempt"])
    assert kept is not None
    assert kept["reason"] == f"ValueError: {LONG}".strip()
    first, *_ = kept["traceback"].split("raise ValueError")
    assert first.count('File "') == 1, "nothing of how the filler was called"
    assert "in broken\n" in first
    assert kept["traceback"].endswith(f"ValueError: {LONG}\n")
    text = Sidecar.of(target.path).failure(1).read_text()
    assert "tell nobody" not in text
    assert failure_of(target.job, 0, 1) is None


def test_of_the_last_attempt(target: Target) -> None:
    """And of no other, nor of another job."""
    fail(target)
    fail(target, says="something else")
    assert failure_of(target.job, 1, 1) is None
    kept = failure_of(target.job, 1, 2)
    assert kept is not None
    assert kept["reason"] == "ValueError: something else"
    anew = flowmap.allocate(target.path, 40, "<f8", segments=4, exist="overwrite")
    assert not Sidecar.of(target.path).failure(1).exists()
    assert failure_of(anew.job, 1, 2) is None


def test_long_message(target: Target) -> None:
    """Is cut; no failure fills the disk."""
    fail(target, says="x" * 1_000_000)
    assert Sidecar.of(target.path).failure(1).stat().st_size < 50_000


@pytest.mark.parametrize("text", ["", "{}", '{"job": 3}', "\0" * 100])
def test_damaged(target: Target, text: str) -> None:
    """Is as good as none: the ledger has the line."""
    fail(target)
    Sidecar.of(target.path).failure(1).write_text(text)
    assert failure_of(target.job, 1, 1) is None
    assert target.status()["reason"][1].startswith("ValueError: the detector")


def test_where_it_cannot_be_kept(target: Target) -> None:
    """The segment has failed all the same, with its own error."""
    Sidecar.of(target.path).failure(1).mkdir()
    with pytest.raises(flowmap.FlowmapError, match="the detector was asleep"):
        flowmap.fill_segment(target.segments[1], broken)
    assert target.status()["state"][1] == "failed"


HERE = str(Path(__file__))


def lines_of(error: BaseException) -> str:
    """Return an error as Python shows it at the end of a script."""
    return "".join(traceback.format_exception(error))


def deep(value: int) -> None:
    """Fail two calls deep: this very line."""
    raise LookupError(f"nothing at {value}")


def lost(out: NDArray[Any], block: flowmap.Block) -> None:
    """Fail for the same cause in each segment."""
    deep(7)


@contextlib.contextmanager
def executor_of(kind: str) -> Iterator[Any]:
    """Open an executor that a user may have, or give the name of one."""
    if kind == "spawn":
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            yield pool
    else:
        yield kind


@pytest.mark.parametrize("kind", ["processes", "threads", "dask", "spawn"])
def test_cause_is_told_with_the_lines_of_the_filler(target: Target, kind: str) -> None:
    """The error of a run has that of its first segment as cause, down to the user's lines."""
    workers = None if kind == "spawn" else 1
    with executor_of(kind) as pool, pytest.raises(SegmentsFailedError) as caught:
        flowmap.fill(target, lost, executor=pool, workers=workers)
    assert caught.value.__cause__ is caught.value.failures[0]
    first, _, last = lines_of(caught.value).partition("nothing at 7\n")
    files = re.findall(r'File "(.*)", line \d+, in (\w+)', first)
    assert files == [(HERE, "lost"), (HERE, "deep")], "the user's code, and nothing else"
    assert 'File "' not in last.partition("Traceback")[0], "nothing of the executor"
    assert f"4 segments (0-3): the filler {__name__}:lost raised LookupError" in last


SCRIPT = """\
import flowmap

def helper():
    raise ZeroDivisionError("in a helper")

def f(out, block):
    helper()

flowmap.fill(flowmap.allocate("out.npy", 40, "<f8", segments=4), f, workers=1)
"""


def test_traceback_of_a_script(tmp_path: Path) -> None:
    """Has the file and the lines of its functions, which travel by value, and is short."""
    (tmp_path / "my_script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, "my_script.py"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    path = tmp_path / "my_script.py"
    assert f'File "{path}", line 7, in f\n    helper()\n' in ended.stderr
    assert f'File "{path}", line 4, in helper\n' in ended.stderr
    assert len(ended.stderr.splitlines()) < 40
    assert "worker_processes.py" not in ended.stderr


def test_pickles_keep_the_file_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pickler makes of it: cloudpickle 3.1.3 writes "<dynamic-code>"."""
    standard = pickling._STANDARD

    def forgetful(code: CodeType) -> tuple[Any, ...]:
        return standard(code.replace(co_filename="<dynamic-code>"))

    monkeypatch.setattr(pickling, "_STANDARD", forgetful)
    made = types.FunctionType(deep.__code__, {}, "made")
    made.__module__ = "__main__"
    again = pickle.loads(pickling.dumps(made))
    assert again is not made
    assert again.__code__.co_filename == HERE
    assert again.__code__.co_firstlineno == made.__code__.co_firstlineno


def test_errors_bring_their_cause_along() -> None:
    """As text, through any number of pickles."""
    error = FlowmapError("wrong")
    try:
        deep(3)
    except LookupError as cause:
        error.__cause__ = cause
    for _ in range(2):
        error = pickle.loads(pickle.dumps(error))
        told = lines_of(error)
        assert told.count("raise LookupError") == 1
        assert HERE in told


@flowmap.filler
def uneven(out: NDArray[Any], block: flowmap.Block) -> None:
    """Fail for two causes, and in one segment for a third."""
    raise ValueError("small" if block.start < 10 else "odd" if block.start % 20 else "even")


def test_causes_are_told_once(tmp_path: Path) -> None:
    """That of the most segments first, each with its segments; one segment is named whole."""
    target = flowmap.allocate(tmp_path / "out.npy", 70, "<f8", segments=7)
    with pytest.raises(SegmentsFailedError) as caught:
        flowmap.fill(target, uneven, executor="threads")
    lines = str(caught.value).splitlines()
    filler = f"the filler {__name__}:uneven raised ValueError"
    mend = "Mend it and run again: what is done is kept."
    assert lines[1:4] == [
        f"  - 3 segments (1, 3, 5): {filler}: odd. {mend}",
        f"  - 3 segments (2, 4, 6): {filler}: even. {mend}",
        f"  - segment 0000 [0:10], rows 0 to 10: {filler}: small. {mend}",
    ]


@pytest.mark.parametrize(("kind", "workers"), [("processes", 2), ("dask", 1)])
def test_a_run_ends_where_no_worker_can_load_the_filler(
    tmp_path: Path, kind: str, workers: int
) -> None:
    """Each worker has tried; the other segments would fail alike."""
    target = flowmap.allocate(tmp_path / "out.npy", 400, "<f8", segments=40)
    arguments = {"password": Unloadable()}
    with pytest.raises(SegmentsFailedError, match="No worker can load the filler") as caught:
        flowmap.fill(target, broken, arguments, executor=kind, workers=workers)
    assert workers <= len(caught.value.failures) < 40
    assert str(caught.value).count("cannot load the filler or") == 1
    assert "only where it was pickled" in lines_of(caught.value.__cause__ or caught.value)


def test_a_worker_of_several_that_cannot_load_the_filler(target: Target) -> None:
    """Does not end the run, however many segments it takes; nor do other faults."""
    missing = [FillerNotFoundError("gone", worker="one:1") for _ in range(3)]
    segments = target.segments
    pool = Mock(processes=2)
    check_loadable(target, dict(zip(segments, missing, strict=False)), pool, done=0)
    missing[2] = FillerNotFoundError("gone", worker="two:2")
    failures: dict[Segment, BaseException] = dict(zip(segments, missing, strict=False))
    check_loadable(target, failures, pool, done=1)
    check_loadable(target, failures | {segments[3]: OSError()}, pool, done=0)
    check_loadable(target, failures, Mock(spec=ThreadPoolExecutor), done=0)
    with pytest.raises(SegmentsFailedError, match="3 segments"):
        check_loadable(target, failures, pool, done=0)


class TestDeath:
    """A worker that dies records nothing; the run does so in its place."""

    DIED = WorkerDiedError(
        "segment 0000 [0:10]: the worker process died, 3 times over (memory)"
    )

    def claim(self, target: Target, pid: int, rows: int = 0) -> None:
        """Let a process of this host have the first segment."""
        with (
            target.job.ledger(write=True) as ledger,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr("flowmap.claims.os.getpid", lambda: pid)
            Claim(ledger, ledger.read(0, 0, 10), "11" * 16, state="running", rows_done=rows)

    @pytest.fixture
    def dead(self) -> int:
        """Return the number of a process that has ended."""
        with subprocess.Popen([sys.executable, "-c", ""]) as child:
            child.wait()
        return child.pid

    def test_while_it_filled(self, target: Target, dead: int) -> None:
        """The segment has failed, on every host, with the reason; its rows are kept."""
        self.claim(target, dead, rows=3)
        record_death(target.segments[0], self.DIED)
        row = target.status()[0]
        assert (row["state"], row["rows_done"], row["attempt"]) == ("failed", 3, 2)
        assert row["reason"] == "the worker process died, 3 times over"
        kept = failure_of(target.job, 0, 2)
        assert kept is not None
        assert "(memory)" in kept["reason"]
        assert flowmap.fill_segment(target.segments[0], broken).state == "done"

    def test_before_it_began(self, target: Target) -> None:
        """So has one that was never claimed."""
        record_death(target.segments[0], self.DIED)
        assert target.status()[0]["state"] == "failed"

    def test_of_a_pool_of_the_users(self, target: Target, dead: int) -> None:
        """Its pool breaks as a whole: only the segment in hand has failed."""
        self.claim(target, dead)
        for segment in target.segments:
            record_death(segment, BrokenProcessPool("A process was terminated abruptly"))
        assert target.status()["state"].tolist() == ["failed"] + ["pending"] * 3

    @pytest.mark.parametrize("where", ["alive", "elsewhere", "done", "another job", "gone"])
    def test_is_none(
        self, target: Target, monkeypatch: pytest.MonkeyPatch, dead: int, where: str
    ) -> None:
        """A segment that a process may have, or that is done, is left alone."""
        segment = target.segments[0]
        if where == "alive":
            self.claim(target, os.getpid())
        elif where == "elsewhere":
            monkeypatch.setattr(liveness, "_this_process", lambda: (1, 1))
            self.claim(target, dead)
        elif where == "done":
            flowmap.fill_segment(segment, broken)
        elif where == "another job":
            target = flowmap.allocate(target.path, 40, "<f8", segments=4, exist="overwrite")
        before = target.status()
        if where == "gone":
            Sidecar.of(target.path).ledger.unlink()
        record_death(segment, self.DIED)
        if where != "gone":
            assert (target.status() == before).all()
        assert failure_of(target.job, 0, 2) is None
