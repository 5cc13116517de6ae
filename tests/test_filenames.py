"""Paths that mean something else to a user than to the file system: one rule everywhere."""

from __future__ import annotations

import functools
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import flowmap
from flowmap.cleaning import clean
from flowmap.cli.app import run
from flowmap.copying import copy
from flowmap.deployed import place
from flowmap.errors import ForeignFileError, InvalidArgumentError, WrongTypeError
from flowmap.exporting import export
from flowmap.filenames import check_filename

if TYPE_CHECKING:
    from collections.abc import Callable


def _copied(path: Any) -> None:
    copy(np.zeros(2), flowmap.Block(0, 2), source=path)


FUNCTIONS: dict[str, Callable[[Any], object]] = {
    "allocate": functools.partial(flowmap.allocate, shape=2, dtype="<f8"),
    "open_target": flowmap.open_target,
    "fill": functools.partial(flowmap.fill, filler="arange"),
    "fill_share": functools.partial(flowmap.fill_share, share="all"),
    "validate": flowmap.validate,
    "reset": functools.partial(flowmap.reset, segments=0),
    "clean": clean,
    "export": functools.partial(export, file="a.json"),
    "load": flowmap.load,
    "load a window": functools.partial(flowmap.load, offset=1),
    "load masked": functools.partial(flowmap.load, masked=True),
    "open_memmap": functools.partial(flowmap.open_memmap, mode="r"),
    "open_memmap w+": functools.partial(flowmap.open_memmap, mode="w+", shape=2),
    "the source of copy": _copied,
    "tasks and the flow": place,
}

ODD: list[tuple[Any, type[Exception], str]] = [
    ("~/a.npy", InvalidArgumentError, r"'~' is not expanded.*Give '/home/me/a\.npy'"),
    (Path("~/a.npy"), InvalidArgumentError, r"os\.path\.expanduser"),
    ("s3://bucket/a.npy", InvalidArgumentError, "an address.*mounted file system"),
    (Path("gs://bucket/a.npy"), InvalidArgumentError, "an address"),
    ("file:///data/a.npy", InvalidArgumentError, r"Give the path: '/data/a\.npy'"),
    ("C:\\data\\a.npy", InvalidArgumentError, "a path of Windows"),
    ("a.npy/", InvalidArgumentError, "names a folder"),
    ("there/.", InvalidArgumentError, "names a folder"),
    (Path(), InvalidArgumentError, "names a folder"),
    ("", InvalidArgumentError, "an empty text"),
    ("a\0.npy", InvalidArgumentError, "names no file"),
    (b"a.npy", WrongTypeError, r"in bytes\. Pass text: os\.fsdecode"),
    (3, WrongTypeError, r"as a str or a pathlib\.Path"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and a home."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_error_everywhere(folder: Path, name: str) -> None:
    """Each path is refused by each function, with one message, and nothing is made."""
    for path, error, message in ODD:
        with pytest.raises(error, match=f"(?s){message}") as caught:
            FUNCTIONS[name](path)
        given = path if isinstance(path, bytes) or not isinstance(path, os.PathLike) else None
        assert given is None or repr(given) in str(caught.value)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "tasks and the flow"])
def test_a_folder(folder: Path, name: str) -> None:
    """A folder in the place of the file is said to be one, or no regular file."""
    (folder / "a.npy").mkdir()
    known = (ForeignFileError, InvalidArgumentError)
    with pytest.raises(known, match=r"not a regular file but a folder|no regular file"):
        FUNCTIONS[name]("a.npy")
    assert [entry.name for entry in folder.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("~/a.npy", "not expanded"), ("s3://b/a.npy", "an address"), ("a.npy/", "a folder")],
)
def test_the_command_line(
    folder: Path, path: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands take the text as it was written, and refuse it likewise."""
    for command in (["alloc", path, "--shape", "2"], ["fill", path], ["validate", path]):
        assert run(command) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "path", ["a.npy", "~a.npy", "./~/a.npy", "a:b.npy", "~no-such-user/a.npy", "x/s3:/a.npy"]
)
def test_what_only_looks_odd(folder: Path, path: str) -> None:
    """Names that neither a shell nor anybody else reads as something else are names."""
    assert check_filename(path) == path
    absolute = PurePosixPath(folder, path)
    assert check_filename(absolute) == str(absolute)
