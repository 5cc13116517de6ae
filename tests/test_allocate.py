"""Allocating: what is refused changes nothing, what is there is attached to, or replaced."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mounts import mounted
from support import named

import flowmap
import flowmap.documents
import flowmap.kernel
import flowmap.wanted
from flowmap.errors import (
    AccessDeniedError,
    DamagedJobError,
    FlowmapError,
    ForeignFileError,
    InvalidArgumentError,
    LockTimeoutError,
    NotFoundError,
    OtherJobError,
    StorageError,
    TargetExistsError,
    WrongTypeError,
)
from flowmap.fillers import arange
from flowmap.locks import header_lock

PLAIN: dict[str, Any] = {"shape": (100, 3), "dtype": "<f8", "segments": 4}

HUGE = 10**5000  # an int that str() refuses


def nested(depth: int) -> Any:
    """Return a dtype within dtypes."""
    dtype: Any = "<f8"
    for _ in range(depth):
        dtype = [("a", dtype)]
    return dtype


def snapshot(folder: Path) -> dict[str, Any]:
    """Return all there is beneath a folder: kinds, modes, times, contents."""
    found: dict[str, Any] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content: Any = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        key = str(path.relative_to(folder))
        found[key] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


def reader(out: Any, block: Any, source: Any) -> None:
    """Stand for a filler that reads a file."""


def allocate(path: Path, **changes: Any) -> flowmap.Target:
    """Allocate a small plain target, but for the changes."""
    return flowmap.allocate(path, **(PLAIN | changes))


def refused(
    kind: type[Exception], message: str, path: Path, within: Path, **changes: Any
) -> Exception:
    """Check that allocating is refused and that nothing has changed."""
    before = snapshot(within)
    with pytest.raises(kind, match=message) as caught:
        allocate(path, **changes)
    assert isinstance(caught.value, FlowmapError)
    assert snapshot(within) == before
    return caught.value


class TestFresh:
    """Where there is nothing yet."""

    def test_what_is_there_afterwards(self, tmp_path: Path) -> None:
        """The target, and the folder with job, ledger and lock; nothing private is left."""
        target = allocate(tmp_path / "a.npy")
        assert names(tmp_path) == ["a.npy", "a.npy.flowmap"]
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock", "job.json", "ledger.npy"]
        assert target.path.stat().st_nlink == 1
        assert target.path.stat().st_size == 4096 + 2400
        assert (tmp_path / "a.npy.flowmap/header.lock").stat().st_size == 0
        assert np.load(tmp_path / "a.npy.flowmap/ledger.npy").shape == (4, 16)
        assert not np.load(target.path).any()
        assert len(target.pending()) == 4

    def test_job_document(self, tmp_path: Path) -> None:
        """`job.json` says what was allocated, by whom, and with what."""
        target = allocate(tmp_path / "a.npy", filler=arange, arguments={"step": 2})
        document = json.loads((tmp_path / "a.npy.flowmap/job.json").read_text())
        assert document["id"] == target.id
        assert document["shape"] == [100, 3]
        assert document["work"]["filler"] == "flowmap.fillers:arange"
        assert document["made"]["pid"] == os.getpid()
        assert {"flowmap", "numpy", "python", "host", "user", "time"} <= document["made"].keys()

    def test_relative_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative path is made absolute at once, with the links of its folder resolved."""
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        monkeypatch.chdir(tmp_path)
        target = allocate(Path("link/../link/a.npy"))
        assert target.path == (tmp_path / "real/a.npy").resolve()
        assert target.segments[0].path == target.path

    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
    def test_umask(self, tmp_path: Path, mask: int) -> None:
        """Everything gets what the umask leaves; only the owner may write a document."""
        before = os.umask(mask)
        try:
            target = allocate(tmp_path / "a.npy")
        finally:
            os.umask(before)
        sidecar = tmp_path / "a.npy.flowmap"
        assert stat.S_IMODE(sidecar.stat().st_mode) == 0o777 & ~mask
        for file in (target.path, *sidecar.iterdir()):
            most = 0o644 if file.suffix == ".json" else 0o666
            assert stat.S_IMODE(file.stat().st_mode) == most & ~mask, file

    def test_reserved(self, tmp_path: Path) -> None:
        """Reserving takes the blocks now; a sparse file takes none."""
        for reserve, name in ((True, "full.npy"), (False, "sparse.npy")):
            target = flowmap.allocate(tmp_path / name, 1 << 20, "<f8", reserve=reserve)
            taken = target.path.stat().st_blocks * 512
            assert target.path.stat().st_size == 4096 + (8 << 20)
            assert taken >= 8 << 20 if reserve else taken < 1 << 20

    def test_interrupted_reservation(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A signal during the reservation does not fail it."""
        interrupted = [errno.EINTR, errno.EINTR]
        reserve = flowmap.kernel._LIBC.fallocate

        def fallocate(*arguments: Any) -> int:
            if interrupted:
                ctypes.set_errno(interrupted.pop())
                return -1
            return int(reserve(*arguments))

        monkeypatch.setattr(flowmap.kernel._LIBC, "fallocate", fallocate)
        assert len(allocate(tmp_path / "a.npy").pending()) == 4
        assert not interrupted

    def test_without_fallocate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where space cannot be reserved the size is set, if there is room for it."""

        def unsupported(*_: Any) -> int:
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1

        monkeypatch.setattr(flowmap.kernel._LIBC, "fallocate", unsupported)
        assert allocate(tmp_path / "a.npy").path.stat().st_size == 4096 + 2400
        free = os.statvfs(tmp_path)
        too_much = free.f_bavail * free.f_frsize // 8 + (1 << 30)
        with pytest.raises(StorageError, match="reserve=False") as caught:
            flowmap.allocate(tmp_path / "b.npy", too_much, "<f8")
        assert caught.value.errno == errno.ENOSPC

    def test_tebibyte(self, tmp_path: Path) -> None:
        """A sparse tebibyte is nothing special."""
        target = flowmap.allocate(tmp_path / "a.npy", 1 << 37, "<f8", reserve=False)
        assert target.path.stat().st_size == 4096 + (1 << 40)
        assert len(target.pending()) == 1024
        assert target.asarray()[-1] == 0

    def test_too_big(self, tmp_path: Path) -> None:
        """What no disk holds is refused with its errno, and leaves no bytes."""
        with pytest.raises(StorageError, match="cannot allocate") as caught:
            flowmap.allocate(tmp_path / "a.npy", 2**59, "<f8")
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert names(tmp_path) == ["a.npy.flowmap"]
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock"]

    def test_void_sidecar(self, tmp_path: Path) -> None:
        """A sidecar whose target is missing is void: its records go, its job is forgotten."""
        first = allocate(tmp_path / "a.npy")
        flowmap.fill(first, arange, executor="threads", workers=1)
        assert flowmap.validate(first.path).ok
        first.path.unlink()
        second = allocate(tmp_path / "a.npy", shape=(50, 2))
        assert second.id != first.id
        assert len(second.pending()) == 4
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock", "job.json", "ledger.npy"]


class TestBadArguments:
    """Everything is checked before the disk is touched."""

    @pytest.mark.parametrize(
        ("changes", "kind", "message"),
        [
            ({"shape": -1}, InvalidArgumentError, "shape"),
            ({"shape": 2.5}, WrongTypeError, "shape"),
            ({"shape": 2**62}, InvalidArgumentError, "at most"),
            ({"dtype": object}, InvalidArgumentError, "objects"),
            ({"dtype": "S"}, InvalidArgumentError, "no length"),
            ({"dtype": "?!"}, WrongTypeError, "dtype"),
            ({"fortran_order": "F"}, WrongTypeError, "fortran_order"),
            ({"segments": 101}, InvalidArgumentError, "1 to 100"),
            ({"segments": [50, 51]}, InvalidArgumentError, "add up to 101"),
            ({"segments": "4"}, WrongTypeError, "segments"),
            ({"block_rows": 0}, InvalidArgumentError, "block_rows"),
            ({"block_rows": 1.5}, WrongTypeError, "block_rows"),
            ({"exist": "w+"}, InvalidArgumentError, "resume, error, overwrite, renew"),
            ({"reserve": "yes"}, WrongTypeError, "reserve"),
            ({"align": 96}, InvalidArgumentError, "align"),
            ({"align": 32}, InvalidArgumentError, "align"),
            ({"align": 0}, InvalidArgumentError, "align"),
            ({"align": -4096}, InvalidArgumentError, "align"),
            ({"align": 4096.0}, WrongTypeError, "align"),
            ({"durability": "never"}, InvalidArgumentError, "segment, end"),
            ({"checkpoint_seconds": -1}, InvalidArgumentError, "checkpoint_seconds"),
            ({"checkpoint_seconds": float("nan")}, InvalidArgumentError, "checkpoint_seconds"),
            ({"checkpoint_seconds": float("inf")}, InvalidArgumentError, "checkpoint_seconds"),
            ({"checkpoint_seconds": 10**400}, InvalidArgumentError, "checkpoint_seconds"),
            ({"checkpoint_seconds": -HUGE}, InvalidArgumentError, "checkpoint_seconds"),
            ({"checkpoint_seconds": HUGE}, InvalidArgumentError, "checkpoint_seconds"),
            ({"shape": HUGE}, InvalidArgumentError, "at most"),
            ({"shape": (0, HUGE)}, InvalidArgumentError, "at most"),
            ({"shape": (3, -HUGE)}, InvalidArgumentError, "shape"),
            ({"segments": HUGE}, InvalidArgumentError, "1 to 100"),
            ({"segments": [HUGE, 1]}, InvalidArgumentError, "add up"),
            ({"segments": [-HUGE, 1]}, InvalidArgumentError, "at least one"),
            ({"block_rows": -HUGE}, InvalidArgumentError, "block_rows"),
            ({"align": 1 << 20_000}, InvalidArgumentError, "align"),
            ({"dtype": nested(100_000)}, InvalidArgumentError, "dtype"),
            ({"exist": np.array(["resume", "error"])}, InvalidArgumentError, "exist"),
            ({"durability": None}, InvalidArgumentError, "durability"),
            ({"checkpoint_seconds": True}, WrongTypeError, "checkpoint_seconds"),
            ({"checkpoint_seconds": "30"}, WrongTypeError, "checkpoint_seconds"),
            ({"checkpoint_seconds": None}, WrongTypeError, "checkpoint_seconds"),
            ({"arguments": {"a": 1}}, InvalidArgumentError, "no filler"),
            ({"filler": "nowhere.at_all:f"}, ValueError, "cannot be found"),
            ({"filler": 5}, WrongTypeError, "filler"),
            ({"filler": arange, "arguments": {"stop": 1}}, WrongTypeError, "stop"),
            ({"filler": arange, "arguments": [1]}, WrongTypeError, "unmapped"),
            (
                {"filler": arange, "arguments": {"start": object()}},
                ValueError,
                "has the type object",
            ),
        ],
        ids=named,
    )
    def test_refused(
        self, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
    ) -> None:
        """An argument that cannot be is refused, by name, and leaves nothing at all."""
        refused(kind, message, tmp_path / "a.npy", tmp_path, **changes)

    @pytest.mark.parametrize("depth", [20, 50, 100, 300, 1000, 3000])
    def test_deep_dtype(self, tmp_path: Path, depth: int) -> None:
        """A dtype within dtypes is allocated, or refused as too deep, and nothing else."""
        before = snapshot(tmp_path)
        try:
            target = flowmap.allocate(tmp_path / "a.npy", 3, nested(depth))
        except FlowmapError as error:
            assert isinstance(error, InvalidArgumentError)  # noqa: PT017 -- one of two outcomes
            assert snapshot(tmp_path) == before
        else:
            assert flowmap.open_target(target.path).dtype == target.dtype

    def test_work_that_cannot_be_described(self, tmp_path: Path) -> None:
        """A filler that cannot be recorded is refused before the folder is made."""

        @flowmap.filler
        def fill(out: Any, block: flowmap.Block) -> None:
            out[...] = 1

        fill.__wrapped__ = fill  # type: ignore[attr-defined]  # a loop, which inspect refuses
        before = snapshot(tmp_path)
        with pytest.raises(ValueError, match="loop"):
            allocate(tmp_path / "a.npy", filler=fill)
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize("seconds", [0, 0.5, np.float32(2), np.int64(3)])
    def test_checkpoint_seconds(self, tmp_path: Path, seconds: Any) -> None:
        """Any real number of seconds will do."""
        target = allocate(tmp_path / "a.npy", checkpoint_seconds=seconds)
        assert target.job.checkpoint_seconds == float(seconds)

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("", InvalidArgumentError),
            (".", InvalidArgumentError),
            ("..", InvalidArgumentError),
            ("/", InvalidArgumentError),
            ("a\0b.npy", InvalidArgumentError),
            ("\ud800.npy", InvalidArgumentError),
            (None, WrongTypeError),
            (5, WrongTypeError),
            (b"a.npy", WrongTypeError),
        ],
        ids=named,
    )
    def test_paths(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        path: Any,
        kind: type[Exception],
    ) -> None:
        """What is no name of a file is refused as such."""
        monkeypatch.chdir(tmp_path)
        refused(kind, "path is", path, tmp_path)

    def test_long_names(self, tmp_path: Path) -> None:
        """A name too long for the file, or for the folder beside it, is refused in time."""
        for length in (250, 300, 5000):
            error = refused(StorageError, "too long", tmp_path / ("x" * length), tmp_path)
            assert isinstance(error, OSError)
            assert error.errno == errno.ENAMETOOLONG

    def test_working_directory_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path in a folder that was removed leads nowhere, and says so."""
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        refused(NotFoundError, "relative path", Path("a.npy"), tmp_path)

    def test_folder_missing(self, tmp_path: Path) -> None:
        """The folder must exist; it is named."""
        error = refused(NotFoundError, "make it first", tmp_path / "no/a.npy", tmp_path)
        assert isinstance(error, FileNotFoundError)
        assert error.filename == str(tmp_path / "no")
        (tmp_path / "dangling").symlink_to("nowhere")
        refused(NotFoundError, "make it first", tmp_path / "dangling/a.npy", tmp_path)

    def test_folder_is_a_file(self, tmp_path: Path) -> None:
        """A file is no folder."""
        (tmp_path / "file").write_text("x")
        error = refused(StorageError, "not a folder", tmp_path / "file/a.npy", tmp_path)
        assert isinstance(error, OSError)
        assert error.errno == errno.ENOTDIR

    def test_network_file_system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Segments that share pages are refused on NFS; what the message suggests is not."""
        monkeypatch.setattr(flowmap.wanted, "file_system_type", lambda _: "nfs4")
        path = tmp_path / "a.npy"
        refused(
            InvalidArgumentError,
            "segments=None, which makes 64 segments, or a count of 2 to 5; or a list",
            path,
            tmp_path,
            shape=10**5 * 3,
            segments=7,
        )
        lists = [512] * 300, [512 * 400, 10**5 * 3 - 512 * 400]
        for number, segments in enumerate((None, 5, 2, 1, lists[1])):
            allocate(tmp_path / f"{number}.npy", shape=10**5 * 3, segments=segments)
        padded = np.dtype({"names": ["a"], "formats": ["<f8"], "itemsize": 4096})
        allocate(tmp_path / "padded.npy", shape=10, dtype=padded, segments=7)

    def test_blocks_are_whole_in_segments_that_are_chosen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also on NFS, where segments share no page as well; both hosts attach to either."""
        asked: dict[str, Any] = {"shape": 10**5, "segments": None, "block_rows": 1000}
        here = allocate(tmp_path / "here.npy", **asked)
        assert len(here.segments) == 64
        assert {s.rows % 1000 for s in here.segments} == {0}
        monkeypatch.setattr(flowmap.wanted, "file_system_type", lambda _: "nfs4")
        there = allocate(tmp_path / "there.npy", **asked)
        assert [s.start for s in there.segments] == [0, 64_000]
        assert allocate(here.path, **asked).id == here.id
        monkeypatch.undo()
        assert allocate(there.path, **asked).id == there.id
        refused(
            OtherJobError, "block_rows", there.path, tmp_path,
            shape=10**5, segments=None, block_rows=1001,
        )  # fmt: skip

    def test_a_job_of_other_defaults(self, tmp_path: Path) -> None:
        """A job that a version with other defaults allocated is attached to."""
        asked: dict[str, Any] = {"shape": (10**5,), "dtype": "<f8", "block_rows": 1000}
        before = flowmap.allocate(tmp_path / "a.npy", segments=[60_000, 40_000], **asked)
        assert flowmap.allocate(tmp_path / "a.npy", **asked).id == before.id
        assert flowmap.allocate(tmp_path / "a.npy", (10**5,), "<f8").id == before.id

    def test_network_file_system_and_small_align(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There an alignment below a page would share pages after all."""
        monkeypatch.setattr(flowmap.wanted, "file_system_type", lambda _: "nfs")
        path = tmp_path / "a.npy"
        refused(
            InvalidArgumentError, "align=4096", path, tmp_path,
            shape=9999, segments=None, align=64,
        )  # fmt: skip

    def test_network_file_system_and_a_long_header(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A header that cannot be padded to a page shifts every boundary off its page."""
        monkeypatch.setattr(flowmap.wanted, "file_system_type", lambda _: "nfs")
        dtype = np.dtype([("x" * 9000, "V4096")])
        path = tmp_path / "a.npy"
        refused(
            InvalidArgumentError, "field names", path, tmp_path,
            shape=9999, dtype=dtype, segments=None,
        )  # fmt: skip
        allocate(path, shape=10, dtype=dtype, segments=1)

    def test_file_system_type(self, tmp_path: Path) -> None:
        """The kind of a file system is found where the system tells, and never guessed."""
        assert flowmap.machine.file_system_type("/proc") == "proc"
        assert flowmap.machine.file_system_type(tmp_path) not in ("nfs", "proc")


class TestSomethingThere:
    """A foreign file, a folder, a link, a pipe or a socket at the path."""

    def test_foreign_file(self, tmp_path: Path) -> None:
        """A file that flowmap did not allocate is touched by overwrite only."""
        path = tmp_path / "a.npy"
        np.save(path, np.arange(300.0).reshape(100, 3))
        refused(ForeignFileError, "not allocated by flowmap", path, tmp_path)
        refused(TargetExistsError, "exists already", path, tmp_path, exist="error")
        allocate(path, exist="overwrite")
        assert not np.load(path).any()

    def test_foreign_file_beside_a_strange_folder(self, tmp_path: Path) -> None:
        """The same where somebody has a folder of the sidecar's name."""
        (tmp_path / "a.npy").write_text("mine")
        (tmp_path / "a.npy.flowmap").mkdir()
        (tmp_path / "a.npy.flowmap/notes.txt").write_text("mine")
        refused(ForeignFileError, "not allocated", tmp_path / "a.npy", tmp_path)

    def test_folder(self, tmp_path: Path) -> None:
        """A folder is never replaced."""
        path = tmp_path / "a.npy"
        path.mkdir()
        refused(ForeignFileError, "not a regular file", path, tmp_path)
        refused(ForeignFileError, "never replaced", path, tmp_path, exist="overwrite")
        refused(TargetExistsError, "exists already", path, tmp_path, exist="error")

    @pytest.mark.parametrize(
        ("leads_to", "advice"), [("nowhere", "in place"), ("real.npy", "Give that path")]
    )
    def test_symlink(self, tmp_path: Path, leads_to: str, advice: str) -> None:
        """A link, dangling or not, is not followed; overwrite replaces the link itself."""
        real = allocate(tmp_path / "real.npy")
        (tmp_path / "a.npy").symlink_to(leads_to)
        before = real.path.read_bytes()
        refused(
            ForeignFileError,
            f"a link to '.*{leads_to}'.*{advice}",
            tmp_path / "a.npy",
            tmp_path,
        )
        refused(TargetExistsError, "exists", tmp_path / "a.npy", tmp_path, exist="error")
        allocate(tmp_path / "a.npy", exist="overwrite")
        assert not (tmp_path / "a.npy").is_symlink()
        assert real.path.read_bytes() == before
        assert flowmap.open_target(real.path).id == real.id

    def test_pipe(self, tmp_path: Path) -> None:
        """A FIFO is refused without waiting for its other end."""
        os.mkfifo(tmp_path / "a.npy")
        refused(ForeignFileError, "not a regular file", tmp_path / "a.npy", tmp_path)
        allocate(tmp_path / "a.npy", exist="overwrite")

    def test_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A socket is refused."""
        monkeypatch.chdir(tmp_path)  # the names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("a.npy")
            refused(ForeignFileError, "not a regular file", tmp_path / "a.npy", tmp_path)

    @pytest.mark.parametrize("exist", ["resume", "error", "overwrite"])
    @pytest.mark.parametrize("odd", ["file", "link", "dangling", "pipe"])
    def test_odd_sidecar(self, tmp_path: Path, odd: str, exist: str) -> None:
        """What has the sidecar's name and is no folder is neither used nor followed."""
        sidecar = tmp_path / "a.npy.flowmap"
        (tmp_path / "elsewhere").mkdir()
        if odd == "file":
            sidecar.write_text("mine")
        elif odd == "pipe":
            os.mkfifo(sidecar)
        else:
            sidecar.symlink_to("elsewhere" if odd == "link" else "nowhere")
        refused(
            ForeignFileError, "where the records go", tmp_path / "a.npy", tmp_path, exist=exist
        )

    @pytest.mark.parametrize("odd", ["folder", "link", "pipe", "text", "list", "version"])
    def test_odd_job(self, tmp_path: Path, odd: str) -> None:
        """A `job.json` that is none is named as damaged, and only overwritten on request."""
        target = allocate(tmp_path / "a.npy")
        job = tmp_path / "a.npy.flowmap/job.json"
        document = json.loads(job.read_text())
        job.unlink()
        if odd == "folder":
            job.mkdir()
        elif odd == "pipe":
            os.mkfifo(job)
        elif odd == "link":
            job.symlink_to("ledger.npy")
        elif odd == "version":
            del document["checksum"]
            flowmap.documents.publish_json(job, document | {"format": 99})
        else:
            job.write_text({"text": '{"format": 1', "list": "[1, 2]"}[odd])
        refused(DamagedJobError, "damaged, or of another version", target.path, tmp_path)
        if odd != "folder":
            assert allocate(target.path, exist="overwrite").id != target.id

    def test_lock_file_is_a_link(self, tmp_path: Path) -> None:
        """The lock is not taken through a link."""
        (tmp_path / "a.npy.flowmap").mkdir()
        (tmp_path / "a.npy.flowmap/header.lock").symlink_to(tmp_path / "victim")
        refused(StorageError, "header lock", tmp_path / "a.npy", tmp_path)


class TestJobThere:
    """Another job at the path, or the same."""

    def test_resume(self, tmp_path: Path) -> None:
        """The same job is attached to; no byte changes, and no lock is needed."""
        first = allocate(tmp_path / "a.npy")
        flowmap.fill(first, arange, executor="threads", workers=1)
        before = snapshot(tmp_path)
        with header_lock(tmp_path / "a.npy.flowmap"):
            second = allocate(tmp_path / "a.npy")
        assert second.id == first.id
        assert second.pending() == []
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"reserve": False},
            {"checkpoint_seconds": 5},
            {"segments": [25] * 4},
            {"dtype": np.float64, "shape": [100, 3]},
            {"block_rows": 25},
            {"block_rows": 10**6},
            {"segments": None},
            {"segments": None, "block_rows": 10**6},
        ],
        ids=named,
    )
    def test_same_job_otherwise_said(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        """What makes no difference to the file or its segments is the same job."""
        first = allocate(tmp_path / "a.npy")
        assert allocate(tmp_path / "a.npy", **changes).id == first.id

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"shape": (101, 3)}, "shape"),
            ({"shape": (3, 100), "segments": 3}, "shape"),
            ({"shape": 300}, "shape"),
            ({"dtype": ">f8"}, "dtype"),
            ({"dtype": [("a", "<f8")]}, "dtype"),
            ({"fortran_order": True, "segments": 3}, "fortran_order"),
            ({"segments": 5}, "segments"),
            ({"segments": [26, 24, 25, 25]}, "segments"),
            ({"block_rows": 3}, "block_rows"),
            ({"durability": "end"}, "durability"),
            ({"filler": arange}, "no work pinned"),
        ],
        ids=named,
    )
    def test_other_job(self, tmp_path: Path, changes: dict[str, Any], name: str) -> None:
        """Any other job is refused, with both values; overwrite replaces it."""
        target = allocate(tmp_path / "a.npy")
        error = refused(OtherJobError, name, target.path, tmp_path, **changes)
        assert isinstance(error, FileExistsError | ValueError)
        again = allocate(target.path, exist="overwrite", **changes)
        assert again.id != target.id
        assert allocate(target.path, **changes).id == again.id

    def test_pinned_work(self, tmp_path: Path) -> None:
        """A job pinned to its work refuses other work, and takes the same or none."""
        pinned = {"filler": arange, "arguments": {"start": 1, "step": 2}}
        target = allocate(tmp_path / "a.npy", **pinned)
        swapped = {"step": 2, "start": 1}
        for same in (pinned, {}, {"filler": "flowmap.fillers:arange", "arguments": swapped}):
            assert allocate(target.path, **same).id == target.id
        for arguments in ({"start": 1}, {"start": 1.0, "step": 2}, None):
            other = {"filler": arange, "arguments": arguments}
            refused(OtherJobError, "step=2", target.path, tmp_path, **other)

    def test_renew(self, tmp_path: Path) -> None:
        """The same job is attached to, another one replaced; what is no job is refused."""
        target = allocate(tmp_path / "a.npy", exist="renew")
        flowmap.fill_segment(target.segments[0], arange)
        again = allocate(target.path, exist="renew")
        assert again.id == target.id
        assert len(again.pending()) == 3
        pinned: dict[str, Any] = {"filler": arange, "arguments": {"start": 1}}
        other = allocate(target.path, exist="renew", **pinned)
        assert other.id != target.id
        assert len(other.pending()) == 4
        assert allocate(target.path, exist="renew", **pinned).id == other.id
        np.save(tmp_path / "b.npy", np.zeros(3))
        refused(ForeignFileError, "flowmap", tmp_path / "b.npy", tmp_path, exist="renew")
        reads: dict[str, Any] = {"filler": reader, "arguments": {"source": str(target.path)}}
        error = refused(
            InvalidArgumentError, "source", target.path, tmp_path, exist="renew", **reads
        )
        assert "replaced before" in str(error)

    def test_error(self, tmp_path: Path) -> None:
        """exist="error" refuses even the same job."""
        target = allocate(tmp_path / "a.npy", exist="error")
        error = refused(TargetExistsError, "exists", target.path, tmp_path, exist="error")
        assert isinstance(error, FileExistsError)
        assert error.errno == errno.EEXIST

    def test_overwrite(self, tmp_path: Path) -> None:
        """Overwrite begins anew even for the same job: nothing old vouches for the new."""
        first = allocate(tmp_path / "a.npy")
        flowmap.fill(first, arange, executor="threads", workers=1)
        assert flowmap.validate(first.path).ok
        second = allocate(tmp_path / "a.npy", exist="overwrite")
        assert second.id != first.id
        assert len(second.pending()) == 4
        assert not np.load(second.path).any()
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock", "job.json", "ledger.npy"]
        with pytest.raises(OtherJobError, match="allocated anew"):
            first.asarray()
        with pytest.raises(FlowmapError):
            flowmap.fill_segment(first.segments[0], arange)

    @pytest.mark.parametrize("made", ["target", "foreign"])
    @pytest.mark.parametrize(
        "source",
        [
            "a.npy",
            "./a.npy",
            "link.npy",
            ["b.npy", "a.npy"],
            {"deep": [("b.npy", "a.npy")]},
            Path("a.npy"),
        ],
        ids=named,
    )
    def test_overwriting_what_the_filler_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, made: str
    ) -> None:
        """A file that an argument names is not erased before the filler reads it."""
        monkeypatch.chdir(tmp_path)
        if made == "target":
            flowmap.allocate("a.npy", 3, "<f8")
        else:
            np.save("a.npy", np.zeros(3))
        Path("link.npy").symlink_to("a.npy")
        before = snapshot(tmp_path)
        asked: dict[str, Any] = {"filler": reader, "arguments": {"source": source}}
        with pytest.raises(InvalidArgumentError, match=r"argument 'source'.*a\.npy"):
            flowmap.allocate("a.npy", 5, "<f8", exist="overwrite", **asked)
        assert snapshot(tmp_path) == before
        monkeypatch.setenv("FLOWMAP_ROOT", str(tmp_path))
        monkeypatch.chdir("/")
        with pytest.raises(InvalidArgumentError, match=r"argument 'source'.*a\.npy"):
            flowmap.allocate(tmp_path / "a.npy", 5, "<f8", exist="overwrite", **asked)
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize(
        "source",
        ["b.npy", "a", "a.npy.flowmap", "\0", "x" * 5000, "", 5, None, [[]], "../a.npy"],
    )
    def test_overwriting_beside_what_the_filler_reads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any
    ) -> None:
        """Any other text, path or not, keeps nothing from being replaced."""
        monkeypatch.chdir(tmp_path)
        np.save("a.npy", np.zeros(3))
        asked: dict[str, Any] = {"filler": reader, "arguments": {"source": source}}
        flowmap.allocate("a.npy", 5, "<f8", exist="overwrite", **asked)
        assert np.load("a.npy").shape == (5,)

    def test_naming_a_target_that_is_not_there(self, tmp_path: Path) -> None:
        """Where nothing is replaced, nothing is refused."""
        path = tmp_path / "a.npy"
        asked: dict[str, Any] = {"filler": reader, "arguments": {"source": str(path)}}
        for exist in ("overwrite", "resume"):
            how: Any = exist
            flowmap.allocate(tmp_path / f"{exist}.npy", 5, "<f8", exist=how, **asked)

    def test_overwrite_leaves_foreign_records(self, tmp_path: Path) -> None:
        """What flowmap did not put into the folder stays there."""
        allocate(tmp_path / "a.npy")
        sidecar = tmp_path / "a.npy.flowmap"
        for name in ("notes.txt", ".nfs0001", "work.txt"):
            (sidecar / name).write_text("mine")
        allocate(tmp_path / "a.npy", exist="overwrite")
        assert {"notes.txt", ".nfs0001", "work.txt"} < set(names(sidecar))

    @pytest.mark.parametrize("damage", ["shorter", "longer", "header"])
    def test_damaged(self, tmp_path: Path, damage: str) -> None:
        """A target that is not what was allocated is refused, and nothing is mended unasked."""
        target = allocate(tmp_path / "a.npy")
        with target.path.open("r+b") as file:
            if damage == "header":
                file.seek(4090)
                file.write(b"\t")
            else:
                file.truncate(6495 if damage == "shorter" else 6497)
        refused(DamagedJobError, "something else wrote to it", target.path, tmp_path)
        assert allocate(target.path, exist="overwrite").path.stat().st_size == 6496


class TestLock:
    """The header lock, held elsewhere."""

    def test_timeout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever waits too long for the lock gets a TimeoutError that says who to look for."""
        short = functools.partial(header_lock, timeout=0.05)
        monkeypatch.setattr(flowmap.alloc, "header_lock", short)
        target = allocate(tmp_path / "a.npy")
        with (tmp_path / "a.npy.flowmap/header.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            error = refused(LockTimeoutError, "fuser", target.path, tmp_path, exist="overwrite")
            assert isinstance(error, TimeoutError)
            assert error.errno == errno.ETIMEDOUT
            assert allocate(target.path).id == target.id
        assert allocate(target.path, exist="overwrite").id != target.id

    def test_no_locks_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file system without flock is refused; there is no softer lock."""

        def flock(*_: Any) -> None:
            raise OSError(errno.ENOSYS, "no flock")

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(StorageError, match="must support flock") as caught:
            allocate(tmp_path / "a.npy")
        assert caught.value.errno == errno.ENOSYS
        assert not (tmp_path / "a.npy").exists()

    def test_released(self, tmp_path: Path) -> None:
        """The lock is free after an error, and its file stays."""
        with pytest.raises(ZeroDivisionError), header_lock(tmp_path):
            raise ZeroDivisionError
        with header_lock(tmp_path, timeout=0.05):
            pass
        assert names(tmp_path) == ["header.lock"]


_TRY = """
import sys
from flowmap import allocate
from flowmap.errors import FlowmapError
try:
    print(allocate(sys.argv[1], (100, 3), "<f8", segments=4, exist=sys.argv[2]).id)
except FlowmapError as error:
    print(type(error).__name__, error.errno)
"""


def _without_privileges(path: Path, exist: str = "resume") -> str:
    """Allocate in a process that permission bits hold for, even if we are root."""
    command = [sys.executable, "-c", _TRY, str(path), exist]
    if os.geteuid() == 0:
        bits = "-dac_override,-dac_read_search,-fowner"
        command = ["setpriv", f"--bounding-set={bits}", *command]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class TestPermissions:
    """Folders and files that may not be written, or not be looked at."""

    pytestmark = pytest.mark.system(
        *(["setpriv"] if os.geteuid() == 0 else []), packages="util-linux"
    )

    def test_folder(self, tmp_path: Path) -> None:
        """A folder that cannot be written, or not be entered, is refused and left alone."""
        folder = tmp_path / "folder"
        folder.mkdir()
        for mode in (0o555, 0o000):
            folder.chmod(mode)
            assert _without_privileges(folder / "a.npy") == f"AccessDeniedError {errno.EACCES}"
            folder.chmod(0o755)
            assert names(folder) == []

    def test_attaching_needs_no_writing(self, tmp_path: Path) -> None:
        """Whoever may only read can still attach, but not overwrite."""
        folder = tmp_path / "folder"
        folder.mkdir()
        target = allocate(folder / "a.npy")
        sidecar = folder / "a.npy.flowmap"
        for path in (target.path, *sidecar.iterdir()):
            path.chmod(0o444)
        for path in (sidecar, folder):
            path.chmod(0o555)
        before = snapshot(folder)
        assert _without_privileges(target.path) == target.id
        denied = f"AccessDeniedError {errno.EACCES}"
        assert _without_privileges(target.path, "overwrite") == denied
        assert snapshot(folder) == before
        for path in (folder, sidecar):
            path.chmod(0o755)
        (sidecar / "job.json").chmod(0)
        assert _without_privileges(target.path) == denied
        assert (target.path.stat().st_mode & 0o777) == 0o444


@pytest.mark.system("mount", "umount", packages="mount", root=True)
class TestMounts:
    """Real file systems of a few pages; `faults/test_full_disk.py` has those that are full."""

    def test_read_only(self, tmp_path: Path) -> None:
        """On a read-only file system a job can be attached to, and nothing be made."""
        with mounted(tmp_path, "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
            target = allocate(tmp_path / "a.npy")
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
            assert allocate(target.path).id == target.id
            for path, exist in ((target.path, "overwrite"), (tmp_path / "b.npy", "resume")):
                error = refused(AccessDeniedError, "Read-only", path, tmp_path, exist=exist)
                assert isinstance(error, PermissionError)
                assert error.errno == errno.EROFS


def test_moved_together(tmp_path: Path) -> None:
    """Target and sidecar may move together; the job goes by its new path."""
    target = allocate(tmp_path / "a.npy")
    (tmp_path / "there").mkdir()
    shutil.move(target.path, tmp_path / "there/b.npy")
    shutil.move(f"{target.path}.flowmap", tmp_path / "there/b.npy.flowmap")
    moved = allocate(tmp_path / "there/b.npy")
    assert moved.id == target.id
    assert moved.segments[0].path == tmp_path / "there/b.npy"
