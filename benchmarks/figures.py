"""The figures of the last saved run of each case, in `figures.json` beside this file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.rounds import ROOT

if TYPE_CHECKING:
    from benchmarks.case import Rounds

SAVED: Final = Path(__file__).with_name("figures.json")


@dataclass(frozen=True, slots=True)
class Played:
    """One case as it was played.

    Attributes:
        rounds: What each round measured.
        scale: The factor for all sizes.
        date: When, as YYYY-MM-DD.
        commit: Of flowmap.
        machine: In one line.
    """

    rounds: Rounds
    scale: float
    date: str
    commit: str
    machine: str

    @classmethod
    def now(cls, rounds: Rounds, scale: float) -> Played:
        """Note when, where and of what the figures are."""
        return cls(rounds, scale, time.strftime("%Y-%m-%d"), _commit(), _machine())


def load() -> dict[str, Played]:
    """Return what was saved, by case."""
    if not SAVED.exists():
        return {}
    return {name: Played(**one) for name, one in json.loads(SAVED.read_text()).items()}


def save(name: str, played: Played) -> None:
    """Put the figures of one case in the place of its last ones."""
    everything = load() | {name: played}
    document = {name: asdict(everything[name]) for name in sorted(everything)}
    SAVED.write_text(json.dumps(_rounded(document), indent=1) + "\n")


def _rounded(document: Any) -> Any:
    """Keep five digits of each number, which is more than repeats."""
    if isinstance(document, float):
        return float(f"{document:.5g}")
    if isinstance(document, dict):
        return {key: _rounded(each) for key, each in document.items()}
    if isinstance(document, list | tuple):
        return [_rounded(each) for each in document]
    return document


def _commit() -> str:
    command = "git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"
    return subprocess.check_output(command, text=True).strip()  # noqa: S603 -- our own


def _machine() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (
        f"{os.cpu_count()} processors ({_processor()}), {pages / 2**30:.0f} GiB of memory, "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
