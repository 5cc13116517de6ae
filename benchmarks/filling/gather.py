"""The workers return their parts, as tasks do; `np.save` writes the whole."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.filling import work as common
from benchmarks.filling.pool import each_segment, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ProcessPoolExecutor

    from benchmarks.filling.work import Filled, Work

opened = common.open_npy


@contextlib.contextmanager
def ready() -> Iterator[Callable[[Work], None]]:
    """Start the workers."""
    with processes() as pool:
        yield functools.partial(_fill, pool)


def _fill(pool: ProcessPoolExecutor, work: Work) -> None:
    np.save(work.path, np.concatenate(each_segment(pool, _compute, work)))
    if work.durable:
        common.sync_file(work.path)


def _compute(work: Work, start: int, stop: int) -> Filled:
    out = np.empty(stop - start)
    work.fill(out, start)
    return out
