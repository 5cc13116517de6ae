"""Whole jobs of every kind, battered at random until they are done: each is what it shall be.

What happens to a job follows from its seed: `FLOWMAP_SEED=7` plays that one alone.
"""

from __future__ import annotations

import gc
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from battered import Runs
from battle import Battle
from campaign import Figures, sizes
from sabotage import sabotage as break_flowmap
from support import until_gone

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Return a server of runs."""
    made = Runs(tmp_path)
    try:
        yield made
    finally:
        made.close()


def battle(folder: Path, seed: int, runs: Runs, figures: Figures, **options: Any) -> None:
    """Play the battle of a seed in a folder of its own; an error tells the seed."""
    place = folder / str(seed)
    place.mkdir()
    try:
        Battle(place, seed, runs, figures, **options).play()
        left = [group for group in runs.groups if until_gone(group)]
        assert not left, f"processes of the groups {left} are left"
    except BaseException as error:
        error.add_note(f"FLOWMAP_SEED={seed}")
        raise
    runs.groups.clear()  # other processes may get their numbers
    for file in sorted(place.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def footprint() -> tuple[int, int]:
    """Return how many files this process has open, and the bytes of its memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(list(Path("/proc/self/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("seconds", sizes(4, 3600))
def test_battered_jobs(tmp_path: Path, figures: Figures, runs: Runs, seconds: float) -> None:
    """Whatever happened to it, a job that is run again until it is done is right.

    What was done is not computed again; damage is found, and only that repaired, or refused;
    no process, file or memory is left behind.
    """
    if alone := os.environ.get("FLOWMAP_SEED"):
        battle(tmp_path, int(alone), runs, figures)
        return
    for seed in range(20):
        battle(tmp_path, seed, runs, figures)
    before, begun = footprint(), time.monotonic()
    for seed in itertools.count(20):
        battle(tmp_path, seed, runs, figures)
        if time.monotonic() - begun > seconds:
            break
    files, memory = footprint()
    assert files <= before[0]
    assert memory - before[1] < 64 << 20


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_battered_flows(tmp_path: Path, figures: Figures, runs: Runs) -> None:
    """So it is where the runs are those of the flow, with a Prefect server."""
    from prefect.settings import PREFECT_API_URL  # noqa: PLC0415 -- slow, and of this test alone
    from prefect.testing.utilities import prefect_test_harness  # noqa: PLC0415 -- likewise

    with prefect_test_harness(server_startup_timeout=90):
        for seed in range(12):
            battle(tmp_path, seed, runs, figures, server=PREFECT_API_URL.value())


@pytest.mark.parametrize(
    "name",
    ["no comparing of digests", "no look at the claim", "nothing taken over", "a row skipped"],
)
def test_a_broken_flowmap_is_caught(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, name: str, figures: Figures
) -> None:
    """Battles at random find each of these bugs before long."""
    break_flowmap(name, monkeypatch.setattr)
    for seed in range(200):
        try:
            battle(tmp_path, seed, runs, Figures(), sabotage=name)
        except (AssertionError, pytest.fail.Exception):
            figures.add("whole jobs", f"until flowmap with {name} was found", seed + 1)
            return
    pytest.fail("nothing was found")
