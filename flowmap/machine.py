"""What this machine is: processors, processes, users, file systems; and the umask."""

from __future__ import annotations

import contextlib
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

_EXITING: Final = 0x4
"""The flag of a process that is exiting: PF_EXITING of Linux's include/linux/sched.h."""

_CGROUPS: Final = Path("/sys/fs/cgroup")
_CGROUPS_OF_PROCESS: Final = Path("/proc/self/cgroup")

_CPU_VARIABLES: Final = (
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPUS_ON_NODE",
    "NSLOTS",  # of Grid Engine
    "NCPUS",  # of PBS Professional
    "PBS_NCPUS",
    "PBS_NUM_PPN",  # of Torque
    "LSB_DJOB_NUMPROC",  # of LSF
    "PYTHON_CPU_COUNT",
    "LOKY_MAX_CPU_COUNT",
)
"""Variables that say how many processors a job has on this host, or by which a user says so."""

_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Variables by which libraries know how many threads to use. They read them when they load."""

_MOST_OF_NUMEXPR: Final = 64
"""NumExpr prints an error when it is told to use more."""


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
    """Return how many processors this process may use.

    That is the least of its affinity, the quota of its cgroups, as in a container, and what a
    batch system or the user gave it by a variable.
    """
    counted = getattr(os, "process_cpu_count", os.cpu_count)() or 1  # Python 3.13: -X cpu_count
    with contextlib.suppress(AttributeError, OSError):  # not Linux; seccomp forbids it
        counted = min(counted, len(os.sched_getaffinity(0)))
    limits = [_cgroup_cpus(), *map(_number, _CPU_VARIABLES)]
    return max(1, min([counted, *filter(None, limits)]))


def thread_limits(workers: int) -> dict[str, str]:
    """Return variables that keep the threads of worker processes within the processors.

    Otherwise each of N workers multiplies matrices by as many threads as there are processors.
    What the user has set stays, and OMP_NUM_THREADS is the number for all that is not set.

    Args:
        workers: How many processes share the processors.
    """
    threads = _number("OMP_NUM_THREADS") or max(1, available_cpus() // workers)
    limits = dict.fromkeys(_THREAD_VARIABLES, threads)
    limits["NUMEXPR_NUM_THREADS"] = min(threads, _MOST_OF_NUMEXPR)
    return {name: str(n) for name, n in limits.items() if not os.environ.get(name)}


def _number(variable: str) -> int:
    """Return the number that a variable is set to, or 0 if it is not a number."""
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def cgroup_folders(controller: str) -> list[Path]:
    """Return the folders of the cgroups whose limits of one kind count for this process.

    Each cgroup above its own limits it as well. A container may see the path that its cgroup
    has on the host, but only its own folder: not every folder that is named need be there.

    Args:
        controller: The kind of limit: "cpu" or "pids".
    """
    try:
        lines = _CGROUPS_OF_PROCESS.read_text().splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)  # cgroups(7); none of version 2
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for root in (controllers, controller if controllers else "unified"):
            found += [_CGROUPS.joinpath(root, *parts[:n]) for n in range(len(parts) + 1)]
    return found


def _cgroup_cpus() -> int | None:
    """Return how many processors the cgroups of this process allow, rounded up, if any says."""
    return min((n for folder in cgroup_folders("cpu") for n in _quota(folder)), default=None)


def _quota(folder: Path) -> list[int]:
    """Return how many processors one cgroup allows, rounded up, if it says so."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, (folder / "cpu.max").read_text().split())  # or "max"
        return [-(-quota // period)]
    with contextlib.suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())  # version 1; -1 for no quota
        period = int((folder / "cpu.cfs_period_us").read_text())
        return [-(-quota // period)] if quota > 0 else []
    return []


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
    Empty, too, where `/proc` is of an outer container (`unshare --pid` alone): it shows other
    processes by the numbers that are asked for.
    """
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):
            return ""
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

    It is -1 for a process that runs no more code of its own: a zombie, or one that is exiting.
    The sockets of an exiting process are closed before it is a zombie, so whoever waits for
    that, as Dask's scheduler does, may look at the process before the system is done with it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX" or int(fields[6]) & _EXITING:  # proc(5): fields 3, 9 and 22
        return -1
    return int(fields[19])


def _exists(pid: int) -> bool:
    """Return whether there is such a process, even one that /proc hides (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # this user may not send it a signal
        return True
    return pid > 0
