"""Being asked to stop: what SIGTERM and SIGUSR1 do to a process that fills.

A batch system sends one of them some time before it kills. A fill then finishes its block,
makes it durable and ends, so that nothing is lost but the waiting for the next job.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

from flowmap.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)

_ASKED: Final[list[int]] = []
"""The signals that asked. No `Event`: a second signal would wait for the lock of the first."""

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

_LOGGER: Final = logging.getLogger("flowmap")


def is_asked() -> bool:
    """Return whether this process was asked to stop."""
    return bool(_ASKED)


def refuse_if_asked() -> None:
    """End what is under way if this process was asked to stop.

    Raises:
        StoppedError: It was.
    """
    if _ASKED:
        raise _stopped()


def note_signals() -> None:
    """Let SIGTERM and SIGUSR1 ask this worker process to stop, from now on."""
    for number in SIGNALS:
        signal.signal(number, _note)
        signal.siginterrupt(number, False)  # noqa: FBT003 -- the filler's own calls go on
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def shield_children() -> None:
    """Let no process that this thread starts be ended by a signal which asks to stop.

    Workers do as `note_signals` says; loky's resource tracker shields itself from SIGTERM only.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])


def killed_with_parent() -> bool:
    """Have the kernel kill this process, from now on, when the thread that started it ends.

    Returns:
        Whether the system can do that.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) == 0)


@contextlib.contextmanager
def stoppable(instead_of: object = signal.SIG_DFL) -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 ask this process to stop, for a `with` block; then exit with 75.

    So it is in the main thread, and for a signal that nobody else handles. The block sees by
    `is_asked` that it is to end, and does so in its own time.

    Args:
        instead_of: A handler that is replaced, too.

    Raises:
        SystemExit: It was asked to; the code is that of a failure that may go away
            (EX_TEMPFAIL of sysexits.h), by which a batch system knows to queue it again.
        StoppedError: Likewise, in a worker of `multiprocessing`, which is its pool's to end.
    """
    taken = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        ours = (signal.SIG_DFL, instead_of)
        taken = {number: handler for number, handler in handlers.items() if handler in ours}
    try:
        for number in taken:
            signal.signal(number, _note)
        try:
            yield
        except Exception as error:
            if taken and is_asked():
                raise _end(error) from error
            raise
        if taken and is_asked():
            raise _end()
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        if taken:
            _ASKED.clear()


def _end(error: Exception | None = None) -> BaseException:
    """Return what ends the process that was asked to stop."""
    if multiprocessing.parent_process() is not None:
        return error or _stopped()
    return exit_for_now()


def _stopped() -> StoppedError:
    return StoppedError("The process was asked to stop; run again to go on.")


def exit_for_now() -> SystemExit:
    """Return what ends a process so that a batch system queues it again, and tell why."""
    _LOGGER.warning(
        "Stopped by a signal after the block in hand. What was filled is kept; run again to go "
        "on. The exit code is %d.",
        os.EX_TEMPFAIL,
    )
    return SystemExit(os.EX_TEMPFAIL)


def _note(number: int, _: object) -> None:
    _ASKED.append(number)
