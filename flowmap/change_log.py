"""Warning in the log of a flow run, once, that a filler was edited."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from prefect import get_run_logger, runtime
from prefect.exceptions import MissingContextError

from flowmap.errors import FlowmapError
from flowmap.job import read_job
from flowmap.sources import changed_by, changes_in

if TYPE_CHECKING:
    from logging import LoggerAdapter
    from pathlib import Path

    from flowmap.work import Work

_COMPARED: Final[set[tuple[str | None, str]]] = set()
"""Runs of this process, each with a job whose sources were compared: once for all its tasks."""


def log_changes(path: Path, job_id: str, work: Work | None = None) -> None:
    """Warn in the log of this run if segments were filled by an earlier source of the filler.

    Only the first call for a job in a flow run looks, since each of its tasks may call this.

    Args:
        path: Path of the target.
        job_id: The id of its job.
        work: The work of the run; None to compare what the records and files say.
    """
    which = runtime.flow_run.id or runtime.task_run.id, job_id
    if which in _COMPARED:
        return
    _COMPARED.add(which)
    try:
        job = read_job(path)
        changes = changes_in(job) if work is None else [changed_by(job, work)]
    except FlowmapError:  # the task itself says what is wrong
        return
    for change in changes:
        if change is not None:
            _logger().warning("%s", change)


def _logger() -> logging.Logger | LoggerAdapter[logging.Logger]:
    """Return the logger of this run, or flowmap's where a task's function is called as such."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("flowmap")
