"""One attempt at a segment: what goes to disk in which order, so that "done" is never a lie.

Claim; then for each block write it, start its write-back, hash it and note it. At each
checkpoint and at the end sync the target, look at the claim, record, sync the ledger.

With `durability="end"` an attempt never syncs the target, not even at a checkpoint: the
kernel reports a failed write-back once for the file, whichever segment it hit, and a sync
that fails one segment would hide the loss of another from the sync of the validation. No row
is recorded as durable there, and only a validation that marks syncs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

import xxhash

from flowmap.errors import (
    ClaimLostError,
    DamagedJobError,
    InvalidArgumentError,
    NotFoundError,
    OtherJobError,
    OtherWorkError,
    StorageError,
    WrongTypeError,
    cut,
    said,
    storage_error,
    told,
)
from flowmap.job import Sidecar, read_job
from flowmap.ledger import NO_ROWS, Claim
from flowmap.records import REASON_BYTES
from flowmap.segments import Segment
from flowmap.storage import (
    CHUNK,
    NotRegularError,
    buffer_of,
    opened,
    read_into,
    start_writeback,
    sync_data,
    write_all,
)
from flowmap.work import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.ledger import Ledger
    from flowmap.records import SegmentRecord
    from flowmap.work import Work


class Attempt:
    """An attempt at one segment; `attempting` makes it and closes what it opens.

    Args:
        job: The job.
        segment: The segment.
        work: What fills it.
        target: A descriptor of the target, for reading and writing.
        ledger: The job's ledger, for writing.

    Attributes:
        before: What the ledger said of the segment before this attempt.
    """

    def __init__(
        self, job: Job, segment: Segment, work: Work, target: int, ledger: Ledger
    ) -> None:
        self.job = job
        self.segment = segment
        self.before = ledger.read(segment.index, segment.start, segment.stop)
        self._work = work
        self._target = target
        self._ledger = ledger
        self._digest = xxhash.xxh3_128()
        self._rows = 0
        self._claim: Claim | None = None
        self._synced_at = time.monotonic()

    @property
    def next_row(self) -> int:
        """The first row of the target that is still to be written."""
        return self.segment.start + self._rows

    def begin(self, *, resume: bool) -> None:
        """Claim the segment, and take over what is good of an earlier attempt's rows.

        Args:
            resume: Whether to take over anything; only rows of the same work are.

        Raises:
            ClaimLostError: Another attempt claimed it at the same moment.
        """
        before = self.before
        resume = resume and before.work == self._work.fingerprint
        with self._noting():
            self.job.record_work(self._work)
            # A kill right after the claim must not leave a seal on what is not done.
            self.job.lift_seal()
        kept = {} if resume else NO_ROWS
        self._claim = Claim(
            self._ledger, before, self._work.fingerprint, state="running", **kept
        )
        # After the claim, too: a validation that seals meanwhile looks at the claims once more.
        with self._noting():
            self.job.lift_seal()
        if before.state == "done":  # before a byte changes that this record vouches for
            self._sync_ledger()
        if not resume:
            return
        whole = self._take_over(
            before.rows_durable, before.digest_durable, rewrite=False
        ) and self._take_over(before.rows_done, before.digest, rewrite=True)
        if not whole:  # nor may the next attempt trust what this one did not find
            digest = self._digest.hexdigest() if self._rows else ""
            self._claim.note(
                rows_done=self._rows,
                rows_durable=self._rows,
                digest=digest,
                digest_durable=digest,
            )

    def _told(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return told(f"{self.segment.name}: {doing}", self.segment.path)

    def _noting(self) -> contextlib.AbstractContextManager[None]:
        doing = f"{self.segment.name}: cannot record progress; free some space, run again"
        return told(doing, Sidecar.of(self.job.path).folder)

    def _take_over(self, rows: int, digest: str, *, rewrite: bool) -> bool:
        """Read on up to `rows`; keep them and return True if they match `digest`.

        What was not synced is written again, the same bytes: after a failed write-back
        the page cache may hold what the disk does not, and this attempt's sync must cover
        it. Where the digest differs the filler computes the rows again.
        """
        row_bytes = self.job.layout.row_bytes
        reached = self._digest.copy()
        buffer = block_buffer(min(CHUNK, (rows - self._rows) * row_bytes), self.segment)
        first, last = self._byte(self._rows), self._byte(rows)
        for offset in range(first, last, max(len(buffer), 1)):
            chunk = buffer[: last - offset]
            try:
                count = read_into(self._target, chunk, offset)
            except OSError:  # a bad sector: computing it again writes it anew
                return False
            if count < len(chunk):
                return False
            reached.update(chunk.data)
            if rewrite:
                self._held().check()
                self._write(chunk, offset)
        if rows > self._rows and reached.hexdigest() != digest:
            return False
        self._digest, self._rows = reached, max(rows, self._rows)
        return True

    def _byte(self, row: int) -> int:
        """Return the byte of the file where a row of the segment begins."""
        return self.job.data_offset + (self.segment.start + row) * self.job.layout.row_bytes

    def _write(self, data: NDArray[np.uint8], offset: int) -> None:
        with self._told("cannot write the rows; free some space and run again"):
            write_all(self._target, data.data, offset)
        start_writeback(self._target, offset, len(data))

    def append(self, data: NDArray[np.uint8], rows: int) -> None:
        """Write the bytes of the next `rows` rows, and note them.

        Args:
            data: Shape (rows * row_bytes,), uint8.
            rows: How many rows they are.

        Raises:
            ClaimLostError: Another attempt has the segment; nothing was written.
            StorageError: They cannot be written.
        """
        claim = self._held()
        claim.check()
        self._write(data, self._byte(self._rows))
        self._digest.update(data.data)
        self._rows += rows
        claim.note(rows_done=self._rows, digest=self._digest.hexdigest())
        due = time.monotonic() - self._synced_at >= self.job.checkpoint_seconds
        if due and self.job.durability == "segment":
            self._record_durable("running")

    def commit(self) -> SegmentRecord:
        """Make the segment durable and record it as done; return its record.

        With `durability="end"` it is recorded as written, and validation makes it durable.

        Raises:
            ClaimLostError: Another attempt has the segment; nothing was recorded.
            OtherJobError: The target was allocated anew or moved meanwhile.
            StorageError: The disk did not take it.
        """
        self.refuse_if_replaced()
        if self.job.durability == "end":
            digest = self._digest.hexdigest()
            return self._held().note(state="written", rows_done=self._rows, digest=digest)
        self._record_durable("done")
        self._held().check()
        return self._held().record

    def _record_durable(self, state: str) -> None:
        with self._told("cannot sync the rows to disk; run again, and look at the disk"):
            sync_data(self._target)
        digest = self._digest.hexdigest()
        self._held().note(
            state=state,
            rows_done=self._rows,
            rows_durable=self._rows,
            digest=digest,
            digest_durable=digest,
        )
        self._sync_ledger()
        self._synced_at = time.monotonic()

    def _sync_ledger(self) -> None:
        with self._told("cannot sync the ledger to disk; run again"):
            self._ledger.sync()

    def refuse_if_replaced(self) -> None:
        """Look whether the path still is the target that was opened.

        Raises:
            OtherJobError: It was allocated anew or moved meanwhile.
            StorageError: It cannot be looked at.
        """
        with self._told("cannot look at the target"):
            try:
                there = self.job.path.lstat()
                same = os.path.samestat(there, os.fstat(self._target))
            except FileNotFoundError:
                same = False
        if not same:
            raise OtherJobError(
                f"{self.segment.name}: {self.job.path} was allocated anew, moved or removed "
                "while the segment was being filled; the rows went into the file that was "
                "there before. Take the segments from open_target(path) and fill them.",
                path=str(self.job.path),
            )

    def fail(self, error: BaseException) -> None:
        """Record why the attempt ended, if it still has the segment and the disk allows it."""
        if self._claim is not None and not isinstance(error, ClaimLostError):
            cause = error.__cause__ or error
            reason = cut(said(cause), REASON_BYTES)
            with contextlib.suppress(ClaimLostError, OSError):
                self._claim.note(state="failed", reason=reason)

    def _held(self) -> Claim:
        assert self._claim is not None, "begin() comes first"
        return self._claim


@contextlib.contextmanager
def attempting(segment: Segment, work: Work) -> Iterator[Attempt]:
    """Open what an attempt at a segment needs, and check it; record a failure of the block.

    Raises:
        WrongTypeError: `segment` is no segment.
        NotFoundError: The target is gone.
        OtherJobError: The segment belongs to another allocation of the path.
        OtherWorkError: The job is pinned to other work.
        DamagedJobError: The target or the ledger is not what was allocated.
        StorageError: One of them cannot be opened.
    """
    if not isinstance(segment, Segment):
        raise WrongTypeError(
            f"segment is {segment!r}; it takes one of target.segments or target.pending()."
        )
    with _opened_for_writing(segment) as target:
        # After the target: an overwrite removes job.json before it replaces the target, so
        # that a job that is still there vouches for the file that was opened.
        job = read_job(segment.path)
        _check(job, segment, work, target)
        with job.ledger(write=True) as ledger:
            attempt = Attempt(job, segment, work, target, ledger)
            # The ledger was opened by its name: an overwrite since may have put its own there.
            attempt.refuse_if_replaced()
            _refuse_other_job(read_job(segment.path), segment)
            try:
                yield attempt
            except BaseException as error:
                attempt.fail(error)
                raise


def block_buffer(nbytes: int, segment: Segment) -> NDArray[np.uint8]:
    """Return zeroed memory for one block: shape (nbytes,), uint8.

    Raises:
        StorageError: There is not so much memory.
    """
    try:
        return buffer_of(nbytes)
    except (OSError, MemoryError) as error:
        message = (
            f"{segment.name}: there is no memory for a block of {nbytes} bytes; allocate the "
            "target with fewer block_rows, or use fewer workers"
        )
        raise StorageError(errno.ENOMEM, message) from error


@contextlib.contextmanager
def _opened_for_writing(segment: Segment) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(opened(segment.path, write=True))
        except FileNotFoundError as error:
            message = f"{segment.name}: there is no target here; allocate() makes it"
            raise NotFoundError(2, message, str(segment.path)) from error
        except NotRegularError as error:
            raise DamagedJobError(
                f"{segment.name}: {segment.path} is no regular file any more; somebody put "
                "something else there. Put the target back, or allocate another.",
                path=str(segment.path),
            ) from error
        except OSError as error:
            doing = f"{segment.name}: cannot open the target for writing"
            raise storage_error(error, doing, segment.path) from error
        yield descriptor


def _check(job: Job, segment: Segment, work: Work, target: int) -> None:
    _refuse_other_job(job, segment)
    bounds = job.plan.bounds_of(segment.index) if segment.index < len(job.plan) else None
    if bounds != (segment.start, segment.stop):
        raise InvalidArgumentError(
            f"{segment.name} is not one of the segments of {job.path}. Take them from "
            "target.segments; do not make them."
        )
    if job.work is not None and job.work["fingerprint"] != work.fingerprint:
        raise OtherWorkError(
            f"{job.path} is pinned to {describe(job.work)}; for {segment.name} you gave "
            f"{describe(work.describe())}. Fill it by the same work, or allocate another "
            'target, or this one anew with exist="overwrite".',
            segment=segment.name,
        )
    with told(f"{segment.name}: cannot read the target; look at the disk", segment.path):
        problem = job.problem_with(target)
    if problem is not None:
        raise DamagedJobError(
            f"{segment.name}: {job.path} {problem}: something else wrote to it. Restore it "
            'from a copy, or begin anew with exist="overwrite".',
            path=str(job.path),
        )


def _refuse_other_job(job: Job, segment: Segment) -> None:
    if segment.job != job.id:
        raise OtherJobError(
            f"{segment.name} belongs to another allocation of {job.path}, which was allocated "
            "anew since. Take the segments from open_target(path).",
            path=str(job.path),
        )
