"""The lease of a job: one run at a time, and what becomes of it when a run dies."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import ORDINARY, ramp, run, script, start

import flowmap
from flowmap import lease, machine, stopping
from flowmap.documents import publish_json, read_json
from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    JobBusyError,
    OtherJobError,
    StoppedError,
    StorageError,
)
from flowmap.lease import holder, leased
from flowmap.locks import header_lock
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from flowmap.segments import Block

HOLD = """
import sys, time
import flowmap
from flowmap.lease import leased
with leased(flowmap.open_target(sys.argv[1]).job, "the first run"):
    print("held", flush=True)
    time.sleep(600)
"""

CLAIM = """
import os, socket, sys
import flowmap
from flowmap.claims import Claim
with flowmap.open_target(sys.argv[1]).job.ledger(write=True) as ledger:
    index = int(ledger.read(0, 0, 3).attempt > 0)
    Claim(ledger, ledger.read(index, 3 * index, 3 * index + 3), "", state="running")
print("process", os.getpid(), "on", socket.gethostname(), flush=True)
"""

TAKE = """
import os, sys
import flowmap
from flowmap.errors import JobBusyError
from flowmap.lease import leased
print("seen" if os.path.exists(f"/proc/{sys.argv[2]}") else "hidden")
try:
    with leased(flowmap.open_target(sys.argv[1]).job, "the second run"):
        print("taken")
except JobBusyError:
    print("refused")
"""


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """Return a job of four segments."""
    return flowmap.allocate(tmp_path / "a.npy", 12, "f8", segments=4)


def document(target: flowmap.Target, **changes: Any) -> dict[str, Any]:
    """Return what another run's lease might say."""
    return {
        "format": 1,
        "job": target.id,
        "token": "another",
        "name": "the first run",
        "host": "elsewhere",
        "machine": "another boot/1",
        "pid": os.getpid(),
        "process_started": 0,
        "began": time.time(),
        "refreshed": time.time(),
    } | changes


def age(run: Path, seconds: float) -> None:
    """Make a lease older than it is: what it says, and the file."""
    found = read_json(run)
    publish_json(run, found | {"refreshed": found["refreshed"] - seconds})
    then = run.stat().st_mtime - seconds
    os.utime(run, (then, then))


def test_a_second_run_is_refused(target: flowmap.Target) -> None:
    """It is told the name, process and host of the first, and changes nothing."""
    with leased(target.job, "the first run"):
        with pytest.raises(JobBusyError, match="the first run") as caught:
            flowmap.fill(target, ramp, executor="threads")
        assert str(os.getpid()) in str(caught.value)
        assert socket.gethostname() in str(caught.value)
        assert not target.status()["attempt"].any()
    assert not Sidecar.of(target.path).run.exists()
    flowmap.fill(target, ramp, executor="threads")


def test_single_segments_take_no_lease(target: flowmap.Target) -> None:
    """Whoever orchestrates single segments need not ask the run that has the job."""
    with leased(target.job, "the first run"):
        assert flowmap.fill_segment(target.segments[0], ramp).state == "done"


def test_the_lease_of_a_dead_process_is_void(target: flowmap.Target) -> None:
    """`kill -9` frees the job at once."""
    child = start(script(HOLD, target.path))
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(JobBusyError, match="the first run"):
        flowmap.fill(target, ramp, executor="threads")
    child.send_signal(signal.SIGKILL)
    # Not waited for yet: a zombie, which is dead too.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    flowmap.fill(target, ramp, executor="threads")
    child.communicate()
    assert flowmap.validate(target).ok


def test_dead_runs_are_handed_on_until_they_are_closed(target: flowmap.Target) -> None:
    """Also where the run that is to close them dies first, or leaves them to the next."""
    path = Sidecar.of(target.path).run
    with leased(target.job, "the first run", "one"):
        first = read_json(path)
    publish_json(path, first | {"refreshed": time.time() - 61})
    with leased(target.job, "the second run", "two") as held:
        assert held.dead == ["one"]
        second = read_json(path)
    publish_json(path, second | {"refreshed": time.time() - 61})
    with leased(target.job, "the third run", "three") as held:
        assert held.dead == ["one", "two"]
        held.forget_dead()
        assert held.dead == []
        assert read_json(path)["dead"] == []
    publish_json(path, {k: v for k, v in first.items() if k != "run"} | {"refreshed": 0.0})
    with leased(target.job, "the fourth run") as held:
        assert held.dead == []


def test_a_process_with_the_same_number_is_another(target: flowmap.Target) -> None:
    """A lease whose number another process has by now is void."""
    run = Sidecar.of(target.path).run
    publish_json(run, document(target, machine=machine.machine_id(), process_started=1))
    flowmap.fill(target, ramp, executor="threads")


@pytest.mark.parametrize("sign", [1, -1])
def test_another_machine_is_believed_until_the_term(
    target: flowmap.Target, monkeypatch: pytest.MonkeyPatch, sign: int
) -> None:
    """A process that cannot be seen has the job for as long as its lease holds, not longer.

    So it is with a file from the future, which a clock that was far ahead has left.
    """
    monkeypatch.setattr(lease, "LOOKS", 0)
    run = Sidecar.of(target.path).run
    publish_json(run, document(target))
    age(run, sign * lease.TERM / 2)
    with pytest.raises(JobBusyError, match="elsewhere"):
        flowmap.fill(target, ramp, executor="threads")
    age(run, sign * (lease.TERM + 1))
    flowmap.fill(target, ramp, executor="threads")


class TestClocks:
    """The clocks of two hosts are never compared."""

    @pytest.mark.parametrize("apart", [-1200.0, 1200.0])
    def test_of_the_owner(self, target: flowmap.Target, apart: float) -> None:
        """A lease that another host has just refreshed holds, whatever time it says."""
        refreshed = time.time() + apart
        publish_json(Sidecar.of(target.path).run, document(target, refreshed=refreshed))
        with (
            pytest.raises(JobBusyError, match="elsewhere"),
            leased(target.job, "the second run"),
        ):
            pass

    @pytest.mark.parametrize("apart", [-1200.0, 1200.0])
    def test_of_the_reader(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch, apart: float
    ) -> None:
        """Nor does the reader's own clock count."""
        publish_json(Sidecar.of(target.path).run, document(target))
        now = time.time
        monkeypatch.setattr("time.time", lambda: now() + apart)
        with (
            pytest.raises(JobBusyError, match="elsewhere"),
            leased(target.job, "the second run"),
        ):
            pass

    @pytest.mark.parametrize("apart", [-1200.0, 1200.0])
    def test_of_a_file_system_without_one(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch, apart: float
    ) -> None:
        """Where each host stamps its own files, a lease that is refreshed holds."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target))
        age(run, apart)
        real, looks = lease._asked, 0

        def refreshed(path: Path) -> tuple[float, dict[str, Any] | None]:
            nonlocal looks
            looks += 1
            if looks == 2:
                publish_json(run, document(target, refreshed=time.time() + apart))
                age(run, apart)
            return real(path)

        monkeypatch.setattr(lease, "_asked", refreshed)
        monkeypatch.setattr("time.sleep", lambda _: None)
        with (
            pytest.raises(JobBusyError, match="elsewhere"),
            leased(target.job, "the second run"),
        ):
            pass
        assert looks == 2


class TestWatching:
    """What may happen while an old lease is watched."""

    def test_given_back(self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its run ended: the job is free, without any more looks."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target))
        age(run, 3600)
        monkeypatch.setattr("time.sleep", lambda _: run.unlink())
        with leased(target.job, "the second run") as held:
            held.check()

    def test_taken_by_a_third(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of two that watch, one gets the job, and the other is told its name."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target))
        age(run, 3600)
        third = document(target, name="the third run", token="third")
        monkeypatch.setattr("time.sleep", lambda _: publish_json(run, third))
        with (
            pytest.raises(JobBusyError, match="the third run"),
            leased(target.job, "the second run"),
        ):
            pass

    def test_asked_to_stop(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SIGTERM ends it at the next look, and the old lease stays."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target))
        age(run, 3600)
        before = run.read_bytes()
        asked: list[int] = []
        monkeypatch.setattr(stopping, "_ASKED", asked)
        monkeypatch.setattr("time.sleep", lambda _: asked.append(signal.SIGTERM))
        with pytest.raises(StoppedError), leased(target.job, "the second run"):
            pass
        assert len(asked) == 1
        assert run.read_bytes() == before

    def test_lock(self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """The header lock is free meanwhile."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target))
        age(run, 3600)
        free = []

        def look(_: float) -> None:
            with header_lock(run.parent, timeout=0):
                free.append(True)

        monkeypatch.setattr(lease, "LOOKS", 2)
        monkeypatch.setattr("time.sleep", look)
        with leased(target.job, "the second run"):
            pass
        assert free == [True, True]


class TestThisMachine:
    """The process of a lease decides where it can be seen."""

    def test_stopped(self, target: flowmap.Target) -> None:
        """A process that refreshes nothing for an hour, but lives, has the job."""
        child = start(script(HOLD, target.path))
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            age(Sidecar.of(target.path).run, 3600)
            found = holder(target.job)
            assert found is not None
            assert found["live"]
            with pytest.raises(JobBusyError, match="end that process") as caught:
                flowmap.fill(target, ramp, executor="threads")
            assert f"process {child.pid}" in str(caught.value)
        finally:
            child.kill()
            child.communicate()
        flowmap.fill(target, ramp, executor="threads")

    def test_own(self, target: flowmap.Target) -> None:
        """A run of this very process, as one whose filler holds the GIL, has the job too."""
        with leased(target.job, "the first run") as held:
            age(Sidecar.of(target.path).run, 3600)
            with pytest.raises(JobBusyError, match="the first run"):
                flowmap.fill(target, ramp, executor="threads")
            held.check()

    def test_own_that_could_not_be_given_back(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lease that a disk error left behind does not keep its own process out."""
        run = Sidecar.of(target.path).run

        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch, leased(target.job, "the first run"):
            patch.setattr(lease, "_read", refuse)
        assert run.exists()
        with leased(target.job, "the second run") as held:
            held.check()

    @pytest.mark.parametrize("visible", ["hidden", "hidden start"])
    def test_cannot_be_seen(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch, visible: str
    ) -> None:
        """A process that exists but cannot be seen has the job until its lease is old."""
        run = Sidecar.of(target.path).run
        first = document(target, machine=machine.machine_id(), pid=os.getppid())
        if visible == "hidden":
            first["process_started"] = machine.process_started(os.getppid())
            monkeypatch.setattr(machine, "process_started", lambda _: None)
        publish_json(run, first)
        with (
            pytest.raises(JobBusyError, match="the first run"),
            leased(target.job, "the second run"),
        ):
            pass
        monkeypatch.setattr(lease, "LOOKS", 0)
        age(run, lease.TERM + 1)
        with leased(target.job, "the second run") as held:
            held.check()

    @pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**40])
    def test_number_of_no_process(self, target: flowmap.Target, pid: int) -> None:
        """What no process can have as its number is dead."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target, machine=machine.machine_id(), pid=pid))
        with leased(target.job, "the second run") as held:
            held.check()

    @pytest.mark.system("setpriv", "unshare", packages="util-linux", root=True)
    def test_hidepid(self, target: flowmap.Target) -> None:
        """Where /proc hides the processes of other users, one that lives has the job."""
        child = subprocess.Popen(["sleep", "600"], user=12345, group=12345, extra_groups=[])
        try:
            first = document(
                target,
                machine=machine.machine_id(),
                pid=child.pid,
                process_started=machine.process_started(child.pid),
            )
            publish_json(Sidecar.of(target.path).run, first)
            # The namespace has copies of all mounts: they must not keep other tests' disks.
            leave = "grep -o '[^ ]*/pytest-[^ ]*' /proc/self/mounts | xargs -r umount --lazy"
            mount = "mount -t proc -o hidepid=2,gid=12345 proc /proc || exit 77"
            hide = f'{leave}; {mount}; exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", hide, "-", *ORDINARY]
            done = run([*command, *script(TAKE, target.path, child.pid)])
        finally:
            child.kill()
            child.wait()
        if done.returncode == 77:
            pytest.skip(f"cannot mount; needs docker run --privileged: {done.stderr}")
        assert done.stdout == "hidden\nrefused\n", done.stderr
        with leased(target.job, "the second run") as held:
            held.check()


class TestContainers:
    """Two containers of one node may share the host's name, and each have a process 1."""

    @pytest.mark.system("unshare", packages="util-linux", root=True)
    def test_same_name_and_number(self, target: flowmap.Target) -> None:
        """One is neither taken for the other nor for dead, in the lease and in the ledger."""
        pod = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        pod += ["sh", "-c", 'hostname localhost || exit 77; exec "$@"', "-"]
        first = start([*pod, *script(CLAIM + HOLD, target.path)])
        try:
            assert first.stdout is not None
            said = first.stdout.readline()
            if first.poll() == 77 or not said:
                pytest.skip("cannot unshare; needs docker run --privileged")
            assert said == "process 1 on localhost\n"
            assert first.stdout.readline() == "held\n"
            second = run([*pod, *script(CLAIM + TAKE, target.path, 1)])
            assert second.stdout == "process 1 on localhost\nseen\nrefused\n", second.stderr
            status = target.status()[:2]
            assert status["state"].tolist() == ["running"] * 2
            assert status["host"].tolist() == ["localhost"] * 2
        finally:
            first.kill()
            first.communicate()

    @pytest.mark.system("unshare", packages="util-linux", root=True)
    def test_proc_of_another(self) -> None:
        """The /proc of an outer container shows other processes by the same numbers."""
        code = (
            "from flowmap.liveness import _this_machine\n"
            "from flowmap.machine import machine_id\n"
            "print(repr(machine_id()), _this_machine())\n"
        )
        inner = run(["unshare", "--pid", "--fork", "--kill-child", *script(code)])
        if inner.returncode and "unshare" in inner.stderr:
            pytest.skip("cannot unshare; needs docker run --privileged")
        assert inner.stdout == "'' 0\n", inner.stderr

    def test_of_a_system_that_names_none(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without /proc this process is not taken for another of its number and host name."""
        monkeypatch.setattr(machine, "Path", lambda _: Path("/nowhere"))
        assert machine.machine_id() == ""
        mine = {"host": machine.host_name(), "machine": machine.machine_id()}
        publish_json(Sidecar.of(target.path).run, document(target, **mine))
        with (
            pytest.raises(JobBusyError, match="the first run"),
            leased(target.job, "the second run"),
        ):
            pass


def test_a_host_without_a_name(target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records and messages call it something."""
    monkeypatch.setattr("flowmap.machine.socket.gethostname", lambda: "")
    assert flowmap.fill_segment(target.segments[0], ramp).host == "unnamed-host"
    with (
        leased(target.job, "the first run"),
        pytest.raises(JobBusyError, match="on unnamed-host"),
        leased(target.job, "the second run"),
    ):
        pass


class TestSameRun:
    """A flow run that is tried again meets the lease of its earlier attempt."""

    def test_takes_over(self, target: flowmap.Target) -> None:
        """It takes it over at once, wherever that one was, and closes what it left."""
        path = Sidecar.of(target.path).run
        publish_json(path, document(target, run="its id"))
        with leased(target.job, "the same run", "its id") as held:
            assert held.dead == ["its id"]

    def test_earlier_attempt_that_lives(self, target: flowmap.Target) -> None:
        """An attempt that was given up too early stops, and is told why."""
        path = Sidecar.of(target.path).run
        with leased(target.job, "the first attempt", "its id") as held:
            publish_json(path, document(target, name="the second attempt", run="its id"))
            assert not held._is_ours()
            with pytest.raises(JobBusyError, match="another attempt of the same flow run"):
                held.check()

    @pytest.mark.parametrize("run", ["", "another id"])
    def test_other_run(self, target: flowmap.Target, run: str) -> None:
        """Another run, or one that nothing identifies, is refused."""
        publish_json(Sidecar.of(target.path).run, document(target, run=run))
        with (
            pytest.raises(JobBusyError, match="the first run"),
            leased(target.job, "another run", "its id" if run else ""),
        ):
            pass

    def test_at_the_same_time(self, target: flowmap.Target) -> None:
        """What the same process still holds it does not take from itself."""
        with leased(target.job, "the first call", "its id") as held:
            with (
                pytest.raises(JobBusyError, match="the first call"),
                leased(target.job, "the second call", "its id"),
            ):
                pass
            held.check()


def test_the_server_is_asked_under_the_lock(
    target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the lease is looked for, since an NFS client may remember that there is none."""
    done = []

    @contextlib.contextmanager
    def locked(folder: Path) -> Iterator[None]:
        with header_lock(folder):
            done.append("locked")
            yield
            done.append("released")

    def noted(name: str) -> None:
        real = getattr(lease, name)

        def call(path: Path, *rest: Any) -> Any:
            done.append(f"{name} {path.name}")
            return real(path, *rest)

        monkeypatch.setattr(lease, name, call)

    monkeypatch.setattr(lease, "header_lock", locked)
    for name in ("file_system_time", "read_json", "publish_json"):
        noted(name)
    with leased(target.job, "a run"):
        assert done == [
            "locked",
            "file_system_time a.npy.flowmap",
            "read_json run.json",
            "publish_json run.json",
            "released",
        ]


class TestDeadRuns:
    """What the next run learns of one that died with the lease."""

    def test_none(self, target: flowmap.Target) -> None:
        """A lease that was given back leaves nobody to be closed."""
        for name in ("the first run", "the second run"):
            with leased(target.job, name, name) as held:
                assert held.dead == []
        assert not Sidecar.of(target.path).run.exists()

    @pytest.mark.parametrize(
        "changes",
        [
            {"refreshed": 0.0},
            {"refreshed": float("nan")},
            {"machine": machine.machine_id(), "process_started": 1},
        ],
    )
    def test_void_lease(self, target: flowmap.Target, changes: dict[str, Any]) -> None:
        """The run of a void lease is named by what identified it."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target, run="its id", **changes))
        with leased(target.job, "the second run") as held:
            assert held.dead == ["its id"]

    @pytest.mark.parametrize(
        "changes",
        [{}, {"run": ""}, {"run": None}, {"run": 7, "dead": "one"}, {"job": "f" * 32}],
    )
    def test_run_that_nothing_identifies(
        self, target: flowmap.Target, changes: dict[str, Any]
    ) -> None:
        """`fill()`, an older flowmap and another allocation leave nothing to close."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target, refreshed=0.0, **changes))
        with leased(target.job, "the second run") as held:
            assert held.dead == []

    def test_run_that_closes_nobody(self, target: flowmap.Target) -> None:
        """`fill()` leaves the dead run to one that knows Prefect, and blocks nobody."""
        run = Sidecar.of(target.path).run
        publish_json(run, document(target, run="its id", refreshed=0.0))
        flowmap.fill(target, ramp, executor="threads")
        with leased(target.job, "the third run") as held:
            assert held.dead == ["its id"]
            held.forget_dead()
        assert not run.exists()


def test_what_cannot_be_a_lease_holds_nothing(target: flowmap.Target) -> None:
    """A link in the place of the lease is replaced, not followed."""
    elsewhere = target.path.with_name("elsewhere")
    Sidecar.of(target.path).run.symlink_to(elsewhere)
    flowmap.fill(target, ramp, executor="threads")
    assert not elsewhere.exists()


def test_the_lease_of_another_allocation_is_void(target: flowmap.Target) -> None:
    """A lease names its job; one that an overwrite left behind holds nothing."""
    publish_json(Sidecar.of(target.path).run, document(target, job="f" * 32))
    flowmap.fill(target, ramp, executor="threads")


def test_an_old_job_takes_no_lease(target: flowmap.Target) -> None:
    """A run with the job from before an overwrite does not take the lease of the new one's."""
    path = target.path
    new = flowmap.allocate(path, 12, "f8", segments=4, exist="overwrite")
    with leased(new.job, "the run of the new job") as held:
        before = Sidecar.of(path).run.read_bytes()
        for _ in range(2):
            with (
                pytest.raises(OtherJobError, match=r"allocated anew.*open it again"),
                leased(target.job, "the run of the old job"),
            ):
                pass
        assert Sidecar.of(path).run.read_bytes() == before
        held.check()


@pytest.mark.parametrize("where", ["nowhere", "elsewhere", ""])
def test_no_lock_is_made_behind_a_link(
    target: flowmap.Target, tmp_path: Path, where: str
) -> None:
    """Records that are a link, or gone, are refused before anything is made in their place."""
    (tmp_path / "elsewhere").mkdir()
    folder = Sidecar.of(target.path).folder
    folder.rename(tmp_path / "moved")
    if where:
        folder.symlink_to(tmp_path / where)
    with (
        pytest.raises((DamagedJobError, ForeignFileError)),
        leased(target.job, "a run"),
    ):
        pytest.fail("it was held")
    assert not (tmp_path / "nowhere").exists()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert os.path.lexists(folder) == bool(where)


@pytest.mark.parametrize("leased_anew", [False, True])
def test_a_run_whose_job_was_overwritten_is_told(
    target: flowmap.Target, leased_anew: bool
) -> None:
    """It lost the job to the overwrite, not for want of a sign of life."""
    with leased(target.job, "this run") as held:
        new = flowmap.allocate(target.path, 12, "f8", segments=4, exist="overwrite")
        with leased(new.job, "the next run") if leased_anew else contextlib.nullcontext():
            assert not held._is_ours()
        with pytest.raises(JobBusyError, match="replaced the job") as caught:
            held.check()
        assert "sign of life" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"checksum": "0"}', b"\xff"])
def test_a_damaged_lease_is_none(target: flowmap.Target, content: bytes) -> None:
    """What nobody can have written does not keep a run from its job."""
    Sidecar.of(target.path).run.write_bytes(content)
    flowmap.fill(target, ramp, executor="threads")
    assert flowmap.validate(target).ok


@pytest.mark.parametrize(
    "changes",
    [
        {"job": None},
        {"name": 5},
        {"host": None},
        {"machine": []},
        {"pid": "1"},
        {"process_started": "then"},
        {"refreshed": "now"},
        {"refreshed": 10**400},
    ],
    ids=str,
)
def test_a_lease_of_other_fields_is_none(
    target: flowmap.Target, changes: dict[str, Any]
) -> None:
    """What is no lease, though its checksum matches, holds nothing: wrong fields, or none."""
    run = Sidecar.of(target.path).run
    publish_json(run, document(target, **changes))
    with leased(target.job, "this run") as held:
        held.check()
    other = document(target)
    del other[next(iter(changes))]
    publish_json(run, other)
    with leased(target.job, "this run") as held:
        held.check()


@pytest.mark.parametrize("when", ["written", "before it started", "started"])
def test_interrupted_while_it_begins(
    target: flowmap.Target, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Ctrl-C as soon as the lease is written ends it, and leaves no thread to refresh it."""
    run = Sidecar.of(target.path).run
    begin = threading.Thread.start

    def written(path: Path, content: dict[str, Any]) -> None:
        publish_json(path, content)
        raise KeyboardInterrupt

    def started(thread: threading.Thread) -> None:
        if when == "started":
            begin(thread)
        raise KeyboardInterrupt

    if when == "written":
        monkeypatch.setattr(lease, "publish_json", written)
    else:
        monkeypatch.setattr(threading.Thread, "start", started)
    with pytest.raises(KeyboardInterrupt), leased(target.job, "this run"):
        pass
    assert not run.exists()
    assert "flowmap-lease" not in [thread.name for thread in threading.enumerate()]


def test_it_is_refreshed(target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run goes on its lease is written anew, and nothing but the time changes."""
    monkeypatch.setattr(lease, "REFRESH", 0.01)
    refreshed = threading.Event()
    real = publish_json

    def publish(path: Path, content: dict[str, Any]) -> None:
        real(path, content)
        if content["refreshed"] > content["began"]:
            refreshed.set()

    monkeypatch.setattr(lease, "publish_json", publish)
    run = Sidecar.of(target.path).run
    with leased(target.job, "this run"):
        before = read_json(run)
        assert refreshed.wait(60)
        after = read_json(run)
    assert after.pop("refreshed") > before.pop("refreshed")
    assert after == before


def test_a_refresh_that_fails_costs_nothing(
    target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that refuses for a while does not end the run."""
    real = publish_json
    failures = threading.Semaphore(0)

    def refuse(*_: object) -> None:
        failures.release()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lease, "REFRESH", 0.01)
    with leased(target.job, "this run") as held:
        monkeypatch.setattr(lease, "publish_json", refuse)
        for _ in range(3):
            assert failures.acquire(timeout=60)
        monkeypatch.setattr(lease, "publish_json", real)
        held.check()


def test_a_refresh_under_way_does_not_outlive_the_run(
    target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that is given back while its refresh is being written stays away."""
    under_way, go_on = threading.Event(), threading.Event()

    def slow(path: Path, content: dict[str, Any]) -> None:
        under_way.set()
        assert go_on.wait(60)
        publish_json(path, content)

    monkeypatch.setattr(lease, "REFRESH", 0.01)
    with leased(target.job, "this run"):
        monkeypatch.setattr(lease, "publish_json", slow)
        assert under_way.wait(60)
        threading.Timer(0.2, go_on.set).start()
    assert not Sidecar.of(target.path).run.exists()


def test_a_stale_lease_is_taken_over_and_the_first_run_stops(
    target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that showed no sign of life loses the job, and says so when it wakes."""
    woken, noticed, cancelled = threading.Event(), threading.Event(), threading.Semaphore(0)
    run = Sidecar.of(target.path).run
    taken = False

    def slow(out: NDArray[Any], block: Block) -> None:
        nonlocal taken
        if not taken:
            taken = True
            publish_json(run, read_json(run) | {"machine": "elsewhere"})
            age(run, 61)
            with leased(target.job, "the second run"):
                woken.set()
                assert noticed.wait(60)
        else:  # the second segment, while the first run takes back those that wait
            for _ in target.segments:
                assert cancelled.acquire(timeout=60)
        ramp(out, block)

    cancel = Future.cancel

    def counted(future: Future[Any]) -> bool:
        done = cancel(future)
        cancelled.release()
        return done

    real = lease.Lease._is_ours

    def looked(held: lease.Lease) -> bool:
        ours = real(held)
        if not ours:
            noticed.set()
        return ours

    refresh = lease.Lease.refresh_until_ended

    def asleep(held: lease.Lease) -> None:
        woken.wait(60)
        refresh(held)

    monkeypatch.setattr(Future, "cancel", counted)
    monkeypatch.setattr(lease.Lease, "_is_ours", looked)
    monkeypatch.setattr(lease.Lease, "refresh_until_ended", asleep)
    monkeypatch.setattr(lease, "REFRESH", 0.01)
    monkeypatch.setattr(lease, "LOOKS", 0)
    with pytest.raises(JobBusyError, match=r"the second run \(process .* refreshed its lease"):
        flowmap.fill(target, slow, executor="threads", workers=1)
    assert set(target.pending()) >= set(target.segments[2:])


class TestSuspended:
    """A run that was suspended while another one took its job over, and has ended."""

    @pytest.mark.parametrize(
        ("filled", "said"),
        [
            (4, "took the job over and finished it: all 4 segments are done, and nothing"),
            (1, "3 of 4 segments are left. What this run finished is kept"),
        ],
    )
    def test_same_job(self, target: flowmap.Target, filled: int, said: str) -> None:
        """It is told what is done, and not that its target was allocated anew."""
        with leased(target.job, "this run") as held:
            Sidecar.of(target.path).run.unlink()
            for segment in target.segments[:filled]:
                flowmap.fill_segment(segment, ramp)
            with pytest.raises(JobBusyError, match=r"lease .* is gone") as caught:
                held.check(now=True)
        assert said in str(caught.value)
        assert "anew" not in str(caught.value)

    def test_allocated_anew(self, target: flowmap.Target) -> None:
        """Where the other run replaced the job, it is told so, and how far that one is."""
        with leased(target.job, "this run") as held:
            again = flowmap.allocate(target.path, 12, "f8", segments=4, exist="overwrite")
            flowmap.fill(again, ramp, executor="threads")
            with pytest.raises(JobBusyError, match="replaced the job and finished it"):
                held.check(now=True)

    def test_in_a_segment(self, target: flowmap.Target) -> None:
        """The lost claim is not the error: that the other run has finished the job is."""

        def slow(out: NDArray[Any], block: Block) -> None:
            if target.status()["state"][3] != "done":  # this run is suspended here
                Sidecar.of(target.path).run.unlink()
                flowmap.fill(target, ramp, executor="threads")
            ramp(out, block)

        with pytest.raises(JobBusyError, match="nothing is left to do"):
            flowmap.fill(target, slow, executor="threads", workers=1)
        assert flowmap.validate(target).ok


def test_ending_leaves_the_lease_of_another(target: flowmap.Target) -> None:
    """A run that was overtaken does not remove the lease of the one that has the job."""
    run = Sidecar.of(target.path).run
    with leased(target.job, "this run") as held:
        publish_json(run, document(target))
    assert json.loads(run.read_text())["token"] == "another"
    with pytest.raises(JobBusyError, match="the first run"):
        held.check()


def test_a_folder_that_cannot_be_written(
    target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that cannot be written is an error of flowmap's, before anything is filled."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(lease, "publish_json", refuse)
    with pytest.raises(PermissionError, match="lease") as caught:
        flowmap.fill(target, ramp, executor="threads")
    assert isinstance(caught.value, flowmap.FlowmapError)
    assert not target.status()["attempt"].any()


class TestHolder:
    """Who has the lease, for those who only look."""

    def test_nobody(self, target: flowmap.Target) -> None:
        """A job that no run has, or the lease of another job in its place."""
        assert holder(target.job) is None
        run = Sidecar.of(target.path).run
        publish_json(run, document(target, job="f" * 32))
        assert holder(target.job) is None
        run.write_text("torn")
        assert holder(target.job) is None

    def test_a_run(self, target: flowmap.Target) -> None:
        """What the lease says, and whether it holds; to look changes nothing."""
        path = Sidecar.of(target.path).run
        with leased(target.job, "the first run"):
            said = read_json(path)
            assert holder(target.job) == said | {"live": True}
            assert read_json(path) == said
        assert holder(target.job) is None
        publish_json(path, document(target))
        assert holder(target.job) == read_json(path) | {"live": True}
        age(path, lease.TERM + 1)
        assert holder(target.job) == read_json(path) | {"live": False}

    def test_unreadable(self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that fails is told, and not taken for nobody."""

        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(lease, "read_json", refuse)
        with pytest.raises(StorageError, match="cannot read the lease"):
            holder(target.job)
