"""The script flows/fill_array.py: runs the flow, serves it, deploys it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import fill_array
import numpy as np
import pytest
from prefect_layer.conftest import ROOT, parameters, prefect
from servers import running
from support import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Server

SCRIPT = [sys.executable, str(ROOT / "flows" / "fill_array.py")]


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the script to its end in some folder."""
    return subprocess.run(
        [*SCRIPT, *arguments],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture(scope="module")
def serving(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the flow with neither a root nor fillers set."""
    folder = tmp_path_factory.mktemp("serving")
    log = folder / "log"
    settings = environment() | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    del settings["PYTHONWARNINGS"]  # Prefect has some of its own
    with running(
        [*SCRIPT, "--serve"],
        log,
        lambda: "fill-array/fill-array" in log.read_text(),
        cwd=folder,
        env=settings,
    ):
        yield server


def test_served_run(serving: Server, tmp_path: Path) -> None:
    """The serving process runs what `prefect deployment run` asks for."""
    path = tmp_path / "out.npy"
    ended = serving.ended(serving.begin(path=str(path), shape=1000, dtype="<f4", segments=4))
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    assert np.array_equal(np.load(path), np.arange(1000, dtype="<f4"))


def test_served_run_with_a_relative_path(serving: Server) -> None:
    """Where nobody set a root a deployed run takes no relative path, and says what to set."""
    ended = serving.ended(serving.begin(path="out.npy", shape=10))
    assert ended["state_type"] == "FAILED"
    assert "path is 'out.npy', which is relative" in ended["state"]["message"]
    assert "export FLOWMAP_ROOT=" in ended["state"]["message"]


def test_served_run_with_a_filler_of_ones_own(serving: Server, tmp_path: Path) -> None:
    """Where nobody allowed any, only published fillers run."""
    run = serving.begin(path=str(tmp_path / "out.npy"), shape=10, filler="support:ramp")
    ended = serving.ended(run)
    assert ended["state_type"] == "FAILED"
    assert "export FLOWMAP_FILLERS=support" in ended["state"]["message"]
    assert "arange" in ended["state"]["message"], "what is allowed is named"
    assert list(tmp_path.iterdir()) == []


def test_run_in_place(server: Server, tmp_path: Path) -> None:
    """Without an option it runs the flow here; a relative path is taken from here."""
    asked = {
        "path": "out.npy",
        "shape": [10, 2],
        "dtype": [["a", "<i2"]],
        "executor": "threads",
    }
    done = call(
        *parameters(asked | {"filler": "constant", "arguments": {"value": 3}}), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "out.npy")["a"], np.full((10, 2), 3))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--param", "path"],
        ["--param", "=1"],
        ["--param", "shape=10"],
        ["--param", "path=out.npy", "--param", "colour=red"],
        ["--pool", "x"],
        ["--serve", "--param", "path=out.npy"],
        ["--deploy", "x", "--param", "path=out.npy"],
    ],
)
def test_wrong_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
) -> None:
    """What cannot be understood is said, with the usage, and no flow begins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fill_array.py", *wrong])
    with pytest.raises(SystemExit) as ended:
        fill_array.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("usage: fill_array.py")
    assert not said.out
    assert list(tmp_path.iterdir()) == []


def test_deploying(server: Server, pool: str, tmp_path: Path) -> None:
    """`--deploy` works from any folder."""
    done = call("--deploy", pool, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = prefect("deployment", "inspect", "fill-array/fill-array")
    assert "'entrypoint': 'flowmap.flow.fill_array'" in shown.stdout
    assert f"'work_pool_name': '{pool}'" in shown.stdout
