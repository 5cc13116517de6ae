"""The machine that `nfs_machine` boots, from within: its file systems and its NFS server."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from pathlib import Path
from typing import Final, NoReturn

ROOT: Final = Path("/var/lib/nfs")
"""A tmpfs of the machine: the programs of NFS want it to be writable."""

RESULTS: Final = ROOT / "results"
"""The folder of the test, outside the machine."""

EXPORT: Final = ROOT / "export"
"""What the server exports, as its own disk has it."""

LEASE: Final = 10
"""Seconds until the server gives up a client that is cut off: the least that Linux takes."""

_MODULES: Final = ROOT / "modules"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def prepare_machine(results: str) -> None:
    """Mount what the machine needs, of which this is the first process; load its modules.

    Args:
        results: The folder of the test, outside the machine.
    """
    mount("proc", "/proc", "proc")
    mount("tmpfs", str(ROOT), "tmpfs")
    RESULTS.mkdir()
    mount("none", str(RESULTS), "hostfs", options=results)
    mount("devtmpfs", "/dev", "devtmpfs")
    kernel = os.uname().release
    modules = _MODULES / "lib/modules"  # where modprobe looks for them
    modules.mkdir(parents=True)
    (modules / kernel).symlink_to(f"/usr/lib/uml/modules/{kernel}")
    for module in ("veth", "nfsd", "nfs", "nfsv4"):
        call("modprobe", "-d", str(_MODULES), module)
    call("ip", "link", "set", "dev", "lo", "up")
    # Nothing is written of its own accord: a test says when a host's bytes are late.
    for name in ("dirty_writeback_centisecs", "dirtytime_expire_seconds"):
        Path("/proc/sys/vm", name).write_text("0")


def serve(disk: str) -> None:
    """Let the machine export a new file system.

    Args:
        disk: The device that it is made on.
    """
    call("mkfs.ext4", "-q", "-b", "4096", "-E", "nodiscard", disk)
    EXPORT.mkdir()
    mount(disk, str(EXPORT), "ext4", options="noinit_itable")
    mount("nfsd", "/proc/fs/nfsd", "nfsd")
    (ROOT / "v4recovery").mkdir()
    for name in ("nfsv4leasetime", "nfsv4gracetime"):
        Path("/proc/fs/nfsd", name).write_text(str(LEASE))
    options = "rw,sync,fsid=0,no_root_squash,no_subtree_check,insecure"
    (ROOT / "etab").touch()
    call("exportfs", "-o", options, f"*:{EXPORT}")
    call("rpc.mountd", "-N", "2", "-N", "3")
    call("rpc.nfsd", "-N", "3", "-V", "4.1", "-V", "4.2", "8")
    Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")  # nobody has anything to reclaim


def switch_off() -> NoReturn:
    """End the machine at once."""
    Path("/proc/sysrq-trigger").write_text("o")
    while True:
        signal.pause()


def forget() -> None:
    """Let the machine, all of its hosts, forget what is cached and was written."""
    Path("/proc/sys/vm/drop_caches").write_text("3")


def mount(source: str, folder: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount a file system."""
    names = (os.fsencode(name) for name in (source, folder, kind))
    check_libc(_LIBC.mount(*names, ctypes.c_ulong(flags), os.fsencode(options)))


def unshare(flags: int) -> None:
    """Give this process namespaces of its own, of these kinds."""
    check_libc(_LIBC.unshare(flags))


def check_libc(result: int) -> None:
    """Raise the error that a function of the C library has left, if its result says so."""
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call(*command: str) -> None:
    """Run a program that must succeed."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise OSError(done.returncode, f"{' '.join(command)}: {done.stderr}")
