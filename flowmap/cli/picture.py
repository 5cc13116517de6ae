"""What the command shows of a job: a line, a map of its segments, the slowest, the failed."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table

from flowmap import human
from flowmap.cli.output import Text
from flowmap.dtypes import dtype_from_descr
from flowmap.failures import failure_of
from flowmap.records import REASON_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import RenderableType

    from flowmap.summary import Summary
    from flowmap.target import Target

_LOOKS: Final = {
    "damaged": ("!", "!", "bold red"),
    "failed": ("✗", "x", "red"),
    "running": ("▒", "~", "yellow"),
    "pending": ("·", ".", "bright_black"),
    "written": ("▓", "+", "cyan"),
    "done": ("█", "#", "green"),
}
"""How a segment of each state looks, in UTF-8 and ASCII; what is to be noticed comes first."""

_LINES: Final = 8
"""Lines of the map at most: a cell of it then stands for several segments."""

_SHOWN: Final = 5
"""Segments that a list of those shows which want to be looked at."""

_NOTABLE: Final = 0.1
"""Seconds that a segment must have taken to be called slow."""

_SLOWEST: Final = 3
"""Segments that are done which the list of the slowest shows."""

_MEMORY: Final = 30.0
"""Seconds over which a rate is taken."""


class Pace:
    """How fast rows come, by several looks at how many there are."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def note(self, rows_done: int) -> None:
        """Note how many rows there are now."""
        now = time.monotonic()
        if self._looks and rows_done < self._looks[-1][1]:  # a segment was begun anew
            self._looks.clear()
        self._looks.append((now, rows_done))
        while self._looks[0][0] < now - _MEMORY and len(self._looks) > 2:  # noqa: PLR2004
            self._looks.popleft()

    @property
    def rows_a_second(self) -> float:
        """Of the last half minute; 0 where nothing is known."""
        if len(self._looks) < 2:  # noqa: PLR2004 -- it takes two looks
            return 0.0
        (began, before), *_, (now, after) = self._looks
        return (after - before) / (now - began) if now > began else 0.0


def described(summary: Summary) -> str:
    """Return what a target is, in a line."""
    order = ", Fortran order" if summary.fortran_order else ""
    dtype = dtype_from_descr(summary.dtype)
    return (
        f"{summary.path}, shape {summary.shape}, dtype {dtype}{order}, "
        f"{human.size(summary.nbytes)} in {human.count(summary.segments)} segments"
    )


def headlines(path: str, summary: Summary) -> list[Text]:
    """Return the state of a job, how much of it is there, and the states of its segments."""
    styles = {"valid": "bold green", "done": "green", "damaged": "bold red"}
    counts = [
        f"{human.count(number)} {state}"
        for state, number in reversed(summary.counts.items())
        if number
    ]
    return [
        Text()
        .append(path, "bold")
        .append(": ")
        .append(summary.state, styles.get(summary.state, "bold")),
        Text(f"{_percent(summary)}, {progress_of(summary)}"),
        Text(f"{human.count(summary.segments)} segments: {', '.join(counts) or 'none'}"),
    ]


def progress_of(summary: Summary) -> str:
    """Return how many rows and bytes there are, of how many."""
    return (
        f"{human.count(summary.rows_done)} of {human.count(summary.rows)} rows, "
        f"{human.size(summary.bytes_done)} of {human.size(summary.nbytes)}"
    )


def _percent(summary: Summary) -> str:
    if not summary.rows:
        return "100 %"
    return f"{math.floor(100 * summary.rows_done / summary.rows)} %"  # 100 only when it is


def segment_map(table: NDArray[Any], width: int, *, fancy: bool) -> Text:
    """Return a map of all segments, a cell for each, or for several where there are many.

    Args:
        table: What `Target.status` returned.
        width: Columns of the terminal.
        fancy: Whether it shows more than ASCII.
    """
    each = max(1, -(-len(table) // (width * _LINES)))
    cells = [
        _most_noticed(table["state"][first : first + each])
        for first in range(0, len(table), each)
    ]
    text = Text()
    for first in range(0, len(cells), width):
        for state in cells[first : first + width]:
            sign, plain, style = _LOOKS[state]
            text.append(sign if fancy else plain, style)
        text.append("\n")
    shown = [state for state in reversed(_LOOKS) if state in cells]
    for state in shown:
        sign, plain, style = _LOOKS[state]
        text.append(f"{sign if fancy else plain}", style)
        text.append(f" {state}  ")
    if each > 1:
        text.append(f"(a sign is {each} segments)")
    text.rstrip()
    return text


def _most_noticed(states: NDArray[Any]) -> str:
    """Return the state that a cell of several segments shows."""
    there = set(states.tolist())
    if "done" in there and "pending" in there and there <= {"done", "pending"}:
        return "pending"
    return next(state for state in _LOOKS if state in there)


def bar(summary: Summary) -> ProgressBar:
    """Return a progress bar over the rows."""
    return ProgressBar(
        total=max(summary.rows, 1),
        completed=summary.rows_done if summary.rows else 1,
        complete_style="green",
        finished_style="green",
    )


def outlook(summary: Summary, pace: Pace | None) -> Text | None:
    """Return who is filling, how fast, and how long it will take; None where nobody is."""
    lines = []
    if (run := summary.run) is not None:
        ago = human.seconds(max(0.0, time.time() - run["refreshed"]))
        where = f" (process {run['pid']} on {run['host']})"
        who = run["name"] if str(run["pid"]) in run["name"] else f"{run['name']}{where}"
        lines.append(f"Filled by {who}, sign of life {ago} ago")
    if pace is not None and (speed := speed_of(summary, pace)):
        lines.append(", ".join(speed))
    return Text("\n".join(lines)) if lines else None


def speed_of(summary: Summary, pace: Pace) -> list[str]:
    """Return bytes a second, and the time that is left; nothing where it is unknown."""
    rate = pace.rows_a_second
    if not rate:
        return []
    row_bytes = summary.nbytes / summary.rows
    left = round((summary.rows - summary.rows_done) / rate)
    return [
        f"{human.size(round(rate * row_bytes))}/s",
        *([f"{human.seconds(left)} left"] if left else []),
    ]


def slowest(summary: Summary, table: NDArray[Any]) -> Table | None:
    """Return the segments that have been running longest, and that took longest."""
    shown = _list()
    now = time.time()
    running = table[table["state"] == "running"]
    for row in running[np.argsort(running["started"])][:_SHOWN]:
        rows = int(row["stop"] - row["start"])
        last = max(0.0, now - float(row["finished"]))
        shown.add_row(
            Text("running" if summary.run is not None else "unfinished", "yellow"),
            _name(row),
            f"{100 * int(row['rows_done']) // max(rows, 1)} %",
            f"for {human.seconds(max(0.0, now - float(row['started'])))}",
            f"process {row['pid']} on {row['host']}, {human.seconds(last)} ago",
        )
    done = table[(table["state"] == "done") | (table["state"] == "written")]
    took = done["finished"] - done["started"]
    for index in np.argsort(-took)[:_SLOWEST]:
        if took[index] < _NOTABLE:
            break
        row = done[index]
        shown.add_row(
            Text("slowest", "bright_black"),
            _name(row),
            "",
            f"took {human.seconds(max(0.0, float(took[index])))}",
            f"process {row['pid']} on {row['host']}",
        )
    return shown if shown.row_count else None


def failures(target: Target, table: NDArray[Any]) -> Table | None:
    """Return each cause for which segments failed or are damaged, with these segments."""
    shown = _list()
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in table[(table["state"] == "failed") | (table["state"] == "damaged")]:
        groups.setdefault((str(row["state"]), _reason(target, row)), []).append(row)
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    for (state, reason), rows in largest[:_SHOWN]:
        why = reason or "its bytes are not what was written"
        shown.add_row(Text(state, "red"), _names(rows), Text(why))
    if left := sum(len(rows) for _, rows in largest[_SHOWN:]):
        shown.add_row("", f"and {left} more", "")
    return shown if shown.row_count else None


def _reason(target: Target, row: Any) -> str:
    """Return why the last attempt at a segment failed; the ledger has room for a short text."""
    reason = str(row["reason"])
    if len(reason.encode()) < REASON_BYTES - 3:  # of a letter that was cut
        return reason
    kept = failure_of(target.job, int(row["index"]), int(row["attempt"]))
    return reason if kept is None else str(kept["reason"])


def _names(rows: list[Any]) -> Text:
    if len(rows) == 1:
        return _name(rows[0])
    indices = human.ranges(int(row["index"]) for row in rows)
    return Text(f"{len(rows)} segments ({indices})")


def _list() -> Table:
    """Return a table whose first columns, state and name of a segment, are not broken."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    return table


def details(target: Target, row: Any) -> Group:
    """Return all that is known of one segment.

    Args:
        target: The target.
        row: Of its status.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    rows = int(row["stop"] - row["start"])
    known = {
        "state": str(row["state"]),
        "rows": f"{human.count(int(row['rows_done']))} of {human.count(rows)}",
        "attempt": str(row["attempt"]) if row["attempt"] else "none yet",
    }
    if row["attempt"]:
        took = max(0.0, float(row["finished"] - row["started"]))
        known |= {
            "begun": date(float(row["started"])),
            "last record": f"{date(float(row['finished']))}, {human.seconds(took)} later",
            "by": f"process {row['pid']} on {row['host']}",
            "digest": str(row["digest"]) or "none",
        }
    if row["work"]:
        known["work"] = target.job.describe_work(str(row["work"]))
    kept = failure_of(target.job, int(row["index"]), int(row["attempt"]))
    if reason := _reason(target, row):
        known["reason"] = reason
    for name, text in known.items():
        table.add_row(name, Text(text))
    parts: list[RenderableType] = [Text.assemble((_name(row).plain, "bold")), table]
    if kept is not None:
        parts.append(Text(kept["traceback"].rstrip()))
    return Group(*parts)


def date(seconds: float) -> str:
    """Return a time, in seconds since 1970, as a date and the time of day here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _name(row: Any) -> Text:
    return Text(f"segment {row['index']:04d} [{row['start']}:{row['stop']}]")
