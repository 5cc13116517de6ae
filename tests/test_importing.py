"""Scripts that allocate or fill while a filler is imported from them."""

from __future__ import annotations

import importlib
import re
import runpy
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import flowmap
from flowmap.errors import FillerNotFoundError, SegmentsFailedError
from flowmap.fillers import find_filler

if TYPE_CHECKING:
    from flowmap.segments import Block

_HEAD = """\
import flowmap

@flowmap.filler
def ones(out, block):
    out[...] = 1

"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that modules are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(folder: Path, name: str, code: str) -> None:
    """Write a script with a filler and no guard."""
    (folder / f"{name}.py").write_text(_HEAD + code)


@pytest.mark.parametrize(
    ("number", "code", "doing"),
    [
        (1, "flowmap.allocate('new.npy', 8, 'f8')", r"allocate\(\)"),
        (2, "flowmap.fill(PATH, ones, executor='threads')", r"fill\(\)"),
        (3, "flowmap.fill_segment(TARGET.segments[0], ones)", "fills a segment"),
        (4, "flowmap.fill_share(PATH, 'all', ones)", r"fill_share\(\)"),
        (5, "flowmap.open_segment(TARGET.segments[0]).__enter__()", "fills a segment"),
    ],
)
def test_refused_while_a_filler_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str, doing: str
) -> None:
    """A name in text leads to no run; the error says what to guard, and in which line."""
    monkeypatch.chdir(folder)
    target = flowmap.allocate("there.npy", 8, "f8", segments=2)
    name = f"unguarded_{number}"
    write(
        folder, name, f"TARGET = flowmap.open_target('there.npy'); PATH = 'there.npy'\n{code}"
    )
    told = rf"{name}\.py .*{doing} while it is imported; put that under `if __name__ == '__main"
    with pytest.raises(FillerNotFoundError, match=told) as caught:
        find_filler(f"{name}:ones")
    assert f"{name}.py, line 8" in str(caught.value)
    assert not (folder / "new.npy").exists()
    assert (target.status()["state"] == "pending").all()


def test_other_threads_fill_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow import in one thread concerns no other."""
    begun, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(flowmap, "begun", begun, raising=False)
    monkeypatch.setattr(flowmap, "ended", ended, raising=False)
    write(folder, "slow_module", "flowmap.begun.set(); assert flowmap.ended.wait(60)\n")
    finding = threading.Thread(target=find_filler, args=["slow_module:ones"])
    finding.start()
    try:
        assert begun.wait(60)
        target = flowmap.allocate(folder / "a.npy", 8, "f8", segments=2)
        flowmap.fill(target, "constant", executor="threads", workers=1)
    finally:
        ended.set()
        finding.join()
    assert not target.pending()


def test_any_import_of_a_script_that_sends_its_filler_away(folder: Path) -> None:
    """Is refused: the thread that pickles the filler would wait for that import to end."""
    target = f"flowmap.allocate({str(folder / 'a.npy')!r}, 8, 'f8', segments=2)"
    write(folder, "fills_in_threads", f"flowmap.fill({target}, ones, executor='threads')")
    write(folder, "fills_in_processes", f"flowmap.fill({target}, ones, workers=1)")
    with pytest.raises(FillerNotFoundError, match=r"_processes\.py runs fill\(\) while"):
        importlib.import_module("fills_in_processes")
    importlib.import_module("fills_in_threads")
    assert flowmap.validate(folder / "a.npy").ok


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_refused_in_a_worker(folder: Path, kind: str) -> None:
    """A worker that loads the filler by its name does not run the script again."""
    name = f"script_for_{kind}"
    write(folder, name, f"flowmap.allocate({str(folder / 'made.npy')!r}, 8, 'f8')\n")
    filler = importlib.import_module(name).ones
    (folder / "made.npy").unlink()
    target = flowmap.allocate(folder / "a.npy", 8, "f8", segments=2)
    with pytest.raises(SegmentsFailedError, match=rf"{name}\.py runs allocate\(\) while it is"):
        flowmap.fill(target, filler, executor=kind, workers=1)
    assert not (folder / "made.npy").exists()


def test_refused_where_a_worker_of_multiprocessing_runs_the_script(folder: Path) -> None:
    """Its pools execute the script again under another name, which would allocate again."""
    made = folder / "made.npy"
    write(folder, "main_script", f"flowmap.allocate({str(made)!r}, 8, 'f8')\n")
    with pytest.raises(
        FillerNotFoundError, match=r"main_script\.py runs allocate\(\) while it"
    ):
        runpy.run_path(str(folder / "main_script.py"), run_name="__mp_main__")
    assert not made.exists()
    runpy.run_path(str(folder / "main_script.py"), run_name="__main__")
    assert made.exists()


def another_job(out: Any, block: Block, path: str) -> None:
    """Fill another job within a filler."""
    target = flowmap.allocate(f"{path}.{block.start}.npy", len(block), out.dtype)
    flowmap.fill(target, "constant", {"value": 3}, executor="threads", workers=1)
    out[...] = np.load(target.path)


def test_a_filler_in_a_worker_may_fill(folder: Path) -> None:
    """What a worker calls is not what it imports."""
    target = flowmap.allocate(folder / "a.npy", 8, "f8", segments=2)
    flowmap.fill(target, another_job, {"path": str(folder / "b")}, workers=1)
    assert (np.load(target.path) == 3).all()


@pytest.mark.parametrize("page", ["README.md", "docs/snakemake.md", "docs/batch_systems.md"])
def test_scripts_of_the_pages_are_guarded(page: str) -> None:
    """What a reader pastes may be imported: nothing is run at the top level of a script."""
    text = (Path(__file__).parents[1] / page).read_text()
    scripts = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert scripts
    runs = re.compile(
        r"^[^\s@].*flowmap\.(allocate|fill\w*|write_segment|open_segment)\(", re.MULTILINE
    )
    assert not [found[0] for script in scripts if (found := runs.search(script))]
