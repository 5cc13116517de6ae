"""Filling one segment, by a filler or with values at hand. No lock is taken."""

from __future__ import annotations

import contextlib
import functools
import traceback
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol
from typing import cast as cast_type

import xxhash

from flowmap.admission import attempting
from flowmap.arguments import flag
from flowmap.attempt import Attempt
from flowmap.blocks import blocks_of
from flowmap.casting import store
from flowmap.errors import (
    FillerError,
    OtherWorkError,
    SegmentDoneError,
    said,
)
from flowmap.mapped import MappedAttempt
from flowmap.nested import checked_array
from flowmap.records import FINISHED
from flowmap.root import LIMITS
from flowmap.sources import warn_if_older
from flowmap.stopping import is_asked, stoppable
from flowmap.wording import call
from flowmap.work import Work, describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from flowmap.casting import Casting
    from flowmap.fillers import Filler
    from flowmap.records import SegmentRecord
    from flowmap.segments import Block, Segment


class StopSign(Protocol):
    """An event, or what can be asked like one."""

    def is_set(self) -> bool:
        """Return whether to stop."""


STOP: ContextVar[StopSign | None] = ContextVar("STOP", default=None)
"""Set where a thread that fills can be asked to stop before its next block."""


def fill_segment(
    segment: Segment, filler: Filler | str, arguments: Mapping[str, Any] | None = None
) -> SegmentRecord:
    """Fill one segment, block by block; return only when it is done, or raise.

    An interrupted segment is taken up where its last good record left it. One that is
    done computes nothing. No lock is taken: whoever calls sees to it that one process at
    a time has a segment, and where two have it nevertheless, the later claim wins and the
    other stops. On SIGTERM, SIGUSR1, SIGUSR2 or SIGXCPU, which batch systems send before a time
    limit, the block in hand is finished, what is written is made durable, and the process exits
    with 75: in the main thread, and where nobody else handles them. A second SIGTERM ends it at
    once.

    Args:
        segment: From `target.segments` or `target.pending()`.
        filler: Called as `filler(out, block, **arguments)` for each block; see `filler`.
        arguments: The filler's arguments by name.

    Returns:
        What the ledger says of the segment now.

    Warns:
        FillerChangedWarning: An earlier source of the filler has filled it, at least in part.
            Of each job a process is warned once.

    Raises:
        WrongTypeError: An argument is of the wrong type, or not one of the filler's.
        FillerNotFoundError: The filler's name leads to none.
        OtherJobError: The segment belongs to another allocation.
        OtherWorkError: The job is pinned to other work, or other work has done the segment.
        FillerError: The filler raised, or did not do as fillers do.
        ClaimLostError: Another attempt took the segment over.
        DamagedJobError: The target or the ledger is not what was allocated.
        StorageError: The disk refused.
    """
    work = Work.of(filler, arguments)
    with stoppable():
        record = fill_work(segment, work)
    warn_if_older(segment, record, work)
    return record


def fill_work(segment: Segment, work: Work) -> SegmentRecord:
    """Fill one segment by work that was checked elsewhere: what executors are handed.

    A work keeps the name that its filler had where it was defined, which another process
    might not find out, and the limits of its run. Arguments, result and errors are those of
    `fill_segment`; an error's traceback keeps its lines but not the frames' variables, among
    them the block.
    """
    before = LIMITS.set(work.limits)
    try:
        return _fill_work(segment, work)
    except Exception as error:
        forget_frames(error)
        raise
    finally:
        LIMITS.reset(before)


def _fill_work(segment: Segment, work: Work) -> SegmentRecord:
    with attempting(segment, work, Attempt) as attempt:
        if attempt.before.state in FINISHED:
            _refuse_other_work(attempt, work)
        if attempt.before.state == "done":
            return attempt.before
        attempt.begin(resume=True)
        stop = STOP.get()
        for block, out, data in blocks_of(attempt.job, segment, attempt.next_row):
            if is_asked() or (stop is not None and stop.is_set()):
                attempt.pause()
            compute(work, segment, block, out)
            attempt.append(data, len(block))
        return attempt.commit()


def forget_frames(error: BaseException) -> None:
    """Drop the variables that an error's tracebacks, and those of its causes, keep alive.

    A run keeps the error of each segment that failed; with the frames of the filler it would
    keep a block for each. The lines of the tracebacks stay, as text they print the same.

    Args:
        error: One that was caught; frames that still run keep theirs.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def compute(work: Work, segment: Segment, block: Block, out: NDArray[Any]) -> None:
    """Call a filler for one block, and refuse what fillers do not do.

    Args:
        work: The filler with its arguments.
        segment: That the block belongs to, for messages.
        block: The rows.
        out: Their array, zeroed.

    Raises:
        FillerError: The filler raised, returned something, or changed `out` itself.
    """
    identity = _identity(out)
    try:
        result = work(out, block)
    except (Exception, SystemExit) as error:
        raise FillerError(
            f"{_where(work, segment, block)} raised {said(error).rstrip('.')}. Mend it and run "
            "again: what is done is kept.",
            segment=segment.name,
            cause_type=type(error).__name__,
            transient=isinstance(error, OSError),
        ) from error
    if result is not None:
        problem = (
            f"returned {type(result).__name__} instead of filling: write out[...] = values"
        )
    elif _identity(out) != identity:
        problem = "changed the shape, dtype or memory of `out`: fill it as it is"
    else:
        return
    message = f"{_where(work, segment, block)} {problem}."
    raise FillerError(message, segment=segment.name, cause_type=None, transient=False)


def _where(work: Work, segment: Segment, block: Block) -> str:
    return f"{segment.name}, rows {block.start} to {block.stop}: the filler {work.name}"


def _identity(out: NDArray[Any]) -> tuple[object, ...]:
    return out.shape, out.strides, out.dtype, id(out.base)  # `out.data = ...` changes the base


def _refuse_other_work(attempt: Attempt, work: Work) -> None:
    if attempt.before.work != work.fingerprint:
        recorded = attempt.job.recorded_work(attempt.before.work)
        raise OtherWorkError(
            f"{attempt.segment.name} of {attempt.job.path} was done by "
            f"{attempt.job.describe_work(attempt.before.work)}; you gave "
            f"{describe(work.describe())}.{work.hint_at_name(recorded)} To compute it again "
            f"{call('reset')} it; to keep both, allocate another target.",
            segment=attempt.segment.name,
        )


@functools.cache
def _written() -> Work:
    """Return the work that values at hand count as."""
    return Work.of(cast_type("Filler", write_segment))


def write_segment(
    segment: Segment,
    values: ArrayLike,
    *,
    casting: Casting = "same_kind",
    replace: bool = False,
) -> SegmentRecord:
    """Write values at hand to a segment; return only when it is done, or raise.

    Args:
        segment: From `target.segments` or `target.pending()`.
        values: As many rows as the segment has: shape (rows, ...) in C order, (..., rows) in
            Fortran order, () for a 0-d target. No broadcasting.
        casting: Which casts to the target's dtype are allowed, as in `numpy.can_cast`. A value
            that a cast would change is refused: only floats may be rounded. "unsafe" allows any
            change.
        replace: Whether a segment that is done with other bytes may be written again.

    Returns:
        What the ledger says of the segment now.

    Raises:
        WrongTypeError: The values cannot be cast so, or are masked.
        InvalidArgumentError: Their shape does not fit; or the dtype cannot hold a value.
        SegmentDoneError: The segment is done, with other bytes.
        OtherJobError, OtherWorkError, ClaimLostError, DamagedJobError, StorageError: As in
            `fill_segment`.
    """
    replace = flag("replace", replace)
    with attempting(segment, _written(), Attempt) as attempt:
        layout = attempt.job.layout
        wanted = layout.block_shape(segment.rows)
        array = checked_array(values, layout.dtype, wanted, casting, segment.name)

        def blocks() -> Iterator[tuple[Block, NDArray[np.uint8]]]:
            for block, out, data in blocks_of(attempt.job, segment, segment.start):
                rows = slice(block.start - segment.start, block.stop - segment.start)
                taken = (..., rows) if layout.fortran_order else (rows, ...)
                store(out, array[taken] if layout.shape else array)
                yield block, data

        if attempt.before.state in FINISHED and not replace:
            digest = xxhash.xxh3_128()
            for _, data in blocks():
                digest.update(data.data)
            same = digest.hexdigest() == attempt.before.digest
            if same and attempt.before.state == "done":
                return attempt.before
            if not same:
                raise SegmentDoneError(
                    f"{segment.name} of {segment.path} is done, with other bytes than these "
                    "values. Pass replace=True to write it again.",
                    segment=segment.name,
                )
        attempt.begin(resume=False)
        for block, data in blocks():
            attempt.append(data, len(block))
        return attempt.commit()


@contextlib.contextmanager
def open_segment(segment: Segment, *, replace: bool = False) -> Iterator[np.memmap[Any, Any]]:
    """Map one segment for reading and writing, for a `with` block; at its end it is done.

    For what wants memory and not a function to call: numba, Fortran, MPI-IO. No lock is taken.
    When the block ends without an error the bytes are synced and hashed, and the segment is
    recorded as done; after an error it is recorded as failed. Write into the array, `out[...] =
    values`: to bind the name to something else leaves the file as it was. Stores go straight to
    the file: a block that lost its segment to another attempt is told so at its end only.
    Validation finds what it stores after that one was hashed; what it stores before becomes
    part of that one, unless both store the same. The pages count as memory of this process, all
    of the segment's, though the system takes them back where it needs them.

    `out.flush()` writes what was stored so far to the disk; after an error of it the segment
    fails, whatever the block does. With `durability="end"` it only begins to.

    The space is reserved before, so that on a full disk there is an error here. A store ends
    the process nevertheless (SIGBUS) where somebody truncates the file, or the disk cannot be
    read; and where a write takes new space (btrfs, ZFS, a reflinked copy) on a full disk.

    Args:
        segment: From `target.segments` or `target.pending()`.
        replace: Whether a segment that is done may be opened; until the block ends it is not
            done any more.

    Yields:
        The rows of the segment as they are in the file: shape (rows, ...) in C order,
        (..., rows) in Fortran order, () for a 0-d target. Zeros where nobody has written. After
        the block it is read-only; views that were made of it must not be written to either.

    Raises:
        WrongTypeError: `segment` is no segment.
        SegmentDoneError: It is done.
        OtherJobError, OtherWorkError, ClaimLostError, DamagedJobError, StorageError: As in
            `fill_segment`. It counts as the same work as `write_segment`.
    """
    replace = flag("replace", replace)
    with attempting(segment, _written(), MappedAttempt) as attempt:
        if attempt.before.state in FINISHED and not replace:
            raise SegmentDoneError(
                f"{segment.name} of {segment.path} is {attempt.before.state}. Pass "
                "replace=True to open it all the same, or take one of target.pending().",
                segment=segment.name,
            )
        attempt.begin(resume=False)
        out = attempt.map()
        try:
            yield out
        finally:
            attempt.let_go()
        attempt.adopt()
        attempt.commit()
