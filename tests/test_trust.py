"""What other users of a machine may do to one's jobs, and what their records may do to one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from support import as_user, let_others_in, ramp, snapshot

import flowmap
import flowmap.alloc
from flowmap.errors import ForeignFileError

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
def test_allocated_by_two_users_at_once(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sees the folder of a colleague's job before its target waits, and attaches to it."""
    assert as_user(OTHER, allocated(shared), mask=0) == "2"

    def at_once() -> str:
        look, looks = flowmap.alloc._Wanted.attach, list[object]()

        def too_early(wanted: Any) -> Any:
            looks.append(None)
            return look(wanted) if len(looks) > 1 else None

        monkeypatch.setattr(flowmap.alloc._Wanted, "attach", too_early)
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
