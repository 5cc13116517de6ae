"""The command line speaks of its own options, and not of Python's."""

from __future__ import annotations

import ast
import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import flowmap
from flowmap import wording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cli.conftest import Said

    Command = Callable[..., Said]

OPTIONS: Final = (
    "exist|reserve|segments|block_rows|align|mixed|trust|mark|executor|workers|durability"
)
PYTHON: Final = re.compile(
    rf"\b({OPTIONS})=|\b(allocate|reset|validate|clean|open_target)\(|"
    r"(?<![-\w])(block_rows|segments|workers|align|shape|dtype|executor|sentinel|file) is|"
    r"\b(True|False|None)\b|PosixPath|concurrent\.futures|package\.module"
)
"""What only those understand who write Python."""

ALLOC: Final = ("alloc", "out.npy", "--shape", "40", "--segments", "4")
ARANGE: Final = ("--filler", "arange")
CONSTANT: Final = ("--filler", "constant")

REFUSALS: list[tuple[list[tuple[str, ...]], str]] = [
    ([("status", "out.npy")], "`flowmap alloc`"),
    ([(*ALLOC, "--exist", "error")] * 2, "--exist resume"),
    ([ALLOC, ("alloc", "out.npy", "--shape", "41")], "--exist overwrite"),
    ([ALLOC, (*ALLOC, "--block-rows", "3")], "block rows 10"),
    ([("status", "foreign.npy")], "`flowmap alloc --exist overwrite`"),
    ([(*ALLOC, "--block-rows", "0")], "--block-rows is 0"),
    ([(*ALLOC, "--align", "7")], "--align is 7"),
    ([("alloc", "out.npy", "--shape=-4")], "--shape is (-4,)"),
    ([("alloc", "out.npy", "--shape", "9", "--segments", "10")], "--segments is 10"),
    ([("alloc", "out.npy", "--shape", "9", "--dtype", "f99")], "--dtype is 'f99'"),
    ([ALLOC, ("fill", "out.npy")], "--filler FILE.py:FUNCTION"),
    ([ALLOC, ("fill", "out.npy", *ARANGE, "--workers", "0")], "--workers is 0"),
    ([ALLOC, ("fill", "out.npy", *ARANGE, "--pilot", "--workers=0")], "--workers is 0"),
    ([ALLOC, ("fill", "out.npy", *ARANGE, "--executor", "mpi")], "--executor is 'mpi'"),
    ([ALLOC, ("fill", "out.npy", *ARANGE, "--sentinel", "out.npy")], "--sentinel is"),
    ([ALLOC, ("info", "out.npy", "--export", "out.npy")], "--export is"),
    (
        [(*ALLOC, *ARANGE), ("fill", "out.npy", *CONSTANT, "--segment", "0")],
        "`flowmap alloc --exist overwrite`",
    ),
    (
        [ALLOC, ("fill", "out.npy", *ARANGE, "--segment", "0"), ("fill", "out.npy", *CONSTANT)],
        "`flowmap alloc --exist overwrite`",
    ),
    (
        [
            ALLOC,
            ("fill", "out.npy", *ARANGE, "--segment", "0"),
            ("fill", "out.npy", *CONSTANT, "--segment", "0"),
        ],
        "`flowmap reset`",
    ),
    (
        [
            ALLOC,
            ("fill", "out.npy", *ARANGE, "--segment", "0"),
            ("fill", "out.npy", *CONSTANT, "--segment", "1-3"),
            ("validate", "out.npy"),
        ],
        "pass --mixed",
    ),
    (
        [
            (*ALLOC, "--durability", "end", *ARANGE),
            ("fill", "out.npy", "--executor", "threads"),
            ("validate", "out.npy", "--no-mark"),
        ],
        "without --no-mark",
    ),
    (
        [
            (*ALLOC, *ARANGE),
            ("fill", "out.npy", "--executor", "threads"),
            ("fill", "out.npy", "--pilot"),
        ],
        "`flowmap reset`",
    ),
    (
        [
            (*ALLOC, "--filler", "fillers:broken", "--arguments", "at=3"),
            ("fill", "out.npy", "--executor", "threads"),
        ],
        "`flowmap alloc --exist overwrite`",
    ),
]
"""Commands of which the last one's message is another in Python, and a piece of it here."""


def last(command: Command, words: list[tuple[str, ...]], fresh: Path) -> str:
    """Run some commands in a new folder; return what the last one said, in one line."""
    fresh.mkdir()
    os.chdir(fresh)
    Path("foreign.npy").write_text("not an array")
    *before, refused = words
    for each in before:
        assert command(*each).code == 0, each
    said = command(*refused)
    return " ".join((said.out + said.err).split())


@pytest.mark.parametrize(
    ("words", "piece"), REFUSALS, ids=[" ".join(words[-1]) for words, _ in REFUSALS]
)
def test_refusals(
    command: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[tuple[str, ...]],
    piece: str,
) -> None:
    """Each names options and commands; without the command's wording it would not."""
    text = last(command, words, folder / "a")
    assert piece in text
    assert PYTHON.search(text) is None, text
    monkeypatch.setattr("flowmap.cli.app.of_the_command_line", contextlib.nullcontext)
    text = last(command, words, folder / "b")
    assert PYTHON.search(text) is not None, text


def test_segments_of_a_job_that_is_gone(tmp_path: Path) -> None:
    """A run that loses its job is told what to type, or which function to call."""
    path = tmp_path / "out.npy"
    old = flowmap.allocate(path, 40, "<f8", segments=4)
    flowmap.allocate(path, 40, "<f8", segments=4, exist="overwrite")
    with pytest.raises(flowmap.FlowmapError, match=r"from open_target\(path\)"):
        flowmap.fill_segment(old.segments[0], "arange")
    with (
        wording.of_the_command_line(),
        pytest.raises(flowmap.FlowmapError, match="Run the same command again"),
    ):
        flowmap.fill_segment(old.segments[0], "arange")


def test_workers_speak_like_the_command(command: Command, folder: Path) -> None:
    """A message that a worker process makes names options too; Python's come back after."""
    (folder / "fillers.py").write_text(SPEAKING)
    command(*ALLOC)
    said = command("fill", "out.npy", "--filler", "fillers:speaking", "--workers", "1")
    assert said.code == 1
    assert "ValueError: --exist overwrite" in said.err
    assert wording.setting(exist="overwrite") == "exist='overwrite'"


SPEAKING = """
import flowmap
from flowmap import wording


@flowmap.filler
def speaking(out, block):
    raise ValueError(wording.setting(exist="overwrite"))
"""


def test_names() -> None:
    """Options, values and commands have two names."""
    assert wording.option("block_rows") == "block_rows"
    assert wording.call("allocate") == "allocate()"
    assert wording.call("allocate", exist="renew") == "allocate(..., exist='renew')"
    with wording.of_the_command_line():
        assert wording.option("block_rows") == "--block-rows"
        assert wording.setting(mixed=True) == "--mixed"
        assert wording.setting(reserve=False, align=64) == "--no-reserve --align 64"
        assert wording.call("allocate", exist="renew") == "`flowmap alloc --exist renew`"


IN_PYTHON_ONLY: Final = {"changes.py", "mapping.py", "tasks.py", "work.py", "wording.py"}
"""Modules whose messages no command shows, or which hold both wordings."""


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module, but for docstrings and what `either` chooses from."""
    apart: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            apart.add(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("either"):
            apart.update(node.args)
        elif node not in apart and isinstance(text := getattr(node, "value", None), str):
            yield text


def test_messages_are_made_of_the_names() -> None:
    """A message that names an option or a function in Python's way asks `wording` for it."""
    python = re.compile(rf"\b({OPTIONS})=(?!\{{)|\b(allocate|reset|validate|clean)\(")
    found = [
        f"{module.name}: {text}"
        for module in Path(flowmap.__file__).parent.rglob("*.py")
        if module.name not in IN_PYTHON_ONLY
        for text in texts(ast.parse(module.read_text()))
        if python.search(text) and text != "runs allocate()"  # as a user's module does
    ]
    assert not found, "use option(), setting() or call() of flowmap.wording"
