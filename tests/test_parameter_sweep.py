"""The script of the parameter sweep, without a run: its picture, and what it says."""

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import parameter_sweep as sweep
import pytest
import squid_axon
from numpy.typing import NDArray
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

import flowmap

ROOT = Path(__file__).parents[1]


def rows() -> NDArray[np.void]:
    """Return a sweep of 7 currents by 5 temperatures that takes no time."""
    changes = {"current_count": 7, "temperature_count": 5, "duration_ms": 1.0}
    out = np.zeros(35, squid_axon.ROW)
    squid_axon.squid_axon(out, flowmap.Block(0, 35), **sweep.ARGUMENTS | changes)
    return out


def test_arguments_are_plain_and_large() -> None:
    """The sweep's arguments survive JSON, and cut into equal segments of whole rows."""
    assert json.loads(json.dumps(sweep.ARGUMENTS)) == sweep.ARGUMENTS
    rows = sweep.ARGUMENTS["current_count"] * sweep.ARGUMENTS["temperature_count"]
    assert rows >= 20_000
    assert rows % sweep.SEGMENTS == 0


def test_plots_a_picture(tmp_path: Path) -> None:
    """The picture is a PNG of some size, made from nothing but the .npy."""
    path, picture = tmp_path / "rows.npy", tmp_path / "rows.png"
    np.save(path, rows())
    sweep.plot_rates(path, picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("server", "line"),
    [
        ({}, "http://127.0.0.1:4200/runs/flow-run/{}  (after: PREFECT_HOME='/my prefect' "),
        ({PREFECT_UI_URL: "http://host:1"}, "http://host:1/runs/flow-run/{}\n"),
    ],
)
def test_says_where_everything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, server: Any, line: str
) -> None:
    """The last lines name file, shape, dtype, digest, picture, and how to see the run."""
    path, run = tmp_path / "rows.npy", uuid.uuid4()
    np.save(path, rows())
    monkeypatch.setenv("PREFECT_HOME", "/my prefect")
    with temporary_settings(server, restore_defaults={PREFECT_API_URL, PREFECT_UI_URL}):
        sweep.print_summary(path, "d1935", tmp_path / "rows.png", run)
    said = capsys.readouterr().out
    for part in (str(path), "(35,)", "'latency'", "d1935", "rows.png", line.format(run)):
        assert part in said


@pytest.mark.system("make", packages="make")
def test_make_run_has_a_home_of_its_own(tmp_path: Path) -> None:
    """The user's Prefect may be a newer one, whose database an older one cannot use."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintenv PREFECT_HOME\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "--silent", "-o", ".venv/run.ready", "run", f"BIN={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"PREFECT_HOME": "the user's"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{ROOT / 'results' / 'prefect'}\n"
