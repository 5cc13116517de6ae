"""Hosts of the machine that `nfs_machine` boots: clients of its server, and their processes.

A host is a namespace of networks, mounts, names and processes, with mounts of its own of what
the server exports, and so with a cache of its own for it. Its processes do what they are told,
one call after the other, and stop in the middle of one where `pause` is called. They are forks
of this process, so that each is there in milliseconds and knows the same modules.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import traceback
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any, Final, NoReturn

from nfs_server import ROOT, call, mount, unshare

if TYPE_CHECKING:
    from collections.abc import Callable

AT: Final = ROOT / "at"
"""Where each host mounts what the server exports, in a folder for each of `MOUNTS`."""

MOUNTS: Final = {
    "4.1": "vers=4.1",
    "4.2": "vers=4.2",
    "acdirmax": "vers=4.2,acdirmax=10",
}
"""Options of the mounts: what docs/reliability.md lets people use."""

PATIENCE: Final = 60.0
"""Seconds that a call may take: some wait until the server has given up another client."""

_CALLS: Final = str(ROOT / "calls")
_OWN: Final = 0x00020000 | 0x04000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, _NEWUTS, _NEWPID, _NEWNET of linux/sched.h."""


class HungError(Exception):
    """A call did not end in time."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended.

    Attributes:
        value: What it returned.
        error: The name of the class of error that it raised, or "".
        kinds: The names of all that it is a kind of.
        text: The error's message.
        trace: Its traceback.
    """

    value: Any = None
    error: str = ""
    kinds: tuple[str, ...] = ()
    text: str = ""
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.error}: {self.text}" if self.error else f"{self.value!r}, no error"


@dataclass(frozen=True, slots=True)
class Paused:
    """Where a call paused."""

    where: str


class Process:
    """A process of a host; `Host.process` makes it.

    Args:
        host: The host.
        pid: In the host.
        connection: To it.
    """

    def __init__(self, host: Host, pid: int, connection: Connection[Any, Any]) -> None:
        self._host = host
        self._pid = pid
        self._connection = connection

    def begin(self, do: Callable[..., Any], *given: Any, **named: Any) -> None:
        """Let it call a function, and do not wait."""
        self._connection.send((do, given, named))

    def go_on(self) -> None:
        """Let a call that paused go on, and do not wait."""
        self._connection.send(None)

    def wait(self) -> Ended | Paused:
        """Wait until the call ends or pauses.

        Raises:
            HungError: It does neither.
        """
        if not self._connection.poll(PATIENCE):
            raise HungError(f"a process of {self._host.name} did not answer in {PATIENCE:g} s")
        try:
            answer: Ended | Paused = self._connection.recv()
        except (EOFError, ConnectionResetError):
            return Ended(error="Killed")
        return answer

    def ends(self) -> Ended:
        """Wait until the call ends, through all its pauses."""
        while isinstance(answer := self.wait(), Paused):
            self.go_on()
        return answer

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

    def pauses(self, do: Callable[..., Any], *given: Any, **named: Any) -> None:
        """Call a function, and return when it pauses.

        Raises:
            RuntimeError: It ended.
        """
        self.begin(do, *given, **named)
        answer = self.wait()
        if isinstance(answer, Ended):
            raise RuntimeError(  # noqa: TRY004 -- the call went wrong, not its type
                f"{self._host.name} did not pause: {answer}\n{answer.trace}"
            )

    def kill(self) -> None:
        """Kill it, if it still runs."""
        self._host.tell(_kill, self._pid)
        self._connection.close()


class Host:
    """A client of the server.

    Args:
        name: Of the host: a word.
        number: Of its network, from 1.
        listener: Where its processes call, which `listening` makes.

    Attributes:
        name: Its name.
    """

    def __init__(self, name: str, number: int, listener: Listener) -> None:
        self.name = name
        self._link = f"to-{name}"
        self._listener = listener
        self._agent, theirs = Pipe()
        if os.fork() == 0:
            _be_host(theirs, name, number)
        link = ("ip", "link", "add", self._link, "type", "veth", "peer", "name", "uplink")
        call(*link, "netns", str(self._said()))
        call("ip", "address", "add", f"10.0.{number}.1/24", "dev", self._link)
        self.mend()
        self.tell(_join, name, number)

    def tell(self, do: Callable[..., Any], *given: Any) -> Any:
        """Let the first process of the host call a function; return its value."""
        self._agent.send((do, given))
        return self._said()

    def _said(self) -> Any:
        if not self._agent.poll(PATIENCE):
            raise HungError(f"host {self.name} does not answer")
        said = self._agent.recv()
        if isinstance(said, Ended):
            raise RuntimeError(  # noqa: TRY004 -- the call went wrong, not its type
                f"host {self.name}: {said}\n{said.trace}"
            )
        return said

    def process(self) -> Process:
        """Begin a process."""
        pid = self.tell(_spawn)
        return Process(self, pid, self._listener.accept())

    def kill_all(self) -> None:
        """Kill all of its processes; what they have written and is cached is written later."""
        self.tell(_kill, -1)

    def cut(self) -> None:
        """Cut its link to the server."""
        call("ip", "link", "set", "dev", self._link, "down")

    def mend(self) -> None:
        """Bring the link up, or back."""
        call("ip", "link", "set", "dev", self._link, "up")


def listening() -> Listener:
    """Return where the processes of all hosts call."""
    return Listener(_CALLS, backlog=16)


_caller: Connection[Any, Any] | None = None


def pause(where: str) -> None:
    """Pause the call that this process is in, until it is told to go on."""
    assert _caller is not None, "only a process of a host pauses"
    _caller.send(Paused(where))
    _caller.recv()


def _ended(do: Callable[..., Any], *given: Any, **named: Any) -> Ended:
    try:
        return Ended(do(*given, **named))
    except BaseException as error:  # noqa: BLE001 -- who told it looks at it
        kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        return Ended(None, kinds[0], kinds, str(error), traceback.format_exc())


def _be_process() -> NoReturn:
    """Do what comes, one call after the other."""
    global _caller  # noqa: PLW0603 -- this process is nobody else's
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _caller = Client(_CALLS)
        while True:
            do, given, named = _caller.recv()
            _caller.send(_ended(do, *given, **named))
    except BaseException:  # noqa: BLE001 -- it shows on the console of the machine
        traceback.print_exc()
    finally:
        os._exit(1)


def _be_host(director: Connection[Any, Any], name: str, number: int) -> NoReturn:
    """Be the two processes that a host always has; the other one is its first."""
    try:
        unshare(_OWN)
        director.send(os.getpid())
        if os.fork():
            signal.pause()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing is left of a process that ends
        while True:
            do, given = director.recv()
            ended = _ended(do, *given)
            director.send(ended if ended.error else ended.value)
    except BaseException:  # noqa: BLE001 -- it shows on the console of the machine
        traceback.print_exc()
    finally:
        os._exit(1)


def _join(name: str, number: int) -> None:
    """Give a host its name, its network and its mounts."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # programs are waited for
    socket.sethostname(name)
    mount("none", "/", "none", 0x4000 | 0x40000)  # MS_REC, MS_PRIVATE
    mount("proc", "/proc", "proc")
    boot = ROOT / f"boot of {name}"  # as of a kernel of its own
    boot.write_text(f"{secrets.token_hex(4)}-0000-4000-8000-{secrets.token_hex(6)}\n")
    mount(str(boot), "/proc/sys/kernel/random/boot_id", "none", 0x1000)  # MS_BIND
    call("ip", "link", "set", "dev", "lo", "up")
    call("ip", "address", "add", f"10.0.{number}.2/24", "dev", "uplink")
    call("ip", "link", "set", "dev", "uplink", "up")
    for folder, options in MOUNTS.items():
        at = AT / folder
        at.mkdir(parents=True, exist_ok=True)
        call("mount.nfs4", f"10.0.{number}.1:/", str(at), "-n", "-o", options)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _spawn() -> int:
    child = os.fork()
    if child == 0:
        _be_process()
    return child


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
