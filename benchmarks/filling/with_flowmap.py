"""flowmap itself, with warm workers."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import flowmap
from benchmarks.filling import work as common
from benchmarks.filling.work import WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from benchmarks.filling.work import Filled, Work
    from flowmap.executors import ExecutorName

opened = common.open_npy


@flowmap.filler
def sqrt(out: Filled, block: flowmap.Block) -> None:
    """Fill with the square roots of the row numbers."""
    common.sqrt(out, block.start)


@flowmap.filler
def clear(_out: Filled, _block: flowmap.Block) -> None:
    """Do nothing: `out` comes cleared."""


FILLERS = {"sqrt": sqrt, "clear": clear}


@contextlib.contextmanager
def ready(executor: ExecutorName = "processes") -> Iterator[Callable[[Work], Any]]:
    """Start the workers: processes, or threads."""
    with flowmap.executor(executor, WORKERS) as pool:
        yield functools.partial(_fill, pool)


def _fill(pool: Executor, work: Work) -> None:
    target = flowmap.allocate(
        work.path, work.rows, "<f8", durability="segment" if work.durable else "end"
    )
    flowmap.fill(target, FILLERS[work.filler], executor=pool)
