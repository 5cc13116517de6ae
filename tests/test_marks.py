"""Names that are given to fillers: `@filler(name=...)`."""

from __future__ import annotations

import functools
import runpy
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import pytest

import flowmap
from flowmap import marks
from flowmap.errors import (
    FillerNotFoundError,
    FillerRefusedError,
    InvalidArgumentError,
    OtherJobError,
    OtherWorkError,
    WrongTypeError,
)
from flowmap.marks import mark_of
from flowmap.recalling import recalled
from flowmap.sources import changed_by, changes_in
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.executors import ExecutorName
    from flowmap.segments import Block
    from flowmap.target import Target

SCRIPT = """
import flowmap


MARK
def named_fill(out, block, *, value=1):
    out[...] = VALUE
"""


@flowmap.filler(name="a sweep")
def sweep(out: NDArray[Any], block: Block, *, value: int = 1) -> None:
    """Fill with a value."""
    out[...] = value


class Filling:
    """A filler that is an object."""

    def __call__(self, out: NDArray[Any], block: Block) -> None:
        """Fill with two."""
        out[...] = 2


NAMED = flowmap.filler(name="an object")(Filling())


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that defines a filler in a script of some name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(
        script: str, mark: str = '@flowmap.filler(name="stable")', value: str = "value"
    ) -> Any:
        file = tmp_path / f"{script}.py"
        file.write_text(SCRIPT.replace("MARK", mark).replace("VALUE", value))
        return runpy.run_path(str(file), run_name=script)["named_fill"]

    yield load
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Allocate ten rows in two segments."""
    return flowmap.allocate(tmp_path / "out.npy", 10, "<f8", segments=2)


def test_work_of_a_named_filler() -> None:
    """The name is that of the work, partials and objects included; the place is beside it."""
    assert mark_of(sweep).place == f"{__name__}:sweep"
    work = Work.of(functools.partial(sweep, value=3))
    assert (work.name, work.arguments) == ("a sweep", {"value": 3})
    assert work.describe()["function"] == f"{__name__}:sweep"
    assert Work.of(NAMED).name == "an object"

    class Marked(Filling):
        """A class whose objects have its name."""

    flowmap.filler(name="objects of it")(cast("Any", Marked))
    assert Work.of(Marked()).name == "objects of it"
    assert "function" not in Work.of("arange").describe()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", InvalidArgumentError),
        (" ", InvalidArgumentError),
        (" sweep", InvalidArgumentError),
        ("swe\nep", InvalidArgumentError),
        ("sweep\x1b[1m", InvalidArgumentError),
        ("x" * 201, InvalidArgumentError),
        ("flowmap", InvalidArgumentError),
        ("flowmap.fillers:arange", InvalidArgumentError),
        ("flowmap.write:write_segment", InvalidArgumentError),
        (5, WrongTypeError),
        (b"sweep", WrongTypeError),
    ],
)
def test_bad_names(name: Any, kind: type[Exception]) -> None:
    """They are refused where the filler is defined."""
    with pytest.raises(kind, match=r"^name is "):
        flowmap.filler(name=name)


def test_names_of_flowmap() -> None:
    """No name of a filler that comes along can be given to another."""
    points = metadata.entry_points(group="flowmap.fillers")
    own = [point.name for point in points if marks.is_own(point.value)]
    assert len(own) == 5
    for name in own:
        with pytest.raises(InvalidArgumentError, match="filler of flowmap"):
            flowmap.filler(name=name)


def test_another_name_of_the_script(target: Target, load: Callable[..., Any]) -> None:
    """A script that is copied or moved continues the job, and only an edit is told."""
    flowmap.fill_segment(target.segments[0], load("sweep_one"))
    copied = load("slurm_script")
    assert changed_by(target.job, Work.of(copied)) is None
    flowmap.fill_segment(target.segments[1], copied)
    assert flowmap.validate(target).ok
    edited = load("slurm_script", value="-value")
    with pytest.warns(flowmap.FillerChangedWarning, match="stable"):
        flowmap.fill(target, edited, executor="threads", workers=1)


def test_edit_of_the_file(target: Target, load: Callable[..., Any], tmp_path: Path) -> None:
    """The file that has the function now is looked at, though the name does not lead to it."""
    flowmap.fill_segment(target.segments[0], load("sweep_one"))
    assert changes_in(target.job) == []
    file = tmp_path / "sweep_one.py"
    file.write_text(file.read_text().replace("out[...] = value", "out[...] = value + 1"))
    (change,) = changes_in(target.job)
    assert (change.filler, change.segments) == ("stable", (0,))


def test_two_fillers_of_one_name(target: Target) -> None:
    """The second is taken for an edit of the first: there is a warning."""

    @flowmap.filler(name="a sweep")
    def other(out: NDArray[Any], block: Block, *, value: int = 1) -> None:
        out[...] = -value

    flowmap.fill_segment(target.segments[0], sweep)
    with pytest.warns(flowmap.FillerChangedWarning, match="a sweep"):
        flowmap.fill(target, other, executor="threads", workers=1)


def test_recalled(target: Target, load: Callable[..., Any]) -> None:
    """A run that names no filler imports it from where it was defined."""
    flowmap.fill_segment(target.segments[0], load("sweep_recalled"))
    flowmap.fill_share(target, "1")
    assert flowmap.validate(target).ok
    recorded = target.job.recorded_work(str(target.status()["work"][0]))
    assert recorded is not None
    assert (recorded["filler"], recorded["function"]) == ("stable", "sweep_recalled:named_fill")


def test_script_is_gone(
    target: Target, load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recorded file is named, and the call that continues it from another; this works."""
    flowmap.fill_segment(target.segments[0], load("sweep_gone"), {"value": 2})
    (tmp_path / "sweep_gone.py").rename(tmp_path / "sweep_moved.py")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FillerNotFoundError, match=r"gone\.py, which is gone.*--arguments"):
        recalled(target)
    flowmap.fill_segment(target.segments[1], "sweep_moved:named_fill", {"value": 2})
    assert flowmap.validate(target).ok


def test_session_has_ended(target: Target) -> None:
    """A filler that was typed in cannot be imported: the advice is to save it in a file."""
    typed = f"""
import flowmap
@flowmap.filler(name="typed")
def fill(out, block): out[...] = 1
flowmap.fill_segment(flowmap.open_target({str(target.path)!r}).segments[0], fill)
"""
    subprocess.run([sys.executable, "-"], input=typed, text=True, check=True)
    with pytest.raises(FillerNotFoundError, match=r"Save it in a file.* --filler FILE\.py"):
        recalled(target)


@pytest.mark.parametrize("mark", ['name="other"', 'name="stable", version="2"'])
def test_edited_mark_is_not_recalled(
    target: Target, load: Callable[..., Any], mark: str
) -> None:
    """The records name other work than the function is by now."""
    flowmap.fill_segment(target.segments[0], load("sweep_edited"))
    load("sweep_edited", f"@flowmap.filler({mark})")
    with pytest.raises(FillerRefusedError, match="another name, version"):
        recalled(target)


def test_pinned(tmp_path: Path) -> None:
    """A pinned job knows the filler by its name, and where it is."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "<f8", filler=sweep)
    assert recalled(target).name == "a sweep"
    assert target.job.work is not None
    assert target.job.work["function"] == f"{__name__}:sweep"


@pytest.mark.parametrize("executor", ["processes", "dask"])
def test_worker_processes(
    target: Target, load: Callable[..., Any], executor: ExecutorName
) -> None:
    """They record the work that this process would, of a filler that travels by value, too."""
    script = load("sweep_that_travels")
    with flowmap.executor(executor, workers=1) as pool:
        for filler in (sweep, NAMED, functools.partial(sweep, value=4), script):
            flowmap.fill(target, filler, executor=pool)
            assert set(target.status()["work"]) == {Work.of(filler).fingerprint}
            flowmap.reset(target, target.segments)


class TestHint:
    """The error of other work, where only the module of the filler differs."""

    PLAIN = "@flowmap.filler"
    HINT = r'differ only in the name.*@flowmap\.filler\(name="sweep_one:named_fill"\)'

    def test_done(self, target: Target, load: Callable[..., Any]) -> None:
        """A run and an attempt at a segment that another name of the script has filled."""
        flowmap.fill_segment(target.segments[0], load("sweep_one", self.PLAIN))
        moved = load("slurm_script", self.PLAIN)
        with pytest.raises(OtherWorkError, match=self.HINT):
            flowmap.fill(target, moved, executor="threads")
        with pytest.raises(OtherWorkError, match=self.HINT):
            flowmap.fill_segment(target.segments[0], moved)

    def test_pinned(self, tmp_path: Path, load: Callable[..., Any]) -> None:
        """A job that is pinned to it, which is also allocated again."""
        pinned = load("sweep_one", self.PLAIN)
        moved = load("slurm_script", self.PLAIN)
        target = flowmap.allocate(tmp_path / "a.npy", 4, "<f8", filler=pinned)
        with pytest.raises(OtherWorkError, match=self.HINT):
            flowmap.fill_segment(target.segments[0], moved)
        with pytest.raises(OtherJobError, match=self.HINT):
            flowmap.allocate(target.path, 4, "<f8", filler=moved)

    def test_advice_works(self, target: Target, load: Callable[..., Any]) -> None:
        """With the name that it says the job continues."""
        flowmap.fill_segment(target.segments[0], load("sweep_one", self.PLAIN))
        named = load("slurm_script", '@flowmap.filler(name="sweep_one:named_fill")')
        flowmap.fill(target, named, executor="threads", workers=1)
        assert flowmap.validate(target).ok

    @pytest.mark.parametrize(
        ("mark", "arguments"),
        [(PLAIN, {"value": 2}), ('@flowmap.filler(version="2")', {})],
        ids=["arguments", "version"],
    )
    def test_more_differs(
        self, target: Target, load: Callable[..., Any], mark: str, arguments: dict[str, Any]
    ) -> None:
        """Other arguments or another version are other work by whatever name."""
        flowmap.fill_segment(target.segments[0], load("sweep_one", self.PLAIN))
        with pytest.raises(OtherWorkError) as caught:
            flowmap.fill_segment(target.segments[0], load("slurm_script", mark), arguments)
        assert "differ only" not in str(caught.value)

    def test_another_function(self, target: Target) -> None:
        """Two functions of other names are two fillers, even where they take no arguments."""
        flowmap.fill_segment(target.segments[0], "arange")
        with pytest.raises(OtherWorkError) as caught:
            flowmap.fill_segment(target.segments[0], sweep)
        assert "differ only" not in str(caught.value)
