"""`flowmap status`."""

import threading
import time
from typing import Any

import numpy as np
from rich.console import Group
from rich.live import Live

from flowmap.choosing import segments_of
from flowmap.cli.advice import how_to_fill, how_to_see_why
from flowmap.cli.changes import say_changes
from flowmap.cli.exits import Exit
from flowmap.cli.output import out, quoted, say, say_json
from flowmap.cli.parameters import AsJson, Seconds, SegmentNames, TargetPath, Watch
from flowmap.cli.picture import (
    Pace,
    details,
    failures,
    headlines,
    outlook,
    segment_map,
    slowest,
)
from flowmap.errors import InvalidArgumentError
from flowmap.sources import changes_in
from flowmap.summary import Summary
from flowmap.target import Target, open_target

_CODES = {
    "valid": Exit.DONE,
    "done": Exit.DONE,
    "running": Exit.INCOMPLETE,
    "incomplete": Exit.INCOMPLETE,
    "damaged": Exit.DAMAGED,
}


def status(
    path: TargetPath,
    /,
    *,
    segment: SegmentNames = None,
    watch: Watch = False,
    interval: Seconds = 1.0,
    as_json: AsJson = False,
) -> Exit:
    """Show how far an array is: its state, a map of its segments, the slowest and the failed.

    All of it is read from the records beside the file, on whatever machine sees them. The exit
    code is 0 where everything is done, 3 where segments are missing, 4 where some are damaged.

    Args:
        path: Of the .npy file.
        segment: Show these only, with all that is known of them: of one that failed the
            traceback.
        watch: Go on showing it until everything is done, or Ctrl-C.
        interval: Seconds between two looks.
    """
    target = open_target(path)
    chosen = None if segment is None else segments_of(target, segment)
    if watch:
        if as_json or chosen is not None:
            raise InvalidArgumentError("--watch goes with neither --json nor --segment.")
        say_changes(path, changes_in(target.job), as_json=False)
        return _watch(target, path, interval)
    table = target.status()
    summary = Summary.of(target, table)
    if chosen is not None:
        table = table[[one.index for one in chosen]]
    warnings = say_changes(path, changes_in(target.job), as_json=as_json)
    if as_json:
        rows = [dict(zip(table.dtype.names or (), row, strict=True)) for row in table.tolist()]
        say_json(summary.document() | {"segment_list": rows} | warnings)
    elif chosen is not None:
        say(*(details(target, row) for row in table))
    else:
        say(_picture(path, target, summary, table))
        say(*_advice(path, target, summary, table))
    return _CODES[summary.state]


def _watch(target: Target, path: str, interval: float) -> Exit:
    """Show it again and again; off a terminal a line whenever something has changed."""
    console = out(wrap=True)
    pace = Pace()
    with Live(console=console, auto_refresh=False) as live:
        told = ""
        while True:
            began = time.monotonic()
            table = target.status()
            summary = Summary.of(target, table)
            pace.note(summary.rows_done)
            if console.is_terminal:
                live.update(_picture(path, target, summary, table, pace), refresh=True)
            elif (line := ", ".join(map(str, headlines(path, summary)))) != told:
                told = line
                say(line)
            if summary.is_filled and summary.run is None:
                return _CODES[summary.state]
            # Of a ledger of 40 MB, on a slow disk, not all the time.
            pause = max(interval, 10 * (time.monotonic() - began))
            time.sleep(min(pause, threading.TIMEOUT_MAX))


def _picture(
    path: str, target: Target, summary: Summary, table: Any, pace: Pace | None = None
) -> Group:
    console = out()
    parts = [
        *headlines(path, summary),
        segment_map(table, console.width, fancy=console.encoding.startswith("utf")),
        outlook(summary, pace),
        slowest(summary, table),
        failures(target, table),
    ]
    return Group(*(part for part in parts if part))


def _advice(path: str, target: Target, summary: Summary, table: Any) -> list[str]:
    if summary.state == "valid":
        return []
    if summary.state == "running":
        return [f"To watch it: flowmap status {quoted(path)} --watch"]
    if summary.is_filled:
        return [f"Next: flowmap validate {quoted(path)}"]
    (failed,) = np.nonzero(table["state"] == "failed")
    why = how_to_see_why(path, target, failed.tolist())
    fill = f"To fill what is missing: {how_to_fill(path, target)}"
    return [why, fill] if why else [fill]
