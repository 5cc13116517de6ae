"""What the records say of a segment whose process has died."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import script, start

import flowmap
from flowmap import liveness, machine
from flowmap.claims import Claim
from flowmap.records import status_of
from flowmap.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Forge = Callable[..., np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests change what a process knows of itself, and remembers otherwise."""
    monkeypatch.setattr(liveness, "_this_process", liveness._this_process.__wrapped__)


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """Return a target of two segments."""
    return flowmap.allocate(tmp_path / "out.npy", 8, "<f8", segments=2, block_rows=2)


@pytest.fixture
def dead() -> int:
    """Return the number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid


def claim(target: flowmap.Target, pid: int, token: str, rows: int = 2) -> np.void:
    """Record that a process has the first segment; return its row of the status."""
    with target.job.ledger(write=True) as ledger:
        record = ledger.read(0, 0, 4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flowmap.claims.os.getpid", lambda: pid)
            patch.setattr("flowmap.claims.new_token", lambda: token)
            Claim(ledger, record, "11" * 16, state="running", rows_done=rows)
    row: np.void = target.status()[0]
    return row


def test_own_claim_runs(target: flowmap.Target) -> None:
    """A process that lives has its segment."""
    row = claim(target, os.getpid(), liveness.new_token())
    assert (row["state"], row["rows_done"], row["reason"]) == ("running", 2, "")


def test_dead_process(target: flowmap.Target, dead: int) -> None:
    """Its segment is pending and keeps its rows, for the status and for the summary."""
    row = claim(target, dead, liveness.new_token())
    assert (row["state"], row["rows_done"]) == ("pending", 2)
    assert (row["reason"], row["attempt"]) == ("its process died", 1)
    summary = Summary.of(target)
    assert (summary.counts["running"], summary.counts["pending"]) == (0, 2)
    assert summary.rows_done == 2


def test_number_that_another_process_has(target: flowmap.Target) -> None:
    """The time at which a process began tells it from a later one of its number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liveness, "process_started", lambda _: 1)
        token = liveness.new_token()
    assert claim(target, os.getpid(), token)["state"] == "pending"


def test_zombie(target: flowmap.Target) -> None:
    """A process that has ended, but was not waited for, fills nothing any more."""
    program = "import flowmap.liveness as it; print(it.new_token(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=-1, stdout=-1, text=True
    ) as child:
        assert child.stdout is not None
        token = child.stdout.readline().strip()
        assert claim(target, child.pid, token)["state"] == "running"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert target.status()["state"][0] == "pending"


@pytest.mark.parametrize("name", ["another-boot/4026531836", ""])
def test_process_that_cannot_be_seen(target: flowmap.Target, dead: int, name: str) -> None:
    """Of another host, boot or container nothing is known: it is not dead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liveness, "machine_id", lambda: name)
        token = liveness.new_token()
    assert claim(target, dead, token)["state"] == "running"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liveness, "machine_id", lambda: "")
        assert target.status()["state"][0] == "running"


def test_process_that_proc_hides(target: flowmap.Target) -> None:
    """With `hidepid` another user's process shows no start, but answers to its number."""
    row = claim(target, os.getpid(), liveness.new_token())
    assert row["state"] == "running"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liveness, "process_started", lambda _: None)
        patch.setattr(machine, "process_started", lambda _: None)
        assert target.status()["state"][0] == "running"


def test_tokens_of_earlier_versions(target: flowmap.Target, dead: int) -> None:
    """They were random and name no machine."""
    assert claim(target, dead, "f" * 32)["state"] == "running"


def test_tokens_differ() -> None:
    """Two claims of one process are told apart."""
    tokens = {liveness.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {32}


def test_times_that_are_none(target: flowmap.Target) -> None:
    """What another user wrote in the place of a time is shown as unknown."""
    with target.job.ledger() as ledger:
        slots = ledger.read_all(np.array([[0, 4], [4, 8]]))
    slots["started"], slots["finished"] = np.nan, np.inf
    status = status_of(slots)
    assert status["started"].tolist() == status["finished"].tolist() == [0.0, 0.0]


EXITING = """
import os, signal, socket
from flowmap.machine import process_started

for _ in range(400):
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        signal.pause()
    theirs.close()
    assert process_started(child) > 0
    os.kill(child, signal.SIGKILL)
    ours.recv(1)  # returns when the system closes the other end
    assert process_started(child) == -1, os.waitid(os.P_PID, child, os.WNOHANG | os.WEXITED)
    os.waitpid(child, 0)
    ours.close()
"""


def test_exiting_process() -> None:
    """A process whose sockets are closed fills nothing any more, though it is no zombie yet.

    With more processes than processors, one in twenty is seen before it is a zombie.
    """
    children = [start(script(EXITING)) for _ in range(2 * (os.cpu_count() or 1))]
    for child in children:
        assert (child.communicate()[0], child.returncode) == ("", 0)


FORKED = """
import os
from flowmap import liveness, machine
reads = []
began = machine.process_started
liveness.process_started = lambda pid: reads.append(pid) or began(pid)
liveness.new_token(), liveness.new_token()
assert len(reads) == 1, reads
child = os.fork()
token = bytes.fromhex(liveness.new_token())
assert len(reads) == (1 if child else 2), reads
assert int.from_bytes(token[4:8], "little") == began(os.getpid()) % 2**32
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_reads_once_when_it_began() -> None:
    """Doing so for each claim would slow down small segments. A forked process reads again."""
    subprocess.run([sys.executable, "-c", FORKED], check=True)
