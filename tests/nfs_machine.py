"""A machine with an NFS server and its clients, for tests: Linux, run as a process.

User-mode Linux has a page cache, a server and clients of NFS of its own, whatever the kernel
beneath it is. Its root is the file system of this machine, which it cannot change, so that it
runs the same Python and the same flowmap. Nothing is left of it when it ends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS: Final = (
    *("linux.uml", "gcc", "modprobe", "ip", "mkfs.ext4", "unshare", "setpriv"),
    *("exportfs", "rpc.nfsd", "rpc.mountd", "mount.nfs4"),
)
PACKAGES: Final = (
    "user-mode-linux gcc libc6-dev kmod iproute2 e2fsprogs util-linux "
    "nfs-kernel-server nfs-common"
)

_MEMORY: Final = 1500  # mebibytes
_DISK: Final = 400 << 20  # bytes, of which those that are written take space
_TESTS: Final = Path(__file__).parent


def run_in_machine(folder: Path, script: str, *arguments: str, seconds: float) -> str:
    """Run a script of `tests` as the first process of a machine; return what it printed.

    Args:
        folder: An empty one. The script finds it writable at `nfs_server.RESULTS`.
        script: Its name. The machine is switched off when it ends.
        arguments: What it is given.
        seconds: How long it may take.

    Raises:
        TimeoutError: It took longer, and was killed; the message has what it printed.
    """
    shim = folder / "registers.so"
    source = _TESTS / "nfs_machine.c"
    _call("gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", shim, source, "-ldl")
    first = folder / "first"
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{_TESTS.parent}:{_TESTS}",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, _TESTS / script, folder, *arguments]
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += [f"exec {shlex.join(map(str, command))}", ""]
    first.write_text("\n".join(["#!/bin/sh", *lines]))
    first.chmod(0o755)
    with _memory(folder) as memory:
        disk = memory / "disk"
        disk.touch()
        os.truncate(disk, _DISK)
        machine = [
            # The kernel ends every process of the machine with the test, however that ends. No
            # namespace of mounts: its copies would keep the disks of other tests mounted.
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--pid", "--fork", "--kill-child=KILL"),
            *("linux.uml", f"mem={_MEMORY}M", f"ubd0={disk}", f"uml_dir={memory}"),
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={first}"),
            *("devtmpfs.mount=0", "con=null", "con0=null,fd:1", "loglevel=3"),
            *("panic=-1", "noreboot"),  # it ends at once when its first process does
        ]
        with subprocess.Popen(
            machine,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LD_PRELOAD": str(shim), "TMPDIR": str(memory)},
            start_new_session=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                printed, _ = process.communicate()
                message = f"{script} took longer than {seconds:g} s and printed:\n"
                raise TimeoutError(message + printed.decode(errors="replace")) from None
    return printed.decode(errors="replace")


@contextlib.contextmanager
def _memory(folder: Path) -> Iterator[Path]:
    """Make a folder for the machine's memory and disk: in memory where it may be executed."""
    shared = Path("/dev/shm")
    fits = shared.is_dir() and not os.statvfs(shared).f_flag & os.ST_NOEXEC
    if fits:
        space = os.statvfs(shared)
        fits = space.f_bavail * space.f_frsize > (_MEMORY << 20) + _DISK
    with tempfile.TemporaryDirectory(dir=shared if fits else folder, prefix="machine-") as made:
        yield Path(made)


def _call(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, timeout=60)
