"""Disks whose power can be cut, and that can refuse what is written back in the background.

SIGKILL never tests a sync, since the page cache survives it. The ioctl FS_IOC_SHUTDOWN with
the flag NOLOGFLUSH (linux/fs.h; generic/043 to 055 of xfstests use it so) does: what the file
system had not handed to its device is gone at the next mount. What a device does with its own
cache is not modelled, so that it is no matter that the device is in memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import random
import struct
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Self

import pytest
from mounts import mounted

import flowmap.kernel
import flowmap.windows
from flowmap.kernel import write_back
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAMS: Final = ("mkfs.ext4", "mkfs.xfs", "losetup", "mount", "umount")
PACKAGES: Final = "e2fsprogs xfsprogs mount"

EXT4: Final = ("mkfs.ext4", "-q", "-b", "4096")
XFS: Final = ("mkfs.xfs", "-q")
NO_JOURNAL: Final = (*EXT4, "-O", "^has_journal")

_SHUTDOWN: Final = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
_NO_LOG_FLUSH: Final = 2  # FS_SHUTDOWN_FLAGS_NOLOGFLUSH
_MEBIBYTES: Final = {"ext4": (16, 24), "xfs": (300, 400)}  # of the device, and of its memory
_FIBMAP: Final = 1  # linux/fs.h
_PUNCH_HOLE: Final = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h
_LAZILY: Final = 2  # MNT_DETACH, sys/mount.h: where a test that failed left a file open
_HINT: Final = 2  # SYNC_FILE_RANGE_WRITE, linux/fs.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Disk:
    """A file system on a loop device of its own, in memory; `disk` makes one.

    Args:
        kind: Of the file system.
        device: The loop device.
        folder: Where the device's image is: a tmpfs.
        root: Where the file system is mounted.
    """

    def __init__(self, kind: str, device: str, folder: Path, root: Path) -> None:
        self.kind = kind
        self.root = root
        self._device = device
        self._folder = folder

    def mount(self) -> None:
        """Mount it, as after the power is back."""
        names = (os.fsencode(name) for name in (self._device, self.root, self.kind))
        _done(_LIBC.mount(*names, ctypes.c_ulong(0), b""))

    def remount(self) -> None:
        """Take it from the page cache, and mount it again: only the device's bytes are left."""
        if _LIBC.umount2(os.fsencode(self.root), 0):
            gc.collect()  # what maps or holds one of its files
            _done(_LIBC.umount2(os.fsencode(self.root), 0))
        # A container that another test made meanwhile has the mount, too: until that ends, it
        # would be the old file system, without power, that is mounted again.
        old = Path("/sys/fs", self.kind, Path(self._device).name)
        deadline = time.monotonic() + 60
        while old.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.mount()

    def sync(self) -> None:
        """Bring everything to the device."""
        with self._opened() as descriptor:
            _done(_LIBC.syncfs(descriptor))

    def cut(self) -> None:
        """Drop what is not on the device, and refuse every write from now on."""
        with self._opened() as descriptor:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))

    @contextlib.contextmanager
    def full(self, pages: int = 0) -> Iterator[None]:
        """Let the device take no page that it does not have yet, but so many, for a block.

        What is written to such a page is lost in the background, and an error is due.
        """
        # Of a longer write the loop driver takes a part for the whole (short writes succeed).
        queue = Path("/sys/block", Path(self._device).name, "queue")
        (queue / "max_sectors_kb").write_text("4")
        ballast = self._folder / "ballast"
        space = os.statvfs(self._folder)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(space.f_bavail - pages, 1) * space.f_bsize)
        try:
            yield
        finally:
            ballast.unlink()

    def punch(self, path: Path, page: int) -> None:
        """Take from the device a page of a file that it has, and that holds zeros."""
        with path.open("rb") as file:
            (block,) = struct.unpack("i", fcntl.ioctl(file, _FIBMAP, struct.pack("i", page)))
        with (self._folder / "image").open("r+b") as image:
            first, length = ctypes.c_int64(block * PAGE), ctypes.c_int64(PAGE)
            _done(_LIBC.fallocate(image.fileno(), _PUNCH_HOLE, first, length))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def disk(folder: Path, *make: str) -> Iterator[Disk]:
    """Make and mount a disk for a block, and leave nothing of it.

    Args:
        folder: An empty one, on any file system.
        make: The command that makes the file system: `EXT4`, `XFS`, `NO_JOURNAL`.
    """
    memory, root = folder / "memory", folder / "mounted"
    memory.mkdir()
    root.mkdir()
    kind = make[0].removeprefix("mkfs.")
    size, space = _MEBIBYTES[kind]
    with mounted(memory, "-t", "tmpfs", "-o", f"size={space}m", "tmpfs"):
        image = memory / "image"
        image.touch()
        os.truncate(image, size << 20)
        _call(*make, str(image))
        device = _call("losetup", "--find", "--show", str(image))
        try:
            made = Disk(kind, device, memory, root)
            made.mount()
            yield made
        finally:
            _LIBC.umount2(os.fsencode(root), _LAZILY)
            _call("losetup", "--detach", device)


def _call(*command: str) -> str:
    """Run a program of the system that must succeed; return what it says."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def _done(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class PowerCutError(BaseException):
    """The power is gone; no handler of errors catches this."""


WRITTEN_BACK: Final = ("nothing", "names", "target", "ledger", "pages", "everything")
"""What the kernel may have written of its own accord before the power goes; see `Power`."""

_FILES: Final = {
    "target": ("*.npy", "*/.target.*"),
    "ledger": ("*/ledger.npy", "*/.ledger.*"),
    "pages": ("**/*",),
}

_CALLS: Final = (
    *("pwrite", "fdatasync", "fsync", "ftruncate", "truncate", "chmod", "fchmod"),
    *("rename", "replace", "unlink", "link", "symlink", "mkdir", "rmdir"),
    *("setxattr", "removexattr", "utime"),
)
_CALLS_OF_LIBC: Final = ("fallocate", "sync_file_range", "renameat2")


class Power:
    """Cuts a disk's power before one of the calls that this process makes to change a disk.

    A `with` block counts these calls. At the chosen one it lets the kernel write something
    back, as it may at any time, and cuts. The block ends there: what the process still does on
    its way out finds a dead disk, and whatever error that gives is none.

    Args:
        disk: The disk.
        at: Before which call, from 0; one too many for never.
        written: Of `WRITTEN_BACK`: nothing; names, the journal's part; all of the target, or
            of the ledger, as by a sync; any of the pages of all files, and the names;
            everything.
        torn: Whether half of that call is done, where it is a write.
        seed: Chooses the pages.

    Attributes:
        calls: How many there were.
        gone: Whether the power is gone.
        writes: Which of them were writes.
    """

    def __init__(
        self,
        disk: Disk,
        at: int,
        written: str = "nothing",
        *,
        torn: bool = False,
        seed: int = 0,
    ) -> None:
        self.calls = 0
        self.gone = False
        self.writes: set[int] = set()
        self._disk, self._at, self._written, self._torn = disk, at, written, torn
        self._random = random.Random(seed)
        self._patch = pytest.MonkeyPatch()
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _CALLS}

    def __enter__(self) -> Self:
        for name, real in self._real.items():
            self._patch.setattr(os, name, self._counted(real))
        self._patch.setattr(os, "open", self._open(os.open))
        counted = {name: self._counted(getattr(_LIBC, name)) for name in _CALLS_OF_LIBC}
        # A hint promises nothing: here it does nothing.
        waits = counted["sync_file_range"]
        counted["sync_file_range"] = lambda *given: given[-1] != _HINT and waits(*given)
        self._patch.setattr(flowmap.kernel, "_LIBC", SimpleNamespace(**counted))
        sync = self._counted(flowmap.windows._Mapping.sync)
        self._patch.setattr(flowmap.windows._Mapping, "sync", sync)
        return self

    def __exit__(self, *_: object) -> bool:
        self._patch.undo()
        return self.gone

    def step(self) -> None:
        """Count one call; cut here if it is the one."""
        self.calls += 1
        if self.calls == self._at + 1:
            self._write_back()
            self._disk.cut()
            self.gone = True
            raise PowerCutError

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if real is self._real["pwrite"]:
                self.writes.add(self.calls)
                if self._torn and self.calls == self._at:
                    descriptor, data, offset = given
                    real(descriptor, data[: len(data) // 2], offset)
            self.step()
            return real(*given, **named)

        return call

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *given: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                self.step()
            return real(path, flags, *given, **named)

        return opened

    def _write_back(self) -> None:
        self._patch.undo()
        root = self._disk.root
        if self._written == "everything":
            self._disk.sync()
        for pattern in _FILES.get(self._written, ()):
            for path in filter(Path.is_file, root.glob(pattern)):
                self._write_back_of(path)
        if self._written in ("names", "pages"):  # any sync brings the whole journal
            with (root / ".other").open("wb", buffering=0) as other:
                other.write(b"other")
                os.fsync(other.fileno())

    def _write_back_of(self, path: Path) -> None:
        with path.open("rb") as file:
            if self._written != "pages":
                os.fdatasync(file.fileno())
                return
            for offset in range(0, path.stat().st_size, PAGE):
                if self._random.random() < 1 / 2:
                    write_back(file.fileno(), offset, PAGE)

    def __repr__(self) -> str:
        """Say which cut it is, for whoever looks for the cause of a fault."""
        half = "in the middle of" if self._torn else "before"
        return f"a cut {half} call {self._at}, {self._written} written back"
