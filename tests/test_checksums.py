"""The checksum of a whole target, as `sha256sum` reads and writes it."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import ORDINARY, run, script, sealed, snapshot

import flowmap
from flowmap import checksums
from flowmap.checksums import write_checksum
from flowmap.documents import publish_json, read_json
from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    NotFoundError,
    NotValidatedError,
    OtherJobError,
    StorageError,
)
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.target import Target

VALUES = np.arange(12.0).reshape(6, 2)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Return a sealed target."""
    return sealed(tmp_path / "a.npy", VALUES)


def sha256sum(folder: Path, *arguments: str) -> bytes:
    """Return what `sha256sum` says in a folder."""
    command = ["sha256sum", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout


NAMES = {
    "plain": "a.npy",
    "space": "my array.npy",
    "dash": "-c",
    "backslash": "back\\slash\\n.npy",
    "newline": "new\nline.npy",
    "both": "\\\n\\",
    "return": "carriage\rreturn.npy",
    "bytes": os.fsdecode(b"no \xff text.npy"),
    "long": "n" * 247,
}


@pytest.mark.system("sha256sum", packages="coreutils")
@pytest.mark.parametrize("name", NAMES)
def test_sha256sum_checks_it(tmp_path: Path, name: str) -> None:
    """It is what `sha256sum` would have written, which finds that the target is whole."""
    target = sealed(tmp_path / NAMES[name], VALUES)
    file = write_checksum(target.path)
    assert file == target.path.with_name(f"{NAMES[name]}.sha256")
    assert file.read_bytes() == sha256sum(tmp_path, "--", NAMES[name])
    assert sha256sum(tmp_path, "--check", "--strict", "--", file.name).endswith(b": OK\n")
    assert {entry.name for entry in tmp_path.iterdir()} == {
        NAMES[name],
        file.name,
        Sidecar.of(target.path).folder.name,
    }


@pytest.mark.system("sha256sum", packages="coreutils")
def test_sha256sum_finds_a_change(target: Target, tmp_path: Path) -> None:
    """A byte that changed afterwards is told."""
    file = write_checksum(target)
    target.path.chmod(0o644)
    with target.path.open("r+b") as changed:
        changed.seek(-1, os.SEEK_END)
        changed.write(b"x")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        sha256sum(tmp_path, "--check", file.name)
    assert caught.value.stdout == b"a.npy: FAILED\n"


SHAPES = {
    "no segments": (np.zeros((0, 3)), False),
    "Fortran order": (np.arange(24.0).reshape(4, 6), True),
    "no axes": (np.array(7.0), False),
    "some megabytes": (np.arange(400_000.0), False),
}


@pytest.mark.system("sha256sum", packages="coreutils")
@pytest.mark.parametrize("case", SHAPES)
def test_shapes(tmp_path: Path, case: str) -> None:
    """The whole file counts, header and all."""
    values, fortran_order = SHAPES[case]
    target = sealed(tmp_path / "a.npy", values, fortran_order=fortran_order)
    assert write_checksum(target).read_bytes() == sha256sum(tmp_path, "a.npy")


def test_again(target: Target, tmp_path: Path) -> None:
    """An earlier checksum is replaced, also one of other bytes."""
    first = write_checksum(target).read_bytes()
    flowmap.write_segment(target.segments[0], np.ones((2, 2)), replace=True)
    assert flowmap.validate(target).sealed
    second = write_checksum(target).read_bytes()
    assert first != second
    assert write_checksum(target).read_bytes() == second
    assert not list(tmp_path.glob(".*"))


def _not_done(target: Target) -> None:
    flowmap.reset(target, 1)


def _unsealed(target: Target) -> None:
    Sidecar.of(target.path).seal.unlink()


def _damaged_seal(target: Target) -> None:
    Sidecar.of(target.path).seal.write_text("{}")


def _seal_of_another(target: Target) -> None:
    path = Sidecar.of(target.path).seal
    publish_json(path, read_json(path) | {"job": "0" * 32})


def _seal_of_other_bytes(target: Target) -> None:
    path = Sidecar.of(target.path).seal
    publish_json(path, read_json(path) | {"digest": "0" * 32})


CASES = {
    _not_done: "1 of 3 segments are not done",
    _unsealed: "no whole seal",
    _damaged_seal: "no whole seal",
    _seal_of_another: "no whole seal",
    _seal_of_other_bytes: "other digests",
}


@pytest.mark.parametrize("harm", CASES, ids=lambda harm: harm.__name__.strip("_"))
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_only_what_is_validated(
    target: Target, monkeypatch: pytest.MonkeyPatch, harm: Any, when: str
) -> None:
    """Of anything else no checksum is written, nor of what is reset while it is read."""
    if when == "before":
        harm(target)
    else:
        real = checksums._sha256

        def read(opened: Target) -> str:
            digest = real(opened)
            harm(target)
            return digest

        monkeypatch.setattr(checksums, "_sha256", read)
    with pytest.raises(NotValidatedError, match=CASES[harm]):
        write_checksum(target.path)
    assert not target.path.with_name("a.npy.sha256").exists()


def test_validated_anew_meanwhile(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the bytes may have been read before the change, so none counts."""
    real = checksums._sha256

    def read(opened: Target) -> str:
        digest = real(opened)
        flowmap.write_segment(target.segments[0], np.ones((2, 2)), replace=True)
        assert flowmap.validate(target).sealed
        return digest

    monkeypatch.setattr(checksums, "_sha256", read)
    with pytest.raises(NotValidatedError, match="validated anew"):
        write_checksum(target.path)
    assert not target.path.with_name("a.npy.sha256").exists()


def test_allocated_anew_meanwhile(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job is not given the checksum of the one before."""
    real = checksums._sha256

    def read(opened: Target) -> str:
        digest = real(opened)
        flowmap.allocate(target.path, 3, "f8", exist="overwrite")
        return digest

    monkeypatch.setattr(checksums, "_sha256", read)
    with pytest.raises(OtherJobError):
        write_checksum(target.path)
    assert not target.path.with_name("a.npy.sha256").exists()


def test_what_is_no_such_target(target: Target, tmp_path: Path) -> None:
    """A file of another size, a foreign one and none are refused as when they are opened."""
    target.path.chmod(0o644)
    with target.path.open("ab") as longer:
        longer.write(b"x")
    with pytest.raises(DamagedJobError):
        write_checksum(target.path)
    np.save(tmp_path / "b.npy", VALUES)
    with pytest.raises(ForeignFileError):
        write_checksum(tmp_path / "b.npy")
    with pytest.raises(NotFoundError):
        write_checksum(tmp_path / "c.npy")
    assert not list(tmp_path.glob("*.sha256"))


def _put(place: Path, what: str) -> None:
    """Put something other than a checksum of the target there."""
    digest = "0" * 64
    if what == "folder":
        place.mkdir()
    elif what == "link":
        place.with_name("real").write_text(f"{digest}  a.npy\n")
        place.symlink_to("real")
    else:
        texts = {
            "empty": "",
            "another file's": f"{digest}  b.npy\n",
            "of two files": f"{digest}  a.npy\n{digest}  b.npy\n",
            "another format": f"SHA256 (a.npy) = {digest}\n",
            "short": f"{digest[:40]}  a.npy\n",
        }
        place.write_text(texts[what])


FOREIGN = [
    *("folder", "link", "empty", "another file's", "of two files", "another format", "short"),
]


@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_else_is_replaced(target: Target, tmp_path: Path, what: str) -> None:
    """What is there and is no checksum of the target is left alone."""
    place = tmp_path / "a.npy.sha256"
    _put(place, what)
    before = place.lstat()
    with pytest.raises(ForeignFileError, match="no checksum of the target"):
        write_checksum(target)
    after = place.lstat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not list(tmp_path.glob(".*"))


def test_what_appears_meanwhile_stays(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that takes the name at the last moment is not replaced."""
    place = tmp_path / "a.npy.sha256"
    real = checksums._sha256

    def read(opened: Target) -> str:
        place.write_text("mine")
        return real(opened)

    monkeypatch.setattr(checksums, "_sha256", read)
    with pytest.raises(ForeignFileError):
        write_checksum(target)
    assert place.read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_full_disk(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier checksum stays whole, and nothing is left beside it."""
    before = write_checksum(target).read_bytes()

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"cannot write the checksum; free some space"):
        write_checksum(target)
    assert (tmp_path / "a.npy.sha256").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


WRITE = """
import sys
from flowmap.checksums import write_checksum
from flowmap.errors import AccessDeniedError
try:
    write_checksum(sys.argv[1])
except AccessDeniedError as error:
    print(error)
"""


@pytest.mark.system("setpriv", packages="util-linux")
@pytest.mark.parametrize("harm", ["the folder", "the target"])
def test_without_permission(target: Target, tmp_path: Path, harm: str) -> None:
    """A folder that may not be written, or a target that may not be read, is named."""
    place = tmp_path if harm == "the folder" else target.path
    mode = place.stat().st_mode
    place.chmod(0o555 if harm == "the folder" else 0)
    command = script(WRITE, target.path)
    child = run([*ORDINARY, *command] if os.geteuid() == 0 else command)
    place.chmod(mode)
    assert child.returncode == 0, child.stderr
    wanted = "cannot write the checksum" if harm == "the folder" else "cannot open the target"
    assert wanted in child.stdout
    assert not (tmp_path / "a.npy.sha256").exists()


def test_it_only_reads(target: Target) -> None:
    """Target and records stay as they are."""
    before = snapshot(target.path)
    write_checksum(target)
    assert snapshot(target.path) == before
