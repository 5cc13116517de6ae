"""The pool of warm processes of those contestants that bring none of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.filling.work import WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.filling.work import Work


@contextlib.contextmanager
def processes() -> Iterator[ProcessPoolExecutor]:
    """Open the pool."""
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        yield pool


def each_segment(
    pool: ProcessPoolExecutor, function: Callable[[Work, int, int], Any], work: Work
) -> list[Any]:
    """Call a function with the work and the rows of each of its segments."""
    futures = [pool.submit(function, work, *segment) for segment in work.segments]
    return [future.result() for future in futures]
