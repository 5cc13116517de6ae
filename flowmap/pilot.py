"""A pilot: one block is computed and measured before weeks of compute. Nothing is kept of it.

The block runs in a worker process of its own, so that its memory can be told and that a filler
which crashes takes nothing along. Its bytes go to a file without a name; target and ledger are
only read.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import cloudpickle
import numpy as np
import xxhash

from flowmap import pickling
from flowmap.arguments import whole
from flowmap.blocks import blocks_of
from flowmap.errors import (
    FillerNotFoundError,
    InvalidArgumentError,
    said,
    told,
)
from flowmap.estimates import Measured, Pending, Pilot, Room
from flowmap.importing import importing
from flowmap.kernel import free_bytes, start_writeback
from flowmap.machine import available_cpus
from flowmap.prerequisites import check_prerequisites
from flowmap.segments import Block
from flowmap.sidecar import Sidecar
from flowmap.storage import CHUNK, sync_data, write_all
from flowmap.streams import fill_closed_streams
from flowmap.wording import call, option
from flowmap.workers import Processes
from flowmap.write import compute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.segments import Segment
    from flowmap.target import Target
    from flowmap.work import Work

__all__ = ["Pilot", "pilot"]

LONG_SECONDS: Final = 30.0
"""A first block that takes longer is not computed a second time; imports are not counted."""

_WRITTEN: Final = 64 << 20
"""The most bytes that are written to measure the disk: as many as a segment has by default."""

_WRITE_SECONDS: Final = 2.0
"""After so long no more is written, since what was written is to be synced, too."""

_WAKE_SECONDS: Final = 1.0
"""The longest that a signal may have to wait for the main thread."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def pilot(target: Target, work: Work, workers: int | None = None) -> Pilot:
    """Compute one block of what is pending, and say what the whole job will take.

    The first block of the middle one of the pending segments is computed, and another of as
    many rows where the first did not take long. Neither target nor ledger is written.

    Args:
        target: The target.
        work: What is to fill it; whether it may is checked elsewhere.
        workers: How many workers the job is to have; None for the processors that this process
            may use.

    Raises:
        InvalidArgumentError: Nothing is pending; `workers` is less than one; or the filler or
            its arguments cannot be pickled.
        WrongTypeError: `workers` is no whole number.
        FillerError: The filler raised, or did not do as fillers do.
        FillerNotFoundError: A worker process cannot load the filler or its arguments.
        WorkerDiedError: The filler crashed its process; it is tried once only.
        OtherJobError, NotFoundError, ForeignFileError, DamagedJobError: As in `Target.status`.
        StorageError: The disk refused, or there is no memory for a block.
    """
    cpus = available_cpus()
    asked = cpus if workers is None else whole(option("workers"), workers)
    if asked < 1:
        raise InvalidArgumentError(f"{option('workers')} is {asked}; it takes 1 or more.")
    job = target.job
    left = _rows_left(target, work)
    (indices,) = np.nonzero(left)
    if not len(indices):
        raise InvalidArgumentError(
            f"Nothing of {job.path} is pending: every row is computed, and there is nothing to "
            f"measure. {call('reset')} makes segments pending again."
        )
    pending = Pending(len(indices), int(left.sum()), int(left.max()))
    segments = [target.segments[index] for index in indices]
    return Pilot(
        path=job.path,
        plan=job.plan,
        block_rows=job.block_rows,
        row_bytes=job.layout.row_bytes,
        measured=_measured(job, segments, work, asked),
        pending=pending,
        room=_room(job),
        workers=asked,
        cpus=cpus,
    )


def _rows_left(target: Target, work: Work) -> NDArray[np.int64]:
    """Return how many rows of each segment are to be computed: shape (segments,).

    What the same work has written is verified and not computed again, unless it is damaged.
    """
    status = target.status()
    rows: NDArray[np.int64] = status["stop"] - status["start"]
    kept = (status["work"] == work.fingerprint) & (status["state"] != "damaged")
    left = np.where(kept, rows - status["rows_done"], rows)
    return np.where(status["state"] == "done", 0, left)


def _room(job: Job) -> Room:
    sidecar = Sidecar.of(job.path)
    with told("cannot look at the target", job.path):
        target, space = job.path.stat(), os.statvfs(job.path.parent)
    with told("cannot look at the ledger", sidecar.ledger):
        ledger = sidecar.ledger.stat()
    return Room(
        target_bytes=target.st_size,
        reserved_bytes=target.st_blocks * 512,  # whatever the file system's own unit is
        ledger_bytes=ledger.st_size,
        free_bytes=free_bytes(space),
    )


def _measured(job: Job, segments: list[Segment], work: Work, workers: int) -> Measured:
    """Measure one block of the middle segment, in a process like one of so many workers."""
    middle = len(segments) // 2
    segment = segments[middle]
    second = _second(job, segment, segments[middle + 1 :] + segments[:middle])
    try:
        packed = pickling.dumps(work)
    except Exception as error:
        raise InvalidArgumentError(
            f"The filler {work.name} or its arguments cannot be sent to a worker process "
            f"({said(error).rstrip('.')}). Pass what can be pickled."
        ) from error
    check_prerequisites("processes", 1)
    pool = Processes(1, tries=1, sharing=workers)
    try:
        began = time.perf_counter()
        future = pool.submit(_measure, segment, job, second, packed)
        while not future.done():
            wait([future], _WAKE_SECONDS)
        measured, busy = future.result()
        started = max(0.0, time.perf_counter() - began - busy)
        return replace(measured, start_seconds=started)
    finally:
        pool.end()


def _second(job: Job, segment: Segment, others: list[Segment]) -> tuple[Segment, Block]:
    """Return a second block of as many rows, which a filler that remembers has not computed.

    Args:
        job: The job.
        segment: Whose first block is the first one.
        others: The other segments that are pending.

    Returns:
        The segment that it lies in, and its rows: those of the first one if there is no other.
    """
    rows = min(job.block_rows, segment.rows)
    axis = job.layout.axis
    if segment.rows >= 2 * rows:
        return segment, Block(segment.start + rows, segment.start + 2 * rows, axis)
    other = next((each for each in others if each.rows >= rows), segment)
    return other, Block(other.start, other.start + rows, axis)


def _measure(
    segment: Segment, job: Job, second: tuple[Segment, Block], packed: bytes
) -> tuple[Measured, float]:
    """Measure the first block of a segment: what runs in the worker process.

    Returns:
        What was measured, and the seconds that it took altogether.

    Raises:
        FillerNotFoundError, FillerError, StorageError: As in `pilot`.
    """
    start_bytes = _peak_bytes()
    began = time.perf_counter()
    try:
        with importing():
            work: Work = cloudpickle.loads(packed)
    except (Exception, SystemExit) as error:
        raise FillerNotFoundError(
            f"{segment.name}: a worker cannot load the filler or its arguments "
            f"({said(error).rstrip('.')}). Put them into a module that can be imported there "
            "too."
        ) from error
    load_seconds = time.perf_counter() - began
    block, out, data = next(blocks_of(job, segment, segment.start))
    first_seconds = _seconds_of(work, segment, block, out)
    second_seconds = None
    if first_seconds <= LONG_SECONDS:
        data.fill(0)
        second_seconds = _seconds_of(work, *second, out)
    write_seconds, rate = _write(job, segment, data)
    measured = Measured(
        rows=len(block),
        start_seconds=0.0,  # which only the parent can tell
        load_seconds=load_seconds,
        first_seconds=first_seconds,
        second_seconds=second_seconds,
        write_seconds=write_seconds,
        disk_bytes_per_second=rate,
        start_bytes=start_bytes,
        peak_bytes=_peak_bytes(),
    )
    return measured, time.perf_counter() - began


def _seconds_of(work: Work, segment: Segment, block: Block, out: NDArray[Any]) -> float:
    began = time.perf_counter()
    compute(work, segment, block, out)
    return time.perf_counter() - began


def _write(job: Job, segment: Segment, data: NDArray[np.uint8]) -> tuple[float, float | None]:
    """Write the bytes of a block as often as a segment has it, to a file without a name.

    Returns:
        Seconds that the worker takes for the block, and bytes a second that the disk takes;
        0 and None where there is nothing to write, or no room.
    """
    folder = Sidecar.of(job.path).folder
    doing = "cannot measure the disk by a file without a name; see who may write there"
    with told(doing, folder), _nameless_file(folder) as file:
        most = min(_WRITTEN, segment.rows * job.layout.row_bytes)
        free = free_bytes(os.fstatvfs(file.fileno()))
        most = most if free is None else min(most, free // 2)
        piece = data[:_WRITTEN]
        if not len(piece) or most < len(piece):
            return 0.0, None
        try:
            nbytes, writing, synced = _write_pieces(file.fileno(), piece, most)
        except OSError as error:
            if error.errno in _FULL:
                return 0.0, None
            raise
    return writing * len(data) / nbytes, nbytes / synced


def _nameless_file(folder: Path) -> IO[bytes]:
    fill_closed_streams()
    return tempfile.TemporaryFile(dir=folder)


def _write_pieces(
    descriptor: int, piece: NDArray[np.uint8], most: int
) -> tuple[int, float, float]:
    """Hash and write a piece again and again, as an attempt does its blocks; then sync.

    Args:
        descriptor: Of the file.
        piece: Shape (bytes,), uint8.
        most: Bytes to write at most; one piece at least.

    Returns:
        Bytes written; seconds until they were; seconds until they were synced.
    """
    digest = xxhash.xxh3_128()
    written = sent = 0
    began = time.perf_counter()
    writing = 0.0
    while written + len(piece) <= most and writing <= _WRITE_SECONDS:
        digest.update(piece.data)
        write_all(descriptor, piece.data, written)
        written += len(piece)
        if written - sent >= CHUNK:
            start_writeback(descriptor, sent, written - sent)
            sent = written
        writing = time.perf_counter() - began
    sync_data(descriptor)
    return written, writing, time.perf_counter() - began


def _peak_bytes() -> int:
    """Return the most memory that this process has had, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        status = ""  # not Linux
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
