"""Vik's use case, `flows/mapped_segments.py`: many processes, with and without a job."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import mapped_segments as example
import numpy as np
import pytest
from scipy.special import ellipkm1
from support import environment, run, start, states

import flowmap

SCRIPT = Path(__file__).parent.parent / "flows" / "mapped_segments.py"


def command(folder: Path, rows: int, processes: int = 6) -> list[str]:
    """Return the command that runs the example."""
    options = ["--folder", folder, "--rows", rows, "--processes", processes]
    return [sys.executable, str(SCRIPT), *map(str, options)]


def test_as_it_is_run(tmp_path: Path) -> None:
    """Both ways give every row, and it is the one that SciPy's elliptic integral gives."""
    done = run(command(tmp_path, 10_001))
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[0].startswith("6 of 6 segments to fill")
    assert "pendulum.npy is valid: digest" in done.stdout
    assert "pendulum_windows.npy has the same rows" in done.stdout
    for name in ("pendulum.npy", "pendulum_windows.npy"):
        rows = np.load(tmp_path / name)
        assert rows.dtype == example.ROW
        assert np.array_equal(rows["amplitude"], np.pi * np.arange(10_001) / 10_001)
        known = 4 * np.sqrt(1 / 9.80665) * ellipkm1(np.cos(rows["amplitude"] / 2) ** 2)
        np.testing.assert_allclose(rows["period"], known, rtol=1e-12)
    again = run(command(tmp_path, 10_001))
    assert again.stdout.startswith("0 of 6 segments to fill")
    other = run(command(tmp_path, 10_002))
    assert other.returncode == 1
    assert "another job" in other.stderr
    assert "Traceback" not in other.stderr


def killed_once_done(folder: Path, rows: int) -> list[int]:
    """Kill a run of twelve segments, all its processes, when one is done; return which are."""
    path = folder / "pendulum.npy"
    child = start(command(folder, rows, 12), start_new_session=True)
    try:
        while not (path.exists() and "done" in states(flowmap.open_target(path))):
            assert child.poll() is None, child.communicate()
            time.sleep(0.001)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    found = states(flowmap.open_target(path))
    return [index for index, state in enumerate(found) if state == "done"]


def test_killed_and_run_again(tmp_path: Path) -> None:
    """What was done when everything was killed is kept, the rest is filled: all is right."""
    rows = 300_000
    for number in range(10):  # all may be done at once: each sync is one of the whole file
        folder = tmp_path / str(number)
        done = killed_once_done(folder, rows)
        if len(done) < 12:
            break
    target = flowmap.open_target(folder / "pendulum.npy")
    attempts = target.status()["attempt"]
    assert 0 < len(done) < 12
    again = run(command(folder, rows, 12))
    assert again.stdout.startswith(f"{12 - len(done)} of 12 segments to fill"), again
    assert (target.status()["attempt"][done] == attempts[done]).all()
    assert "pendulum_windows.npy has the same rows" in again.stdout


def test_a_process_that_dies(tmp_path: Path) -> None:
    """One process that dies costs its segment; the run says so, and the next one fills it."""
    target = flowmap.allocate(tmp_path / "pendulum.npy", 1000, example.ROW, segments=4)
    calls = [(segment, 1000) for segment in target.segments]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit, match="1 of 4 processes failed"):
            example.in_processes(die_on_the_second, calls)
    assert states(target) == ["done", "pending", "done", "done"]
    again = run(command(tmp_path, 1000, 4))
    assert again.stdout.startswith("1 of 4 segments to fill"), again
    assert states(target) == ["done"] * 4
    assert target.status()["attempt"].tolist() == [1, 2, 1, 1]


def die_on_the_second(segment: flowmap.Segment, rows: int) -> None:
    """Fill a segment; be killed within the second one."""
    with flowmap.open_segment(segment) as out:
        out["amplitude"] = np.pi * np.arange(segment.start, segment.stop) / rows
        if segment.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
