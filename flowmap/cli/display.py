"""The live display of a fill, on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from typing import TYPE_CHECKING, Final, Self

import rich.text
from rich.console import Group
from rich.live import Live
from rich.table import Table

from flowmap.cli.capturing import Captured
from flowmap.cli.output import PlainConsole, Text
from flowmap.cli.picture import Pace, bar, progress_of, speed_of
from flowmap.errors import FlowmapError
from flowmap.summary import Summary

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import RenderableType

    from flowmap.target import Target

_SECONDS: Final = 0.5
"""Between two looks at the ledger; more where a look takes long."""

_PAUSE: Final = 10
"""A look takes at most one part in so many of the time of a processor."""


class _Terminal(io.FileIO):
    """A terminal that may go away, as with a connection that is lost, and then takes all.

    Otherwise the thread that shows what fillers print would end, and they wait for it forever.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, if the terminal is still there."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class Display:
    """Shows how far a job is while it is filled, for a `with` block.

    It reads the ledger, as anybody can. What fillers print meanwhile appears above it.

    Args:
        target: The target.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._pace = Pace()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="flowmap-display", daemon=True)
        self._stack = contextlib.ExitStack()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            captured = stack.enter_context(Captured(self._above))
            terminal = stack.enter_context(
                io.TextIOWrapper(
                    io.BufferedWriter(_Terminal(os.dup(captured.terminal()), "w")),
                    line_buffering=True,
                )
            )
            console = PlainConsole(file=terminal, force_terminal=True)
            live = Live(console=console, auto_refresh=False, transient=True)
            self._live = stack.enter_context(live)
            self._thread.start()
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _above(self, line: str) -> None:
        """Show a line above the display."""
        if self._live is not None:
            self._live.console.print(rich.text.Text.from_ansi(line))

    def _watch(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(FlowmapError):  # the fill itself tells of it
                self._show()
            pause = max(_SECONDS, _PAUSE * (time.monotonic() - began))

    def _show(self) -> None:
        summary = Summary.of(self._target)
        self._pace.note(summary.rows_done)
        if self._live is not None:
            self._live.update(self._picture(summary), refresh=True)

    def _picture(self, summary: Summary) -> RenderableType:
        first = Table.grid(padding=(0, 1), expand=True)
        first.add_column(no_wrap=True)
        first.add_column(ratio=1)
        first.add_column(no_wrap=True, justify="right")
        percent = 100 * summary.rows_done // max(summary.rows, 1) if summary.rows else 100
        first.add_row(Text(self._target.path.name, "bold"), bar(summary), f"{percent} %")
        counts = summary.counts
        ready = counts["done"] + counts["written"]
        parts = [f"{ready} of {summary.segments} segments done"]
        for state in ("running", "failed"):
            parts += [f"{counts[state]} {state}"] if counts[state] else []
        parts += speed_of(summary, self._pace)
        return Group(first, Text(progress_of(summary)), Text(", ".join(parts)))
