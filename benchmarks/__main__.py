"""Plays benchmarks: `python -m benchmarks [case ...] [--rounds N] [--scale F] [--save]`."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.status import Status

from benchmarks import figures, page, picture
from benchmarks.cases import CASES
from benchmarks.report import case_table, goals_table
from benchmarks.rounds import play


def main() -> None:
    """Play the cases that are asked for, show them, and save them if that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(_names()))
    parser.add_argument("--rounds", type=int, default=11, help="how many (11)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for all sizes (1)")
    parser.add_argument(
        "--save", action="store_true", help="put the figures into docs/performance.md"
    )
    asked = parser.parse_args()
    unknown = set(asked.cases) - set(_names())
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; try {', '.join(_names())}")

    console = Console(width=None if sys.stdout.isatty() else 120)
    played = {}
    for case in (case for case in CASES if case.name in (asked.cases or _names())):
        with Status("", console=console) as status:
            rounds = play(case, min(asked.rounds, case.most), asked.scale, status.update)
        played[case.name] = figures.Played.now(rounds, asked.scale)
        console.print(case_table(case, played[case.name]))
        if asked.save:
            figures.save(case.name, played[case.name])
    if any(case.goals for case in CASES if case.name in played):
        console.print(goals_table(CASES, played))
    if asked.save:
        saved = figures.load()
        page.write(CASES, saved)
        picture.draw(CASES, saved)


def _names() -> list[str]:
    return [case.name for case in CASES]


if __name__ == "__main__":
    main()
