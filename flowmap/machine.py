"""What this machine is: its processors, and the file systems that it has mounted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3"})
"""Where two clients that write different bytes of one page lose data (measured for NFS)."""


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
