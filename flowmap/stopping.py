"""Being asked to stop: what SIGTERM and SIGUSR1 do to a process that fills.

A batch system sends one of them some time before it kills. A fill then finishes its block,
makes it durable and ends, so that nothing is lost but the waiting for the next job. A second
SIGTERM ends the process at once, by the signal's default action.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from flowmap.errors import StoppedError
from flowmap.streams import fill_closed_streams

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)

_ASKED: Final[list[int]] = []
"""The signals that asked. No `Event`: a second signal would wait for the lock of the first."""

_SAME_SECONDS: Final = 0.2
"""SIGTERMs that are no further apart are one request: to a process, and to its group."""

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


class _SecondSignal:
    """A thread that lets a second SIGTERM end this process, whatever the main thread does.

    Python calls a handler in the main thread only, and only between two steps of Python: a
    filler that computes in C for an hour would keep a second signal waiting, and Python makes
    one of the two. So Python's C handler also writes each signal to a pipe. This thread reads
    it and gives SIGTERM back to the kernel. Only a filler that keeps the GIL can hinder it.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._blocks = 0
        fill_closed_streams()
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        looking = threading.Thread(
            target=self._look, args=(reader,), name="flowmap-signals", daemon=True
        )
        looking.start()

    def begin(self) -> None:
        """Look for signals from now on, unless an event loop of the main thread does."""
        before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        if before not in (-1, self._writer):
            signal.set_wakeup_fd(before)

    def end(self) -> None:
        """Leave SIGTERM as it is from now on."""
        with self._guard:
            self._blocks += 1
        self.leave_signals()

    def leave_signals(self) -> None:
        """Have no signal written to the pipe any more."""
        before = signal.set_wakeup_fd(-1)
        if before != self._writer:
            signal.set_wakeup_fd(before)

    def _look(self, reader: int) -> None:
        libc = ctypes.CDLL(None)
        while number := os.read(reader, 1):
            blocks = self._blocks
            if number[0] != signal.SIGTERM:
                continue
            time.sleep(_SAME_SECONDS)
            with self._guard:
                if blocks == self._blocks:
                    libc.signal(int(signal.SIGTERM), None)  # SIG_DFL


_second_signal: Final = functools.cache(_SecondSignal)


def _leave_pipe_to_parent() -> None:
    """In a forked process: no signal that it gets may count as one of its parent's."""
    if _second_signal.cache_info().currsize:
        _second_signal().leave_signals()
        _second_signal.cache_clear()


os.register_at_fork(after_in_child=_leave_pipe_to_parent)


@contextlib.contextmanager
def stoppable(instead_of: object = signal.SIG_DFL) -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 ask this process to stop, for a `with` block; then exit with 75.

    So it is in the main thread, and for a signal that nobody else handles. The block sees by
    `is_asked` that it is to end, and does so in its own time. A second SIGTERM, a moment
    after the first, has its default action: the process ends at once.

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
        if signal.SIGTERM in taken:
            _second_signal().begin()
        try:
            yield
        except Exception as error:
            if taken and is_asked():
                raise _end(error) from error
            raise
        if taken and is_asked():
            raise _end()
    finally:
        if signal.SIGTERM in taken:
            _second_signal().end()
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
