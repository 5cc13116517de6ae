"""`dask.array.store` into an `open_memmap`, on Dask's threads, its default for arrays."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import dask
import dask.array as da
from numpy.lib.format import open_memmap

from benchmarks.filling import work as common
from benchmarks.filling.work import BLOCK, WORKERS, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

opened = common.open_npy
CHUNK: Final = 4 * BLOCK
"""The fastest of those tried. Smaller ones cost scheduling, larger ones cache misses."""


@contextlib.contextmanager
def ready() -> Iterator[Callable[[Work], None]]:
    """Start the threads."""
    with ThreadPoolExecutor(WORKERS) as pool, dask.config.set(scheduler="threads", pool=pool):
        yield _fill


def _fill(work: Work) -> None:
    array = open_memmap(work.path, mode="w+", dtype="<f8", shape=(work.rows,))
    if work.filler == "sqrt":
        source = da.sqrt(da.arange(work.rows, dtype="<f8", chunks=CHUNK))
    else:
        source = da.zeros(work.rows, dtype="<f8", chunks=CHUNK)
    da.store(source, array, lock=False)
    if work.durable:
        array.flush()
