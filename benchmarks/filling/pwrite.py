"""The limit: reserve the file, then nothing but `pwrite` of each block, and one sync."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

from benchmarks.filling import work as common
from benchmarks.filling.pool import each_segment, processes
from benchmarks.filling.work import BLOCK, Work, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ProcessPoolExecutor

    from numpy.typing import NDArray

_HEADER: Final = 4096
"""Bytes before the data, as flowmap has them, so that blocks begin on pages."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE: Final = 2  # linux/fs.h

opened = common.open_npy


@contextlib.contextmanager
def ready(*, early: bool = False, hashed: bool = False) -> Iterator[Callable[[Work], None]]:
    """Start the workers.

    Args:
        early: Whether the write-back of each block begins as soon as it is written.
        hashed: Whether each block is cleared before it is filled, and hashed once it is
            written, as flowmap does.
    """
    write = functools.partial(_write, early=early, hashed=hashed)
    with processes() as pool:
        yield functools.partial(_fill, pool, write)


def _fill(
    pool: ProcessPoolExecutor, write: Callable[[Work, int, int], None], work: Work
) -> None:
    _create(work)
    each_segment(pool, write, work)
    if work.durable:
        common.sync_file(work.path)


def _create(work: Work) -> None:
    """Make the file: its header, and the space for all of it."""
    text = repr({"descr": "<f8", "fortran_order": False, "shape": (work.rows,)}).encode()
    magic = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    descriptor = os.open(work.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    size = ctypes.c_int64(_HEADER + 8 * work.rows)
    if _LIBC.fallocate(descriptor, 0, ctypes.c_int64(0), size):
        raise OSError(ctypes.get_errno(), "fallocate")
    os.pwrite(descriptor, magic + text.ljust(_HEADER - 11) + b"\n", 0)
    os.close(descriptor)


@functools.cache
def _buffer() -> NDArray[np.float64]:
    return np.zeros(BLOCK)


def _write(work: Work, start: int, stop: int, *, early: bool, hashed: bool) -> None:
    digest = xxhash.xxh3_128()
    descriptor = os.open(work.path, os.O_RDWR)
    for first, last in blocks(start, stop):
        out = _buffer()[: last - first]
        if hashed:
            out.fill(0)
        work.fill(out, first)
        offset = _HEADER + 8 * first
        assert os.pwrite(descriptor, out.data, offset) == out.nbytes
        if hashed:
            digest.update(out.data)
        if early:
            place = ctypes.c_int64(offset), ctypes.c_int64(out.nbytes)
            _LIBC.sync_file_range(descriptor, *place, _SYNC_FILE_RANGE_WRITE)
    os.close(descriptor)
