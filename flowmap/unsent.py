"""Events that a lost server leaves unsent: the process ends all the same.

Prefect sends the events of task runs, and lines of the log, from threads of its own, and at the
end of a process waits for all of them. Where the server was killed each event waits for seven
seconds by itself, and for minutes where the server hangs: for many segments that is an hour.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import threading
import weakref
from typing import Any, Final

from prefect._internal.concurrency.services import QueueService, _QueueServiceBase

PATIENCE: Final = 10.0
"""Seconds, at the end of a process, in which a server that is there takes some messages."""

_FEWEST: Final = 3
"""What leaves the queue in that time if the server is there; where it is not, each takes seven
seconds to be given up."""

_LOGGER: Final = logging.getLogger("flowmap")
_BOUNDED: Final[weakref.WeakSet[QueueService[Any]]] = weakref.WeakSet()


def bound_exit() -> None:
    """Let this process end soon, though the server is gone; called once it has sent something.

    Python calls what is registered in reverse order: this before Prefect's own, which was
    registered when the service started, and has no bound.
    """
    services: dict[int, QueueService[Any]] = vars(_QueueServiceBase)["_instances"]
    for service in tuple(services.values()):
        if service not in _BOUNDED:
            _BOUNDED.add(service)
            with contextlib.suppress(RuntimeError):  # the process ends already
                threading._register_atexit(_end, service)  # type: ignore[attr-defined]  # noqa: SLF001


def _end(service: Any) -> None:
    """End a service when all is sent, or when next to nothing gets through any more."""
    task, queue = service._task, service._queue  # noqa: SLF001 -- draining forgets the task
    sent = service._drain(at_exit=True)  # noqa: SLF001 -- its future has a timeout
    left = queue.unfinished_tasks
    while task is not None:
        before = left
        concurrent.futures.wait([sent], 1 if _tell.cache_info().currsize else PATIENCE)
        left = queue.unfinished_tasks
        if sent.done() or not left:  # Prefect bounds the end of the connection itself
            return
        if before - left < _FEWEST:
            _tell()
            service._loop.call_soon_threadsafe(task.cancel)  # noqa: SLF001
            return


@functools.cache
def _tell() -> None:
    """Say it once, for the events and the log."""
    _LOGGER.warning(
        "The Prefect server does not answer, and will not show all of this run. The file and "
        "its records do not depend on it."
    )
