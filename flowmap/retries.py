"""The attempts of the runs that allocated a job: a later attempt attaches to it.

A run that is tried again calls `alloc_task(exist="overwrite")` again, and must not throw away
what its first attempt filled. So `job.json` names the runs around the call that made the job,
and the attempt of each. Only a layer that knows an orchestrator can name runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowmap.job import Job

_REMEMBERED: Final = 24
"""Runs whose job was replaced that a job names: each worker reads all of it."""


def allocated_before(job: Job, runs: Mapping[str, str]) -> bool:
    """Return whether an earlier attempt of a run made the job, as its first one at the path.

    A flow may allocate a path twice on purpose. Its next attempt begins with the first one.

    Args:
        job: The job at the path.
        runs: The attempt of each run, by the run's id.
    """
    there = _attempts(job, "runs")
    return any(
        run in there and there[run][0] != attempt and there[run][1] == 0
        for run, attempt in runs.items()
    )


def was_replaced(job: Job, runs: Mapping[str, str]) -> bool:
    """Return whether the job replaced one that an earlier attempt of a run had made."""
    there = _attempts(job, "replaced")
    own = _attempts(job, "runs").keys() & runs.keys()
    return not own and any(
        run in there and there[run][0] != attempt for run, attempt in runs.items()
    )


def attached(job: Job, runs: Mapping[str, str]) -> dict[str, Any]:
    """Return what a job records of its making when a later attempt attaches to it."""
    return dict(job.made) | {"runs": _counted(job, runs, 0)}


def replacing(job: Job | None, runs: Mapping[str, str]) -> dict[str, Any]:
    """Return what a new job records of the runs that make it, and of those of the last job.

    Args:
        job: The last job at the path, if any.
        runs: The attempt of each run, by the run's id.
    """
    last = {} if job is None else _attempts(job, "replaced") | _attempts(job, "runs")
    others = {run: attempt for run, attempt in last.items() if run not in runs}
    found: dict[str, Any] = {"runs": _counted(job, runs, 1)} if runs else {}
    if others:
        found["replaced"] = dict(list(others.items())[-_REMEMBERED:])
    return found


def _counted(job: Job | None, runs: Mapping[str, str], more: int) -> dict[str, list[Any]]:
    """Return each run with its attempt, and how many jobs that attempt had made here before."""
    there = {} if job is None else _attempts(job, "runs")
    return {
        run: [attempt, there[run][1] + more if run in there and there[run][0] == attempt else 0]
        for run, attempt in runs.items()
    }


def _attempts(job: Job, name: str) -> dict[str, list[Any]]:
    """Return what a job, which another user may have written, says of some runs."""
    found = job.made.get(name)
    if not isinstance(found, dict):
        return {}
    return {
        run: pair
        for run, pair in found.items()
        if isinstance(pair, list) and [type(each) for each in pair] == [str, int]
    }
