"""An edited filler: a warning says which segments its earlier source has filled."""

from __future__ import annotations

import functools
import linecache
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
from support import run

import flowmap
from flowmap.claims import Claim
from flowmap.cleaning import clean
from flowmap.documents import publish_json, read_json
from flowmap.exporting import record_of
from flowmap.origin import Origin, is_same_source, source_in
from flowmap.sidecar import Sidecar
from flowmap.sources import _SEVERAL, changed_by, changes_in, digest_of, source_of
from flowmap.work import Work
from flowmap.write import fill_work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flowmap.fillers import Filler
    from flowmap.target import Target

    Define = Callable[[str], Filler]

SQUARES = """\
import numpy as np


def squares(out, block):
    '''Fill with squares.'''
    out[...] = np.arange(block.start, block.stop) ** 2.0
"""
CUBES = SQUARES.replace("** 2.0", "** 3.0")
SAME = SQUARES.replace("'''Fill with squares.'''", "# squares").replace("2.0", "(2.0)")


@pytest.fixture
def define(tmp_path: Path) -> Define:
    """Return a function that edits a module and runs its text again, as notebooks do."""
    file = tmp_path / "powers.py"

    def define(text: str) -> Filler:
        file.write_text(text)
        space: dict[str, Any] = {"__name__": "powers"}
        exec(compile(text, str(file), "exec"), space)
        filler: Filler = space["squares"]
        Origin.of(filler)  # now: the file is edited later
        return filler

    return define


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Return a target of four segments."""
    return flowmap.allocate(tmp_path / "a.npy", 40, "<f8", segments=4)


def fill(target: Target, filler: Filler) -> list[str]:
    """Fill a target in threads; return the texts of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        flowmap.fill(target, filler, executor="threads", workers=2)
    assert {warning.category for warning in caught} <= {flowmap.FillerChangedWarning}
    return [str(warning.message) for warning in caught]


def older(target: Target) -> list[tuple[int, ...]]:
    """Return the numbers of the segments that the records alone call older, for each work."""
    return [change.segments for change in changes_in(target.job)]


class TestFill:
    """`fill` compares before it fills."""

    def test_all_of_it_is_older(self, target: Target, define: Define) -> None:
        """Nothing is computed, and one warning says so, with what to do."""
        assert fill(target, define(SQUARES)) == []
        (text,) = fill(target, define(CUBES))
        assert (
            "4 of 4 segments were filled by an earlier source of the filler powers:sq" in text
        )
        assert "flowmap.reset(path, segments) with the segments 0-3, then fill" in text
        assert 'exist="overwrite"' in text
        assert '@flowmap.filler(version="2")' in text
        np.testing.assert_array_equal(np.load(target.path), np.arange(40) ** 2.0)

    def test_reset_as_the_warning_says(self, target: Target, define: Define) -> None:
        """Afterwards nothing is older."""
        fill(target, define(SQUARES))
        with pytest.warns(flowmap.FillerChangedWarning) as caught:
            flowmap.fill(target, define(CUBES), executor="threads")
        assert len(caught) == 1
        assert caught[0].filename == __file__
        (warning,) = (each.message for each in caught)
        assert isinstance(warning, flowmap.FillerChangedWarning)
        flowmap.reset(target, warning.segments)
        assert fill(target, define(CUBES)) == []
        np.testing.assert_array_equal(np.load(target.path), np.arange(40) ** 3.0)

    def test_some_of_it_is_older(self, target: Target, define: Define) -> None:
        """The rest is filled, and the mixture is reported ever after."""
        for segment in (target.segments[0], target.segments[2]):
            flowmap.fill_segment(segment, define(SQUARES))
        for _ in range(2):
            (text,) = fill(target, define(CUBES))
            assert "2 of 4 segments" in text
            assert "the segments 0, 2," in text
        assert older(target) == [(0, 2)]

    @pytest.mark.parametrize("text", [SQUARES, SAME])
    def test_the_same(self, target: Target, define: Define, text: str) -> None:
        """Comments, formatting and docstrings do not count."""
        flowmap.fill_segment(target.segments[0], define(SQUARES))
        assert fill(target, define(text)) == []
        assert older(target) == []

    def test_edited_back(self, target: Target, define: Define) -> None:
        """The source that is run last counts, not the one that was recorded last."""
        fill(target, define(SQUARES))
        assert len(fill(target, define(CUBES))) == 1
        assert fill(target, define(SQUARES)) == []
        assert older(target) == []

    def test_other_arguments_are_other_work(self, target: Target, define: Define) -> None:
        """Only segments of the same work are compared."""
        text = SQUARES.replace("block)", "block, power=2)")
        flowmap.fill_segment(target.segments[0], define(text), {"power": 3})
        work = Work.of(define(text.replace("2.0", "3.0")), {"power": 2})
        assert changed_by(target.job, work) is None

    def test_no_source(self, target: Target, define: Define) -> None:
        """A function without a source, as of Python's prompt, is not compared."""
        space: dict[str, Any] = {"__name__": "powers"}
        exec(SQUARES, space)
        flowmap.fill_segment(target.segments[0], space["squares"])
        assert fill(target, define(CUBES)) == []
        assert fill(target, space["squares"]) == []

    def test_own_fillers(self, target: Target) -> None:
        """A new version of flowmap may write `arange` in another way."""
        flowmap.fill(target, "arange", executor="threads")
        work = Sidecar.of(target.path).work(str(target.status()["work"][0]))
        publish_json(work, read_json(work) | {"source": "def arange(out, block): ..."})
        flowmap.fill(target, "arange", executor="threads")
        assert older(target) == []

    def test_as_an_error(self, target: Target, define: Define) -> None:
        """Whoever makes an error of it is stopped before anything is filled."""
        flowmap.fill_segment(target.segments[0], define(SQUARES))
        with pytest.raises(flowmap.FillerChangedWarning):  # as pytest is set here
            flowmap.fill(target, define(CUBES), executor="threads")
        assert len(target.pending()) == 3
        assert fill(target, define(CUBES))


def half_done(target: Target, filler: Filler) -> None:
    """Leave the first segment with half of its rows done."""

    def stops(out: Any, block: Any) -> None:
        if block.start:
            raise ValueError
        filler(out, block)

    work = Work.of(filler)
    stopping = Work(stops, {}, work.name, "1", work.fingerprint, work.origin, work.limits)
    with pytest.raises(flowmap.FlowmapError):
        fill_work(target.segments[0], stopping)
    assert target.status()["rows_done"][0] == 5


class TestHalfDone:
    """A segment that was begun by one source and ended by another is older, and stays so."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        """Return a target of two segments of two blocks each."""
        return flowmap.allocate(tmp_path / "a.npy", 20, "<f8", segments=2, block_rows=5)

    def test_mixture_within(self, target: Target, define: Define) -> None:
        """It is older than either source."""
        half_done(target, define(SQUARES))
        (text,) = fill(target, define(CUBES))
        assert "1 of 2 segments" in text
        assert target.status()["source"][0] == _SEVERAL
        assert len(fill(target, define(CUBES))) == 1
        assert "1 of 2 segments" not in "".join(fill(target, define(SQUARES)))
        assert older(target) == [(0, 1)]

    def test_formatting(self, target: Target, define: Define) -> None:
        """Comments and formatting make no mixture."""
        half_done(target, define(SQUARES))
        assert fill(target, define(SAME)) == []
        assert fill(target, define(SQUARES)) == []

    def test_rows_that_are_computed_again(self, target: Target, define: Define) -> None:
        """What does not match its digest is not taken over, and makes no mixture."""
        half_done(target, define(SQUARES))
        with target.path.open("r+b") as file:
            file.seek(target.job.data_offset)
            file.write(b"\1" * 8)
        assert len(fill(target, define(CUBES))) == 1
        assert fill(target, define(CUBES)) == []
        np.testing.assert_array_equal(np.load(target.path), np.arange(20) ** 3.0)


class TestEarlierVersions:
    """Ledgers of the version before have no digests."""

    @pytest.fixture
    def job(self, target: Target, define: Define) -> Target:
        """Return a target that the version before has filled."""
        fill(target, define(SQUARES))
        with target.job.ledger(write=True) as ledger:
            for segment in target.segments:
                record = ledger.read(segment.index, segment.start, segment.stop)
                claim = Claim(ledger, record, record.work, state="running", source="")
                claim.note(state="done")
        return target

    def test_the_first_source_counts(self, job: Target, define: Define) -> None:
        """It is in the file of the work."""
        assert set(job.status()["source"].tolist()) == {""}
        assert fill(job, define(SAME)) == []
        assert "4 of 4 segments" in "".join(fill(job, define(CUBES)))
        assert older(job) == [(0, 1, 2, 3)]

    def test_unknown(self, job: Target, define: Define) -> None:
        """Where that is lost, nothing is said."""
        work = Sidecar.of(job.path).work(str(job.status()["work"][0]))
        publish_json(work, read_json(work) | {"source": None})
        assert fill(job, define(CUBES)) == []
        work.unlink()
        assert fill(job, define(CUBES)) == []


class TestByTheRecords:
    """`validate`, `status` and `info` have no filler at hand."""

    def test_validate(self, target: Target, define: Define) -> None:
        """It warns once; its report says the same, and is good."""
        flowmap.fill_segment(target.segments[0], define(SQUARES))
        fill(target, define(CUBES))
        with pytest.warns(flowmap.FillerChangedWarning, match="1 of 4 segments") as caught:
            report = flowmap.validate(target)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert report.ok
        assert report.sealed
        assert report.warnings == (str(caught[0].message),)
        assert "1 of 4 segments" in str(report)
        assert "1 of 4 segments" in report._repr_html_()
        assert repr(report).endswith(": ok, 1 warnings>")

    def test_edited_file(self, target: Target, define: Define) -> None:
        """What was edited and not run yet is found in its file, which is not imported."""
        fill(target, define(SQUARES))
        file = target.path.with_name("powers.py")
        file.write_text("raise SystemExit('imported')\n" + SAME)
        assert older(target) == []
        for text in (CUBES, SQUARES + "    out *= 2\n"):
            file.write_text("raise SystemExit('imported')\n" + text)
            assert older(target) == [(0, 1, 2, 3)]

    @pytest.mark.parametrize(
        "text", ["", "def squares(", CUBES + SQUARES, "squares = 5", "\0", "\udcff"]
    )
    def test_file_that_says_nothing(self, target: Target, define: Define, text: str) -> None:
        """Then the source that was recorded last counts."""
        fill(target, define(SQUARES))
        file = target.path.with_name("powers.py")
        file.write_text(text, errors="surrogateescape")
        assert older(target) == []
        file.unlink()
        assert older(target) == []
        os.mkfifo(file)
        assert older(target) == []

    def test_export(self, target: Target, define: Define) -> None:
        """It has all the sources, and what is older."""
        flowmap.fill_segment(target.segments[0], define(SQUARES))
        fill(target, define(CUBES))
        record = record_of(target)
        ((fingerprint, sources),) = record["sources"].items()
        texts = [sources[row["source"]]["source"] for row in record["segments"]]
        assert ["** 2.0" in text for text in texts] == [True, False, False, False]
        (change,) = record["changes"]
        assert (change["filler"], change["segments"]) == ("powers:squares", [0])
        assert fingerprint in record["works"]

    def test_records_are_kept_and_removed(self, target: Target, define: Define) -> None:
        """An overwrite and `clean` know the files of the sources."""
        folder = Sidecar.of(target.path).folder
        fill(target, define(SQUARES))
        fill(target, define(CUBES))
        assert len([*folder.glob("source-*.json")]) == 1
        again = flowmap.allocate(target.path, 40, "<f8", segments=4, exist="overwrite")
        assert not [*folder.glob("source-*.json")]
        flowmap.fill_segment(again.segments[0], define(SQUARES))
        assert fill(again, define(CUBES))
        assert len([*folder.glob("source-*.json")]) == 1
        flowmap.reset(again, 0)
        assert fill(again, define(CUBES)) == []
        assert flowmap.validate(again).sealed
        clean(again)
        assert not folder.exists()


def test_fill_segment_warns_once(target: Target, define: Define) -> None:
    """Of all the segments of a job, which a loop may fill, and not of what it fills itself."""
    for segment in target.segments[:3]:
        flowmap.fill_segment(segment, define(SQUARES))
    edited = define(CUBES)
    flowmap.fill_segment(target.segments[3], edited)
    with pytest.warns(flowmap.FillerChangedWarning, match="3 of 4 segments") as caught:
        [flowmap.fill_segment(segment, edited) for segment in target.segments]
    assert len(caught) == 1
    assert caught[0].filename == __file__


def cell(text: str, number: int) -> Filler:
    """Run a cell of a notebook, whose lines Python finds and whose file is not there."""
    name = f"ipykernel_1/{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), space)
    filler: Filler = space["squares"]
    return filler


def test_edited_cell(target: Target) -> None:
    """A notebook's cell that is edited and run again says so, each time."""
    assert fill(target, cell(SQUARES, 1)) == []
    assert fill(target, cell(SAME, 2)) == []
    for number, power in enumerate(["3.0", "4.0"], 3):
        (text,) = fill(target, cell(SQUARES.replace("2.0", power), number))
        assert "4 of 4 segments" in text
        assert older(target) == [(0, 1, 2, 3)]


def test_edited_module_that_is_reloaded(target: Target, define: Define) -> None:
    """The autoreload of notebooks gives the function that is there the code of the new one."""
    squares = define(SQUARES)
    assert fill(target, squares) == []
    squares.__code__ = define(CUBES).__code__
    (text,) = fill(target, squares)
    assert "4 of 4 segments" in text


SCRIPT = """
import sys

import numpy as np

import flowmap


def squares(out, block):
    out[...] = np.arange(block.start, block.stop) ** 2.0


if __name__ == "__main__":
    target = flowmap.allocate(sys.argv[1], 40, "<f8", segments=4)
    for _ in range(2):
        flowmap.fill(target, squares, workers=2)
    print(flowmap.validate(target).ok)
"""


def test_edited_script(tmp_path: Path) -> None:
    """A script that is run, edited and run again says that its result is the earlier one."""
    file, path = tmp_path / "squares.py", str(tmp_path / "a.npy")
    file.write_text(SCRIPT)
    first = run([sys.executable, str(file), path])
    assert (first.returncode, first.stderr) == (0, "")
    file.write_text(SCRIPT.replace("** 2.0", "** 3.0"))
    second = run(["env", "-u", "PYTHONWARNINGS", sys.executable, str(file), path])
    assert (second.returncode, second.stdout) == (0, "True\n"), second.stderr
    lines = [line for line in second.stderr.splitlines() if "FillerChangedWarning: " in line]
    fill, check = (_line_of(call) for call in ("flowmap.fill(", "flowmap.validate("))
    places = [f"{file}:{line}:" for line in (fill, fill, check)]
    assert [line.partition(" ")[0] for line in lines] == places, "once for each call"
    assert all("4 of 4 segments were filled by an earlier source" in line for line in lines)


def _line_of(call: str) -> int:
    return SCRIPT[: SCRIPT.index(call)].count("\n") + 1


READ = """
import pickle, sys
from flowmap.work import Work
with open(sys.argv[1], "rb") as file:
    print(Work.of(pickle.load(file)).origin.source)
"""


class TestOrigin:
    """The source is taken where the filler is defined."""

    def test_travels_by_value(self, tmp_path: Path, define: Define) -> None:
        """A marked function keeps its origin where another process gets it by value."""
        marked = flowmap.filler(define(SQUARES))
        marked.__module__ = "__main__"  # which cloudpickle sends by value
        file = tmp_path / "filler.pickle"
        file.write_bytes(cloudpickle.dumps(marked))
        child = run([sys.executable, "-c", READ, str(file)])
        assert "** 2.0" in child.stdout, child.stderr

    def test_partial(self, define: Define) -> None:
        """Of a partial it is that of the function."""
        squares = define(SQUARES)
        partial = functools.partial(functools.partial(squares), block=1)
        assert Origin.of(partial) == Origin.of(squares)

    @pytest.mark.parametrize("name", ["inner", "outer.<locals>.inner", "Class.method", "Class"])
    def test_source_in_a_file(self, tmp_path: Path, name: str) -> None:
        """It has the lines that `inspect` gives, decorators included."""
        file = tmp_path / "some.py"
        once = "\ufeff@mark\n@mark(1)\ndef inner(a,\n b): return 1\n"
        nested = "def outer():\n  @mark\n  def inner(): pass\n"
        method = "class Class:\n  def method(self): return 1\n"
        file.write_text(once if name == "inner" else nested + method)
        source = source_in(str(file), name)
        assert source is not None
        assert source.strip() in file.read_text()
        assert source.lstrip().startswith(("@mark", "class", "def method"))


def test_sources_that_are_too_long_to_parse() -> None:
    """Others may write the records, and parsing takes time: these are compared as texts."""
    short, long = "x = [0]", f"x = [{'0, ' * 50_000}]"
    assert is_same_source(short, short + "  # zero")
    assert is_same_source(long, long + "\n")
    assert not is_same_source(long, long + "  # zeros")


def test_digests() -> None:
    """No digest is one of those that stand for something else."""
    assert digest_of(None) == digest_of("")
    assert len({digest_of(None), digest_of("a"), "", _SEVERAL}) == 4
    assert source_of(Work.of("arange")) is None
