"""What a run shows in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.tables import GOALS, case_rows, goal_rows, heading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.case import Case
    from benchmarks.figures import Played


def case_table(case: Case, played: Played) -> Table:
    """Return the table of one case."""
    title = f"{case.title} (median of {len(played.rounds)} rounds{scaled(played)})"
    return _table(title, heading(case), case_rows(case, played.rounds))


def goals_table(cases: Iterable[Case], played: dict[str, Played]) -> Table:
    """Return the table of goals, of the cases that were played."""
    rows = [
        row
        for case in cases
        if case.name in played
        for row in goal_rows(case, played[case.name].rounds)
    ]
    return _table("Goals", GOALS, rows)


def scaled(played: Played) -> str:
    """Say that sizes were other than the full ones, if they were."""
    return "" if played.scale == 1 else f", sizes times {played.scale:g}"


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in head:
        text = column in ("", "case", "goal", "reach")
        table.add_column(column, justify="left" if text else "right")
    for row in rows:
        table.add_row(*row, style="red" if row[-1] == "no" else None)
    return table
