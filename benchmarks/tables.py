"""What the tables say, as rows of text: for the terminal and for the page alike."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.case import fastest, speed, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.case import Case, Goal, Rounds

GOALS = "case", "goal", "reach", "measured", "quartiles", "noise", "reached"
"""The heading of the table of goals."""


def goal_rows(case: Case, rounds: Rounds) -> list[tuple[str, ...]]:
    """Return the lines of a case in the table of goals."""
    return [(case.name, *_goal_row(case, goal, rounds)) for goal in case.goals]


def _goal_row(case: Case, goal: Goal, rounds: Rounds) -> tuple[str, ...]:
    values = goal.measure(rounds, goal.contestant)
    unit = f" {goal.unit}" if goal.unit else ""
    reached = median(values) <= goal.limit if goal.at_most else median(values) >= goal.limit
    text = goal.text
    if "{peer}" in text:
        text = text.format(peer=fastest(case.peers, rounds, case.figure))
    return (
        text,
        f"{'at most' if goal.at_most else 'at least'} {goal.limit:g}{unit}",
        f"{number(median(values))}{unit}",
        spread(values),
        spread(case.noise(rounds, goal)) + (unit if goal.noise else ""),
        "yes" if reached else "no",
    )


def heading(case: Case) -> tuple[str, ...]:
    """Return the heading of a case's own table."""
    if case.compared:
        return ("", *case.columns.values(), f"speed against {case.reference}", "quartiles")
    return ("", *case.columns.values(), f"quartiles of {case.columns[case.figure]}")


def case_rows(case: Case, rounds: Rounds) -> list[tuple[str, ...]]:
    """Return the lines of a case's own table: the medians of each contestant."""
    rows = []
    for player in case.players:
        medians = [median(r[player.name][c] for r in rounds) for c in case.columns]
        row = player.name, *map(number, medians)
        ratios = speed(case.reference, case.figure)(rounds, player.name)
        if not case.compared:
            rows.append((*row, spread(value(case.figure)(rounds, player.name))))
        elif player.name == case.reference:
            rows.append((*row, "1", ""))
        else:
            rows.append((*row, number(median(ratios)), spread(ratios)))
    return rows


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the values below which a quarter and three quarters of all lie."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low), float(high)


def spread(values: Sequence[float]) -> str:
    """Return the quartiles as text."""
    low, high = quartiles(values)
    return f"{number(low)} to {number(high)}"


def number(value: float) -> str:
    """Return a figure with three digits, and with no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return np.format_float_positional(value, 3, fractional=False, trim="-")
