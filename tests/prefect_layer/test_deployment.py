"""The flow deployed: a real server, a real process worker, Prefect's own command line."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from prefect_layer.conftest import ROOT, parameters, prefect, start_run
from servers import BIN, until

import flowmap

if TYPE_CHECKING:
    from prefect_layer.conftest import Worker
    from servers import Server

RECORD = [["t", "<f8"], ["v", "<f4", [3]]]


def lease_of(path: Path) -> dict[str, Any] | None:
    """Return what the lease of a job says, if it is held."""
    lease = path.with_name(f"{path.name}.flowmap") / "run.json"
    try:
        document: dict[str, Any] = json.loads(lease.read_text())
    except FileNotFoundError:
        return None
    return document


def descendants(pid: int) -> set[int]:
    """Return the processes that descend from one, itself included."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if fields[0] not in "ZX":
            parents[int(stat.parent.name)] = int(fields[1])
    found = {pid} & set(parents)
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def start_gated(
    worker: Worker, name: str, executor: str = "processes"
) -> tuple[str, Path, Path]:
    """Start a run that fills two of its five segments and then waits at a gate.

    Segments begin in any order. Three wait, so that of four workers one is left for the two.
    """
    path, gate = worker.root / name, worker.root / f"{name}.gate"
    arguments = {"gate": str(gate), "after": 40}
    run = worker.server.begin(
        path=name,
        shape=100,
        segments=5,
        executor=executor,
        workers=4,
        filler="support:gated",
        arguments=arguments,
    )

    def two_done() -> bool:
        return lease_of(path) is not None and len(flowmap.open_target(path).pending()) == 3

    until(two_done, "two segments are done")
    return run, path, gate


class TestStarting:
    """Each way to start a run ends with the right file."""

    @pytest.mark.parametrize("name", ["fill-array/fill-array", "fill-array"])
    def test_from_the_command_line(self, worker: Worker, name: str) -> None:
        """`prefect deployment run`, with the flow's name and literally without a slash."""
        path = worker.root / f"{name.replace('/', '-')}.npy"
        run = start_run(
            name,
            path=str(path),
            shape=[300, 4],
            dtype="<i4",
            filler="flowmap.fillers:arange",
            arguments={"start": 5},
            segments=6,
        )
        worker.completed(run)
        expected = np.repeat(np.arange(5, 305, dtype="<i4")[:, np.newaxis], 4, axis=1)
        assert np.array_equal(np.load(path), expected)
        names = set(worker.server.task_runs(run, 8))
        assert {s.name for s in flowmap.open_target(path).segments} < names

    def test_own_filler_and_record_dtype(self, worker: Worker) -> None:
        """A filler that the worker allows, its file under the worker's root."""
        run = worker.server.begin(
            path="ramp.npy", shape=1000, filler="support:ramp", executor="threads"
        )
        worker.completed(run)
        assert np.array_equal(np.load(worker.root / "ramp.npy"), np.sqrt(np.arange(1000.0)))
        run = worker.server.begin(path="rows.npy", shape=10, dtype=RECORD, filler="constant")
        worker.completed(run)
        assert np.load(worker.root / "rows.npy").dtype == np.dtype(
            [("t", "<f8"), ("v", "<f4", (3,))]
        )


class TestRefusals:
    """What a deployed run may not do, and whom it tells what to set."""

    def test_path_outside_the_root(self, worker: Worker, tmp_path: Path) -> None:
        """Neither a file nor its sidecar appears outside of FLOWMAP_ROOT."""
        message = worker.failed(worker.server.begin(path=str(tmp_path / "out.npy")))
        assert "leads out of" in message
        assert "export FLOWMAP_ROOT=" in message
        assert list(tmp_path.iterdir()) == []

    def test_filler_that_is_not_allowed(self, worker: Worker) -> None:
        """Its module is not even imported, and nothing is allocated."""
        trap = worker.modules / "trap.py"
        trap.write_text("import pathlib\npathlib.Path(__file__ + '.sprung').touch()\n")
        message = worker.failed(worker.server.begin(path="no.npy", filler="trap:fill"))
        assert "export FLOWMAP_FILLERS=some.package,support,trap " in message
        assert "some.package, support" in message, "what is set now"
        assert list(worker.modules.iterdir()) == [trap]
        assert not (worker.root / "no.npy").exists()

    def test_impossible_parameters(self, worker: Worker) -> None:
        """What the form would not take, the server refuses before there is a run."""
        refused: list[dict[str, Any]] = [
            {"segments": 0},
            {"executor": "fork"},
            {"shape": [-1]},
            {"exist": "w"},
            {"dtype": []},
        ]
        for wrong in refused:
            answer = worker.server.asked(path="x", **wrong)
            assert answer.status_code == httpx.codes.CONFLICT, wrong
            assert "Validation failed" in answer.text, wrong
        done = prefect("deployment", "run", "fill-array", *parameters({"path": "x", **wrong}))
        assert done.returncode != 0
        assert "Validation failed" in done.stdout + done.stderr


class TestEnding:
    """Runs that are cancelled, killed, or started twice."""

    def test_cancelled_run(self, worker: Worker) -> None:
        """No process is left, and no lease; running it again does the rest."""
        run, path, gate = start_gated(worker, "cancelled.npy")
        lease = lease_of(path)
        assert lease is not None
        processes = descendants(lease["pid"])
        assert len(processes) > 1
        done = prefect("flow-run", "cancel", run)
        assert done.returncode == 0, done.stderr
        assert worker.server.ended(run)["state_type"] == "CANCELLED"
        until(lambda: not any(map(descendants, processes)), "its processes have ended")
        assert lease_of(path) is None
        states = {name: r["state_type"] for name, r in worker.server.task_runs(run, 6).items()}
        assert set(states.values()) == {"COMPLETED", "CANCELLED"}, states

        gate.touch()
        again = worker.server.begin(**worker.server.ended(run)["parameters"])
        worker.completed(again)
        names = [n for n in worker.server.task_runs(again, 5) if n.startswith("segment")]
        assert len(names) == 3
        assert np.array_equal(np.load(path), np.sqrt(np.arange(100.0)))

    def test_killed_run(self, worker: Worker) -> None:
        """The next run does what is missing, and closes what Prefect shows as Running."""
        run, path, gate = start_gated(worker, "killed.npy")
        lease = lease_of(path)
        assert lease is not None
        workers = descendants(lease["pid"]) - {lease["pid"]}
        worker.server.task_runs(run, 3, ("COMPLETED",))
        left = worker.server.task_runs(run, 1, ("RUNNING",))
        os.kill(lease["pid"], signal.SIGKILL)
        assert worker.server.ended(run)["state_type"] == "CRASHED"
        until(lambda: not any(map(descendants, workers)), "its workers have ended")
        assert lease_of(path) is not None, "nobody was left to give it back"

        gate.touch()
        again = worker.server.begin(**worker.server.ended(run)["parameters"])
        worker.completed(again)
        assert np.array_equal(np.load(path), np.sqrt(np.arange(100.0)))
        names = [n for n in worker.server.task_runs(again, 5) if n.startswith("segment")]
        assert len(names) == 3
        states = {
            n: r["state_type"] for n, r in worker.server.task_runs(run, len(left)).items()
        }
        done = {segment.name for segment in flowmap.open_target(path).segments[:2]}
        assert {n for n, state in states.items() if state == "COMPLETED"} == done | {"allocate"}
        assert {state for n, state in states.items() if n not in done} >= {"CRASHED"}

    def test_killed_run_tried_again(self, worker: Worker) -> None:
        """Under the same id, as by the button Retry: what it closes is not itself."""
        run, path, gate = start_gated(worker, "retried.npy", "threads")
        lease = lease_of(path)
        assert lease is not None
        os.kill(lease["pid"], signal.SIGKILL)
        assert worker.server.ended(run)["state_type"] == "CRASHED"
        # The worker calls it crashed twice, and the second time would end what is tried again.
        ended = {
            "event": {"name": ["prefect.worker.executed-flow-run"]},
            "any_resource": {"id": [f"prefect.flow-run.{run}"]},
        }
        until(
            lambda: worker.server.ask("events/filter", filter=ended)["events"],
            "the worker has told how it ended",
        )
        retry = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        worker.server.ask(f"flow_runs/{run}/set_state", state=retry, force=True)
        worker.server.logs(run, "Closed")
        found = worker.server.ask("flow_runs/filter", flow_runs={"id": {"any_": [run]}})[0]
        assert found["state_type"] == "RUNNING", found["state"]
        gate.touch()
        worker.completed(run)

    def test_two_runs_of_one_job(self, worker: Worker) -> None:
        """One works; the other is refused with the name of the first."""
        run, path, gate = start_gated(worker, "twice.npy", "threads")
        first = worker.server.ask("flow_runs/filter", flow_runs={"id": {"any_": [run]}})[0]
        message = worker.failed(worker.server.begin(**first["parameters"]))
        assert f"The run {first['name']} ({run}) is filling {path}" in message
        gate.touch()
        worker.completed(run)
        assert np.array_equal(np.load(path), np.sqrt(np.arange(100.0)))


def test_volatile_arguments_are_told_nowhere(worker: Worker) -> None:
    """Neither logs, nor a state's message, nor the records tell a volatile argument."""
    run = worker.server.begin(
        path="secret.npy",
        shape=100,
        executor="threads",
        filler="support:gated",
        arguments={"gate": "/dev/null", "secret": "hunter2"},
    )
    worker.completed(run)
    other = {"gate": "/dev/zero", "secret": "hunter3"}
    refused = worker.server.begin(
        path="secret.npy", shape=100, filler="support:gated", arguments=other
    )
    message = worker.failed(refused)
    assert "/dev/zero" in message, "what differs is told"
    logs = worker.server.logs(run, "is valid: digest")
    logs += worker.server.logs(refused, "Finished in state Failed")
    assert "hunter" not in logs + message
    sidecar = worker.root / "secret.npy.flowmap"
    assert all(b"hunter" not in file.read_bytes() for file in sidecar.iterdir())


def test_deploying_asks_nothing(server: Server, pool: str) -> None:
    """In a terminal, where Prefect would ask, `prefect deploy --all` asks nothing."""
    ours, theirs = pty.openpty()
    command = ["timeout", "60", str(BIN / "prefect"), "deploy", "--all"]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as run:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what Linux says when the terminal has closed
            while more := os.read(ours, 4096):
                shown += more
    os.close(ours)
    assert run.returncode == 0, shown.decode()
    assert b"successfully created" in shown
    assert b"?" not in shown
