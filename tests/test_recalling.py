"""Recalling work from the records: whose records, and which filler."""

from __future__ import annotations

import operator
import os
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from support import run, snapshot

import flowmap
from flowmap.documents import publish_json, read_json
from flowmap.errors import FillerRefusedError, InvalidArgumentError, OtherJobError
from flowmap.recalling import recalled
from flowmap.sidecar import Sidecar
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flowmap.target import Target

HOW: dict[str, Any] = {"shape": 100, "dtype": "<f8", "segments": 4}

MODULE = """
from pathlib import Path

import flowmap

Path(__file__).with_suffix(".imported").touch()


@flowmap.filler
def fill(out, block, *, step=1):
    '''Fill with a value.'''
    out[...] = VALUE * step
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Return a function that writes a module to a folder, alone on the path."""
    added: list[str] = []
    # Else the compiled file of a module is still taken if it is edited within a second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, value: int = 1, module: str = "recalled_one") -> Path:
        file = tmp_path / name / f"{module.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        for package in list(file.relative_to(tmp_path / name).parents)[:-1]:
            (tmp_path / name / package / "__init__.py").touch()
        file.write_text(MODULE.replace("VALUE", str(value)))
        kept = [entry for entry in sys.path if entry not in added]
        added.append(str(tmp_path / name))
        monkeypatch.setattr(sys, "path", [*kept, added[-1]])
        _forget()
        return file.with_suffix(".imported")

    yield write
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith("recalled_")]:
        del sys.modules[name]
    sys.path_importer_cache.clear()


def half_filled(
    folder: Path,
    filler: str = "recalled_one:fill",
    arguments: dict[str, Any] | None = None,
    *,
    pinned: bool = False,
) -> Target:
    """Return a target of two segments, the first of which a filler has filled."""
    pin: dict[str, Any] = {"filler": filler, "arguments": arguments} if pinned else {}
    target = flowmap.allocate(folder / "out.npy", 10, "<f8", segments=2, **pin)
    flowmap.fill_segment(target.segments[0], filler, arguments)
    return flowmap.open_target(target.path)


def document(target: Target) -> Path:
    """Return the file that says what fills a job."""
    sidecar = Sidecar.of(target.path)
    return sidecar.job if target.job.work else next(sidecar.folder.glob("work-*.json"))


def give_away(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's: really as root, otherwise by pretending to be another."""
    if os.geteuid() == 0:
        os.chown(file, 54321, -1)
    else:
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)


def change(target: Target, **changes: Any) -> None:
    """Change what is recorded of the work of a job that is not pinned."""
    file = document(target)
    publish_json(file, read_json(file) | changes)


@pytest.mark.parametrize("pinned", [True, False])
def test_records_of_another_user(
    tmp_path: Path,
    modules: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    pinned: bool,
) -> None:
    """The filler that they name is not imported, unless the user names it or trusts them."""
    imported = modules("group")
    work: dict[str, Any] = {"filler": "recalled_one:fill", "arguments": {"step": 3}}
    options = work if pinned else {}
    target = flowmap.allocate(tmp_path / "out.npy", 15, "<f8", segments=3, **options)
    flowmap.fill_segment(target.segments[0], **work)
    give_away(document(target), monkeypatch)
    imported.unlink()
    _forget()
    before = snapshot(target.path)
    with pytest.raises(FillerRefusedError, match=r"belongs to user .*, not to you") as caught:
        flowmap.fill_share(target, "all")
    said = str(caught.value)
    assert str(document(target)) in said
    assert f"{target.path} --filler recalled_one:fill --arguments '{{\"step\": 3}}', or" in said
    assert f"flowmap fill {target.path} --trust" in said
    assert not imported.exists()
    assert snapshot(target.path) == before
    flowmap.fill_share(target, "1", **work)
    flowmap.fill_share(target, "2", trust=True)
    np.testing.assert_array_equal(np.load(target.path), np.full(15, 3.0))


def test_built_in_fillers_need_trust_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recalled `copy` would read a file of this user into a target of another."""
    np.save(tmp_path / "mine.npy", np.ones(10))
    arguments = {"source": str(tmp_path / "mine.npy")}
    target = half_filled(tmp_path, "copy", arguments, pinned=True)
    give_away(document(target), monkeypatch)
    with pytest.raises(FillerRefusedError, match=r"--filler flowmap\.copying:copy"):
        flowmap.fill_share(target, "all")
    assert len(target.pending()) == 1


@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_records_that_others_may_write(tmp_path: Path, bits: int) -> None:
    """The owner of a file did not write all of it where others may write to it."""
    target = half_filled(tmp_path, "arange")
    document(target).chmod(0o644 | bits)
    with pytest.raises(FillerRefusedError, match=r"can be written by other users \(-rw-"):
        recalled(target)
    assert recalled(target, trust=True).name == "flowmap.fillers:arange"


@pytest.mark.system(root=True)
def test_records_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root could do anything as this user anyway."""
    target = half_filled(tmp_path, "arange")
    assert document(target).stat().st_uid == 0
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert recalled(target).name == "flowmap.fillers:arange"


def test_the_file_that_is_read_is_the_one_whose_owner_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user who swaps the documents in between gains nothing."""
    target = half_filled(tmp_path, "arange")
    theirs, ours = document(target), tmp_path / "ours"
    os.link(theirs, ours)
    publish_json(theirs, read_json(theirs) | {"filler": "evil:run"})
    give_away(theirs, monkeypatch)
    fstat, number = os.fstat, theirs.stat().st_ino

    def swap(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        if found.st_ino == number and ours.exists():
            ours.rename(theirs)
        return found

    monkeypatch.setattr(os, "fstat", swap)
    with pytest.raises(FillerRefusedError, match=r"--filler evil:run"):
        recalled(target)


@pytest.mark.parametrize("module", ["recalled_one", "recalled_one.inner"])
def test_module_of_another_folder(
    tmp_path: Path, modules: Callable[..., Path], module: str
) -> None:
    """A filler of the same name in another file is not even imported."""
    modules("here", 1, module)
    target = half_filled(tmp_path, f"{module}:fill")
    imported = modules("elsewhere", 1, module)
    before = snapshot(target.path)
    with pytest.raises(FillerRefusedError, match=r"comes from .*elsewhere") as caught:
        flowmap.fill_share(target, "all")
    assert f"--filler {module}:fill" in str(caught.value)
    assert str(tmp_path / "here") in str(caught.value)
    assert not imported.exists()
    assert snapshot(target.path) == before
    flowmap.fill_share(target, "all", f"{module}:fill")
    assert imported.exists()
    assert not target.pending()


def test_edited_source(tmp_path: Path, modules: Callable[..., Path]) -> None:
    """A filler that was edited is to be named: to mend a fault is to say so."""
    modules("here", 1)
    target = half_filled(tmp_path)
    modules("here", 2)
    with pytest.raises(FillerRefusedError, match="has another source, and may compute other"):
        flowmap.fill_share(target, "all")
    with pytest.warns(flowmap.FillerChangedWarning, match="1 of 2 segments") as caught:
        flowmap.fill_share(target, "all", "recalled_one:fill")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(np.load(target.path), [1] * 5 + [2] * 5)


def test_comments_formatting_and_docstrings(
    tmp_path: Path, modules: Callable[..., Path]
) -> None:
    """They do not change what is computed."""
    file = modules("here").with_suffix(".py")
    target = half_filled(tmp_path)
    text = file.read_text().replace("'''Fill with a value.'''", "# with a value\n")
    file.write_text("# moved down\n\n" + text.replace("1 * step", "(1  *  step)  # one"))
    _forget()
    flowmap.fill_share(target, "all")
    assert not target.pending()


def test_installed_package_in_another_environment(tmp_path: Path) -> None:
    """Its folder differs from machine to machine; its source does not."""
    target = half_filled(tmp_path, "arange")
    change(target, file="/elsewhere/lib/python3.12/site-packages/flowmap/fillers.py")
    assert recalled(target).name == "flowmap.fillers:arange"
    change(target, source="def arange(out, block): out[...] = 7")
    with pytest.raises(FillerRefusedError, match="has another source"):
        recalled(target)


def test_local_module_is_no_installed_package(
    tmp_path: Path, modules: Callable[..., Path]
) -> None:
    """A module at hand does not take the place of a package that filled the rest."""
    modules("here")
    target = half_filled(tmp_path)
    change(target, file="/elsewhere/lib/python3.12/site-packages/recalled_one.py")
    with pytest.raises(FillerRefusedError, match=r"comes from .*here"):
        recalled(target)


@pytest.mark.parametrize("unknown", [{}, {"file": None, "source": None}, {"file": 5}])
def test_unknown_origin(tmp_path: Path, unknown: dict[str, Any]) -> None:
    """Records of earlier versions have no file; they are recalled as before."""
    target = half_filled(tmp_path, "arange")
    file = document(target)
    old = {k: v for k, v in read_json(file).items() if k not in ("file", "source")}
    publish_json(file, old | unknown)
    assert recalled(target).name == "flowmap.fillers:arange"


@pytest.mark.parametrize("changes", [{"filler": ["arange"]}, {"filler": 5}, {"arguments": 5}])
def test_records_that_name_no_filler(tmp_path: Path, changes: dict[str, Any]) -> None:
    """What no version wrote is refused, not looked up."""
    target = half_filled(tmp_path, "arange")
    change(target, **changes)
    with pytest.raises(InvalidArgumentError, match="the records do not say"):
        recalled(target)


def test_allocated_anew_meanwhile(tmp_path: Path) -> None:
    """The work of another job at the path is not taken for this one's."""
    target = half_filled(tmp_path, "arange", pinned=True)
    flowmap.allocate(target.path, 10, "<f8", segments=2, exist="overwrite", filler="constant")
    with pytest.raises(OtherJobError, match="allocated anew"):
        recalled(target)


def test_names_that_are_not_printable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach neither a terminal nor a shell as they are."""
    target = half_filled(tmp_path, "arange")
    change(target, filler="evil\x1b[2J:run", values={"a": "$(id)\x7f"})
    give_away(document(target), monkeypatch)
    with pytest.raises(FillerRefusedError) as caught:
        recalled(target)
    assert str(caught.value).isprintable()


SCRIPT = """
import sys
import flowmap

@flowmap.filler
def twice(out, block):
    out[...] = 2

if __name__ == "__main__":
    target = flowmap.allocate(sys.argv[1], 10, "<f8", segments=2)
    flowmap.fill(target, twice, workers=1)
"""


def test_worker_processes_record_the_origin(tmp_path: Path) -> None:
    """A function of a script has neither file nor lines in the worker that records it."""
    file = tmp_path / "sweep.py"
    file.write_text(SCRIPT)
    child = run([sys.executable, str(file), str(tmp_path / "out.npy")])
    assert child.returncode == 0, child.stderr
    recorded = read_json(document(flowmap.open_target(tmp_path / "out.npy")))
    assert recorded["filler"] == "sweep:twice"
    assert recorded["file"] == os.path.realpath(file)
    assert "out[...] = 2" in recorded["source"]


def test_object_that_can_be_called() -> None:
    """Its source is that of its class."""

    class Callback:
        def __call__(self, out: Any, block: Any) -> None: ...

    assert "class Callback:" in Work.of(Callback()).describe()["source"]


def test_what_has_no_origin() -> None:
    """A function of an extension module has neither file nor source."""
    described = Work.of(cast("Any", operator.concat)).describe()
    assert (described["file"], described["source"]) == (None, None)


class TestWithoutAFiller:
    """`fill` of a job whose records name its work."""

    def test_pinned(self, tmp_path: Path) -> None:
        """The filler and the arguments that the job is pinned to."""
        target = flowmap.allocate(
            tmp_path / "a.npy", **HOW, filler="arange", arguments={"start": 5}
        )
        assert len(flowmap.fill(target, executor="threads")) == 4
        assert np.load(target).tolist() == list(range(5, 105))

    def test_begun(self, tmp_path: Path) -> None:
        """The work that has filled it so far."""
        target = flowmap.allocate(tmp_path / "a.npy", **HOW)
        flowmap.fill_segment(target.segments[3], "constant", {"value": 2})
        assert len(flowmap.fill(target.path, executor="threads")) == 3
        assert set(np.load(target)) == {2}

    def test_none(self, tmp_path: Path) -> None:
        """Nothing is recorded; or arguments are given without their filler."""
        target = flowmap.allocate(tmp_path / "a.npy", **HOW)
        with pytest.raises(InvalidArgumentError, match="No filler is given"):
            flowmap.fill(target)
        with pytest.raises(InvalidArgumentError, match="Arguments are given but no filler"):
            flowmap.fill(target, arguments={"value": 2})

    def test_trust(self, tmp_path: Path) -> None:
        """Records that others may write are trusted only if the caller says so."""
        target = flowmap.allocate(tmp_path / "a.npy", **HOW, filler="arange")
        Sidecar.of(target.path).job.chmod(0o666)
        with pytest.raises(flowmap.FillerRefusedError, match="trust=True"):
            flowmap.fill(target)
        assert len(flowmap.fill(target, executor="threads", trust=True)) == 4
