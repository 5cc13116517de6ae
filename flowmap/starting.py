"""Starting threads and processes, and the error where the system allows no more of them."""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING

from flowmap.errors import InvalidArgumentError
from flowmap.machine import cgroup_folders
from flowmap.wording import option

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        InvalidArgumentError: The system allows no more threads.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise cannot_start("a thread", error) from error


@contextlib.contextmanager
def starting_threads(advice: str | None = None) -> Iterator[None]:
    """Start threads of a pool in a `with` block.

    Args:
        advice: As in `cannot_start`.

    Raises:
        InvalidArgumentError: The system allows no more threads.
    """
    try:
        yield
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise cannot_start("a thread", error, advice) from error


def cannot_start(
    what: str, error: BaseException, advice: str | None = None
) -> InvalidArgumentError:
    """Return the error for a thread or a process that the system does not start.

    Args:
        what: "a thread", "a worker process".
        error: What the system says.
        advice: What to do first; None to pass fewer workers.
    """
    limits = " and ".join(_limits()) or "what the system has memory for"
    return InvalidArgumentError(
        f"Cannot start {what} ({error}). The system allows {limits}. "
        f"{advice or 'Pass smaller ' + option('workers')}, end other processes, or have the "
        "limit raised."
    )


def _limits() -> Iterator[str]:
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if most != resource.RLIM_INFINITY:
        yield f"{most} processes and threads for this user (`ulimit -u`)"
    if (most_here := _pids_max()) is not None:
        yield f"{most_here} for this container or batch job (pids.max of its cgroup)"


def _pids_max() -> int | None:
    """Return the least limit of the control groups that this process is in."""
    found = []
    for folder in cgroup_folders("pids"):
        with contextlib.suppress(OSError, ValueError):  # the root has none; "max"
            found.append(int((folder / "pids.max").read_text()))
    return min(found, default=None)
