"""Hosts of the machine that `nfs_machine` boots: a server, its clients, and their processes.

A host is a namespace of networks, mounts, names and processes, with mounts of its own of what
the server exports, and so with a page cache of its own for it. Its processes do what they are
told, one call after the other, and stop in the middle of one where `pause` is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT: Final = Path("/var/lib/nfs")
"""A tmpfs of the machine: the packages of NFS want it to be writable."""

RESULTS: Final = ROOT / "results"
"""The folder of the test, outside the machine."""

EXPORT: Final = ROOT / "export"
"""What the server exports, as its own disk has it."""

AT: Final = ROOT / "at"
"""Where each host mounts it, in a folder for each of `MOUNTS`."""

MOUNTS: Final = {
    "4.1": "vers=4.1",
    "4.2": "vers=4.2",
    "4.2-acdirmax": "vers=4.2,acdirmax=10",
}

LEASE: Final = 10  # seconds until the server gives up a client: the least that it takes
PATIENCE: Final = 60.0  # seconds that a call may take: some wait until a client is given up

_CALLS: Final = str(ROOT / "calls")
_NAMESPACES: Final = 0x2C020000  # CLONE_NEWNS, _NEWUTS, _NEWPID, _NEWNET... see _unshare
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class HungError(Exception):
    """A call did not end in time."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended.

    Attributes:
        value: What it returned.
        error: The name of the error's class that it raised, or "".
        text: The error's message.
        trace: Its traceback.
    """

    value: Any = None
    error: str = ""
    text: str = ""
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.error}: {self.text}" if self.error else repr(self.value)


@dataclass(frozen=True, slots=True)
class Paused:
    """Where a call paused."""

    where: str


class Process:
    """A process of a host; `Host.process` makes it.

    Attributes:
        pid: In the host.
    """

    def __init__(self, host: Host, connection: Connection[Any, Any], pid: int) -> None:
        self.pid = pid
        self._host = host
        self._connection = connection

    def begin(self, do: Callable[..., Any], *given: Any, **named: Any) -> None:
        """Let it call a function, and do not wait."""
        self._connection.send((do, given, named))

    def wait(self, seconds: float = PATIENCE) -> Ended | Paused:
        """Wait until the call ends or pauses.

        Raises:
            HungError: It does neither.
        """
        if not self._connection.poll(seconds):
            raise HungError(f"a process of {self._host.name} did not answer for {seconds:g} s")
        try:
            answer: Ended | Paused = self._connection.recv()
        except EOFError:
            return Ended(error="Killed")
        return answer

    def go_on(self) -> None:
        """Let a call that paused go on, and do not wait."""
        self._connection.send(None)

    def ends(self, seconds: float = PATIENCE) -> Ended:
        """Wait until the call ends, through all its pauses."""
        while True:
            answer = self.wait(seconds)
            if isinstance(answer, Ended):
                return answer
            self.go_on()

    def tries(self, do: Callable[..., Any], *given: Any, **named: Any) -> Ended:
        """Call a function and return how that ended."""
        self.begin(do, *given, **named)
        return self.ends()

    def does(self, do: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call a function and return its value.

        Raises:
            RuntimeError: The function raised.
        """
        ended = self.tries(do, *given, **named)
        if ended.error:
            raise RuntimeError(f"{self._host.name}: {ended}\n{ended.trace}")
        return ended.value

    def pauses(self, do: Callable[..., Any], *given: Any, **named: Any) -> str:
        """Call a function that pauses; return where it did.

        Raises:
            RuntimeError: It ended.
        """
        self.begin(do, *given, **named)
        answer = self.wait()
        if isinstance(answer, Ended):
            raise RuntimeError(f"{self._host.name} did not pause: {answer}\n{answer.trace}")
        return answer.where

    def kill(self) -> None:
        """Kill it, as by kill -9."""
        self._host.tell(os.kill, self.pid, signal.SIGKILL)
        self._connection.close()


class Host:
    """A client of the server.

    Args:
        name: Of the host: a word.
        number: Of its network, from 1.
        listener: Where its processes call.
        mounts: Of `MOUNTS`.

    Attributes:
        name: Its name.
    """

    def __init__(
        self, name: str, number: int, listener: Listener, mounts: Mapping[str, str]
    ) -> None:
        self.name = name
        self._number = number
        self._link = f"to-{name}"
        self._listener = listener
        outer, inner = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            _be_host(name, number, mounts, outer, inner)
        # The network of the child is there once it says so; then the child needs the link.
        first = int(_read_line(outer[0]))
        ip = ("ip", "link", "add", self._link, "type", "veth")
        call(*ip, "peer", "name", "uplink", "netns", str(first))
        call("ip", "address", "add", f"10.0.{number}.1/24", "dev", self._link)
        call("ip", "link", "set", "dev", self._link, "up")
        os.write(inner[1], b"\n")
        os.close(inner[1])
        os.close(outer[0])
        self._agent: Connection[Any, Any] = listener.accept()
        self._said()

    def _said(self) -> Any:
        if not self._agent.poll(PATIENCE):
            raise HungError(f"host {self.name} does not answer")
        value = self._agent.recv()
        if isinstance(value, Ended):
            raise RuntimeError(f"host {self.name}: {value}\n{value.trace}")  # noqa: TRY004
        return value

    def tell(self, do: Callable[..., Any], *given: Any) -> Any:
        """Let the first process of the host call a function; return its value."""
        self._agent.send((do, given))
        return self._said()

    def process(self, prepare: Callable[[], object] | None = None) -> Process:
        """Begin a process.

        Args:
            prepare: What it calls first.
        """
        pid = self.tell(_spawn, prepare)
        connection = self._listener.accept()
        assert connection.recv() == pid
        return Process(self, connection, pid)

    def kill_all(self) -> None:
        """Kill all of its processes, as when it crashes; what is cached is written later."""
        with contextlib.suppress(ProcessLookupError):
            self.tell(_kill_all)

    def cut(self) -> None:
        """Cut its link to the server."""
        call("ip", "link", "set", "dev", self._link, "down")

    def mend(self) -> None:
        """Bring the link back."""
        call("ip", "link", "set", "dev", self._link, "up")


def call(*command: str) -> None:
    """Run a program that must succeed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}: {done.stderr}")


def pause(where: str) -> None:
    """Pause the call that this process is in, until it is told to go on."""
    assert _CALLER is not None, "a process of a host only"
    _CALLER.send(Paused(where))
    _CALLER.recv()


_CALLER: Connection[Any, Any] | None = None


def _kill_all() -> None:
    os.kill(-1, signal.SIGKILL)


def _spawn(prepare: Callable[[], object] | None) -> int:
    child = os.fork()
    if child == 0:
        try:
            _be_process(prepare)
        finally:
            os._exit(1)
    return child


def _be_process(prepare: Callable[[], object] | None) -> NoReturn:
    """Do what comes, one call after the other."""
    global _CALLER  # noqa: PLW0603 -- who told this process
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _CALLER = Client(_CALLS)
    if prepare is not None:
        prepare()
    _CALLER.send(os.getpid())
    while True:
        do, given, named = _CALLER.recv()
        _CALLER.send(_ended(do, *given, **named))


def _ended(do: Callable[..., Any], *given: Any, **named: Any) -> Ended:
    try:
        return Ended(do(*given, **named))
    except BaseException as error:  # noqa: BLE001 -- the one who told it looks at it
        return Ended(None, type(error).__name__, str(error), traceback.format_exc())


def _be_host(
    name: str,
    number: int,
    mounts: Mapping[str, str],
    outer: tuple[int, int],
    inner: tuple[int, int],
) -> NoReturn:
    try:
        # CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWPID, CLONE_NEWNET of linux/sched.h
        _done(_LIBC.unshare(0x00020000 | 0x04000000 | 0x20000000 | 0x40000000))
        os.write(outer[1], f"{os.getpid()}\n".encode())
        os.read(inner[0], 1)
        if os.fork() == 0:
            _be_agent(name, number, mounts)
        signal.pause()
    finally:
        traceback.print_exc()
        os._exit(1)


def _be_agent(name: str, number: int, mounts: Mapping[str, str]) -> NoReturn:
    """Be the first process of a host."""
    agent = Client(_CALLS)
    try:
        socket.sethostname(name)
        mount("none", "/", "none", 0x4000 | 0x40000)  # MS_REC, MS_PRIVATE
        mount("proc", "/proc", "proc")
        boot = ROOT / f"boot of {name}"  # as of a kernel of its own
        boot.write_text(f"{secrets.token_hex(4)}-0000-4000-8000-{secrets.token_hex(6)}\n")
        mount(str(boot), "/proc/sys/kernel/random/boot_id", "none", 0x1000)  # MS_BIND
        call("ip", "link", "set", "dev", "lo", "up")
        call("ip", "address", "add", f"10.0.{number}.2/24", "dev", "uplink")
        call("ip", "link", "set", "dev", "uplink", "up")
        for folder, options in mounts.items():
            at = AT / folder
            at.mkdir(parents=True, exist_ok=True)
            call("mount.nfs4", f"10.0.{number}.1:/", str(at), "-n", "-o", options)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombie is left of a process
        agent.send(None)
    except BaseException as error:  # noqa: BLE001
        agent.send(Ended(None, type(error).__name__, str(error), traceback.format_exc()))
    while True:
        do, given = agent.recv()
        try:
            agent.send(do(*given))
        except OSError as error:
            agent.send(Ended(None, type(error).__name__, str(error), traceback.format_exc()))


def serve(disk: str) -> None:
    """Let the machine export a new file system.

    Args:
        disk: The device that it is made on.
    """
    call("mkfs.ext4", "-q", "-b", "4096", disk)
    EXPORT.mkdir()
    mount(disk, str(EXPORT), "ext4")
    mount("nfsd", "/proc/fs/nfsd", "nfsd")
    (ROOT / "v4recovery").mkdir()
    for name in ("nfsv4leasetime", "nfsv4gracetime"):
        Path("/proc/fs/nfsd", name).write_text(str(LEASE))
    options = "rw,sync,fsid=0,no_root_squash,no_subtree_check,insecure"
    (ROOT / "etab").touch()
    call("exportfs", "-o", options, f"*:{EXPORT}")
    call("rpc.mountd", "-N", "2", "-N", "3")
    call("rpc.nfsd", "-N", "3", "-V", "4.1", "-V", "4.2", "8")
    Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")


def prepare_machine(results: str) -> Listener:
    """Prepare the machine, of which this is the first process; return where processes call.

    Args:
        results: The folder of the test, outside the machine.
    """
    mount("proc", "/proc", "proc")
    mount("tmpfs", str(ROOT), "tmpfs")
    RESULTS.mkdir()
    mount("none", str(RESULTS), "hostfs", 0, results)
    mount("devtmpfs", "/dev", "devtmpfs")
    kernel = os.uname().release
    modules = ROOT / "modules/lib/modules"
    modules.mkdir(parents=True)
    (modules / kernel).symlink_to(f"/usr/lib/uml/modules/{kernel}")
    for module in ("veth", "nfsd", "nfs", "nfsv4"):
        call("modprobe", "-d", str(ROOT / "modules"), module)
    call("ip", "link", "set", "dev", "lo", "up")
    return Listener(_CALLS, backlog=16)


def switch_off() -> NoReturn:
    """End the machine at once."""
    os.sync()
    Path("/proc/sysrq-trigger").write_text("o")
    while True:
        signal.pause()


def mount(source: str, folder: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount a file system."""
    names = (os.fsencode(name) for name in (source, folder, kind))
    _done(_LIBC.mount(*names, ctypes.c_ulong(flags), os.fsencode(options)))


def _done(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _read_line(descriptor: int) -> bytes:
    return os.read(descriptor, 100)
