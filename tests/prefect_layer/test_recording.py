"""The server that Prefect embeds in a flow records all of it before it ends."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

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


def recorded(home: Path) -> Counter[str]:
    """Return how many task runs the server left in which state."""
    with sqlite3.connect(home / "prefect.db") as database:
        rows = database.execute("select state_type, count(*) from task_run group by 1")
        return Counter(dict(rows.fetchall()))


@pytest.mark.parametrize(
    "chosen", [{}, {"PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "7"}]
)
def test_embedded_server_records_every_segment(tmp_path: Path, chosen: dict[str, str]) -> None:
    """From any folder, with no settings but those of the user, all runs of a fast flow."""
    home = tmp_path / "home"
    script = tmp_path / "sweep.py"
    script.write_text(OWN_FLOW)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out.npy")],
        env=environment
        | {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "0"}
        | chosen,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert recorded(home) == {"COMPLETED": 302}
