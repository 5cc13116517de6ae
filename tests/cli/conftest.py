"""What the tests of the command line share."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from flowmap.cli.app import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILLERS = """
import os
import sys
import time
from pathlib import Path

import flowmap


@flowmap.filler
def square(out, block):
    for i, row in enumerate(range(block.start, block.stop)):
        out[i] = row**2


@flowmap.filler(volatile=("mended",))
def broken(out, block, at, mended="mended"):
    if block.start <= at < block.stop and not Path(mended).exists():
        raise ValueError(f"row {at} cannot be computed")
    out[...] = 1


@flowmap.filler(volatile=("seconds",))
def slow(out, block, seconds=0.05):
    time.sleep(seconds)
    out[...] = block.start


@flowmap.filler
def talkative(out, block):
    # In one write: print() makes two, between which another worker's may come.
    sys.stdout.write(f"row {block.start} says hello [bold]\\n")
    sys.stdout.flush()
    os.write(2, b"and on stderr\\n")
    time.sleep(0.1)
    out[...] = 1


def unmarked(out, block):
    out[...] = 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a module of fillers, in which the test works."""
    (tmp_path / "fillers.py").write_text(FILLERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "fillers", raising=False)
    return tmp_path


class Said:
    """What a command said, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that it printed."""
        document: dict[str, Any] = json.loads(self.out)
        assert self.out.count("\n") == 1
        return document


@pytest.fixture
def command(folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return a function that runs a command in this process, in the folder."""

    def call(*words: str) -> Said:
        capfd.readouterr()
        code = run(words)
        out, err = capfd.readouterr()
        assert "flowmap/cli" not in out + err, "no traceback of the command"
        return Said(code, out, err)

    return call
