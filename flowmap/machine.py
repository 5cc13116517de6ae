"""What this machine is: its processors, and the file systems that it has mounted."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final

NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3"})
"""Where two clients that write different bytes of one page lose data (measured for NFS)."""

_NETWORK_MAGIC: Final = frozenset({0x6969, 0xFF534D42, 0xFE534D42})
"""How statfs(2) names these: NFS, CIFS and SMB2 of linux/magic.h."""

_STATFS_BYTES: Final = 256
"""More than `struct statfs` has on any processor."""

_LIBC: Final = ctypes.CDLL(None)


def is_on_network(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is on one of `NETWORK_FILE_SYSTEMS`; false where that is unknown.

    Every attempt at a segment asks: statfs(2) takes 3 us, to read the table of mounts 50 us.
    """
    if sys.platform != "linux":
        return False
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _LIBC.statfs(os.fsencode(path), found) != 0:
        return False
    return ctypes.c_long.from_buffer(found).value & 0xFFFFFFFF in _NETWORK_MAGIC  # f_type


def file_system_type(path: str | os.PathLike[str]) -> str | None:
    """Return the type of the file system that holds `path` ("ext4", "nfs4"), if known."""
    return None if (found := file_system(path)) is None else found[0]


def file_system(path: str | os.PathLike[str]) -> tuple[str, frozenset[str]] | None:
    """Return type and options of the file system that holds `path`, if known."""
    device = Path(path).stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        table = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    except OSError:  # not Linux
        return None
    for line in table.splitlines():
        mount, _, source = line.partition(" - ")  # proc(5)
        if mount.split()[2] == wanted:
            kind, *_, options = source.split()
            return kind, frozenset(options.split(","))
    return None


def available_cpus() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
