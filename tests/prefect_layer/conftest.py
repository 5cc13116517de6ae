"""Prefect's command line, and a real worker, for the tests of the Prefect layer."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from servers import BIN, running
from support import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

ROOT = Path(__file__).resolve().parents[2]


def prefect(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Prefect's command line to its end, in the project's folder if none is given."""
    return subprocess.run(
        [str(BIN / "prefect"), *arguments],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def parameters(values: dict[str, Any]) -> list[str]:
    """Return `--param` options for the command line."""
    return [
        word for name, value in values.items() for word in ("--param", f"{name}={_text(value)}")
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def start_run(name: str, **values: Any) -> str:
    """Start a run of a deployment with `prefect deployment run`, and return its id."""
    done = prefect("deployment", "run", name, *parameters(values))
    found = re.search(r"UUID: (\S+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return found[1]


@dataclass
class Worker:
    """A process worker with the flow deployed to its pool.

    Attributes:
        root: Its `FLOWMAP_ROOT`.
        modules: A folder that it imports from.
        server: The server.
    """

    root: Path
    modules: Path
    server: Server

    def completed(self, run: str) -> None:
        """Wait for a run, and fail with its own message if it has not completed."""
        ended = self.server.ended(run)
        assert ended["state_type"] == "COMPLETED", ended["state"]["message"]

    def failed(self, run: str) -> str:
        """Wait for a run that is to fail, and return its message."""
        ended = self.server.ended(run)
        assert ended["state_type"] == "FAILED", ended["state"]
        return str(ended["state"]["message"])


@pytest.fixture(scope="session")
def pool(server: Server) -> str:
    """Make the work pool `default`, which a test of deploying may have made."""
    done = prefect("work-pool", "create", "default", "--type", "process", "--overwrite")
    assert done.returncode == 0, done.stderr
    return "default"


@pytest.fixture(scope="module")
def worker(
    server: Server, pool: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    """Deploy with prefect.yaml, and start a process worker as an administrator would."""
    done = prefect("deploy", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path_factory.mktemp("worker")
    root, modules = folder / "arrays", folder / "modules"
    root.mkdir()
    modules.mkdir()
    log = folder / "worker.log"
    settings = environment() | {
        "FLOWMAP_ROOT": str(root),
        "FLOWMAP_FILLERS": "some.package, support",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
    }
    settings["PYTHONPATH"] += f"{os.pathsep}{modules}"
    del settings["PYTHONWARNINGS"]  # Prefect has some of its own
    command = [str(BIN / "prefect"), "worker", "start", "--pool", pool]
    with running(command, log, lambda: "started" in log.read_text(), cwd=folder, env=settings):
        yield Worker(root, modules, server)
