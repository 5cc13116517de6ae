"""What is no file of flowmap's own has the name of one: a link, a pipe, a folder, a device."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sabotage import sabotage
from support import ramp

import flowmap
from flowmap.errors import FlowmapError

if TYPE_CHECKING:
    from collections.abc import Callable

    from campaign import Figures

ROWS, SEGMENTS = 12, 3
OUTSIDE = b"somebody else's"

PLACES = [
    "a.npy",
    "a.npy.flowmap",
    *(
        f"a.npy.flowmap/{name}"
        for name in ("job.json", "ledger.npy", "run.json", "seal.json", "overwrite.json")
    ),
    "a.npy.flowmap/header.lock",
    "a.npy.flowmap/work",  # stands for that of `ramp`
]
"""Names that flowmap uses."""


def _socket(place: Path, outside: Path) -> None:
    before = Path.cwd()
    os.chdir(place.parent)  # the name of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(place.name)
    finally:
        os.chdir(before)


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "link to a file": lambda place, outside: place.symlink_to(outside / "file"),
    "link to its like": lambda place, outside: place.symlink_to(outside / "like"),
    "link to a folder": lambda place, outside: place.symlink_to(outside),
    "dangling link": lambda place, outside: place.symlink_to(outside / "nothing"),
    "link to itself": lambda place, outside: place.symlink_to(place),
    "hard link": lambda place, outside: place.hardlink_to(outside / "file"),
    "pipe": lambda place, outside: os.mkfifo(place),
    "folder": lambda place, outside: place.mkdir(),
    "socket": _socket,
    "null device": lambda place, outside: os.mknod(
        place, stat.S_IFCHR | 0o666, os.makedev(1, 3)
    ),
    "zero device": lambda place, outside: os.mknod(
        place, stat.S_IFCHR | 0o666, os.makedev(1, 5)
    ),
}
"""What may have such a name."""


def _open_segment(path: Path, segment: flowmap.Segment) -> None:
    with flowmap.open_segment(segment) as out:
        out[...] = 1


USES: dict[str, Callable[[Path, Any], object]] = {
    "resume": lambda path, _: allocate(path),
    "error": lambda path, _: allocate(path, exist="error"),
    "overwrite": lambda path, _: allocate(path, exist="overwrite"),
    "open": lambda path, _: flowmap.open_target(path),
    "status": lambda path, _: flowmap.open_target(path).status(),
    "masked": lambda path, _: flowmap.open_target(path).masked(),
    "load": lambda path, _: flowmap.load(path, masked=True),
    "map": lambda path, _: flowmap.open_memmap(path),
    "fill": lambda path, _: flowmap.fill(path, ramp, executor="threads", workers=1),
    "fill_segment": lambda _, segment: flowmap.fill_segment(segment, ramp),
    "write_segment": lambda _, segment: flowmap.write_segment(segment, np.ones(4)),
    "open_segment": _open_segment,
    "validate": lambda path, _: flowmap.validate(path),
    "reset": lambda path, _: flowmap.reset(path, 0),
}
"""What may be done with such a job."""


def allocate(path: Path, **how: Any) -> flowmap.Target:
    """Allocate the job of these tests."""
    return flowmap.allocate(path, ROWS, "<f8", segments=SEGMENTS, **how)


def seen(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return the names in a folder, and what can be seen of each file."""
    found = {}
    for entry in sorted(folder.rglob("*")):
        status = entry.lstat()
        content = entry.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(entry)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> flowmap.Target:
    """Return a job of which one segment is done."""
    target = allocate(tmp_path_factory.mktemp("template") / "a.npy")
    flowmap.fill_segment(target.segments[0], ramp)
    return target


def check(template: flowmap.Target, folder: Path, name: str, kind: str, use: str) -> None:
    """Use a job where a name is taken; see that nothing beside it is touched."""
    outside = folder.with_name(f"outside {use}")
    shutil.copytree(template.path.parent, folder)
    outside.mkdir()
    path = folder / "a.npy"
    segment = flowmap.open_target(path).segments[1]
    (work,) = folder.glob("a.npy.flowmap/work-*.json")
    place = work if name.endswith("/work") else folder / name
    (outside / "file").write_bytes(OUTSIDE)
    if place.is_dir():
        shutil.move(place, outside / "like")
    elif place.exists():
        place.rename(outside / "like")
    before = seen(outside)
    KINDS[kind](place, outside)
    try:
        USES[use](path, segment)
    except FlowmapError as error:
        assert "a.npy" in str(error)  # noqa: PT017 -- one of two outcomes
    if (use, kind) != ("map", "link to its like"):  # which is followed, as NumPy does
        assert seen(outside) == before


@pytest.mark.system(packages="", root=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLACES)
def test_names_of_what_is_no_file(
    tmp_path: Path, template: flowmap.Target, name: str, kind: str, figures: Figures
) -> None:
    """Each use goes well or is refused by name, and nothing is waited for or followed."""
    for use in USES:
        check(template, tmp_path / use, name, kind, use)
        figures.add("hostile input", "names of what is no file")
    with contextlib.suppress(FlowmapError):  # of a folder in the way, which is never replaced
        again = allocate(tmp_path / "fill" / "a.npy", exist="overwrite")
        assert flowmap.fill(again, ramp, executor="threads", workers=1)
        assert flowmap.validate(again).ok


@pytest.mark.parametrize("use", ["fill_segment", "reset"])
def test_links_that_are_followed_would_be_seen(
    tmp_path: Path,
    template: flowmap.Target,
    monkeypatch: pytest.MonkeyPatch,
    use: str,
) -> None:
    """A flowmap that follows links writes to what they lead to, and is caught."""
    sabotage("links followed", monkeypatch.setattr)
    with pytest.raises(AssertionError):
        check(template, tmp_path / use, "a.npy.flowmap/ledger.npy", "link to its like", use)
