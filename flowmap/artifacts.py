"""What the Prefect UI shows of a job beyond its task runs: a progress bar and a summary."""

from __future__ import annotations

import contextvars
import json
import math
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, cast

import numpy as np
from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flowmap.errors import printable, said, short

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from flowmap.report import ValidationReport
    from flowmap.target import Target

_SECONDS: Final = 2.0  # between two updates: each is an API call
_PATIENCE: Final = 30.0  # seconds at the end: a server that hangs may never answer
_LONGEST: Final = 100_000  # characters of a parameter; Prefect refuses 512 KB in all


def artifact_key(target: Target, kind: str) -> str:
    """Return an artifact's key: lowercase letters, digits and dashes, as Prefect asks."""
    name = re.sub(r"[^a-z0-9]+", "-", target.path.name.lower()).strip("-")
    return f"flowmap-{kind}-{name}"


def code(value: object) -> str:
    """Return Markdown that shows a text as it is, in a cell of a table, too.

    Args:
        value: Its text: a file name may hold whatever Markdown or HTML would obey.
    """
    text = printable(str(value)).replace("\n", "\\n").replace("|", "\\|")
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


def shown(value: object) -> Any:
    """Return what Prefect stores and shows of a parameter; the filler gets it as it is.

    Some values do not survive on the way to Prefect's database. While a run has a whole number
    beyond 64 bits, the server of Prefect 3.8 answers its list of runs with status 500; NaN and
    infinity become null; a lone surrogate ends the client; PostgreSQL refuses a NUL. They
    become texts.
    """
    try:
        plain = _plain(value)
        fits = len(json.dumps(plain)) <= _LONGEST
    except RecursionError:  # it holds itself
        fits = False
    return plain if fits else printable(short(value, _LONGEST))


def _plain(value: object) -> Any:
    if isinstance(value, dict):
        return {_key(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.bool_ | np.integer | np.str_):
        value = value.item()
    if isinstance(value, float | np.floating):
        value = float(value) if math.isfinite(float(value)) else str(value)
    small = not isinstance(value, int) or -(2**63) <= value < 2**63
    if value is None or (isinstance(value, int | float) and small):
        return value
    return printable(value if isinstance(value, str) else short(value, _LONGEST))


def _key(key: object) -> str:
    return printable(key if isinstance(key, str) else short(key))


class Artifacts:
    """The artifacts of a flow run: how many of a job's rows are done, and what came of it.

    The calls are made in a thread of their own, since each takes long on a server that records
    thousands of task runs meanwhile; the end of the `with` block waits for them for some
    seconds, unless the run was cut short. One that fails is reported in the log and costs no
    more than itself.

    Args:
        target: The target.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._total = self._done = target.job.layout.rows
        self._shown_at = 0.0
        self._id: UUID | None = None
        self._thread = ThreadPoolExecutor(1, "flowmap-artifacts")
        self._calls: list[Future[object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            ended, late = wait(self._calls, _PATIENCE)
            for error in (call.exception() for call in ended):
                if error is not None:
                    get_run_logger().warning("Not shown in the UI: %s", said(error))
            if late:
                get_run_logger().warning("Not shown in the UI: the server does not answer")
        self._thread.shutdown(wait=False, cancel_futures=True)

    def begin(self, rows: int) -> None:
        """Show that so many rows are to be filled in this run."""
        self._done = self._total - rows
        self.show()

    def advance(self, rows: int) -> None:
        """Count rows that are done; shown every two seconds at most."""
        self._done += rows
        due = time.monotonic() - self._shown_at >= _SECONDS
        if due and all(call.done() for call in self._calls):
            self.show()

    def end(self, report: ValidationReport) -> None:
        """Show what was made and how to open it, as a table under a key of its own.

        Args:
            report: Of the validation, which passed.
        """
        target = self._target
        rows = {
            "file": code(target.path),
            "shape": code(target.shape),
            "dtype": code(target.dtype),
            "order": "Fortran" if target.fortran_order else "C",
            "bytes": f"{target.nbytes:,}",
            "segments": f"{len(target.segments):,}",
            "digest (xxh3_128)": code(report.digest),
            "open it": code(f'numpy.load("{target.path}", mmap_mode="r")'),
        }
        table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
        text = f"| | |\n|---|---|\n{table}\n"
        key = artifact_key(target, "summary")
        self._call(create_markdown_artifact, text, key, code(target.path))

    def show(self) -> None:
        """Show how far it is now."""
        self._shown_at = time.monotonic()
        self._call(self._put, 100.0 * self._done / self._total if self._total else 100.0)

    def _put(self, percent: float) -> None:
        if self._id is not None:
            update_progress_artifact(self._id, percent)
            return
        key = artifact_key(self._target, "progress")
        about = f"Rows of {code(self._target.path)}"
        # Called where nothing is async, it is the id and no coroutine.
        self._id = cast("UUID", create_progress_artifact(percent, key, about))

    def _call(self, call: Callable[..., object], *arguments: object) -> None:
        context = contextvars.copy_context()  # which says of which flow run it is
        self._calls.append(self._thread.submit(partial(context.run, call, *arguments)))
