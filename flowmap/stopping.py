"""Being asked to stop: what SIGTERM, and the like, does to a process that fills.

A batch system sends one of them some time before it kills. A fill then finishes its block,
makes it durable and ends, so that the next job continues there. A second
SIGTERM ends the process at once, by the signal's default action.

Processes that a filler forks handle signals as they would without flowmap.
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
from typing import TYPE_CHECKING, Any, Final

from flowmap.errors import InvalidArgumentError, StoppedError
from flowmap.starting import start
from flowmap.streams import fill_closed_streams

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""SIGTERM, and what batch systems send before a time limit: Slurm and LSF SIGUSR1 or SIGUSR2,
Grid Engine SIGUSR1, SIGUSR2 and SIGXCPU. The kernel sends SIGXCPU at a limit of CPU time."""

_ASKED: Final[list[int]] = []
"""The signals that asked. No `Event`: a second signal would wait for the lock of the first."""

_BEFORE: Final[dict[int, Any]] = {}
"""The signals that flowmap handles now, each with its handler before."""

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


def prepare_worker(mask: Iterable[int]) -> None:
    """Let `SIGNALS` ask this worker process to stop, and ignore Ctrl-C, from now on.

    A batch system sends its warning to every process of a job. Ctrl-C is the parent's to
    handle, which sees each worker ended.

    Args:
        mask: The signals that are blocked from now on: those that the parent has blocked.
    """
    for number in SIGNALS:
        _handle(number, _note)
        signal.siginterrupt(number, False)  # noqa: FBT003 -- the filler's own calls go on
    take_no_notice_of([signal.SIGINT])
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def take_no_notice_of(numbers: Iterable[int]) -> None:
    """Let signals do nothing to this process, from now on.

    Not by SIG_IGN: the programs that a filler starts would ignore them, too.
    """
    for number in numbers:
        _handle(number, _take_no_notice)
        signal.siginterrupt(number, False)  # noqa: FBT003 -- the filler's own calls go on


@contextlib.contextmanager
def shielded() -> Iterator[set[int]]:
    """Block `SIGNALS` and Ctrl-C for the processes that this thread starts in a `with` block.

    Such a process loses none that comes before it has its handlers, and prints no traceback.

    Yields:
        The signals that this thread has blocked otherwise.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, signal.SIGINT})
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


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
        try:
            start(looking)
        except InvalidArgumentError:
            os.close(reader)
            os.close(self._writer)
            raise

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


class _Fork(threading.local):
    """What a thread has blocked while it forks."""

    mask: set[int] | None = None


_FORK: Final = _Fork()


def _before_fork() -> None:
    """Hold back what the child is sent before it has its own handlers.

    Without that a `Process.terminate()` right after the start would be lost.
    """
    if _BEFORE:
        _FORK.mask = signal.pthread_sigmask(signal.SIG_BLOCK, list(_BEFORE))


def _after_fork() -> None:
    if _FORK.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _FORK.mask)
        _FORK.mask = None


def _after_fork_in_child() -> None:
    """Handle signals as a child of the filler's would without flowmap.

    Nor does it have the handler of Prefect's that `stoppable` replaces: this raises an
    exception, which is lost where a signal comes at once, in the hooks of the fork.
    """
    if _second_signal.cache_info().currsize:
        _second_signal().leave_signals()  # no signal of its own counts as one of its parent's
        _second_signal.cache_clear()
    for number, handler in _BEFORE.items():
        signal.signal(number, signal.SIG_DFL if number in SIGNALS else handler)
    _BEFORE.clear()
    _ASKED.clear()
    _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)


def _handle(number: int, handler: Any) -> None:
    _BEFORE[number] = signal.getsignal(number)
    signal.signal(number, handler)


@contextlib.contextmanager
def stoppable(instead_of: object = signal.SIG_DFL) -> Iterator[None]:
    """Let `SIGNALS` ask this process to stop, for a `with` block; then exit with 75.

    So it is in the main thread, and for a signal that nobody else handles. The block sees by
    `is_asked` that it is to end, and does so in its own time. A second SIGTERM, a moment
    after the first, has its default action: the process ends at once.

    Args:
        instead_of: A handler that is replaced, too.

    Raises:
        InvalidArgumentError: The system allows no more threads.
        SystemExit: It was asked to; the code is that of a failure that may go away
            (EX_TEMPFAIL of sysexits.h), by which a script knows to requeue the job.
        StoppedError: It was asked to, in a worker of `multiprocessing`, which its pool ends.
    """
    taken: list[int] = []
    if threading.current_thread() is threading.main_thread():
        ours = (signal.SIG_DFL, instead_of)
        taken = [number for number in SIGNALS if signal.getsignal(number) in ours]
    if signal.SIGTERM in taken:
        _second_signal()  # which may fail
    try:
        _take(taken)
        try:
            yield
        except Exception as error:
            if taken and is_asked():
                raise _end(error) from error
            raise
        if taken and is_asked():
            raise _end()
    finally:
        _give_back(taken)


def _take(taken: list[int]) -> None:
    for number in taken:
        _handle(number, _note)
    if signal.SIGTERM in taken:
        _second_signal().begin()


def _give_back(taken: list[int]) -> None:
    if signal.SIGTERM in taken:
        _second_signal().end()
    for number in taken:
        signal.signal(number, _BEFORE[number])
        del _BEFORE[number]
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
    """Return what ends a process with the code by which a script requeues it, and log why."""
    _LOGGER.warning(
        "Stopped by a signal after the block in hand. What was filled is kept; run again to go "
        "on. The exit code is %d.",
        os.EX_TEMPFAIL,
    )
    return SystemExit(os.EX_TEMPFAIL)


def _note(number: int, _: object) -> None:
    _ASKED.append(number)


def _take_no_notice(*_: object) -> None:
    pass
