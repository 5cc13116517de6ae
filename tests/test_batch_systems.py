"""The scripts for batch systems; `tests/faults/test_slurm.py` runs them on a real Slurm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["requeue.sh", "array-job.sh"])
def test_scripts_for_slurm(name: str) -> None:
    """The page shows each as it is, and bash can read it."""
    root = Path(__file__).parents[1]
    script = root / "workflows" / "slurm" / name
    assert f"```bash\n{script.read_text()}```" in (root / "docs/batch_systems.md").read_text()
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
