"""Two hosts at one job on NFS 4.1 and 4.2: `nfs_plays`, in a machine of their own."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from campaign import Figures, sizes
from nfs_hosts import MOUNTS
from nfs_machine import PACKAGES, PROGRAMS, run_in_machine
from nfs_plays import PLAYS
from nfs_stage import BREAKS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.system(*PROGRAMS, packages=PACKAGES, root=True),
    pytest.mark.timeout(600),
]

SHORT = (
    *("absent@4.1", "absent@4.2", "racing@4.2", "overtaken@4.1", "overtaken@4.2"),
    *(
        "overtaken_at_a_write@4.1",
        "leased@4.1",
        "interleaved@4.2",
        "overwritten@4.2",
        "seen@4.1",
        "cleaned@4.2",
    ),
    *("odd_rows@4.2", "killed@4.1", "cut@4.2"),
)
WHOLE = tuple(f"{play}@{mount}" for play, mount in itertools.product(PLAYS, MOUNTS))

CAUGHT_BY = {
    "no question to the server": ("absent", "leased"),
    "writes that linger": ("overtaken",),
    "pages that are remembered": ("overtaken",),
    "rows that linger": ("cut",),
}
"""For each break the plays that must find something wrong."""


def played(folder: Path, size: str, *wanted: str, seconds: float) -> list[dict[str, Any]]:
    """Boot the machine and play; return what came out."""
    printed = run_in_machine(folder, "nfs_plays.py", size, *wanted, seconds=seconds)
    results: list[dict[str, Any]] = json.loads((folder / "played.json").read_text())
    assert len(results) == len(wanted), printed
    return results


@pytest.mark.parametrize("size", sizes("short", "whole", hours=3))
def test_nothing_is_lost(tmp_path: Path, figures: Figures, size: str) -> None:
    """One host has old names and pages, dies or comes back: what is done stays done."""
    wanted, seconds = (SHORT, 570) if size == "short" else (WHOLE, 3 * 3600 - 60)
    wrong = []
    for result in played(tmp_path, size, *wanted, seconds=seconds):
        play = f"{result['play'].replace('_', ' ')}, {result['mount']}"
        wrong += [f"{play}: {what}" for what in result["wrong"]]
        figures.add("two hosts", play, result["cases"])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("breaks", sizes([*CAUGHT_BY][:3], [*CAUGHT_BY], hours=1))
def test_what_would_be_caught(tmp_path: Path, breaks: list[str]) -> None:
    """With flowmap broken on purpose on both hosts the plays find something wrong."""
    assert CAUGHT_BY.keys() == BREAKS.keys()
    wanted = [f"{play}@4.2@{broken}" for broken in breaks for play in CAUGHT_BY[broken]]
    results = played(tmp_path, "short", *wanted, seconds=570)
    assert [each for each in results if not each["wrong"]] == []
