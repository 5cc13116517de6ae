"""The part of docs/performance.md that `make bench` writes, between two marks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.report import scaled
from benchmarks.rounds import ROOT
from benchmarks.tables import GOALS, case_rows, goal_rows, heading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.case import Case
    from benchmarks.figures import Played

PAGE: Final = ROOT / "docs" / "performance.md"
BEGIN: Final = "<!-- figures: written by make bench -->"
END: Final = "<!-- end of figures -->"


def write(cases: Iterable[Case], played: dict[str, Played]) -> None:
    """Put the tables of all cases that were saved between the marks."""
    known = [case for case in cases if case.name in played]
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    made = "\n".join(_lines(known, played))
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}")


def _lines(cases: Sequence[Case], played: dict[str, Played]) -> Iterator[str]:
    machines = {played[case.name].machine for case in cases}
    if len(machines) == 1:
        yield from (f"Measured on {machines.pop()}.", "")
    yield from _table(
        GOALS, [row for case in cases for row in goal_rows(case, played[case.name].rounds)]
    )
    yield from ("![Speed against the reference of each case](performance.png)", "")
    for case in cases:
        one = played[case.name]
        made = f"{one.date} at {one.commit}, {len(one.rounds)} rounds{scaled(one)}"
        where = f", on {one.machine}" if machines else ""
        yield from (f"### {case.name}", "", f"{case.title} ({made}{where}).", "")
        yield from _table(heading(case), case_rows(case, one.rounds))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    text = ("", "case", "goal", "reach", "reached")
    yield "|" + "|".join("---" if column in text else "---:" for column in head) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""
