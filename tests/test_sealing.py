"""The seal makes a target read-only; whatever lifts it gives the permission back."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import ORDINARY, as_user, damage, let_others_in, ramp, run, script

import flowmap
from flowmap import sealing
from flowmap.documents import publish_json, read_json
from flowmap.errors import AccessDeniedError, OtherJobError
from flowmap.machine import user_name
from flowmap.sidecar import Sidecar
from flowmap.storage import open_existing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flowmap.job import Job
    from flowmap.target import Target


def permissions(path: Path) -> str:
    """Return the permissions of a file, as in "rw-r--r--"."""
    return stat.filemode(path.stat().st_mode)[1:]


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Target]:
    """Yield a target of two segments, filled and sealed, that its group may write to."""
    before = os.umask(0o002)
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    flowmap.fill(target, ramp, executor="threads", workers=1)
    assert flowmap.validate(target).sealed
    yield target
    os.umask(before)


def test_sealed_is_read_only(sealed: Target) -> None:
    """Nobody may write to what was validated; to validate it again changes nothing."""
    assert permissions(sealed.path) == "r--r--r--"
    assert flowmap.validate(sealed).sealed
    assert permissions(sealed.path) == "r--r--r--"
    flowmap.reset(sealed, 0)
    assert permissions(sealed.path) == "rw-rw-r--"


def test_not_sealed_stays_writable(tmp_path: Path) -> None:
    """A validation that fails, or marks nothing, takes no permission."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    before = permissions(target.path)
    assert not flowmap.validate(target).ok
    flowmap.fill(target, ramp, executor="threads", workers=1)
    assert flowmap.validate(target, mark=False).ok
    assert permissions(target.path) == before


LIFTS = {
    "reset": "flowmap.reset(target, 1)",
    "damage": "assert flowmap.validate(target).marked == (target.segments[1],)",
    "write": "flowmap.write_segment(target.segments[1], np.ones(5), replace=True)",
    "map": "with flowmap.open_segment(target.segments[1], replace=True) as out: out[:] = 1",
    "overwrite": "flowmap.allocate(target.path, 10, 'f8', segments=2, exist='overwrite')",
}

ORDINARY_USER = """
import sys
import numpy as np
import flowmap
from support import ramp

target = flowmap.open_target(sys.argv[1])
for way in (lambda: open(target.path, "r+b"), lambda: flowmap.open_memmap(target.path)):
    try:
        way()
    except flowmap.FlowmapError as error:
        assert "a validated target is read-only" in str(error)
    except PermissionError:
        pass
    else:
        sys.exit("it may be written to")
if sys.argv[2] == "nothing":  # what is done is done, whoever may write to it
    assert flowmap.fill_segment(target.segments[0], ramp).state == "done"
    assert flowmap.fill(target, ramp, executor="threads", workers=1) == []
else:
    exec(sys.argv[2])
    flowmap.fill(target.path, ramp, executor="threads", workers=1) if sys.argv[3] == "y" else 0
    assert flowmap.validate(target.path, mixed=True).sealed
"""


@pytest.mark.system("setpriv", packages="util-linux")
@pytest.mark.parametrize("way", [*LIFTS, "nothing"])
def test_an_ordinary_user(sealed: Target, way: str) -> None:
    """Without root's powers it cannot be written to; what lifts the seal opens it again."""
    if way == "damage":
        sealed.path.chmod(0o644)
        damage(sealed, 1)
        sealed.path.chmod(0o444)
    refill = "n" if way in ("write", "map") else "y"
    command = script(ORDINARY_USER, sealed.path, LIFTS.get(way, way), refill)
    child = run([*ORDINARY, *command] if os.geteuid() == 0 else command)
    assert child.returncode == 0, child.stderr
    assert permissions(sealed.path) == "r--r--r--"


def test_somebody_elses_permission(sealed: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not change the permissions is told so, and the seal stays."""
    owner = rf"cannot lift the seal: only its owner, {user_name(os.geteuid())}"

    def denied(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("os.fchmod", denied)
        patch.setattr("os.geteuid", lambda: 12345)
        with pytest.raises(AccessDeniedError, match=owner):
            flowmap.reset(sealed, 0)
        with pytest.raises(AccessDeniedError, match=owner):
            flowmap.write_segment(sealed.segments[0], np.ones(5), replace=True)
        assert Sidecar.of(sealed.path).seal.exists()
        assert sealed.pending() == []
    flowmap.reset(sealed, 0)
    flowmap.fill(sealed, ramp, executor="threads", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr("os.fchmod", denied)
        report = flowmap.validate(sealed)
    assert report.sealed
    assert "not made read-only" in str(report)


@pytest.mark.parametrize("permitted", [True, False])
def test_claimed_while_it_is_sealed(
    sealed: Target, monkeypatch: pytest.MonkeyPatch, permitted: bool
) -> None:
    """What is claimed meanwhile is not sealed, and writable, whoever may change permissions."""
    flowmap.reset(sealed, 0)
    flowmap.fill(sealed, ramp, executor="threads", workers=1)
    real = os.fchmod

    def claim_first(descriptor: int, mode: int) -> None:
        monkeypatch.setattr("os.fchmod", change)
        flowmap.reset(sealed, 1)
        change(descriptor, mode)

    def change(descriptor: int, mode: int) -> None:
        if not permitted:
            raise PermissionError(1, "Operation not permitted")
        real(descriptor, mode)

    monkeypatch.setattr("os.fchmod", claim_first)
    report = flowmap.validate(sealed)
    assert not report.sealed
    assert "claimed meanwhile" in str(report)
    assert not Sidecar.of(sealed.path).seal.exists()
    assert permissions(sealed.path) == "rw-rw-r--"


def test_cut_short(sealed: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while sealing or lifting, it is writable, or a later lift makes it so."""
    real = os.fchmod

    def killed(*arguments: Any) -> None:
        if arguments[1] & 0o200:
            real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fchmod", killed)
        with pytest.raises(KeyboardInterrupt):
            sealing.lift(sealed.job)
        assert permissions(sealed.path) == "rw-rw-r--"
        with pytest.raises(KeyboardInterrupt):
            flowmap.validate(sealed)
    assert permissions(sealed.path) == "rw-rw-r--"
    assert flowmap.validate(sealed).sealed
    flowmap.reset(sealed, 0)
    assert permissions(sealed.path) == "rw-rw-r--"


def test_another_jobs_seal_stays(sealed: Target) -> None:
    """An attempt at a job that was overwritten lifts nothing of the new one."""
    new = flowmap.allocate(sealed.path, 10, "f8", segments=2, exist="overwrite")
    flowmap.fill(new, ramp, executor="threads", workers=1)
    assert flowmap.validate(new).sealed
    sealing.lift(sealed.job)
    assert Sidecar.of(new.path).seal.exists()
    assert permissions(new.path) == "r--r--r--"


def test_overwritten_before_it_is_opened_for_writing(
    sealed: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that must first lift a seal never writes to another job's file."""
    real = sealing.lift

    def read_only(path: Path, *, write: bool = False) -> int:
        if write:
            raise PermissionError(13, "Permission denied")
        return open_existing(path)

    def overtaken(job: Job) -> None:
        real(job)
        monkeypatch.setattr(sealing, "lift", real)
        flowmap.allocate(sealed.path, 10, "f8", segments=2, exist="overwrite")

    monkeypatch.setattr("flowmap.admission.open_existing", read_only)
    monkeypatch.setattr(sealing, "lift", overtaken)
    with pytest.raises(OtherJobError, match="allocated anew"):
        flowmap.write_segment(sealed.segments[0], np.ones(5), replace=True)
    assert not np.load(sealed.path).any()


def test_a_seal_that_tells_nothing(sealed: Target) -> None:
    """A damaged seal goes all the same; its owner may write again."""
    Sidecar.of(sealed.path).seal.write_text("{}")
    flowmap.reset(sealed, 0)
    assert permissions(sealed.path) == "rw-r--r--"
    assert not Sidecar.of(sealed.path).seal.exists()


@pytest.mark.parametrize("mode", [2**70, -1, 0o10666, 0o4666, True, 0.5, "0666"])
def test_permissions_that_none_has(sealed: Target, mode: Any) -> None:
    """A seal that names none gives back what its owner needs to write."""
    forge(sealed, mode)
    flowmap.reset(sealed, 0)
    assert permissions(sealed.path) == "rw-r--r--"
    assert not Sidecar.of(sealed.path).seal.exists()


@pytest.mark.parametrize("mode", [0o666, 0o600, 0o4777])
@pytest.mark.parametrize("mask", [0o002, 0o022])
@pytest.mark.parametrize("way", ["reset", "write", "damage", "claimed"])
def test_no_more_than_the_umask_gives_back(
    sealed: Target, monkeypatch: pytest.MonkeyPatch, mode: int, mask: int, way: str
) -> None:
    """Whatever the seal records, lifting it gives others no more than the umask allows."""
    forge(sealed, mode)
    os.umask(mask)
    if way == "reset":
        flowmap.reset(sealed, 0)
    elif way == "write":
        flowmap.write_segment(sealed.segments[0], np.ones(5), replace=True)
    elif way == "damage":
        sealed.path.chmod(0o644)
        damage(sealed, 1)
        sealed.path.chmod(0o444)
        assert flowmap.validate(sealed).marked
    else:  # the validation that seals it again gives the permissions back itself
        monkeypatch.setattr(sealing, "lift", lambda _: None)
        with sealed.path.open("rb") as file:
            sealing.put(sealed.job, file.fileno(), "", claimed=lambda: True)
    for_group = mask == 0o002 and mode == 0o666
    assert permissions(sealed.path) == ("rw-rw-r--" if for_group else "rw-r--r--")


@pytest.mark.parametrize("given", [0o664, 0o6775, 0o1664])
def test_only_permissions_are_recorded(sealed: Target, given: int) -> None:
    """Set-id and sticky bits are neither recorded nor left on what was sealed."""
    flowmap.reset(sealed, 0)
    sealed.path.chmod(given)
    flowmap.fill(sealed, ramp, executor="threads", workers=1)
    assert flowmap.validate(sealed).sealed
    mode = given & 0o777
    assert read_json(Sidecar.of(sealed.path).seal)["mode"] == mode
    assert stat.S_IMODE(sealed.path.stat().st_mode) == mode & 0o555
    flowmap.reset(sealed, 0)
    assert stat.S_IMODE(sealed.path.stat().st_mode) == mode


def test_what_its_owner_has_closed_stays_closed(sealed: Target) -> None:
    """Nobody gets write permission back who may not even read by now."""
    sealed.path.chmod(0o400)
    flowmap.reset(sealed, 0)
    assert permissions(sealed.path) == "rw-------"


def test_another_file_in_the_targets_place(sealed: Target) -> None:
    """A file that is not the job's is opened to nobody but its owner."""
    other = sealed.path.with_name("b.npy")
    other.write_bytes(b"what somebody else may not change")
    other.chmod(0o444)
    other.replace(sealed.path)
    flowmap.reset(sealed, 0)
    assert permissions(sealed.path) == "rw-r--r--"


def test_a_umask_that_is_not_shown(sealed: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not show the umask, only the owner may write again."""

    def missing(*_: Any, **__: Any) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("pathlib.Path.read_text", missing)
    flowmap.reset(sealed, 0)
    assert permissions(sealed.path) == "rw-r--r--"


OWNER, OTHER = 40_001, 40_002
"""Two users that no machine has."""


@pytest.mark.system(packages="sudo", root=True)
def test_a_seal_that_another_user_forged(tmp_path: Path) -> None:
    """Who may write the records makes no file of somebody else's set-id or writable."""
    let_others_in(tmp_path / "a.npy")
    tmp_path.chmod(0o777)

    def made() -> str:
        target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
        for segment in target.segments:
            flowmap.write_segment(segment, np.ones(5))
        return str(flowmap.validate(target).sealed)

    def forged() -> str:
        forge(flowmap.open_target(tmp_path / "a.npy"), 0o4777)
        return "forged"

    def reset() -> str:
        flowmap.reset(tmp_path / "a.npy", 0)
        return "reset"

    assert as_user(OWNER, made, mask=0) == "True"
    assert as_user(OTHER, forged) == "forged"
    assert as_user(OWNER, reset) == "reset"
    assert permissions(tmp_path / "a.npy") == "rw-r--r--"


def forge(target: Target, mode: int) -> None:
    """Have the seal of a target record some permissions."""
    path = Sidecar.of(target.path).seal
    publish_json(path, read_json(path) | {"mode": mode})


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
def test_no_more_than_the_umask_gives(tmp_path: Path, mask: int) -> None:
    """No file or folder of a job is open to more people than its maker wants."""
    before = os.umask(mask)
    try:
        target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
        flowmap.fill(target, ramp, executor="threads", workers=1)
        flowmap.validate(target)
        flowmap.reset(target, 0)
        folder = Sidecar.of(target.path).folder
        found = [target.path, folder, *folder.iterdir()]
        assert {path.name for path in found} >= {"a.npy", "job.json", "ledger.npy"}
        for path in found:
            most = 0o777 if path == folder else 0o644 if path.suffix == ".json" else 0o666
            assert stat.S_IMODE(path.stat().st_mode) == most & ~mask, path
    finally:
        os.umask(before)


@pytest.mark.parametrize("part", ["target", "sidecar"])
def test_mixed_up_jobs(tmp_path: Path, part: str) -> None:
    """Two jobs alike whose files were mixed up are never taken for one another."""
    a, b = (
        flowmap.allocate(tmp_path / name, 10, "f8", segments=2) for name in ("a.npy", "b.npy")
    )
    flowmap.fill(a, ramp, executor="threads", workers=1)
    if part == "target":
        b.path.replace(a.path)
    else:
        for file in Sidecar.of(a.path).folder.iterdir():
            Sidecar.of(b.path).folder.joinpath(file.name).write_bytes(file.read_bytes())
    mixed = a if part == "target" else b
    report = flowmap.validate(mixed.path)
    assert not report.ok
    assert report.marked == ()
    segment = replace(a.segments[0], path=mixed.path)
    for use in (
        lambda: flowmap.open_target(mixed.path),
        lambda: flowmap.fill_segment(segment, ramp),
        lambda: flowmap.allocate(mixed.path, 10, "f8", segments=2),
    ):
        with pytest.raises(ValueError, match="another job"):
            use()


def test_copied_with_its_sidecar(sealed: Target, tmp_path: Path) -> None:
    """A job that was copied as a whole is one, with or without the extended attributes."""
    copy = tmp_path / "copy.npy"
    copy.write_bytes(sealed.path.read_bytes())
    folder = Sidecar.of(copy).folder
    folder.mkdir()
    for file in Sidecar.of(sealed.path).folder.iterdir():
        folder.joinpath(file.name).write_bytes(file.read_bytes())
    assert flowmap.validate(copy).sealed
    copy.chmod(0o644)  # only who may write to it may mark it
    os.setxattr(copy, "user.flowmap.job", sealed.id.encode())
    assert flowmap.open_target(copy).pending() == []


def test_a_target_that_is_gone(sealed: Target) -> None:
    """A sidecar whose target was deleted vouches for nothing."""
    sealed.path.unlink()
    with pytest.raises(FileNotFoundError, match="allocate"):
        flowmap.fill(sealed, ramp, executor="threads")
    anew = flowmap.allocate(sealed.path, 10, "f8", segments=2)
    assert len(anew.pending()) == 2
    assert not np.load(anew.path).any()
