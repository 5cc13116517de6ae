"""Playing a case: every contestant once a round, in an order that rotates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.case import Case, Contestant, Figures

ROOT: Final = Path(__file__).parents[1]
DISKS: Final = {"disk": ROOT / "build" / "benchmarks", "memory": Path("/dev/shm")}  # noqa: S108
_LIMIT: Final = 1800  # seconds that one run may take


class ContestantError(Exception):
    """A contestant failed, or printed no figures."""


def play(
    case: Case, rounds: int, scale: float, tell: Callable[[str], object]
) -> list[dict[str, Figures]]:
    """Play a case and return what each round measured, by contestant.

    Each round begins with another contestant, and every other one goes backwards, so that none
    always comes after the same one.

    Args:
        case: The case.
        rounds: How many rounds.
        scale: The factor for all sizes.
        tell: Called with a line before each run.
    """
    players = case.players
    played = []
    for number in range(rounds):
        first = number % len(players)
        order = (players[first:] + players[:first])[:: -1 if number % 2 else 1]
        measured = {}
        for player in order:
            tell(f"{case.name}, round {number + 1} of {rounds}: {player.name}")
            measured[player.name] = _run(player, case, scale)
        played.append({player.name: measured[player.name] for player in players})
    return played


def _run(player: Contestant, case: Case, scale: float) -> Figures:
    disk = DISKS[case.disk]
    disk.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flowmap-benchmark-", dir=disk) as folder:
        os.sync()
        time.sleep(case.rest)
        sizes = "--folder", folder, "--scale", str(scale)
        command = sys.executable, "-m", *player.command, *sizes
        ended = subprocess.run(  # noqa: S603 -- our own programs
            command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    try:
        assert ended.returncode == 0, f"exit code {ended.returncode}"
        return dict(json.loads(ended.stdout.splitlines()[-1]))
    except (AssertionError, LookupError, ValueError) as error:
        said = f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
        raise ContestantError(f"{case.name}: {player.name}: {error}\n{said}") from error
