"""An edited filler: each command says once which segments its earlier source has filled."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.conftest import Said

    Command = Callable[..., Said]

FACT = "2 of 4 segments were filled by an earlier source of the filler fillers:square."
ADVICE = "`flowmap reset out.npy 0 2`, then `flowmap fill` with the same --filler"
NEXT = "flowmap fill out.npy --filler FILE.py:FUNCTION"


@pytest.fixture
def edited(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill segments 0 and 2, and edit the filler."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    command("alloc", "out.npy", "--shape", "40", "--segments", "4")
    filler = ("--filler", "fillers.py:square")
    said = command("fill", "out.npy", *filler, "--segment", "0", "--segment", "2")
    assert (said.code, said.err) == (0, "")
    file = folder / "fillers.py"
    file.write_text(file.read_text().replace("row**2", "row**3"))
    del sys.modules["fillers"]


def check(said: Said, code: int) -> None:
    """Fail unless a command warned once, on stderr, in the words of the command line."""
    assert said.code == code
    assert said.err.count("earlier source") == 1
    assert FACT in said.err
    assert ADVICE in said.err
    assert "--exist overwrite" in said.err
    assert "earlier source" not in said.out


@pytest.mark.usefixtures("edited")
def test_each_command_warns_once(command: Command) -> None:
    """Those that have no filler at hand read its file, and advise no fill that recalls it."""
    for name in ("status", "validate"):
        check(said := command(name, "out.npy"), 3)
        assert NEXT in said.out
    assert "has another source" in command("fill", "out.npy").err
    check(command("status", "out.npy", "--segment", "1"), 3)
    check(command("info", "out.npy"), 0)
    check(command("fill", "out.npy", "--filler", "fillers.py:square", "--segment", "1"), 0)
    check(command("fill", "out.npy", "--filler", "fillers.py:square", "--workers", "1"), 0)
    check(command("status", "out.npy", "--watch"), 0)
    check(command("info", "out.npy", "--export", "all.json"), 0)
    said = command("info", "all.json")
    assert FACT in said.err
    check(command("validate", "out.npy"), 0)


@pytest.mark.usefixtures("edited")
def test_json_has_the_warning(command: Command) -> None:
    """Then stderr has none."""
    fill = ("fill", "out.npy", "--filler", "fillers.py:square", "--workers", "1")
    for words in (fill, ("status", "out.npy"), ("info", "out.npy"), ("validate", "out.npy")):
        said = command(*words, "--json")
        assert (said.code, said.err) == (0, "")
        (warning,) = said.json["warnings"]
        assert FACT in warning
        assert ADVICE in warning
    command("reset", "out.npy", "0", "2", "--yes")
    assert command(*fill, "--json").json["warnings"] == []
