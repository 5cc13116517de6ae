"""What other users of a machine may do to one's jobs, and what their records may do to one."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import as_user, let_others_in, ramp, sealed, snapshot

import flowmap
import flowmap.wanted
from flowmap import sentinels
from flowmap.checksums import write_checksum
from flowmap.errors import ForeignFileError, InvalidArgumentError
from flowmap.exporting import export

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OWNER, OTHER = 40_001, 40_002
"""Two users that no machine has."""

needs_users = pytest.mark.system(packages="sudo", root=True)


def allocate(path: Path, **changes: Any) -> flowmap.Target:
    """Allocate a small target, but for the changes."""
    asked: dict[str, Any] = {"shape": 10, "dtype": "f8", "segments": 2}
    return flowmap.allocate(path, **(asked | changes))


def allocated(path: Path, **changes: Any) -> Callable[[], str]:
    """Return what allocates a target and says how many segments are pending."""
    return lambda: str(len(allocate(path, **changes).pending()))


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a path in a folder where everybody may make files, as in a group's."""
    let_others_in(tmp_path / "a.npy")
    tmp_path.chmod(0o777)
    return tmp_path / "a.npy"


def _made_beforehand(path: Path, what: str) -> None:
    if what == "a job whose target is gone":
        allocate(path)
        path.unlink()
        return
    folder = path.with_name(f"{path.name}.flowmap")
    folder.mkdir()
    if what == "a lock":
        folder.joinpath("header.lock").touch()


@needs_users
@pytest.mark.parametrize("what", ["a folder", "a lock", "a job whose target is gone"])
@pytest.mark.parametrize("user", [OWNER, 0])
def test_records_that_somebody_made_beforehand(shared: Path, what: str, user: int) -> None:
    """Neither a user nor root begins a job in a folder whose owner could forge its records."""
    shared.parent.chmod(0o1777)  # as /tmp

    def planted() -> str:
        _made_beforehand(shared, what)
        return "planted"

    assert as_user(OTHER, planted, mask=0) == "planted"
    before = snapshot(shared), sorted(shared.parent.iterdir())
    told = as_user(user, allocated(shared))
    assert told.startswith(f"ForeignFileError: {shared}.flowmap, where the records go, belongs")
    assert f"belongs to user number {OTHER}" in told
    assert "Choose another path" in told
    assert (snapshot(shared), sorted(shared.parent.iterdir())) == before


@needs_users
@pytest.mark.parametrize("exist", ["overwrite", "renew"])
def test_a_job_of_somebody_else_is_not_replaced(shared: Path, exist: str) -> None:
    """A new job in the place of another user's would have records that the other owns."""
    assert as_user(OTHER, allocated(shared), mask=0) == "2"
    before = snapshot(shared)
    told = as_user(OWNER, allocated(shared, shape=11, exist=exist))
    assert told.startswith("ForeignFileError")
    assert f"belongs to user number {OTHER}" in told
    assert snapshot(shared) == before
    assert as_user(OTHER, allocated(shared, shape=11, exist=exist)) == "2"


@needs_users
def test_a_job_of_somebody_else_is_filled(shared: Path) -> None:
    """Attaching to a colleague's job and filling it is what a group's folder is for."""
    assert as_user(OTHER, allocated(shared), mask=0) == "2"

    def filled() -> str:
        target = allocate(shared)
        flowmap.fill_segment(target.segments[0], ramp)
        return str(len(target.pending()))

    assert as_user(OWNER, filled) == "1"


@needs_users
@pytest.mark.parametrize(
    "use",
    [
        allocate,
        flowmap.open_target,
        flowmap.validate,
        lambda path: flowmap.reset(path, 0),
        lambda path: flowmap.fill(path, ramp, executor="threads"),
        lambda path: flowmap.load(path, masked=True),
    ],
    ids=["allocate", "open", "validate", "reset", "fill", "load"],
)
def test_records_that_somebody_put_beside_a_file(
    shared: Path, use: Callable[[Path], object]
) -> None:
    """Records of another user say nothing of a file that is not theirs."""

    def planted() -> str:
        allocate(shared)
        return "planted"

    assert as_user(OTHER, planted, mask=0) == "planted"
    mine = shared.with_name("mine")
    shutil.copy(shared, mine)
    os.chown(mine, OWNER, OWNER)
    mine.rename(shared)
    before = snapshot(shared)
    told = as_user(OWNER, lambda: str(use(shared)))
    assert told.startswith(f"ForeignFileError: {shared}.flowmap, with the records of")
    assert f"belongs to user number {OTHER}, but the file to user number {OWNER}" in told
    assert snapshot(shared) == before


@needs_users
def test_allocated_by_two_users_at_once(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sees the folder of a colleague's job before its target waits, and attaches to it."""
    assert as_user(OTHER, allocated(shared), mask=0) == "2"

    def at_once() -> str:
        look, looks = flowmap.wanted.Wanted.attach, list[object]()

        def too_early(wanted: Any) -> Any:
            looks.append(None)
            return look(wanted) if len(looks) > 1 else None

        monkeypatch.setattr(flowmap.wanted.Wanted, "attach", too_early)
        return str(allocate(shared).job.made["pid"] != os.getpid())

    assert as_user(OWNER, at_once) == "True"


@needs_users
def test_roots_records_are_accepted(shared: Path) -> None:
    """Root could change whatever it likes anyway."""
    folder = shared.with_name(f"{shared.name}.flowmap")
    folder.mkdir()
    folder.chmod(0o777)
    assert as_user(OWNER, allocated(shared)) == "2"


@needs_users
def test_a_server_that_gives_all_files_to_one_user(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one has made oneself may belong to somebody else, and is one's own all the same."""
    folder = shared.with_name(f"{shared.name}.flowmap")

    def squashed() -> str:
        folder.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: OTHER)
        return str(len(allocate(shared).pending()))

    assert as_user(OWNER, squashed) == "2"
    assert [entry.name for entry in shared.parent.iterdir() if entry.name[0] == "."] == []


def test_a_link_to_records(tmp_path: Path) -> None:
    """A link in the place of the folder is refused, and nothing is made behind it."""
    behind = tmp_path / "behind"
    behind.mkdir()
    behind.joinpath("header.lock").touch()
    tmp_path.joinpath("a.npy.flowmap").symlink_to(behind)
    with pytest.raises(ForeignFileError, match="is a link"):
        allocate(tmp_path / "a.npy")
    assert [entry.name for entry in behind.iterdir()] == ["header.lock"]
    assert not tmp_path.joinpath("a.npy").exists()


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "resume": lambda path, _: allocate(path),
    "overwrite": lambda path, _: allocate(path, exist="overwrite"),
    "memmap w+": lambda path, _: flowmap.open_memmap(path, "w+", "f8", 10),
    "memmap r+": lambda path, _: flowmap.open_memmap(path),
    "export": lambda path, target: export(target, path),
    "sentinel": sentinels.place_of,
}
"""What writes a file at a path that it is given; the second is that of some target."""

AMONG_RECORDS = [
    *("a.npy.flowmap/ledger.npy", "a.npy.flowmap/job.json", "a.npy.flowmap/new.npy"),
    *("a.npy.flowmap", "a.npy.flowmap/folder/new.npy", "A.NPY.FLOWMAP/new.npy"),
    *(f".a.npy.flowmap.cleaned.{'0' * 32}/ledger.npy", "moved/ledger.npy", "moved/new.npy"),
    *("link/ledger.npy", "not.yet.flowmap"),
]


@pytest.mark.parametrize("way", WRITERS)
def test_nothing_is_written_among_the_records(tmp_path: Path, way: str) -> None:
    """A path among the records of a job, of this one or another, is refused untouched."""
    target = sealed(tmp_path / "a.npy", np.arange(10.0))
    records = tmp_path / "a.npy.flowmap"
    records.joinpath("folder").mkdir()
    for other in (f".a.npy.flowmap.cleaned.{'0' * 32}", "A.NPY.FLOWMAP", "moved"):
        shutil.copytree(records, tmp_path / other)
    tmp_path.joinpath("link").symlink_to(records)
    before = contents(tmp_path)
    for name in AMONG_RECORDS:
        with pytest.raises(InvalidArgumentError, match="among the records of a job"):
            WRITERS[way](tmp_path / name, target.path)
    assert contents(tmp_path) == before


def test_a_checksum_among_the_records(tmp_path: Path) -> None:
    """Nor is a checksum written there, whatever an older version has allocated."""
    sealed(tmp_path / "a.npy", np.arange(10.0))
    sealed(tmp_path / "b.npy", np.arange(10.0))
    for name in ("b.npy", "b.npy.flowmap"):
        tmp_path.joinpath(name).rename(tmp_path / "a.npy.flowmap" / name)
    before = contents(tmp_path)
    with pytest.raises(InvalidArgumentError, match="among the records of a job"):
        write_checksum(tmp_path / "a.npy.flowmap" / "b.npy")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("folder", [".flowmap", "flowmap", "a.flowmap.b", "runs"])
def test_folders_that_are_not_for_records(tmp_path: Path, folder: str) -> None:
    """A folder that only looks like one of records takes targets, with any `job.json` in it."""
    tmp_path.joinpath(folder).mkdir()
    tmp_path.joinpath(folder, "job.json").write_text("of a batch system")
    assert len(allocate(tmp_path / folder / "a.npy").pending()) == 2


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return every file and folder beneath one, with the bytes of the files."""
    found = folder.rglob("*")
    return {str(each): each.read_bytes() if each.is_file() else None for each in found}


def test_reading_records_is_allowed(tmp_path: Path) -> None:
    """The ledger is a file that NumPy opens, and so does flowmap, for reading."""
    allocate(tmp_path / "a.npy")
    ledger = tmp_path / "a.npy.flowmap" / "ledger.npy"
    assert len(flowmap.open_memmap(ledger, "r")) == len(flowmap.load(ledger)) == 2
    with pytest.raises(InvalidArgumentError, match="among the records"):
        flowmap.load(ledger, "r+")
