"""Processes that stop at a step of their own, by SIGSTOP, and go on when they are told to.

A step is a call that flowmap makes on a file, or a moment that an action names itself. The
process stops before it. Nothing is synced here: a sync is a step like the others.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import flowmap.attempt
import flowmap.mapped
import flowmap.windows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CALLS: Final = (
    *("open", "pread", "preadv", "pwrite"),
    *("stat", "lstat", "rename", "unlink", "link"),
)
SYNCS: Final = ("fsync", "fdatasync")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended.

    Attributes:
        outcome: What its action returned, or the name of the error that it raised.
        said: What the error said.
        steps: How many there were.
        late: How often it wrote to the file in question after it had been stopped.
    """

    outcome: str
    said: str
    steps: int
    late: int


class Steps:
    """Counts the steps of this process, and stops it before one of them.

    Args:
        stop_at: Before which, counted from 0; None for none.
        watched: The file whose writes count as late after the stop.
    """

    def __init__(self, stop_at: int | None, watched: Path) -> None:
        self.count = self.late = 0
        self._stop_at = stop_at
        self._watched = watched.stat().st_ino

    def step(self) -> None:
        """Count a step; stop before it if it is the one."""
        self.count += 1
        if self.count - 1 == self._stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    def install(self, patch: Callable[[Any, str, Any], object] = setattr) -> None:
        """Make steps of what flowmap calls in this process."""
        for name in CALLS:
            patch(os, name, self._stepping(getattr(os, name)))
        for name in SYNCS:
            patch(os, name, self._stepping(lambda _: None))
        for name in ("reserve_range", "start_writeback"):
            for module in (flowmap.attempt, flowmap.mapped):
                if name in vars(module):
                    patch(module, name, self._stepping(vars(module)[name]))
        patch(flowmap.windows._Mapping, "sync", self._stepping(lambda _: None))
        patch(os, "pwrite", self._watching(os.pwrite))

    def _stepping(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*arguments: Any, **options: Any) -> Any:
            self.step()
            return call(*arguments, **options)

        return stepping

    def _watching(self, pwrite: Callable[..., int]) -> Callable[..., int]:
        def watching(descriptor: int, data: Any, offset: int) -> int:
            done = pwrite(descriptor, data, offset)
            stopped = self._stop_at is not None and self.count > self._stop_at
            self.late += stopped and os.fstat(descriptor).st_ino == self._watched
            return done

        return watching


class Actor:
    """A forked process that does something, and stops before a step of it.

    As a context manager it leaves no process behind.

    Args:
        act: What it does; it is given what counts as a step of its own.
        watched: As in `Steps`.
        stop_at: Likewise.
    """

    def __init__(
        self, act: Callable[[Callable[[], None]], str], watched: Path, stop_at: int | None
    ) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                steps = Steps(stop_at, watched)
                steps.install()
                outcome, said = "", ""
                try:
                    outcome = act(steps.step)
                except BaseException as error:  # noqa: BLE001 -- told to the parent
                    outcome, said = type(error).__name__, str(error)
                ended = (outcome, said, steps.count, steps.late)
                os.write(writer, json.dumps(ended).encode())
            finally:
                os._exit(0)
        os.close(writer)
        self._ended = False

    def stops(self) -> bool:
        """Wait until it stops, or ends; return whether it stopped."""
        _, status = os.waitpid(self._pid, os.WUNTRACED)
        self._ended = not os.WIFSTOPPED(status)
        return not self._ended

    def ends(self) -> Ended:
        """Let it go on if it is stopped, and wait for its end."""
        if not self._ended:
            os.kill(self._pid, signal.SIGCONT)
            os.waitpid(self._pid, 0)
            self._ended = True
        text = os.read(self._reader, 1 << 16)
        assert text, "the process died"
        return Ended(*json.loads(text))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._reader)
