"""What other users have written reaches the terminal of the command as text only."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rich.text
from cli.terminal import Terminal
from rich.live import Live
from rich.table import Table
from support import HOSTILE, obeyed, poison, written

import flowmap
from flowmap.cli.output import PlainConsole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.conftest import Said

NAME = f"a{HOSTILE}.npy"
ONE_LINE = HOSTILE.replace("\r", "")  # what is before it a progress bar has overwritten

COMMANDS: list[list[str]] = [
    ["status", NAME],
    ["status", NAME, "--segment", "all"],
    ["info", NAME],
    ["info", NAME, "--export", f"{HOSTILE}.json"],
    ["validate", NAME],
    ["fill", NAME],
    ["fill", NAME, "--filler", "arange"],
    ["fill", NAME, "--filler", HOSTILE],
    ["reset", NAME, "all"],
    ["reset", NAME, "all", "--yes"],
    ["reset", NAME, HOSTILE],
    ["clean", NAME],
    ["alloc", NAME, "--shape", "9"],
    ["alloc", f"{HOSTILE}.npy", "--shape", "9"],
    ["doctor", NAME],
    ["status", f"missing{HOSTILE}.npy"],
    ["status", NAME, f"--{HOSTILE}"],
    [HOSTILE],
]


@pytest.fixture
def hostile(folder: Path) -> Path:
    """Return a target whose name and records are all hostile, in the working directory."""
    target = written(folder / NAME, np.arange(9.0))
    poison(target)
    return target.path


@pytest.mark.parametrize("words", COMMANDS, ids=range(len(COMMANDS)))
def test_commands(hostile: Path, command: Callable[..., Said], words: list[str]) -> None:
    """No command sends a control character, and each shows the text that had some."""
    said = command(*words)
    assert obeyed(said.out + said.err) == []
    shown = re.sub(r"\s|│", "", said.out + said.err)  # wherever a line was broken
    assert r"\x1b]0;owned" in shown
    assert "[red]" in shown


@pytest.mark.parametrize("words", [["status"], ["info"], ["doctor"], ["clean"]])
def test_json(hostile: Path, command: Callable[..., Said], words: list[str]) -> None:
    """Programs get the same on one line, in ASCII."""
    said = command(*words, NAME, "--json")
    assert obeyed(said.out.replace("\x7f", "")) == []
    assert said.out.isascii()
    assert HOSTILE in json.dumps(said.json, ensure_ascii=False) or "owned" in said.out


def test_watched_off_a_terminal(folder: Path, command: Callable[..., Said]) -> None:
    """Nor does what is shown again and again."""
    written(folder / NAME, np.arange(9.0))
    said = command("status", NAME, "--watch")
    assert obeyed(said.out) == []
    assert r"\x1b]0;owned\x07" in said.out


def test_on_a_terminal() -> None:
    """Whatever is rendered, and however deep, rich's own codes are the only ones."""
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(rich.text.Text(HOSTILE, "red"))
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=True, width=200)
    console.print(HOSTILE, rich.text.Text(HOSTILE), table)
    with Live(table, console=console, auto_refresh=False) as live:
        live.console.print(rich.text.Text.from_ansi(f"\x1b[31mred\x1b[0m\x1bc{ONE_LINE}"))
        live.update(table, refresh=True)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).replace("\r", "")
    assert obeyed(shown) == []
    assert shown.count("[red]") >= 4
    assert "\x1b[31mred" in file.getvalue()


def test_a_fill_on_a_terminal(folder: Path) -> None:
    """The display of a fill shows the name, and what fillers print, as text."""
    with (folder / "fillers.py").open("a") as file:
        file.write(
            "\n\n@flowmap.filler\ndef escaping(out, block):\n"
            f"    sys.stdout.write({f'before{ONE_LINE}after' + chr(10)!r})\n"
            "    sys.stdout.flush()\n    time.sleep(1)\n"
        )
    flowmap.allocate(folder / NAME, 4, "f8", segments=1)
    words = ["fill", NAME, "--filler", "fillers:escaping", "--executor", "threads"]
    with Terminal(words, folder) as terminal:
        assert terminal.code() == 0
        raw = terminal.raw
    assert "before" in raw
    assert "after" in raw
    assert "\x1b]0;" not in raw
    assert not set(obeyed(raw)) - {"\x1b", "\r"}
