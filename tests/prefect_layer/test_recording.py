"""The server that Prefect embeds in a flow records all of it before it ends."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

OWN_FLOW = """
import sys
from prefect import flow, unmapped
import flowmap

@flow
def sweep(path):
    target = flowmap.alloc_task(path, shape=3000, dtype="<f8", segments=300)
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


def recorded(home: Path) -> Counter[str]:
    """Return how many task runs the server left in which state."""
    with sqlite3.connect(home / "prefect.db") as database:
        rows = database.execute("select state_type, count(*) from task_run group by 1")
        return Counter(dict(rows.fetchall()))


def python(
    arguments: list[str], cwd: Path, settings: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with a home of its own and no settings but those given."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    own = {"PREFECT_HOME": str(cwd / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "0"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | own | settings,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_embedded_server_records_every_segment(tmp_path: Path) -> None:
    """From any folder, without any settings, all task runs of a fast flow."""
    script = tmp_path / "sweep.py"
    script.write_text(OWN_FLOW)
    done = python([str(script), "out.npy"], tmp_path, {})
    assert done.returncode == 0, done.stderr
    assert recorded(tmp_path / "home") == {"COMPLETED": 302}


def test_settings_of_the_user_stay(tmp_path: Path) -> None:
    """What a file or the environment sets is not set anew."""
    (tmp_path / "prefect.toml").write_text(TOML)
    mine = {"PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "9"}
    done = python(["-c", SETTINGS], tmp_path, mine)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "200", "1.0", "9", "200"]
