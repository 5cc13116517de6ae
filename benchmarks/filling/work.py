"""The work that every contestant does, and the checking of what came out."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Filled: TypeAlias = NDArray[np.float64]

WORKERS: Final = 2
BLOCK: Final = (1 << 20) // 8
"""Rows that are computed and written at once: a mebibyte."""
SEGMENTS: Final = 64
"""How many parts of the file are handed out to the workers."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Work:
    """A float64 array to be filled.

    Attributes:
        folder: Where; it is empty.
        rows: How many elements.
        filler: The name of a function of this module.
        durable: Whether everything is to be on the disk at the end.
    """

    folder: Path
    rows: int
    filler: str
    durable: bool

    @property
    def path(self) -> Path:
        """Where an array in one file lies."""
        return self.folder / "array.npy"

    @property
    def segments(self) -> list[tuple[int, int]]:
        """The parts of the array, in whole blocks."""
        each = -(-self.rows // (SEGMENTS * BLOCK)) * BLOCK
        starts = range(0, self.rows, each)
        return [(start, min(start + each, self.rows)) for start in starts]

    def fill(self, out: Filled, start: int) -> None:
        """Compute the rows from `start` on."""
        FILLERS[self.filler](out, start)


def blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the blocks of a segment."""
    for first in range(start, stop, BLOCK):
        yield first, min(first + BLOCK, stop)


def sqrt(out: Filled, start: int) -> None:
    """Fill with the square roots of the row numbers."""
    np.sqrt(np.arange(start, start + len(out), dtype=np.float64), out=out)


def clear(out: Filled, _: int) -> None:
    """Fill with zeros."""
    out.fill(0)


FILLERS: Final[dict[str, Callable[[Filled, int], None]]] = {"sqrt": sqrt, "clear": clear}


def open_npy(work: Work) -> Any:
    """Open the `.npy` that came out."""
    return np.load(work.path, mmap_mode="r")


def check(work: Work, array: Any) -> None:
    """Compare the size, both ends and some rows of each segment with what they must be."""
    assert array.shape == (work.rows,), array.shape
    assert array.dtype == np.float64, array.dtype
    random = np.random.default_rng()
    for start, stop in work.segments:
        picked = int(random.integers(start, stop))
        for first in (start, picked, stop - 1):
            wanted = np.empty(1)
            work.fill(wanted, first)
            found = np.asarray(array[first : first + 1])
            assert np.array_equal(found, wanted), f"row {first} is {found}, not {wanted}"


def sync_file(path: Path) -> None:
    """Return when the data of a file is on the disk."""
    descriptor = os.open(path, os.O_RDWR)
    os.fdatasync(descriptor)
    os.close(descriptor)


def sync_file_system(folder: Path) -> None:
    """Return when everything is on the disk: the fastest way for many files."""
    descriptor = os.open(folder, os.O_RDONLY)
    if _LIBC.syncfs(descriptor):
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(descriptor)
