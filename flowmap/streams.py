"""Standard streams that are closed: no file may get the number of one.

A daemon, or `2>&-` in a shell, starts a program with a closed standard stream. The kernel gives
the lowest number that is free to the next file that is opened. If that file is the target,
whatever a library prints to stderr goes into the header of the array.
"""

from __future__ import annotations

import os


def fill_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed; it stays open.

    flowmap calls this before it opens a file, not once at the import: a program may close its
    streams afterwards, to become a daemon. A file could be moved to a higher number instead, as
    soon as it is open, but another thread may print in between. A memory map duplicates its
    descriptor by itself, to the lowest number.

    Source: SQLite, os_unix.c, robust_open(), keeps its files off the three numbers in this way.
    """
    for number in range(3):
        try:
            os.get_inheritable(number)  # asks fcntl(2) for the flags, the cheapest question
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # noqa: TID251 -- it shall have the number
            if null > 2:  # noqa: PLR2004 -- another thread filled the gap meanwhile
                os.close(null)
            else:
                os.set_inheritable(null, True)  # noqa: FBT003 -- what this process starts, too
