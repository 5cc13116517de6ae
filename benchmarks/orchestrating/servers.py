"""A Prefect server for one contestant: empty, on loopback, ended with all its processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import psutil

from benchmarks.rounds import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

RECOMMENDED: Final = ROOT / "prefect.toml"
"""The settings that flowmap recommends to a server."""

_PREFECT: Final = Path(sys.executable).parent / "prefect"
_START_SECONDS: Final = 120
_END_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Server:
    """A Prefect server, asked through its API.

    Attributes:
        url: Of its API.
        process: The program that was started; it may have children.
    """

    url: str
    process: psutil.Process

    def completed(self, flow_run: str) -> int:
        """Return how many task runs of a flow run are recorded as Completed."""
        body: dict[str, Any] = {
            "flow_runs": {"id": {"any_": [flow_run]}},
            "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        }
        answer = httpx.post(f"{self.url}/task_runs/count", json=body, timeout=60)
        answer.raise_for_status()
        return int(answer.json())

    def cpu_seconds(self) -> float:
        """Return the processor time that it and its children have taken so far."""
        return sum(sum(one.cpu_times()[:2]) for one in _family(self.process))


def environment(home: Path, url: str) -> dict[str, str]:
    """Return the environment of a Prefect program: no settings of the user's, nothing sent."""
    return {name: value for name, value in os.environ.items() if "PREFECT" not in name} | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


@contextlib.contextmanager
def serving(folder: Path, *, recommended: bool) -> Iterator[Server]:
    """Keep a server running for a `with` block, from when it answers.

    Args:
        folder: Where its database and its log go.
        recommended: Whether it gets the settings of flowmap's `prefect.toml`.
    """
    home = folder / "prefect"
    home.mkdir()
    if recommended:
        shutil.copy(RECOMMENDED, home)
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [_PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "server.log"
    with log.open("w") as file:
        process = psutil.Popen(
            command, cwd=home, env=environment(home, url), stdout=file, stderr=file
        )
    try:
        _wait_for(url, process, log)
        yield Server(url, process)
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, process: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"The Prefect server did not start: {log.read_text()[-2000:]}")


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _end(process: psutil.Process) -> None:
    """End a program and its children: none may outlive what it was started for."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = _family(process)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, timeout=_END_SECONDS)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()
