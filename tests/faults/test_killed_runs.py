"""`kill -9` of runs of the flow `fill-array`, and of their workers, at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from campaign import sizes
from support import environment
from truth import computed, lies, missing, not_completed, records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from campaign import Figures
    from servers import Server

SEGMENTS = 48
BLOCKS = 4
BLOCK_ROWS = 512
RUN = f"""
import sys
import flowmap

if __name__ == "__main__":
    flowmap.fill_array(
        sys.argv[1],
        shape={SEGMENTS * BLOCKS * BLOCK_ROWS},
        segments={SEGMENTS},
        block_rows={BLOCK_ROWS},
        filler="truth:noted",
        arguments={{"log": sys.argv[2]}},
        workers=2,
        checkpoint_seconds=0,
    )
"""


@pytest.fixture
def settings(server: Server) -> dict[str, str]:
    """Return the environment of runs that the server records."""
    own = environment()
    del own["PYTHONWARNINGS"]  # Prefect has some of its own
    return own


@contextlib.contextmanager
def begun(path: Path, log: Path, settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Have a run for a `with` block; at its end kill what is left of it, workers and all."""
    command = [sys.executable, "-c", RUN, str(path), str(log)]
    with path.with_name("output").open("wb") as output:
        run = subprocess.Popen(
            command, env=settings, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def made(folder: Path) -> tuple[Path, Path]:
    """Return the paths of a target and a log in a folder of their own."""
    log = folder / "log"
    log.mkdir(parents=True)
    return folder / "a.npy", log


def complete(path: Path, log: Path, settings: dict[str, str]) -> None:
    """Run it to its end."""
    with begun(path, log, settings) as run:
        assert run.wait(120) == 0, path.with_name("output").read_text()


def wait_for_blocks(run: subprocess.Popen[bytes], log: Path, count: int) -> None:
    """Return once so many blocks were computed."""
    while len(os.listdir(log)) < count:  # noqa: PTH208 -- only counted, and often
        assert run.poll() is None, log.with_name("output").read_text()
        time.sleep(0.001)


def workers_of(run: int) -> list[int]:
    """Return the processes of a run that compute."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            command = (entry / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if int(parent) == run and b"flowmap.worker_processes" in command:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("kills", sizes(1, 40))
def test_killed_with_its_workers(
    kills: int, tmp_path: Path, settings: dict[str, str], figures: Figures
) -> None:
    """What is done stays, and the same run again computes what is missing and no more."""
    moments = random.Random(kills)
    for number in range(kills):
        path, log = made(tmp_path / str(number))
        with begun(path, log, settings) as run:
            wait_for_blocks(run, log, moments.randrange(1, SEGMENTS * BLOCKS))
        assert run.returncode == -signal.SIGKILL
        computed(log)
        assert not lies(path)
        left, before = missing(path), records(path)
        complete(path, log, settings)
        assert computed(log) == left
        assert not not_completed(path, before)
        figures.add("kill of a flow", "with its workers")


@pytest.mark.parametrize("kills", sizes(1, 40))
def test_killed_workers(
    kills: int, tmp_path: Path, settings: dict[str, str], figures: Figures
) -> None:
    """A run outlives a worker: only the block that it had in hand is computed again."""
    moments = random.Random(kills)
    for number in range(kills):
        path, log = made(tmp_path / str(number))
        with begun(path, log, settings) as run:
            wait_for_blocks(run, log, moments.randrange(1, SEGMENTS * BLOCKS // 2))
            os.kill(workers_of(run.pid)[0], signal.SIGKILL)
            assert run.wait(120) == 0, path.with_name("output").read_text()
        done = computed(log)
        assert len(set(done)) == SEGMENTS * BLOCKS
        assert len(done) - len(set(done)) <= 1
        assert not lies(path) + not_completed(path, records(path))
        figures.add("kill of a flow", "of a worker of it")
