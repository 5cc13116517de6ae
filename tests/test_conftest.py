"""The tests themselves, in the circumstances of whoever runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INTERRUPTED = "test_doctor.py::TestWhole::test_really_interrupted"


def test_sigint_is_ignored_at_the_start() -> None:
    """As under `nohup ... &`: a program that a test interrupts gets the signal all the same."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", INTERRUPTED]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
        cwd=Path(__file__).parent,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
