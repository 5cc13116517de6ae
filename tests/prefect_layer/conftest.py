"""A real Prefect server for the tests of the Prefect layer, and the way to ask it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


class Server:
    """A Prefect server on loopback, asked through its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, route: str, **body: Any) -> Any:
        """Post a query to the API and return its answer."""
        answer = httpx.post(f"{self.url}/{route}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def newest_run(self) -> dict[str, Any]:
        """Return the flow run that began last."""
        runs: list[dict[str, Any]] = self.ask(
            "flow_runs/filter", sort="START_TIME_DESC", limit=1
        )
        return runs[0]

    def task_runs(self, flow_run: str, count: int) -> dict[str, dict[str, Any]]:
        """Return the task runs of a flow run by name, once `count` have ended.

        The server records them from events, some moments after they happened.
        """
        deadline = time.monotonic() + 60
        while True:
            runs = self.ask(
                "task_runs/filter",
                task_runs={"flow_run_id": {"any_": [flow_run]}},
                limit=200,
            )
            ended = [r for r in runs if r["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
            if len(ended) >= count:
                return {run["name"]: run for run in runs}
            assert time.monotonic() < deadline, f"{len(ended)} of {count} task runs recorded"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Start `prefect server start` where the settings say it is, and end it."""
    url = os.environ["PREFECT_API_URL"]
    home = Path(os.environ["PREFECT_HOME"])
    port = httpx.URL(url).port
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)
    try:
        deadline = time.monotonic() + 90
        while not _is_up(url):
            assert process.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < deadline, (home / "server.log").read_text()
            time.sleep(0.2)
        yield Server(url)
    finally:
        process.terminate()
        process.wait(30)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False
