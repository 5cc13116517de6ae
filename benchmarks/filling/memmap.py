"""What one writes by hand: each worker opens the file by `open_memmap` and stores into it."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from numpy.lib.format import open_memmap

from benchmarks.filling import work as common
from benchmarks.filling.pool import each_segment, processes
from benchmarks.filling.work import Work, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ProcessPoolExecutor

opened = common.open_npy


@contextlib.contextmanager
def ready(*, flush: bool = False) -> Iterator[Callable[[Work], None]]:
    """Start the workers.

    Args:
        flush: Whether each worker flushes after each segment.
    """
    with processes() as pool:
        yield functools.partial(_fill, pool, flush)


def _fill(pool: ProcessPoolExecutor, flush: bool, work: Work) -> None:
    open_memmap(work.path, mode="w+", dtype="<f8", shape=(work.rows,))
    each_segment(pool, _store_and_flush if flush else _store, work)
    if work.durable and not flush:
        common.sync_file(work.path)


def _store(work: Work, start: int, stop: int) -> None:
    array = open_memmap(work.path, mode="r+")
    for first, last in blocks(start, stop):
        work.fill(array[first:last], first)


def _store_and_flush(work: Work, start: int, stop: int) -> None:
    array = open_memmap(work.path, mode="r+")
    for first, last in blocks(start, stop):
        work.fill(array[first:last], first)
    array.flush()
