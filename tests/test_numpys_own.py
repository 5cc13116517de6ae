"""NumPy's own tests, as it is installed, run on flowmap's `load` and `open_memmap`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["test_format", "test_io"])
def test_numpys_own(module: str, tmp_path: Path) -> None:
    """All tests of the format, and of loading and saving, pass; and flowmap was at work."""
    options = ["-q", "-c", os.devnull, "-p", "in_place_of_numpy", "-p", "no:cacheprovider"]
    # Archives of gigabytes take a minute, and are NumPy's own business.
    options += ["-k", "not (large_zip or big_arrays or large_archive)"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--pyargs", f"numpy.lib.tests.{module}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    (passed,) = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert int(passed) > 40
    calls = dict(re.findall(r"flowmap\.(\w+) was called (\d+) times", done.stdout))
    assert int(calls["load"]) > 20
    assert module != "test_format" or int(calls["open_memmap"]) > 100
