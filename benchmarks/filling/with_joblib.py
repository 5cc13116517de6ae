"""joblib, as its documentation has it: workers store into a memory map that is handed in."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from joblib import Parallel, delayed
from numpy.lib.format import open_memmap

from benchmarks.filling import work as common
from benchmarks.filling.work import WORKERS, Work, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.filling.work import Filled

opened = common.open_npy


@contextlib.contextmanager
def ready() -> Iterator[Callable[[Work], None]]:
    """Start the workers; a task is a segment, long enough to be sent alone."""
    with Parallel(n_jobs=WORKERS, batch_size=1) as parallel:
        yield functools.partial(_fill, parallel)


def _fill(parallel: Parallel, work: Work) -> None:
    array = open_memmap(work.path, mode="w+", dtype="<f8", shape=(work.rows,))
    parallel(delayed(_store)(array, work, *segment) for segment in work.segments)
    if work.durable:
        array.flush()


def _store(array: Filled, work: Work, start: int, stop: int) -> None:
    for first, last in blocks(start, stop):
        work.fill(array[first:last], first)
