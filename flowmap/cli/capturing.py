"""Catching what others print, so that it does not run into a live display."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK: Final = 65_536
_WAKE_SECONDS: Final = 0.1


class Captured:
    """What this process and its children print to a terminal, line by line, for a `with` block.

    Fillers print, and their libraries warn, in worker processes, straight to the descriptors 1
    and 2. Those of the two that are a terminal lead into a pipe meanwhile.

    Args:
        show: Called for each line, in a thread of this object.
    """

    def __init__(self, show: Callable[[str], object]) -> None:
        self._show = show
        self._kept: dict[int, int] = {}
        self._rest = b""
        self._ended = threading.Event()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._thread = threading.Thread(
            target=self._pass_on, name="flowmap-output", daemon=True
        )

    def terminal(self) -> int:
        """Return a descriptor of the terminal that stderr is, for the display."""
        return self._kept.get(2, 2)

    def __enter__(self) -> Self:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            if os.isatty(number):
                self._kept[number] = os.dup(number)
                os.dup2(self._write, number)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        for number, kept in self._kept.items():
            os.dup2(kept, number)
        self._ended.set()
        self._thread.join()
        for descriptor in (*self._kept.values(), self._read, self._write):
            os.close(descriptor)

    def _pass_on(self) -> None:
        """Show lines as they come; in the end those that are there, whoever has the pipe."""
        while True:
            ended = self._ended.is_set()
            ready, _, _ = select.select([self._read], [], [], 0 if ended else _WAKE_SECONDS)
            if ready and (data := os.read(self._read, _CHUNK)):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._show(line.decode(errors="replace").rstrip("\r"))
            elif ended:
                break
        if self._rest:
            self._show(self._rest.decode(errors="replace"))
