"""FLOWMAP_ROOT: where paths lead, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flowmap.errors import InvalidArgumentError, WrongTypeError
from flowmap.root import root, rooted

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a root and set it."""
    made = tmp_path / "root"
    (made / "sub").mkdir(parents=True)
    monkeypatch.setenv("FLOWMAP_ROOT", str(made))
    return made


def test_unset_root_leaves_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a root, and with an empty one, a path is what was given."""
    monkeypatch.delenv("FLOWMAP_ROOT", raising=False)
    assert root() is None
    assert str(rooted("a/b.npy")) == "a/b.npy"
    monkeypatch.setenv("FLOWMAP_ROOT", "")
    assert str(rooted("/a/b.npy")) == "/a/b.npy"


def test_paths_within(folder: Path) -> None:
    """Relative paths are taken from the root; absolute ones within it stay."""
    assert root() == folder
    assert rooted("a.npy") == folder / "a.npy"
    assert rooted("sub/a.npy") == folder / "sub" / "a.npy"
    assert rooted("sub/../a.npy") == folder / "a.npy"
    assert rooted(folder / "a.npy") == folder / "a.npy"


def test_root_behind_a_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root that is itself a link is the folder that it leads to, by either name."""
    link = folder.with_name("link")
    link.symlink_to(folder)
    monkeypatch.setenv("FLOWMAP_ROOT", str(link))
    assert rooted("a.npy") == rooted(link / "a.npy") == folder / "a.npy"
    assert rooted(folder / "a.npy") == folder / "a.npy"


@pytest.mark.parametrize("path", ["../a.npy", "sub/../../a.npy", "/etc/a.npy", "out/a.npy"])
def test_paths_that_lead_out(folder: Path, path: str) -> None:
    """No dots lead out, no absolute path, nor a link; the message names the setting."""
    (folder / "out").symlink_to(folder.parent)
    with pytest.raises(InvalidArgumentError, match=r"export FLOWMAP_ROOT="):
        rooted(path)


@pytest.mark.parametrize("path", [".", "", "./", "sub/..", "{link}", "{folder}", "{back}"])
def test_names_that_do_not_lie_within(
    folder: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the root itself, whose link could be replaced, nor a link that leads in."""
    link, back = folder.with_name("link"), folder.with_name("back.npy")
    link.symlink_to(folder)
    back.symlink_to(folder / "a.npy")
    monkeypatch.setenv("FLOWMAP_ROOT", str(link))
    with pytest.raises(
        InvalidArgumentError, match=r"export FLOWMAP_ROOT=|names a folder|an empty text"
    ):
        rooted(path.format(link=link, folder=folder, back=back))


def test_link_of_that_very_name(folder: Path) -> None:
    """A file within that is a link to one without is refused too."""
    (folder / "a.npy").symlink_to(folder.parent / "secret.npy")
    with pytest.raises(InvalidArgumentError, match="leads out of"):
        rooted("a.npy")


def test_neighbour_with_the_same_beginning(folder: Path) -> None:
    """/data-private is not within /data."""
    with pytest.raises(InvalidArgumentError, match="leads out of"):
        rooted(f"{folder}-private/a.npy")


@pytest.mark.parametrize("path", [None, 3, ["a.npy"], b"a.npy"])
def test_what_is_no_path(folder: Path, path: Any) -> None:
    """What is no path is a wrong type."""
    with pytest.raises(WrongTypeError, match=r"str or a pathlib\.Path|in bytes"):
        rooted(path)


def test_zero_byte(folder: Path) -> None:
    """A name that no file can have is refused, not looked up."""
    with pytest.raises(InvalidArgumentError, match="names no file"):
        rooted("a\0.npy")


@pytest.mark.parametrize("text", ["relative", "/nonexistent", "/etc/passwd"])
def test_root_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A root that is relative, missing or a file is the administrator's to mend."""
    monkeypatch.setenv("FLOWMAP_ROOT", text)
    with pytest.raises(InvalidArgumentError, match=r"export FLOWMAP_ROOT=/data/arrays"):
        rooted("a.npy")
