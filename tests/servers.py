"""A real Prefect server on loopback, for the tests that need one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

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
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new database of Prefect's, to be copied into the home of a server.

    To make one takes a quarter of a minute. It is made but once, for all processes of this run
    of the tests.
    """
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prefect"
    made = home / "made.db"
    home.mkdir(exist_ok=True)
    with FileLock(home / "made.lock"):
        if not made.exists():
            command = [
                sys.executable,
                "-m",
                "prefect",
                "server",
                "database",
                "upgrade",
                "--yes",
            ]
            own = {"PREFECT_HOME": str(home)}
            subprocess.run(command, env=os.environ | own, check=True, capture_output=True)
            (home / "prefect.db").rename(made)
    return made


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
