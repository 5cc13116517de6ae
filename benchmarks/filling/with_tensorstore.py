"""TensorStore, writing Zarr 3 without compression: each worker writes whole chunks."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore as ts

from benchmarks.filling import work as common
from benchmarks.filling.pool import each_segment, processes
from benchmarks.filling.work import BLOCK, Work, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ProcessPoolExecutor


def opened(work: Work) -> Any:
    """Open the array for reading."""
    return _open(work)


def _open(work: Work, **options: Any) -> Any:
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{work.folder}/"},
        # Its own sync is one for each chunk; a single one at the end is faster.
        "context": {"file_io_sync": False},
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, **options).result()


@contextlib.contextmanager
def ready() -> Iterator[Callable[[Work], None]]:
    """Start the workers."""
    with processes() as pool:
        yield functools.partial(_fill, pool)


def _fill(pool: ProcessPoolExecutor, work: Work) -> None:
    layout = ts.ChunkLayout(chunk_shape=[BLOCK])
    _open(work, create=True, dtype=ts.float64, shape=[work.rows], chunk_layout=layout)
    each_segment(pool, _store, work)
    if work.durable:
        common.sync_file_system(work.folder)


def _store(work: Work, start: int, stop: int) -> None:
    array = _open(work)
    for first, last in blocks(start, stop):
        out = np.empty(last - first)
        work.fill(out, first)
        array[first:last] = out
