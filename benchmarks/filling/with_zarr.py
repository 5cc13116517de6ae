"""Zarr 3, uncompressed: each worker writes whole chunks, so that none needs a lock."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from benchmarks.filling import work as common
from benchmarks.filling.pool import each_segment, processes
from benchmarks.filling.work import BLOCK, Work, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ProcessPoolExecutor


def opened(work: Work) -> Any:
    """Open the array for reading."""
    return zarr.open_array(work.folder, mode="r")


@contextlib.contextmanager
def ready() -> Iterator[Callable[[Work], None]]:
    """Start the workers."""
    with processes() as pool:
        yield functools.partial(_fill, pool)


def _fill(pool: ProcessPoolExecutor, work: Work) -> None:
    zarr.create_array(
        work.folder, shape=(work.rows,), chunks=(BLOCK,), dtype="<f8", compressors=None
    )
    each_segment(pool, _store, work)
    if work.durable:
        common.sync_file_system(work.folder)


def _store(work: Work, start: int, stop: int) -> None:
    # Chunks of zeros are left out otherwise, and would be no work.
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(work.folder, mode="r+")
    for first, last in blocks(start, stop):
        out = np.empty(last - first)
        work.fill(out, first)
        array[first:last] = out
