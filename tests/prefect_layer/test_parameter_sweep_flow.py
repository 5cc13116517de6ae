"""The parameter sweep as a Prefect flow, on a small plane."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from prefect_layer.conftest import Server

SCRIPT = Path(__file__).resolve().parents[2] / "flows" / "parameter_sweep.py"

READ = """
import sys
sys.modules["flowmap"] = None  # importing it is an error now
import numpy as np
rows = np.load(sys.argv[1])
print(rows.shape, rows.dtype["trace"].shape, int(rows["spikes"].sum()))
"""


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the script, with a plane of 6 currents and 4 temperatures."""
    spec = importlib.util.spec_from_file_location("parameter_sweep", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "parameter_sweep", module)
    monkeypatch.syspath_prepend(SCRIPT.parent)  # where the workers will find it
    spec.loader.exec_module(module)
    for name, value in {
        "current_count": 6,
        "temperature_count": 4,
        "duration_ms": 30.0,
    }.items():
        monkeypatch.setitem(module.ARGUMENTS, name, value)
    monkeypatch.setattr(module, "SEGMENTS", 4)
    return module


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
    sweep.squid_axon(whole, sweep.flowmap.Block(0, 24), **sweep.ARGUMENTS)
    assert np.load(path).tobytes() == whole.tobytes()


def test_sweep_is_read_without_flowmap(sweep: Any, server: Server, tmp_path: Path) -> None:
    """`np.load` needs nothing of flowmap to read the record array."""
    path = tmp_path / "sweep.npy"
    sweep.parameter_sweep(str(path), workers=1)
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(24,) (64,) ")
