"""The Prefect tasks: the same functions as the core's, each a task run in the UI.

None of them persists its result, looks into a cache or carries a tag: each would cost API
calls for every segment.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.logging.loggers import task_run_logger
from prefect.states import Cancelled

from flowmap.alloc import allocate_or_attach
from flowmap.change_log import log_changes
from flowmap.deployed import check_place, place, work_of
from flowmap.errors import (
    FillerError,
    NotFoundError,
    StoppedError,
    StorageError,
    WrongTypeError,
    printable,
    said,
)
from flowmap.examination import examine
from flowmap.failures import clean_traceback, record_death
from flowmap.machine import available_cpus
from flowmap.run_attempts import attempts
from flowmap.segments import Segment
from flowmap.storage import PAGE
from flowmap.target import Target, open_target
from flowmap.unsent import bound_exit
from flowmap.write import fill_work, write_segment

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from numpy.typing import ArrayLike, DTypeLike
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

    from flowmap.casting import Casting
    from flowmap.checks import Check
    from flowmap.fillers import Filler
    from flowmap.job import Durability
    from flowmap.records import SegmentRecord
    from flowmap.report import ValidationReport
    from flowmap.wanted import Exist
    from flowmap.work import Work

_IN_PLACE: Final = threading.BoundedSemaphore(available_cpus())


def _fill_in_place(segment: Segment, work: Work) -> SegmentRecord:
    """Fill in the thread of the task run: at most one a processor at a time.

    A function, since a task is pickled with the globals that it names, and no lock can be.
    """
    with _IN_PLACE:
        return fill_work(segment, work)


RETRY_SECONDS: Final = (0.5, 3)
"""How long to wait, on average, before each try after the first."""


def worth_a_retry(error: object) -> bool:
    """Say whether trying again may help: after a passing fault of a disk or a network."""
    if isinstance(error, FillerError):
        return error.transient
    return isinstance(error, StorageError) and not isinstance(error, NotFoundError)


def _retry_condition(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Say whether Prefect is to try again; if not, log why, which Prefect then does not."""
    error = state.result(raise_on_failure=False)
    if worth_a_retry(error):
        return True
    if isinstance(error, BaseException):
        clean_traceback(error)
        task_run_logger(run, task).error("%s", said(error), exc_info=error)
    return False


def cut_short(segment: Segment, executor: Executor) -> StoppedError | None:
    """Return why a segment failed that its executor cancelled or stopped.

    Returns:
        None where the run is being ended: then no segment failed.
    """
    if getattr(executor, "ended", False):
        return None
    return StoppedError(
        f"{segment.name}: the executor cancelled it before it was done. Run again: what is "
        "done is kept."
    )


def cancelled() -> State[Any]:
    """Return the state of a segment's task run that ends with the flow's."""
    return Cancelled(message="The run was ended; what the segment has is kept.")


def _run_name(parameters: dict[str, Any]) -> str:
    """Name a run after its segment; what is none gets its error from the task itself."""
    segment = parameters["segment"]
    return segment.name if isinstance(segment, Segment) else "fill"


def _check_segment(segment: Any) -> None:
    """Refuse a segment of a target that the run may not have; what is none is told later."""
    bound_exit()
    if isinstance(segment, Segment):
        check_place(segment.path)


_SEGMENT_RUN: Final[dict[str, Any]] = {
    "task_run_name": _run_name,
    "persist_result": False,
    "cache_policy": NO_CACHE,
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": list(RETRY_SECONDS),
    "retry_jitter_factor": 1,
    "retry_condition_fn": _retry_condition,
}
"""How Prefect runs the task of one segment."""


def _placed(target: Target | str | os.PathLike[str]) -> Target:
    """Return a target, or open it by its path, if a run may have it."""
    bound_exit()
    if isinstance(target, Target):
        check_place(target.path)
        return target
    return open_target(place(target))


@task(name="allocate", task_run_name="allocate", persist_result=False, cache_policy=NO_CACHE)
def alloc_task(
    path: str | os.PathLike[str],
    shape: int | Sequence[int],
    dtype: DTypeLike,
    *,
    fortran_order: bool = False,
    segments: int | Sequence[int] | None = None,
    block_rows: int | None = None,
    exist: Exist = "resume",
    reserve: bool = True,
    align: int = PAGE,
    durability: Durability = "segment",
    checkpoint_seconds: float = 30,
    filler: Filler | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Target:
    """Allocate a target, as `flowmap.allocate` does.

    Args:
        path: Of the `.npy` file. Its folder must exist. With `FLOWMAP_ROOT` set a relative
            path is taken from there, and none may lead out; without it a deployed run
            refuses relative paths.
        shape: Elements along each axis.
        dtype: Of one element.
        fortran_order: Whether the last axis is the slow one.
        segments: How many; or the rows of each; or None.
        block_rows: Rows that a filler computes at once.
        exist: "resume", "error", "overwrite" or "renew". A later attempt of the same run (a
            retry, a run that resumes or begins again after its process died) attaches to the
            job that its first attempt allocated, and so keeps what that filled.
        reserve: Whether to reserve the space now.
        align: Bytes that segment boundaries are rounded to.
        durability: "segment" or "end".
        checkpoint_seconds: Seconds between syncs within a segment.
        filler: Pins the job to this filler. In a deployed run one that is named in text must
            be published, or lie beneath `FLOWMAP_FILLERS`.
        arguments: The filler's arguments, pinned with it.

    Returns:
        The target, new or attached to.

    Raises:
        FlowmapError: As `flowmap.allocate`; and when the run may not have the path or filler.
    """
    bound_exit()
    work = None if filler is None else work_of(filler, arguments)
    target, new = allocate_or_attach(
        place(path),
        shape,
        dtype,
        fortran_order=fortran_order,
        segments=segments,
        block_rows=block_rows,
        exist=exist,
        reserve=reserve,
        align=align,
        durability=durability,
        checkpoint_seconds=checkpoint_seconds,
        filler=filler,
        arguments=arguments,
        runs=attempts(),
    )
    left, count = len(target.pending()), len(target.segments)
    path = printable(str(target.path))
    if not new and exist in ("overwrite", "error"):
        get_run_logger().info("%s: an earlier attempt of this run allocated the job", path)
    get_run_logger().info("%s: %d of %d segments are to be filled", path, left, count)
    if work is not None:
        log_changes(target.path, target.id, work)
    return target


@task(name="pending", task_run_name="pending", persist_result=False, cache_policy=NO_CACHE)
def pending_task(target: Target | str | os.PathLike[str]) -> list[Segment]:
    """Return the segments that are not done yet, for flows that submit `alloc_task`.

    Args:
        target: The target, or its path.

    Raises:
        FlowmapError: There is no such target, or its ledger cannot be read.
    """
    return _placed(target).pending()


@task(name="fill", **_SEGMENT_RUN)
def fill_task(
    segment: Segment,
    filler: Filler | str,
    arguments: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
) -> SegmentRecord:
    """Fill one segment: one task run, named after the segment.

    In a map everything but the segments is wrapped:
    `fill_task.map(target.pending(), filler=unmapped(f), arguments=unmapped({...}))`.

    Args:
        segment: From `target.pending()`.
        filler: Called as `filler(out, block, **arguments)` for each block.
        arguments: The filler's arguments by name.
        executor: What `flowmap.executor(...)` opened, or any other; None fills here, at
            most one segment a processor at a time.

    Returns:
        What the ledger says of the segment.

    Raises:
        FlowmapError: As `flowmap.fill_segment`; and when the worker died each time.
    """
    if executor is not None and not hasattr(executor, "submit"):
        raise WrongTypeError(
            f"executor is {executor!r}; it takes an open one, as in: with "
            'flowmap.executor("processes") as pool: f.map(..., executor=unmapped(pool)).'
        )
    _check_segment(segment)
    work = work_of(filler, arguments)
    if isinstance(segment, Segment):
        log_changes(segment.path, segment.job, work)
    if executor is None:
        return _fill_in_place(segment, work)
    try:
        return executor.submit(fill_work, segment, work).result()
    except (CancelledError, StoppedError) as error:
        failure = cut_short(segment, executor)
        if failure is not None:
            raise failure from error
        ended: Any = cancelled()
        return cast("SegmentRecord", ended)
    except Exception as error:
        record_death(segment, error)
        raise


@task(name="write", **_SEGMENT_RUN)
def write_task(
    segment: Segment,
    values: ArrayLike,
    *,
    casting: Casting = "same_kind",
    replace: bool = False,
) -> SegmentRecord:
    """Write values at hand to a segment: one task run, named after the segment.

    Args:
        segment: From `target.pending()`.
        values: As many rows as the segment has.
        casting: Which casts are allowed, as in `numpy.can_cast`.
        replace: Whether a segment that is done with other bytes may be written again.

    Returns:
        What the ledger says of the segment.

    Raises:
        FlowmapError: As `flowmap.write_segment`.
    """
    _check_segment(segment)
    return write_segment(segment, values, casting=casting, replace=replace)


@task(name="validate", task_run_name="validate", persist_result=False, cache_policy=NO_CACHE)
def validate_task(
    target: Target | str | os.PathLike[str],
    *,
    check: Check | None = None,
    finite: bool = False,
    mark: bool = True,
    mixed: bool = False,
) -> ValidationReport:
    """Prove that every byte is there, as `flowmap.validate` does, or fail.

    Args:
        target: The target, or its path.
        check: Called as `check(values, block)` for each block.
        finite: Whether NaNs and infinities are a problem.
        mark: Whether to record anything of what is found.
        mixed: Whether segments may have been filled by different work.

    Returns:
        The report, which is good.

    Raises:
        ValidationFailed: It is not; `error.report` says what is missing or bad.
        FlowmapError: As `flowmap.validate`.
    """
    placed = _placed(target)
    report, _ = examine(placed, check=check, finite=finite, mark=mark, mixed=mixed)
    log_changes(placed.path, placed.id)
    report.raise_if_bad()
    get_run_logger().info("%s", replace(report, warnings=()))
    return report
