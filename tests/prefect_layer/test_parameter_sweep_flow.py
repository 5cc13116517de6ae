"""The parameter sweep as a Prefect flow, on a small plane."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import parameter_sweep
import pytest

import flowmap

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

READ = """
import sys
sys.modules["flowmap"] = None  # importing it is an error now
import numpy as np
rows = np.load(sys.argv[1])
print(rows.shape, rows.dtype["trace"].shape, int(rows["spikes"].sum()))
"""


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the script, with a plane of 6 currents and 4 temperatures."""
    plane = {"current_count": 6, "temperature_count": 4, "duration_ms": 30.0}
    monkeypatch.setattr(parameter_sweep, "ARGUMENTS", parameter_sweep.ARGUMENTS | plane)
    monkeypatch.setattr(parameter_sweep, "SEGMENTS", 4)
    return parameter_sweep


def test_sweep_runs_prints_and_resumes(
    sweep: Any,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says where the array is and how to see it; a second run computes nothing."""
    path = tmp_path / "results" / "sweep.npy"
    monkeypatch.setattr(sys, "argv", ["parameter_sweep.py", "--out", str(path)])
    sweep.main()
    printed = capsys.readouterr().out
    run = server.newest_run()["id"]
    assert "4 of 4 segments to compute" in printed
    for said in (str(path), "(24,)", "digest", str(path.with_suffix(".png")), run):
        assert said in printed
    assert path.with_suffix(".png").stat().st_size > 10_000
    names = set(server.task_runs(run, 6))
    assert {"segment 0000 [0:6]", "segment 0003 [18:24]"} <= names

    sweep.main()
    assert "0 of 4 segments to compute" in capsys.readouterr().out

    whole = np.zeros(24, sweep.ROW)
    sweep.squid_axon(whole, flowmap.Block(0, 24), **sweep.ARGUMENTS)
    assert np.load(path).tobytes() == whole.tobytes()


def test_sweep_is_read_without_flowmap(sweep: Any, server: Server, tmp_path: Path) -> None:
    """`np.load` needs nothing of flowmap to read the record array."""
    path = tmp_path / "sweep.npy"
    sweep.parameter_sweep(str(path), workers=1)
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(24,) (64,) ")
