"""`flowmap run` and `flowmap deploy`, with a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from prefect.settings import (
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)
from servers import BIN

import flowmap
from flowmap.cli.serving import needing_server
from flowmap.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server


def call(
    *words: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `flowmap` to its end."""
    done = subprocess.run(
        [str(BIN / "flowmap"), *words],
        cwd=cwd,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_running_the_flow(server: Server, tmp_path: Path) -> None:
    """Allocates, fills and validates under Prefect, with the options of the flow.

    A proxy is not asked for the server of this machine.
    """
    words = ["run", "out.npy", "--shape", "100,3", "--dtype", "<i4", "--segments", "4"]
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "elsewhere.invalid"}
    done = call(*words, "--executor", "threads", cwd=tmp_path, environment=proxy)
    assert done.returncode == 0, done.stderr
    assert "is valid: digest" in done.stdout
    expected = np.repeat(np.arange(100)[:, np.newaxis], 3, axis=1)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    done = call(*words, "--json", cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is True
    runs = server.ask("flow_runs/filter", sort="START_TIME_DESC", limit=20)
    ours = [run for run in runs if run["parameters"].get("path") == "out.npy"]
    assert [run["state_type"] for run in ours] == ["COMPLETED"] * 2


def test_mistakes_are_told_briefly(server: Server, tmp_path: Path) -> None:
    """Without a traceback, with the code of what was wrong."""
    done = call("run", "out.npy", "--segments", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "flowmap: --segments: " in done.stderr
    flowmap.allocate(tmp_path / "out.npy", 10, "<f8")
    done = call("run", "out.npy", "--shape", "11", cwd=tmp_path)
    assert done.returncode == 2
    assert "flowmap: " in done.stderr
    assert "holds another job" in done.stderr
    (tmp_path / "fillers.py").write_text(
        "import flowmap\n\n\n@flowmap.filler\ndef broken(out, block):\n    1 / 0\n"
    )
    words = ["run", "b.npy", "--shape", "10", "--segments", "2", "--executor", "threads"]
    done = call(*words, "--filler", "fillers.py:broken", cwd=tmp_path)
    assert done.returncode == 1
    assert "2 of 2 segments" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_deploying(server: Server, tmp_path: Path) -> None:
    """A work pool of type process is made where there is none, and the flow deployed to it."""
    words = ["deploy", "--pool", "made by flowmap", "--name", "from-the-command-line"]
    try:
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "to the work pool made by flowmap, which was made." in done.stdout
        assert "prefect worker start --pool 'made by flowmap'" in done.stdout
        done = call(*words, "--json", cwd=tmp_path)
        assert json.loads(done.stdout) == {
            "deployment": "fill-array/from-the-command-line",
            "pool": "made by flowmap",
            "pool_made": False,
        }
        name = {"name": {"any_": ["from-the-command-line"]}}
        deployment = server.ask("deployments/filter", deployments=name)[0]
        assert deployment["entrypoint"] == "flowmap.flow.fill_array"
        assert deployment["work_pool_name"] == "made by flowmap"
        pools = {"name": {"any_": ["made by flowmap"]}}
        assert server.ask("work_pools/filter", work_pools=pools)[0]["type"] == "process"
    finally:
        httpx.delete(f"{server.url}/work_pools/made%20by%20flowmap")


def test_deploying_without_a_server(tmp_path: Path) -> None:
    """Says what to start and to set; Prefect would start a server that is gone at once."""
    environment = {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path)}
    done = call("deploy", cwd=tmp_path, environment=environment)
    assert done.returncode == 2
    assert "prefect config set PREFECT_API_URL=" in done.stderr


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what `needing_server` does to this process, whose proxy is for another host."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org")


@pytest.mark.usefixtures("no_proxy")
def test_folder_of_prefect_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told at once, before Prefect waits for a server that cannot start."""
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", "/proc/nowhere")
    told = r"/proc/nowhere/prefect\.db.*export PREFECT_HOME="
    with pytest.raises(ClusterError, match=told), needing_server():
        pytest.fail("no server can start")


@pytest.mark.usefixtures("no_proxy")
def test_only_this_machine_goes_around_a_proxy() -> None:
    """A server elsewhere, which only the proxy may reach, is asked through it."""
    with needing_server():
        bypassed = {
            host: bool(urllib.request.proxy_bypass(host))
            for host in ("127.0.0.1", "localhost", "example.org", "elsewhere.invalid")
        }
    assert bypassed == {
        "127.0.0.1": True,
        "localhost": True,
        "example.org": True,
        "elsewhere.invalid": False,
    }


@pytest.mark.usefixtures("no_proxy")
def test_times_to_wait_for_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost server is tried for seconds, a new one has a minute, unless the user set it."""
    monkeypatch.delenv("PREFECT_API_REQUEST_TIMEOUT", raising=False)
    monkeypatch.delenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", raising=False)
    with needing_server():
        settings = get_current_settings()
        assert (settings.client.max_retries, settings.api.request_timeout) == (2, 15)
        assert settings.server.ephemeral.startup_timeout_seconds == 60
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 7}), needing_server():
        assert get_current_settings().client.max_retries == 7


@pytest.mark.usefixtures("no_proxy")
def test_stopped_while_the_server_is_lost() -> None:
    """The exit code of a run that was asked to stop is 75, though it could not report that."""

    def run() -> None:
        try:
            sys.exit(os.EX_TEMPFAIL)
        finally:
            raise httpx.ReadTimeout("no answer")

    with pytest.raises(SystemExit) as ended, needing_server():
        run()
    assert ended.value.code == os.EX_TEMPFAIL
