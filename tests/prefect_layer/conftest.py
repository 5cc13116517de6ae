"""A real Prefect server, worker and command line for the tests of the Prefect layer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from support import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def until(look: Callable[[], T | None], what: str, seconds: float = 90) -> T:
    """Look again and again until there is something to be seen, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


class Server:
    """A Prefect server on loopback, asked through its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, route: str, **body: Any) -> httpx.Response:
        """Post to the API; again, as Prefect's client does, where its database was busy."""

        def look() -> httpx.Response | None:
            answer = httpx.post(f"{self.url}/{route}", json=body, timeout=30)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return until(look, f"an answer to {route}")

    @property
    def ui(self) -> str:
        """Where its UI is."""
        return self.url.removesuffix("/api")

    def ask(self, route: str, **body: Any) -> Any:
        """Post a query to the API and return its answer."""
        answer = self.post(route, **body)
        answer.raise_for_status()
        return answer.json()

    def asked(self, **values: Any) -> httpx.Response:
        """Ask for a run of the deployed flow with parameters, as the UI's form does."""
        found = self.ask("deployments/filter", deployments={"name": {"any_": ["fill-array"]}})
        return self.post(f"deployments/{found[0]['id']}/create_flow_run", parameters=values)

    def begin(self, **values: Any) -> str:
        """Start a run of the deployed flow, and return its id."""
        answer = self.asked(**values)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def newest_run(self) -> dict[str, Any]:
        """Return the flow run that began last."""
        runs: list[dict[str, Any]] = self.ask(
            "flow_runs/filter", sort="START_TIME_DESC", limit=1
        )
        return runs[0]

    def ended(self, run: str) -> dict[str, Any]:
        """Return a flow run once it has ended."""

        def look() -> dict[str, Any] | None:
            found = self.ask("flow_runs/filter", flow_runs={"id": {"any_": [run]}})[0]
            return found if found["state_type"] in ENDED else None

        return until(look, f"the end of the flow run {run}")

    def task_runs(
        self, flow_run: str, count: int, states: tuple[str, ...] = ENDED
    ) -> dict[str, dict[str, Any]]:
        """Return the task runs of a flow run by name, once `count` have a state of these.

        The server records them from events, some moments after they happened.
        """

        def look() -> dict[str, dict[str, Any]] | None:
            found = self.ask(
                "task_runs/filter",
                task_runs={"flow_run_id": {"any_": [flow_run]}},
                limit=200,
            )
            there = [run for run in found if run["state_type"] in states]
            return {run["name"]: run for run in found} if len(there) >= count else None

        return until(look, f"{count} task runs of {flow_run} that are {states}")

    def logs(self, flow_run: str, line: str) -> str:
        """Return what a flow run has logged, once a line with some text has arrived."""

        def look() -> str | None:
            lines = self.ask(
                "logs/filter", logs={"flow_run_id": {"any_": [flow_run]}}, limit=200
            )
            text = "\n".join(each["message"] for each in lines)
            return text if line in text else None

        return until(look, f"{line!r} in the logs of {flow_run}")


@contextlib.contextmanager
def running(
    command: list[str], log: Path, ready: Callable[[], Any], **options: Any
) -> Iterator[None]:
    """Keep a program running for a `with` block, from when it is ready."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, **options)
    try:
        until(lambda: ready() or process.poll() is not None, f"{command} is ready")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        try:
            process.wait(40)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def server(database: Path) -> Iterator[Server]:
    """Start `prefect server start` where the settings say it is, and end it."""
    url = os.environ["PREFECT_API_URL"]
    home = Path(os.environ["PREFECT_HOME"])
    shutil.copy(database, home / "prefect.db")
    command = [str(BIN / "prefect"), "server", "start", "--port", str(httpx.URL(url).port)]

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    with running(command, home / "server.log", ready, cwd=home):
        yield Server(url)


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
