"""A terminal in which a command runs, as its user has it: a pty."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_ERASED = "\x1b[2K"
"""The line is erased, and something else is shown in its place."""

_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


class Terminal:
    """A command in a terminal of its own, for a `with` block, which ends it.

    Args:
        words: What follows `flowmap`.
        folder: Where it is called.
        columns: How wide the terminal is.
    """

    def __init__(self, words: Sequence[str], folder: Path, columns: int = 100) -> None:
        self._main, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self._raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flowmap", *words],
            cwd=folder,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            # So that Ctrl-C is a signal to it; these tests have no threads.
            preexec_fn=lambda: os.login_tty(terminal),  # noqa: PLW1509
        )
        os.close(terminal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)

    @property
    def text(self) -> str:
        """All that was shown so far, without colours and the moving of the cursor."""
        return _CODES.sub("", self.raw.replace(_ERASED, "\n"))

    @property
    def raw(self) -> str:
        """The same as the terminal got it."""
        return self._raw.decode(errors="replace")

    def until(self, text: str, seconds: float = 60) -> None:
        """Read until some text was shown."""
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} not within {seconds} s: {self.text}"
            assert self.read(), f"{text!r} never came: {self.text}"

    def press(self, keys: str) -> None:
        r"""Press some keys; "\x03" is Ctrl-C."""
        os.write(self._main, keys.encode())

    def code(self) -> int:
        """Read to the end, and return the exit code."""
        while self.read():
            pass
        return self.process.wait(60)

    def read(self) -> bool:
        """Read what there is; say whether more may come."""
        ready, _, _ = select.select([self._main], [], [], 1)
        if not ready:
            return self.process.poll() is None
        data = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            data = os.read(self._main, 65_536)
        self._raw += data
        return bool(data)
