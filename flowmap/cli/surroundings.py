"""Surroundings that are not tidy: streams closed or full, terminals of no size."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from pathlib import Path
from typing import IO, Final

from flowmap.streams import fill_closed_streams

_SIZE: Final = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)

_LOST: Final = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What write(2) says of a stream that takes no more."""


def tidy_process() -> None:
    """Prepare this process, which is the command's own, for surroundings that are not tidy.

    Python has no `sys.stdout` where that was closed. What it writes to the one made here fails
    as it would on the closed stream; errors have nowhere to go, and are dropped.
    """
    fill_closed_streams()
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        unwritable = os.open(os.devnull, os.O_RDONLY)  # noqa: TID251 -- the streams are filled
        sys.stdout = os.fdopen(unwritable, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    # A path may have letters, or bytes, for which a terminal's encoding has none.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for name in ("COLUMNS", "LINES"):  # rich fails for 0, for "²", and for what is huge
        if not _SIZE.fullmatch(os.environ.get(name, "1")):
            del os.environ[name]


def is_lost_output(error: OSError) -> bool:
    """Say whether an error is one of writing to stdout, and not of a file, which has a name."""
    return error.filename is None and error.errno in _LOST


def lead_nowhere(stream: IO[str]) -> None:
    """Lead a stream that takes no more to the null device.

    At its end Python writes once more what is left in the stream, and fails with exit code 120.
    """
    with Path(os.devnull).open("wb") as null:
        os.dup2(null.fileno(), stream.fileno())


def lose_output(error: OSError) -> int:
    """Say that stdout takes no more, unless its reader had enough, as in `flowmap info | head`.

    Returns:
        The exit code.
    """
    # The rest of the command loads NumPy, which `flowmap --help` need not wait for.
    from flowmap.cli.exits import Exit  # noqa: PLC0415
    from flowmap.cli.output import say_error  # noqa: PLC0415

    lead_nowhere(sys.stdout)
    if error.errno != errno.EPIPE:
        message = (
            f"Cannot write to the standard output ({error.strerror}). What the command did "
            "before is kept; look at it with `flowmap status`."
        )
        say_error(message, kind="OSError", code=Exit.FAILED, as_json=False)
    return Exit.FAILED
