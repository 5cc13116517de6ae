"""An edited filler in flows: the log says once what its earlier source has filled."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow, unmapped

import flowmap
from flowmap.cli.app import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from servers import Server

    from flowmap.fillers import Filler

    Edit = Callable[[int], Filler]

MODULE = """
import flowmap


@flowmap.filler
def fill(out, block):
    out[...] = VALUE
"""
FACT = "1 of 4 segments were filled by an earlier source of the filler edited_filler:fill."


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Return a function that writes a module with a filler and imports it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    def edit(value: int) -> Filler:
        (tmp_path / "edited_filler.py").write_text(MODULE.replace("VALUE", str(value)))
        sys.modules.pop("edited_filler", None)
        filler: Filler = __import__("edited_filler").fill
        return filler

    yield edit
    sys.modules.pop("edited_filler", None)


def half_filled(folder: Path, edit: Edit, **pinned: Any) -> Path:
    """Return a target whose first segment was filled before the filler was edited."""
    filler = edit(1)
    target = flowmap.allocate(folder / "a.npy", 40, "<f8", segments=4, **pinned)
    flowmap.fill_segment(target.segments[0], filler)
    edit(2)
    return target.path


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of what was logged since the last call."""
    found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    caplog.clear()
    return [text for text in found if "earlier source" in text]


def test_the_flow(
    server: Server,
    tmp_path: Path,
    edit: Edit,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says so before it fills, and in its report; `flowmap run` does, too."""
    path = half_filled(tmp_path, edit, filler="edited_filler:fill")
    options: dict[str, Any] = {"segments": 4, "executor": "threads", "workers": 2}
    report = flowmap.fill_array(path, 40, "<f8", "edited_filler:fill", **options)
    messages = [record.getMessage() for record in caplog.records]
    said = [index for index, text in enumerate(messages) if FACT in text]
    filled = [index for index, text in enumerate(messages) if "segments were filled" in text]
    assert len(said) == 1
    assert said[0] < filled[-1]
    assert [FACT in text for text in warned(caplog)] == [True]
    assert report.ok
    assert [FACT in text for text in report.warnings] == [True]
    words = ["run", str(path), "--shape", "40", "--segments", "4", "--executor", "threads"]
    assert run([*words, "--filler", "edited_filler:fill"]) == 0
    assert [FACT in text for text in warned(caplog)] == [True]
    assert "earlier source" not in capsys.readouterr().out, "the log has it"
    assert run([*words, "--filler", "edited_filler:fill", "--json"]) == 0
    (text,) = json.loads(capsys.readouterr().out)["warnings"]
    assert FACT in text


def test_tasks(
    server: Server, tmp_path: Path, edit: Edit, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all the tasks of a flow run the first that can warns."""
    path = half_filled(tmp_path, edit)

    @flow
    def sweep() -> flowmap.ValidationReport:
        target = flowmap.alloc_task(path, 40, "<f8", segments=4)
        filler = sys.modules["edited_filler"].fill
        flowmap.fill_task.map(target.pending(), filler=unmapped(filler)).wait()
        return flowmap.validate_task(target)

    for _ in range(2):  # in the second run there is nothing to fill
        report = sweep()
        assert [FACT in text for text in warned(caplog)] == [True]
        assert [FACT in text for text in report.warnings] == [True]


def test_flow_that_is_told_nothing(
    server: Server, tmp_path: Path, edit: Edit, caplog: pytest.LogCaptureFixture
) -> None:
    """After comments were edited nothing is logged."""
    path = half_filled(tmp_path, edit)
    flowmap.reset(path, 0)
    file = path.with_name("edited_filler.py")

    @flow
    def sweep() -> flowmap.ValidationReport:
        target = flowmap.alloc_task(path, 40, "<f8", segments=4)
        filler = sys.modules["edited_filler"].fill
        flowmap.fill_task.map(target.pending(), filler=unmapped(filler)).wait()
        file.write_text(file.read_text().replace("= 2", "= 2  # two"))
        return flowmap.validate_task(target)

    assert sweep().warnings == ()
    assert warned(caplog) == []


def test_function_of_a_task(
    tmp_path: Path, edit: Edit, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a run there is no log of one."""
    path = half_filled(tmp_path, edit)
    (segment, *_) = flowmap.open_target(path).pending()
    flowmap.fill_task.fn(segment, sys.modules["edited_filler"].fill)
    assert [FACT in text for text in warned(caplog)] == [True]
