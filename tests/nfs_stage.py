"""Where `nfs_plays` are played: two hosts, a folder, and what must be true there afterwards."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from nfs_acts import truth
from nfs_hosts import AT, Ended, Host, Process
from nfs_server import EXPORT

import flowmap
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from multiprocessing.connection import Listener
    from pathlib import Path
    from types import ModuleType


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


_open = os.open


def _open_to_linger(path: Any, flags: int, *given: Any, **named: Any) -> int:
    """Open a file, the target for writes that linger."""
    to_ledger = str(path).endswith("ledger.npy")
    return _open(path, flags if to_ledger else flags & ~os.O_DSYNC, *given, **named)


BREAKS: Final[dict[str, dict[str, object]]] = {
    "no question to the server": {
        "look_afresh": _nothing,
        "file_system_time": lambda _: time.time(),  # it asks by making a file
        "warn_if_changed": _nothing,  # it asks by listing the folder
    },
    "writes that linger": {"O_DSYNC": 0},
    "rows that linger": {"open": _open_to_linger},
    "pages that are remembered": {"forget_cached": _nothing},
}
"""How flowmap is broken on purpose, in every process of every host.

What its modules, or `os`, know by a name, and what takes its place.
"""


def be_broken(name: str) -> None:
    """Break flowmap in this process."""
    for what, replacement in BREAKS[name].items():
        for module in knowing(what):
            setattr(module, what, replacement)


def knowing(what: str) -> list[ModuleType]:
    """Return the modules that a name can be broken in.

    Raises:
        LookupError: There are none, so that nothing would be broken.
    """
    modules = [os, *(module for key, module in sys.modules.items() if key[:8] == "flowmap.")]
    found = [module for module in modules if hasattr(module, what)]
    if not found:
        raise LookupError(f"nothing has {what} to break")
    return found


class Hosts:
    """The hosts of the machine, each made when it is first asked for."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._hosts: dict[str, Host] = {}
        self._made = 0

    def named(self, name: str) -> Host:
        """Return a host."""
        if name not in self._hosts:
            self._made += 1
            self._hosts[name] = Host(f"{name}{self._made}", self._made, self._listener)
        return self._hosts[name]

    def lose(self, name: str) -> None:
        """Cut a host off for good: the next one of its name is another."""
        host = self._hosts.pop(name)
        host.cut()
        host.kill_all()


class Stage:
    """Two hosts, and a folder that both have mounted.

    Args:
        hosts: All of them.
        mount: Of `MOUNTS`.
        name: Of the folder.
        broken: Of `BREAKS`, or "".
        whole: Whether all cases are played, or some of each kind.

    Attributes:
        a: One host.
        b: The other.
        at: The folder, on both.
        own: The same on the server's own disk, of which nobody has an old copy.
        whole: Whether all cases are played.
        wrong: What was expected and is not so.
        cases: How many jobs were looked at in the end.
    """

    def __init__(
        self, hosts: Hosts, mount: str, name: str, broken: str, *, whole: bool
    ) -> None:
        self.whole = whole
        self.hosts = hosts
        self.at = AT / mount / name
        self.own = EXPORT / name
        self.own.mkdir()
        self.wrong: list[str] = []
        self.cases = 0
        self._broken = broken
        self._processes: list[Process] = []

    @property
    def a(self) -> Host:
        """The host that things happen to."""
        return self.hosts.named("a")

    @property
    def b(self) -> Host:
        """The other one."""
        return self.hosts.named("b")

    def through(self, mount: str) -> Path:
        """Return the folder as it is mounted in another way."""
        return AT / mount / self.at.name

    def on(self, host: Host) -> Process:
        """Begin a process, which ends with the play."""
        process = host.process()
        self._processes.append(process)
        if self._broken:
            process.does(be_broken, self._broken)
        return process

    def end(self) -> None:
        """End all that still runs."""
        for process in self._processes:
            process.kill()

    def expect(self, right: object, what: str) -> None:
        """Note what is wrong, if it is."""
        if not right:
            self.wrong.append(what)

    def expect_none(self, problems: list[str], of: str) -> None:
        """Note problems, if there are any."""
        self.expect(not problems, f"{of}: {'; '.join(problems)}")

    def expect_ended(self, ended: Ended, *errors: str, of: str) -> None:
        """Expect a call to have raised one of these errors, or none where there are none."""
        right = not ended.error if not errors else not set(errors).isdisjoint(ended.kinds)
        self.expect(right, f"{of}: {ended}, instead of {' or '.join(errors) or 'no error'}")

    def expect_whole(self, name: str, job: str | None = None, *, of: str = "") -> None:
        """Expect a job to be done, sealed and right on the server's own disk.

        Args:
            name: Of the target.
            job: Its id, where that is known.
            of: What happened to it.
        """
        self.cases += 1
        path, what = self.own / name, f"{name}{of and ', '}{of}"
        try:
            target = flowmap.open_target(path)
            found = [str(state) for state in target.status()["state"]]
            problems = flowmap.validate(path, mark=False).problems
        except flowmap.FlowmapError as error:
            self.wrong.append(f"{what}: {type(error).__name__}: {error}")
            return
        self.expect(job in (None, target.id), f"{what}: it is another job")
        self.expect(set(found) == {"done"}, f"{what}: the ledger says {', '.join(found)}")
        self.expect(Sidecar.of(path).seal.exists(), f"{what}: it has no seal")
        self.expect_none(list(problems), what)
        rows = np.load(path)
        numbers = rows if rows.dtype.names is None else rows["n"]
        (bad,) = np.nonzero(numbers != truth(0, len(rows)))
        self.expect(not len(bad), f"{what}: {len(bad)} wrong rows, the first is {bad[:1]}")
