"""What a process must have to start workers: a working directory, and room for open files."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

from flowmap.errors import NotFoundError, StorageError
from flowmap.wording import call, option, setting

_FILES: Final = {"threads": (4, 3), "processes": (7, 3)}
"""Files that a fill opens: always, and for each worker at most, while it starts."""


def check_prerequisites(executor: str, workers: int) -> None:
    """Refuse to start workers that could not work, before a segment is claimed.

    Raises:
        NotFoundError: The working directory was deleted.
        StorageError: The limit of open files is too low.
    """
    if executor == "processes":
        check_working_directory()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if executor not in _FILES or limit == resource.RLIM_INFINITY:
        return
    always, each = _FILES[executor]
    needed = always + each * workers
    if limit >= needed + _MOST_OPEN:  # to list those that are open takes a while
        return
    free = limit - _open_files()
    if free >= needed:
        return
    fewer = (free - always) // each
    advice = f", or pass {setting(workers=fewer)}" if fewer > 0 else ""
    if executor == "processes" and not advice:
        advice = f", or pass {setting(executor='threads', workers=1)}"
    raise StorageError(
        errno.EMFILE,
        f"{option('workers')} is {workers}, and so many {executor} need {needed} open files, "
        f"but this process may open only {free} more (its limit is {limit}). Raise the limit: "
        f"ulimit -n 1024{advice}",
    )


_MOST_OPEN: Final = 512
"""Files that a process hardly has open before it fills."""


def _open_files() -> int:
    """Return how many files this process has open; 3 where the system does not list them."""
    try:
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 -- one of them is the list
    except OSError:
        return 3


def check_working_directory() -> None:
    """Refuse what starts processes in the working directory, where that was deleted.

    Raises:
        NotFoundError: It was.
    """
    try:
        os.getcwd()  # noqa: PTH109 -- only whether there is one
    except FileNotFoundError as error:
        raise NotFoundError(
            errno.ENOENT,
            "The working directory of this process was deleted, and worker processes and "
            "Prefect's server start there. Change to a folder that exists; or run "
            + call("fill", executor="threads"),
        ) from error
