"""The flow `fill-array`: allocate, fill each segment in a task run of its own, validate."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import numpy as np
from prefect import get_run_logger, runtime
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from pydantic import BeforeValidator, Field

from flowmap.artifacts import Artifacts, shown
from flowmap.callables import open_partial
from flowmap.closing import close_dead_run
from flowmap.deployed import is_deployed, work_of
from flowmap.dtypes import dtype_from_descr
from flowmap.errors import InvalidArgumentError
from flowmap.executors import ExecutorName, needs_lease, refuse_other_work, width
from flowmap.executors import executor as open_executor
from flowmap.fanning import FanOut
from flowmap.lease import Lease, leased
from flowmap.marks import mark_of
from flowmap.npy import Layout
from flowmap.report import ValidationReport
from flowmap.run_errors import check_loadable, failed
from flowmap.stall import StallWatch
from flowmap.stopping import exit_for_now, stoppable
from flowmap.tasks import alloc_task, validate_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowmap.segments import Segment
    from flowmap.target import Target
    from flowmap.work import Work

_TELL_SECONDS = 10  # between two lines of the log that say how far it is


def _filler_name(filler: Any) -> Any:
    """Turn an importable filler into its name."""
    if not callable(filler):
        return filler
    name = mark_of(filler).place
    module, _, attribute = name.partition(":")
    if getattr(sys.modules.get(module), attribute, None) is not filler:
        raise InvalidArgumentError(
            f"The filler {name} cannot be imported by that name, as this flow "
            "takes it. Put it into a module, or use flowmap.fill or a flow of your own."
        )
    return name


def _dtype_name(dtype: Any) -> Any:
    """Turn a dtype into what names it in JSON."""
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and dtype is not str):
        return Layout.of((), dtype, fortran_order=False).descr
    return dtype


def _dtype_of(name: Any) -> Any:
    """Turn a list that names a dtype back into it: a field without a name is padding."""
    try:
        dtype = dtype_from_descr(name) if isinstance(name, list) else None
    except (TypeError, ValueError):  # allocating it says what is wrong
        return name
    return dtype if dtype is not None and dtype.names and all(dtype.names) else name


def _path_name(path: Any) -> Any:
    """Turn a path into its text."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _without_partial(parameters: dict[str, Any]) -> dict[str, Any]:
    """Turn a filler that is a partial into the function and the arguments that it binds."""
    filler, bound = open_partial(parameters.get("filler"))
    given = parameters.get("arguments") or {}
    if not (bound and isinstance(given, dict)):
        return parameters | ({"filler": filler} if "filler" in parameters else {})
    return parameters | {"filler": filler, "arguments": bound | given}


FillerName = Annotated[str, BeforeValidator(_filler_name)]
PathName = Annotated[str, BeforeValidator(_path_name)]
Fields = Annotated[list[Any], Field(min_length=1)]
DTypeName = Annotated[str | Fields, BeforeValidator(_dtype_name)]
Length = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

_CONVERT = {"path": _path_name, "filler": _filler_name, "dtype": _dtype_name}


class _PlainFlow(Flow[..., ValidationReport]):
    """A flow whose parameters Prefect shows as the names they stand for."""

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return super().validate_parameters(_without_partial(parameters))

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        plain = _without_partial(parameters)
        for name, convert in _CONVERT.items():
            if name in plain:
                plain[name] = convert(plain[name])
        return {name: shown(value) for name, value in plain.items()}


def _plain_flow(function: Callable[..., ValidationReport]) -> _PlainFlow:
    # A serving process pickles the function by value, without the names of its annotations.
    function.__annotations__ = get_type_hints(function, include_extras=True)
    return _PlainFlow(function, name="fill-array")


@_plain_flow
def fill_array(
    path: PathName,
    shape: Length | list[Length] = 1_000_000,
    dtype: DTypeName = "<f8",
    filler: FillerName = "arange",
    arguments: dict[str, Any] | None = None,
    segments: Count | None = None,
    block_rows: Count | None = None,
    durability: Literal["segment", "end"] = "segment",
    executor: ExecutorName = "processes",
    workers: Count | None = None,
    exist: Literal["resume", "error", "overwrite"] = "resume",
    fortran_order: bool = False,
    reserve: bool = True,
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0,
    finite: bool = False,
) -> ValidationReport:
    """Fill one big .npy file: allocate it, fill its segments, validate it.

    A segment that fails does not stop the others. Running the flow again with the same
    parameters fills only what is missing.

    Args:
        path: Of the .npy file, in a folder that exists. A relative one is taken from
            FLOWMAP_ROOT, where the worker has it set, and refused where it has not.
        shape: Elements along each axis: a number, or a list of numbers.
        dtype: Of one element: "<f8", or a list of fields [["t", "<f8"], ["v", "<f4", [3]]].
        filler: Computes the rows: arange, constant, copy, linspace or random; or a function
            "package.module:function" marked with @flowmap.filler, which the worker allows
            with FLOWMAP_FILLERS.
        arguments: The filler's arguments by name: for arange {"start": 0, "step": 1}, constant
            {"value": 0}, linspace {"start": 0, "stop": 1, "num": 1000000}, random {"seed": 0},
            copy {"source": "in.npy"}.
        segments: How many task runs. None: chosen from the size.
        block_rows: Rows that the filler computes at once. None: about a mebibyte; give 1
            where a row takes minutes.
        durability: When data is safe from a power cut: "segment" syncs each segment as it is
            done, "end" all at once, for very many small ones.
        executor: Where the filler runs: in worker processes, in threads of the flow's own, or
            on a Dask cluster: the one at DASK_SCHEDULER_ADDRESS, else one of its own.
        workers: How many processes or threads. None: one a processor, or all of a cluster.
        exist: If the file exists already: resume the same job, report an error, or overwrite,
            as other arguments need. A retry of this run resumes what its first attempt began.
        fortran_order: Whether the last axis is the slow one, as in Fortran.
        reserve: Whether to reserve the disk space at the start, so that it cannot run out.
        checkpoint_seconds: Seconds between syncs within a segment: what a power cut costs.
        finite: Whether NaNs and infinities in the result are a fault.

    Returns:
        The report of the validation, which passed.

    Raises:
        FillerRefusedError: A deployed run may not have this filler.
        SegmentsFailedError: Some segments failed; the message names them.
        ValidationFailed: The file is not what it should be.
        FlowmapError: As `flowmap.allocate` and `flowmap.fill`.
    """
    target = alloc_task(
        path,
        shape,
        _dtype_of(dtype),
        fortran_order=fortran_order,
        segments=segments,
        block_rows=block_rows,
        exist=exist,
        reserve=reserve,
        durability=durability,
        checkpoint_seconds=checkpoint_seconds,
        filler=filler,
        arguments=arguments,
    )
    work = work_of(filler, arguments)
    refuse_other_work(target, work)
    run = runtime.flow_run.id
    name = f"{runtime.flow_run.name} ({run})"
    with (
        _ended_for_now(),
        _leased_if_needed(target, name, run) as lease,
        Artifacts(target) as artifacts,
    ):
        if lease is not None:
            for dead in lease.dead:
                close_dead_run(target, dead)
            lease.forget_dead()
            _fill_pending(target, lease, artifacts, work, executor, workers)
        report = validate_task(target, finite=finite)
        artifacts.end(report)
    return report


def _leased_if_needed(
    target: Target, name: str, run: str
) -> contextlib.AbstractContextManager[Lease | None]:
    """Return the lease to hold; none for a finished job of which no run is left to close.

    A finished job may be on a read-only disk; then no run is closed either.
    """
    if needs_lease(target):
        return leased(target.job, name, run)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _ended_for_now() -> Iterator[None]:
    """Exit with 75 on SIGTERM, of which Prefect makes an exception, and the like.

    Not in a deployed run: whoever ends that, as by the button, wants it ended.
    """
    try:
        with stoppable():
            yield
    except TerminationSignal:
        if is_deployed():
            raise
        raise exit_for_now() from None


def _handler_of_prefect() -> object:
    """Return what Prefect does on SIGTERM, but in a deployed run: as `_ended_for_now` says.

    It raises in the midst of whatever runs, such as a lock that is just being taken, for which
    those that end the workers would then wait.
    """
    handler = signal.getsignal(signal.SIGTERM)
    is_its = getattr(handler, "__module__", "").startswith("prefect.")
    return handler if is_its and not is_deployed() else signal.SIG_DFL


def _fill_pending(
    target: Target,
    lease: Lease,
    artifacts: Artifacts,
    work: Work,
    executor: ExecutorName,
    workers: int | None,
) -> None:
    """Fill what is missing, each segment in a task run."""
    pending = target.pending()
    if not pending:
        return
    artifacts.begin(sum(segment.rows for segment in pending))
    logger, told_at, done = get_run_logger(), time.monotonic(), 0
    failures: dict[Segment, BaseException] = {}
    with (
        # Around the pool: a second SIGTERM, while that waits for the blocks in hand, is not
        # Prefect's to make an exception of, which would leave the pool in the midst of its end.
        stoppable(instead_of=_handler_of_prefect()),
        FanOut(work, width(executor, workers)) as fan_out,
        open_executor(executor, workers) as pool,
    ):
        watch = StallWatch(target, pool, len(pending), logger.warning)
        for segment, error in fan_out.fill(pool, pending, watch):
            lease.check(now=error is not None)
            if error is None:
                artifacts.advance(segment.rows)
                done += 1
            else:
                failures[segment] = error
                check_loadable(target, failures, pool, done=done)
            if time.monotonic() - told_at >= _TELL_SECONDS:
                told_at = time.monotonic()
                logger.info("%d of %d segments are filled", done, len(pending))
    artifacts.show()
    if failures:
        raise failed(target, failures)
    logger.info("%d segments were filled", len(pending))
