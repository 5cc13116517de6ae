"""The warning that an executor has started no segment, given once."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from flowmap.errors import FlowmapError, printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from flowmap.target import Target

PATIENCE_SECONDS: Final = 30
"""How long an executor may take to begin."""


class StallWatch:
    """Warns once if no segment has begun half a minute after they were handed over.

    The ledger shows which have: a worker claims a segment before it computes anything.

    Args:
        target: The target, before anything is handed over.
        executor: What fills it.
        count: How many segments it is given.
        warn: Called with the warning.
    """

    def __init__(
        self, target: Target, executor: Executor, count: int, warn: Callable[[str], object]
    ) -> None:
        self._target = target
        self._executor = executor
        self._count = count
        self._warn = warn
        self._attempts = target.status()["attempt"]
        self._due = time.monotonic() + PATIENCE_SECONDS
        self._is_over = False

    def end(self) -> None:
        """Take notice that a segment has ended: the executor works."""
        self._is_over = True

    def look(self) -> None:
        """Warn if it is time and nothing has begun; call this while nothing ends."""
        if self._is_over or time.monotonic() < self._due:
            return
        self._is_over = True
        with contextlib.suppress(FlowmapError):  # of the job: the run itself will meet it
            if (self._target.status()["attempt"] == self._attempts).all():
                self._warn(
                    printable(
                        f"None of the {self._count} segments of {self._target.path} has begun "
                        f"{PATIENCE_SECONDS} seconds after they were handed over. "
                        f"{_advice(self._executor)} Still waiting; Ctrl-C ends the run."
                    )
                )


def _advice(executor: Executor) -> str:
    advice: Callable[[], str] | None = getattr(executor, "advice", None)
    if advice is not None:
        return advice()
    return (
        f"Look whether the workers of the executor ({type(executor).__qualname__}) have "
        "started: they may still import the filler's module, wait in the queue of a batch "
        "system, or have failed to start."
    )
