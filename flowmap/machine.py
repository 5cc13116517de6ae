"""What this machine is: processors, processes, users, file systems; and the umask."""

from __future__ import annotations

import ctypes
import getpass
import os
import pwd
import re
import socket
import sys
from pathlib import Path
from typing import Final

import xxhash

NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3"})
"""Where two clients that write different bytes of one page lose data (measured for NFS)."""

_NETWORK_MAGIC: Final = frozenset({0x6969, 0xFF534D42, 0xFE534D42})
"""How statfs(2) names these: NFS, CIFS and SMB2 of linux/magic.h."""

_STATFS: Final = ctypes.c_long * 32
"""More than `struct statfs` takes on any processor; its first field, a long, is `f_type`."""

_LIBC: Final = ctypes.CDLL(None)


def is_on_network(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is on one of `NETWORK_FILE_SYSTEMS`, or may be: statfs(2) failed.

    Every attempt at a segment asks: statfs(2) takes 3 us, to read the table of mounts 50 us.
    """
    if sys.platform != "linux":
        return False
    found = _STATFS()
    if _LIBC.statfs(os.fsencode(path), found) != 0:
        return True
    return found[0] & 0xFFFFFFFF in _NETWORK_MAGIC


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


def umask() -> int:
    """Return the umask of this process, or 0o077 where the system does not show it.

    `os.umask` can only be read by setting it, which another thread that makes a file would see.
    """
    try:
        status = Path("/proc/self/status").read_text(errors="replace")
    except OSError:  # not Linux
        status = ""
    found = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)  # since Linux 4.7
    return int(found[1], 8) if found else 0o077


def this_user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a number without a name
        return str(os.getuid())


def user_name(number: int) -> str:
    """Return what to call a user in a message, by the number."""
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user number {number}"


def host_name() -> str:
    """Return what to call this host in a message: nothing is decided by it."""
    return socket.gethostname() or "unnamed-host"


def short_host_name(name: str, most: int) -> str:
    """Return a host's name in ASCII; one that is too long keeps both ends, and a digest of all.

    Names of pods are long, and differ at the end only; those of a domain at the beginning.

    Args:
        name: The name.
        most: Characters that there is room for.
    """
    text = name.encode("ascii", "backslashreplace")
    if len(text) > most:
        digest = f"~{xxhash.xxh32_hexdigest(text)}~".encode()
        begin = (most - len(digest)) // 2
        text = text[:begin] + digest + text[begin + len(digest) - most :]
    return text.decode()


def machine_id() -> str:
    """Name where a process id means this process: this boot, and this container if any.

    Empty if the system names neither. The host's name would not do: containers share names.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


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
