"""Processes that work for this one: how one starts safely, and ends with who started it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker
from types import CodeType
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from loky.backend import resource_tracker as trackers_of_loky
from loky.process_executor import ProcessPoolExecutor

from flowmap.errors import InvalidArgumentError, storage_error
from flowmap.importing import importing, refuse_between_calls
from flowmap.pickling import reduce_code
from flowmap.stopping import killed_with_parent, note_signals
from flowmap.wording import either, option, setting

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

_TOO_MANY_FILES: Final = (errno.EMFILE, errno.ENFILE)

_SAFE_PATH: Final = "PYTHONSAFEPATH"


def safe_path() -> dict[str, str]:
    """Return variables that keep the working directory off the path of a process that starts.

    `python -m` and `python -c`, which start workers, put it first. In a folder that others
    share, a file of theirs that is named like a library would then be imported in its place.
    """
    return {} if os.environ.get(_SAFE_PATH) else {_SAFE_PATH: "flowmap"}


def forget_safe_path() -> None:
    """Undo `safe_path` in a worker that has started: programs of a filler need their path."""
    if os.environ.get(_SAFE_PATH) == "flowmap":
        del os.environ[_SAFE_PATH]


_STARTING: Final = threading.Lock()
"""Held while the environment of this process has what is meant for one that starts."""


def check_may_start() -> None:
    """Refuse worker processes where Python starts none.

    Raises:
        InvalidArgumentError: This process is daemonic.
    """
    if multiprocessing.current_process().daemon:
        raise InvalidArgumentError(
            f"{option('executor')} is 'processes', but this process is daemonic, as the "
            "workers of Celery and of a DataLoader are, and Python starts no processes from "
            "there. Pass "
            + setting(executor="threads")
            + either(", or fill the segments here, by fill_share().", ".")
        )


def new_pool(limits: dict[str, str]) -> ProcessPoolExecutor:
    """Return a pool of one worker process, which starts at the first submission.

    Args:
        limits: Variables of its environment, as `thread_limits` returns them.

    Raises:
        StorageError: There is no semaphore to be had.
    """
    variables = _start_trackers()
    try:
        return ProcessPoolExecutor(
            1,
            job_reducers={CodeType: reduce_code},
            initializer=prepare_worker,
            initargs=(os.getpid(),),
            env=variables | limits,
        )
    except OSError as error:
        if error.errno in _TOO_MANY_FILES or sys.platform != "linux":
            raise
        # glibc keeps each semaphore in a file there, which sem_open(3) says.
        doing = (
            "cannot start worker processes, whose semaphores need a writable /dev/shm; mount a "
            "tmpfs there (docker run --shm-size=64m), or pass "
            f"{setting(executor='threads')}, which needs none"
        )
        raise storage_error(error, doing, "/dev/shm") from error  # noqa: S108 -- not to be written


def _start_trackers() -> dict[str, str]:
    """Start the processes that clean up after the workers, safely as these.

    Returns:
        What `safe_path` says where no other pool is changing the environment.
    """
    with _STARTING:
        variables = safe_path()
        os.environ.update(variables)
        try:
            trackers_of_loky.ensure_running()
            resource_tracker.ensure_running()
        finally:
            for name in variables:
                del os.environ[name]
    return variables


def prepare_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, which sees every worker ended; die if the parent is gone.

    A batch system sends its warning to every process of a job: it ends the block in hand.
    """
    forget_safe_path()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note_signals()
    refuse_between_calls()
    die_with(parent)


def call(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a worker; it may fill other jobs, unlike what a worker imports."""
    with importing(now=False):
        return fn(*args, **kwargs)


def die_with(parent: int) -> None:
    """Let this process end, from now on, when its parent has, also while a filler has the GIL.

    On Linux the kernel kills it, at the end of the *thread* that started it. Elsewhere a thread
    looks for the parent, as far as the filler lets it.
    """
    if not killed_with_parent():
        watching = threading.Thread(target=_watch, args=(parent,), daemon=True)
        watching.start()
    elif os.getppid() != parent:  # it had ended already
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
