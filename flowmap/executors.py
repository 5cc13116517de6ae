"""Executors: where fillers run; and `fill`, which fills a whole job on one of them."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from flowmap.arguments import flag, whole
from flowmap.cancellation import cancel, fill_for_run
from flowmap.clusters import Dask, address_of
from flowmap.errors import (
    InvalidArgumentError,
    OtherWorkError,
    StoppedError,
    WrongTypeError,
    said,
    short,
)
from flowmap.importing import check_imported, check_not_importing
from flowmap.lease import holder, leased
from flowmap.machine import available_cpus, host_name
from flowmap.prerequisites import check_prerequisites
from flowmap.progress import Progress, Tally
from flowmap.recalling import work_of
from flowmap.run_errors import check_loadable, failed
from flowmap.sidecar import Sidecar
from flowmap.sources import warn_if_changed
from flowmap.stall import StallWatch
from flowmap.stopping import refuse_if_asked, stoppable
from flowmap.streams import fill_closed_streams
from flowmap.target import open_target
from flowmap.wording import either, option, overwriting
from flowmap.work import describe
from flowmap.workers import Processes, Threads
from flowmap.write import fill_work

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from concurrent.futures import Future

    from flowmap.fillers import Filler
    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment
    from flowmap.target import Target
    from flowmap.work import Work

ExecutorName = Literal["processes", "threads", "dask"]
EXECUTORS = get_args(ExecutorName)

_LOGGER: Final = logging.getLogger("flowmap")
WAKE_SECONDS: Final = 1
"""The longest that a signal may have to wait for the main thread.

One that comes while the main thread waits for the GIL is only noted, and in a wait without an
end nothing makes Python look at the note.
"""


@contextlib.contextmanager
def executor(
    name: str | Executor = "processes", workers: int | None = None
) -> Iterator[Executor]:
    """Open an executor for a `with` block, for `fill_task` in a flow of your own.

    On an exception, Ctrl-C included, its workers are ended: processes are killed; threads, and
    workers of a cluster that was there before, stop before their next block. So do processes
    where the block calls `sys.exit`.

    Args:
        name: "processes": warm worker processes, each replaced by itself when it dies.
            "threads": threads of this process, for fillers that release the GIL. "dask": the
            Dask cluster that DASK_SCHEDULER_ADDRESS, or Dask's configuration, gives the address
            of; where they give none, one of its own on this machine. Or the address of a Dask
            scheduler: "tcp://host:8786". Or any `concurrent.futures.Executor`, which is left
            as it is.
        workers: How many; None for the processors that this process may use, or for those
            that a cluster has.

    Yields:
        The executor.

    Raises:
        InvalidArgumentError, WrongTypeError: There is no such executor.
        MissingExtraError: Dask is not installed.
        ClusterError: There is no Dask cluster to be had.
    """
    count = _workers_of(name, workers)
    if isinstance(name, Executor):
        yield name
        return
    pool = _opened(name, count)
    try:
        yield pool
        pool.shutdown()
    except (StoppedError, SystemExit):
        pool.stop()
        raise
    except BaseException:
        pool.end()
        raise


def width(name: str | Executor, workers: int | None) -> int:
    """Return how many segments an executor that is to be opened would fill at once.

    Raises:
        ClusterError: There is no cluster at the address.
    """
    count = _workers_of(name, workers)
    if count or isinstance(name, Executor):
        return count
    with Dask(0, address_of(name)) as cluster:
        return cluster.width


def _opened(name: str, count: int) -> Processes | Threads | Dask:
    fill_closed_streams()
    check_prerequisites(name, count)
    if name == "processes":
        return Processes(count)
    if name == "threads":
        return Threads(count)
    return Dask(count, address_of(name))


def _workers_of(name: str | Executor, workers: int | None) -> int:
    """Return how many workers to start, none where there are some; refuse what cannot be."""
    if isinstance(name, Executor) or (address := address_of(name)):
        if workers is not None:
            which = "this one" if isinstance(name, Executor) else f"the cluster at {address}"
            raise InvalidArgumentError(
                f"{option('workers')} is {workers!r}, but {which} has its own: leave it out."
            )
        return 0
    if name not in EXECUTORS:
        raise InvalidArgumentError(
            f"{option('executor')} is {name!r}; it takes {', '.join(EXECUTORS)}, "
            + either(
                "the address of a Dask scheduler, or any concurrent.futures.Executor.",
                "or the address of a Dask scheduler.",
            )
        )
    count = available_cpus() if workers is None else whole(option("workers"), workers)
    if count < 1:
        raise InvalidArgumentError(f"{option('workers')} is {count}; it takes 1 or more.")
    return count


def fill(
    target: Target | str | os.PathLike[str],
    filler: Filler | str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    executor: str | Executor = "processes",
    workers: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    name: str | None = None,
    trust: bool = False,
) -> list[SegmentRecord]:
    """Fill all segments of a job that are not done yet.

    Where all are done nothing is written, so that the disk may be read-only.

    One segment that fails does not stop the others. Ctrl-C ends the workers; what was done
    is kept, and calling again goes on from there. On SIGTERM, SIGUSR1, SIGUSR2 or SIGXCPU,
    which batch systems send before a time limit, each worker finishes its block and makes it
    durable, and the process exits with 75: in the main thread, and where nobody else handles
    them. A second SIGTERM ends the process, and its workers, at once.

    Args:
        target: The target, or its path.
        filler: Called as `filler(out, block, **arguments)` for each block. None for the filler
            and the arguments that the records of the job name: those it is pinned to, or else
            those that have filled it so far.
        arguments: The filler's arguments by name.
        executor: "processes", "threads", "dask", the address of a Dask scheduler, or any
            `concurrent.futures.Executor`; see `executor`. If the run ends early, the workers of
            an executor of yours stop before their next block.
        workers: How many; None for the processors that this process may use, or for those that
            a cluster has.
        progress: Called in this thread with a `Progress` at the start and after each segment.
        name: Of this run, which a second run of the job is told.
        trust: Whether to import the filler that the records name even if another user may
            have written them.

    Returns:
        The records of the segments that this call filled, in the order they were done.

    Warns:
        FillerChangedWarning: Segments were filled by an earlier source of the filler.

    Raises:
        SegmentsFailedError: Some segments failed; its `failures` say why, its cause is the
            first of them, with the lines of the filler. Or no worker can load the filler.
        OtherWorkError: The job is pinned to other work, or part of it was done by other work.
        JobBusyError: Another run is filling the job.
        MissingExtraError, ClusterError: There is no Dask, or no cluster.
        InvalidArgumentError, StorageError: The system starts no more processes or threads, or
            opens no more files.
        OtherJobError: The target was allocated anew since it was opened.
        WrongTypeError, InvalidArgumentError, FillerNotFoundError: An argument that cannot be;
            or no filler is given, and none recorded.
        FillerRefusedError: No filler is given, and the recorded one is not imported: another
            user may have written the records, or it comes from another file or source by now.
        NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `open_target`.
    """
    check_not_importing("runs fill()")
    if progress is not None and not callable(progress):
        raise WrongTypeError(f"progress is {short(progress)}; it takes a function (progress).")
    if name is not None and not isinstance(name, str):
        raise WrongTypeError(f"name is {short(name)}; it takes a text.")
    opened = open_target(target)
    work = work_of(opened, filler, arguments, trust=flag("trust", trust))
    refuse_other_work(opened, work)
    run = name or f"fill() of process {os.getpid()} on {host_name()}"
    _workers_of(executor, workers)  # what is refused leaves no trace of a run
    if executor != "threads" and not isinstance(executor, ThreadPoolExecutor):
        check_imported(work.function)
    warn_if_changed(opened.job, work)
    if not needs_lease(opened):
        return Tally(opened, [], progress).records
    with stoppable(), leased(opened.job, run) as lease, _open(executor, workers) as pool:
        pending = opened.pending()
        tally = Tally(opened, pending, progress)
        watch = StallWatch(opened, pool, len(pending), _LOGGER.warning)
        # Its own executors are ended with the run; others may call what was submitted later on.
        call = partial(fill_for_run, token=lease.token) if pool is executor else fill_work
        futures: dict[Future[SegmentRecord], Segment] = {}
        try:
            for segment in pending:
                futures[_submitted(pool, call, segment, work)] = segment
            for future in _as_they_end(futures, watch):
                tally.count(futures[future], future)
                lease.check(now=futures[future] in tally.failures)
                check_loadable(opened, tally.failures, pool, done=len(tally.records))
        except BaseException:
            if cancel(futures) and pool is executor:
                lease.note_work_left()
            raise
    if tally.failures:
        raise failed(opened, tally.failures)
    return tally.records


def _as_they_end(
    futures: Collection[Future[SegmentRecord]], watch: StallWatch
) -> Iterator[Future[SegmentRecord]]:
    """Yield each future when it has ended; `as_completed` would wait without an end.

    Raises:
        StoppedError: The process was asked to stop.
    """
    ended: queue.SimpleQueue[Future[SegmentRecord]] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    left = len(futures)
    while left:
        refuse_if_asked()
        try:
            future = ended.get(timeout=WAKE_SECONDS)
        except queue.Empty:
            watch.look()
            continue
        watch.end()
        left -= 1
        yield future


def _submitted(
    pool: Executor,
    call: Callable[[Segment, Work], SegmentRecord],
    segment: Segment,
    work: Work,
) -> Future[SegmentRecord]:
    try:
        return pool.submit(call, segment, work)
    except RuntimeError as error:  # closed, or broken by a worker that died
        raise InvalidArgumentError(
            f"{segment.name}: the executor takes no more work ({said(error)}). Give one that "
            "is open, or a name: 'processes'."
        ) from error


_open = executor  # its name is a parameter of fill()


def needs_lease(target: Target) -> bool:
    """Say whether a run has something to do: segments to fill, or a dead run to clear up after.

    A finished job may be on a read-only disk, where no lease can be written.
    """
    if target.pending():
        return True
    return holder(target.job) is not None and os.access(Sidecar.of(target.path).folder, os.W_OK)


def refuse_other_work(target: Target, work: Work) -> None:
    """Refuse work that does not fit the job, before anything is filled.

    Raises:
        OtherWorkError: The job is pinned to other work, or part of it was done by other work.
    """
    pinned = target.job.work
    status = target.status()
    done = status[(status["state"] == "done") | (status["state"] == "written")]
    other = done[done["work"] != work.fingerprint]
    recorded = pinned
    if pinned is not None and pinned["fingerprint"] != work.fingerprint:
        fault = f"is pinned to {describe(pinned)}"
    elif len(other):
        first = str(other["work"][0])
        recorded = target.job.recorded_work(first)
        fault = f"has {len(other)} segments done by {target.job.describe_work(first)}"
    else:
        return
    raise OtherWorkError(
        f"{target.path} {fault}; you gave {describe(work.describe())}."
        f"{work.hint_at_name(recorded)} Run the same work, or allocate another target, or this "
        f"one anew with {overwriting()}.",
    )
