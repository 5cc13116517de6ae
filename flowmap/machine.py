"""What this machine is: its processors, processes, and the file systems that it has mounted."""

from __future__ import annotations

import contextlib
import os
import socket
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


def machine_id() -> str:
    """Name where a process id means this process: this boot, and this container if any."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return socket.gethostname()


def is_alive(pid: int, started: int | None) -> bool | None:
    """Return whether a process of this machine lives; None if it exists but cannot be seen.

    Args:
        pid: Its number, which another process may have by now.
        started: What `process_started` said of it; None or 0 if that is not known.
    """
    now = process_started(pid)
    if now is None or not started:
        return None if _exists(pid) else False
    return now == started


def process_started(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None if that cannot be seen.

    For a zombie, which fills nothing any more, it is -1.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])  # proc(5): fields 3 and 22


def _exists(pid: int) -> bool:
    """Return whether there is such a process, even one that /proc hides (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # this user may not send it a signal
        return True
    return pid > 0
