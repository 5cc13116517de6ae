"""Real file systems for tests; apart from `support`, which child processes import."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from flowmap.kernel import _LIBC
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_IMAGES: Final = {  # the size of an image, and what makes a file system of it
    "ext4": (8 << 20, ("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0")),
    "xfs": (320 << 20, ("mkfs.xfs", "-q")),
}
_OPTIONS: Final = {"tmpfs": "size=4m", "inodes": "nr_inodes=64"}


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a file system at a folder for a block; skip where not even root may."""
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount; needs docker run --privileged: {done.stderr.decode()}")
    try:
        yield folder
    finally:
        done = subprocess.run(["umount", str(folder)], capture_output=True, check=False)
        if done.returncode:  # a test that failed may keep a file open
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
            raise OSError(done.stderr.decode())


class SmallDisk:
    """A disk of which all but a few pages, or inodes, can be taken; `small_disk` makes it.

    Args:
        root: Where it is mounted.
        kind: As in `small_disk`.
    """

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.kind = kind
        self.unit = "inode" if kind == "inodes" else "page"
        self._ballast = root / "ballast"
        self._ballast.mkdir()
        self._taken = 0
        self.leave(self.free)

    @property
    def free(self) -> int:
        """How many are free."""
        descriptor = os.open(self.root, os.O_RDONLY)
        _LIBC.syncfs(descriptor)  # space that is promised, or to be given back, counts so
        os.close(descriptor)
        found = os.statvfs(self.root)
        return found.f_ffree if self.unit == "inode" else found.f_bavail

    def leave(self, count: int) -> int:
        """Leave so many free, or fewer where there are no more; return how many."""
        spared = 0  # what is taken may need some for itself
        for _ in range(16):
            wanted = max(0, self._taken + self.free - count - spared)
            if wanted == self._taken:
                break
            try:
                self._take(wanted)
            except OSError:
                spared += 1
        return self.free

    def _take(self, count: int) -> None:
        if self.unit == "inode":
            for number in range(count, self._taken):
                (self._ballast / str(number)).unlink()
            for number in range(self._taken, count):
                (self._ballast / str(number)).touch()
        else:
            with (self._ballast / "pages").open("ab") as file:
                try:
                    if count > self._taken:
                        start, more = self._taken * PAGE, (count - self._taken) * PAGE
                        os.posix_fallocate(file.fileno(), start, more)
                    self._taken = count
                finally:
                    file.truncate(self._taken * PAGE)
        self._taken = count


@contextlib.contextmanager
def small_disk(folder: Path, kind: str) -> Iterator[SmallDisk]:
    """Mount a new disk for a block.

    Args:
        folder: Where the image and the mount point go.
        kind: "tmpfs", "ext4" or "xfs"; or "inodes", a tmpfs with few of them.
    """
    root = folder / kind
    root.mkdir()
    if kind in _IMAGES:
        size, make = _IMAGES[kind]
        image = folder / f"{kind}.image"
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run([*make, str(image)], check=True, capture_output=True)
        options: tuple[str, ...] = ("-o", "loop", str(image))
    else:
        options = ("-t", "tmpfs", "-o", _OPTIONS[kind], "tmpfs")
    with mounted(root, *options):
        yield SmallDisk(root, kind)
