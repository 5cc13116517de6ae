"""The server that Prefect embeds in a flow records all of it before it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from servers import until
from support import environment, gated, states

import flowmap

if TYPE_CHECKING:
    from pathlib import Path

OWN_FLOW = """
import sys
from prefect import flow, unmapped
import flowmap

@flow
def sweep(path):
    target = flowmap.alloc_task(path, shape=1500, dtype="<f8", segments=150)
    flowmap.fill_task.map(target.pending(), filler=unmapped("arange")).wait()
    flowmap.validate_task(target)

if __name__ == "__main__":
    sweep(sys.argv[1])
"""


SETTINGS = """
from flowmap.recording import record_in_batches
from prefect.settings import get_current_settings

record_in_batches()
services = get_current_settings().server.services
recorder, persister = services.task_run_recorder, services.event_persister
print(recorder.batch_size, recorder.read_batch_size, recorder.flush_interval)
print(persister.batch_size, persister.read_batch_size)
"""

TOML = """
[server.services.task_run_recorder]
batch_size = 7
"""


CTRL_C = """
import flowmap

if __name__ == "__main__":
    flowmap.fill_array(
        "out.npy", shape=100, segments=10, filler="support:gated", arguments={"gate": "no such"}
    )
"""


ASK_SERVER = """
from prefect import flow
from prefect.client.orchestration import get_client

@flow
def ask():
    with get_client(sync_client=True) as client:
        recorder = client.request("GET", "/admin/settings").json()["server"]["services"]
        print(recorder["task_run_recorder"]["batch_size"])

ask()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """Return a home of Prefect's for the module."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copy(database, folder / "prefect.db")
    return folder


def python(
    arguments: list[str], folder: Path, environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def settings(home: Path) -> dict[str, str]:
    """Return an environment with a home, patience, and none of the settings of these tests."""
    environ = {k: v for k, v in environment().items() if not k.startswith("PREFECT_")}
    del environ["PYTHONWARNINGS"]  # Prefect has some of its own
    return environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "0",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    }


def recorded(home: Path) -> tuple[str, Counter[str]]:
    """Return the state that the newest flow run was left in, and those of its task runs."""
    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
        newest = "select id, state_type from flow_run order by created desc limit 1"
        run, state = database.execute(newest).fetchone()
        states = "select state_type from task_run where flow_run_id = ?"
        return state, Counter(found for (found,) in database.execute(states, (run,)))


def test_embedded_server_records_every_segment(tmp_path: Path, home: Path) -> None:
    """From any folder, without any settings, all task runs of a fast flow."""
    script = tmp_path / "sweep.py"
    script.write_text(OWN_FLOW)
    done = python([str(script), "out.npy"], tmp_path, settings(home))
    assert done.returncode == 0, done.stderr
    assert recorded(home) == ("COMPLETED", {"COMPLETED": 152})


@pytest.mark.parametrize(("first", "size"), [("", "1"), ("import flowmap", "200")])
def test_only_flows_that_use_flowmap(tmp_path: Path, home: Path, first: str, size: str) -> None:
    """The server of any other flow has Prefect's own settings, though flowmap is installed."""
    # As in a program that a flow of flowmap's starts.
    environ = settings(home) | {"FLOWMAP_IMPORTED_BY": str(os.getpid())}
    done = python(["-c", first + ASK_SERVER], tmp_path, environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == size


def test_ctrl_c_is_recorded(tmp_path: Path, home: Path) -> None:
    """The server outlives the Ctrl-C that a terminal sends to it as well as to the flow."""
    script = tmp_path / "sweep.py"
    script.write_text(CTRL_C)
    lease = tmp_path / "out.npy.flowmap" / "run.json"
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=settings(home),
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lease.exists, "the run has begun")
        target = flowmap.open_target(tmp_path / "out.npy")
        until(lambda: "running" in states(target), "a worker fills")
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        process.kill()
    assert not lease.exists()
    state, task_runs = recorded(home)
    assert state == "CRASHED"
    assert set(task_runs) <= {"COMPLETED", "CANCELLED", "CRASHED"}, task_runs


def test_a_warning_of_a_batch_system(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks in hand are finished and kept, the lease goes, and the exit code is 75."""
    script = tmp_path / "sweep.py"
    script.write_text(CTRL_C.replace("no such", "gate"))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=settings(home),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until((tmp_path / "out.npy.flowmap" / "run.json").exists, "the run has begun")
        target = flowmap.open_target(tmp_path / "out.npy")
        until(lambda: "running" in states(target), "a worker fills")
        process.send_signal(signal.SIGUSR1)
        (tmp_path / "gate").touch()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == os.EX_TEMPFAIL, output
    assert "run again" in output
    assert not (tmp_path / "out.npy.flowmap" / "run.json").exists()
    assert "running" not in states(target)
    state, task_runs = recorded(home)
    assert state == "CRASHED"
    assert set(task_runs) <= {"COMPLETED", "CANCELLED", "CRASHED"}, task_runs
    monkeypatch.chdir(tmp_path)
    flowmap.fill(target, gated, {"gate": "gate"}, executor="threads")
    assert flowmap.validate(target).sealed


def test_settings_of_the_user_stay(tmp_path: Path) -> None:
    """What a file or the environment sets is not set anew."""
    (tmp_path / "prefect.toml").write_text(TOML)
    mine = {"PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "9"}
    done = python(["-c", SETTINGS], tmp_path, settings(tmp_path) | mine)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "200", "1.0", "9", "200"]
