"""What the Prefect UI shows of a job beyond its task runs: a progress bar and a summary."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final, cast

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

if TYPE_CHECKING:
    from uuid import UUID

    from flowmap.report import ValidationReport
    from flowmap.target import Target

_SECONDS: Final = 2.0  # between two updates: each is an API call


def artifact_key(target: Target, kind: str) -> str:
    """Return an artifact's key: lowercase letters, digits and dashes, as Prefect asks."""
    name = re.sub(r"[^a-z0-9]+", "-", target.path.name.lower()).strip("-")
    return f"flowmap-{kind}-{name}"


class ProgressBar:
    """The share of a job's rows that is done, as a progress artifact of the flow run.

    Args:
        target: The target.
        rows: Rows to be filled in this run.
    """

    def __init__(self, target: Target, rows: int) -> None:
        self._total = target.job.layout.rows
        self._done = self._total - rows
        self._shown_at = time.monotonic()
        # Called from a flow that is not async, it is the id and no coroutine.
        self._id = cast(
            "UUID",
            create_progress_artifact(
                self._percent, artifact_key(target, "progress"), f"Rows of {target.path}"
            ),
        )

    @property
    def _percent(self) -> float:
        return 100.0 * self._done / self._total if self._total else 100.0

    def advance(self, rows: int) -> None:
        """Count rows that are done; shown every two seconds at most."""
        self._done += rows
        if time.monotonic() - self._shown_at >= _SECONDS:
            self.show()

    def show(self) -> None:
        """Show how far it is now."""
        self._shown_at = time.monotonic()
        update_progress_artifact(self._id, self._percent)


def publish_summary(target: Target, report: ValidationReport) -> None:
    """Show what was made and how to open it, as a table under a key of its own.

    Args:
        target: The target.
        report: Of its validation, which passed.
    """
    rows = {
        "file": f"`{target.path}`",
        "shape": f"`{target.shape}`",
        "dtype": f"`{target.dtype}`",
        "order": "Fortran" if target.fortran_order else "C",
        "bytes": f"{target.nbytes:,}",
        "segments": f"{len(target.segments):,}",
        "digest (xxh3_128)": f"`{report.digest}`",
        "open it": f'`numpy.load("{target.path}", mmap_mode="r")`',
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    create_markdown_artifact(
        f"| | |\n|---|---|\n{table}\n", artifact_key(target, "summary"), str(target.path)
    )
