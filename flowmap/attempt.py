"""One attempt at a segment: what goes to disk in which order, so that "done" is never a lie.

Claim; then write each block, start the write-back of what has come to a mebibyte, hash it, by
pieces of a mebibyte where the block is longer, and note the block. At each checkpoint and at
the end sync the target, look at the claim, record, sync the ledger.

With `durability="end"` an attempt never syncs the target, not even at a checkpoint: the
kernel reports a failed write-back once for the file, whichever segment it hit, and a sync
that fails one segment would hide the loss of another from the sync of the validation. No row
is recorded as durable there, and only a validation that marks syncs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import xxhash

from flowmap import sealing
from flowmap.blocks import block_buffer
from flowmap.claims import NO_ROWS, Claim
from flowmap.errors import ClaimLostError, OtherJobError, StoppedError, cut, said, told
from flowmap.failures import record_failure
from flowmap.job import refuse_replaced
from flowmap.kernel import drop_cached, forget_cached, start_writeback
from flowmap.records import FINISHED, REASON_BYTES
from flowmap.sidecar import Sidecar
from flowmap.sources import digest_for, record_work
from flowmap.storage import CHUNK, PAGE, look_afresh, opened, read_into, sync_data, write_all
from flowmap.wording import segments_anew

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.ledger import Ledger
    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment
    from flowmap.work import Work


class Attempt:
    """An attempt at one segment; `attempting` makes it and closes what it opens.

    Args:
        job: The job.
        segment: The segment.
        work: What fills it.
        target: A descriptor of the target, which is closed elsewhere.
        writable: Whether it is for writing, too; `begin` makes it so.
        ledger: The job's ledger, for writing.

    Attributes:
        before: What the ledger said of the segment before this attempt.
    """

    def __init__(
        self,
        job: Job,
        segment: Segment,
        work: Work,
        target: int,
        ledger: Ledger,
        *,
        writable: bool,
    ) -> None:
        self.job = job
        self.segment = segment
        self.before = ledger.read(segment.index, segment.start, segment.stop)
        self._work = work
        self._target = target
        self._writable = writable
        self._ledger = ledger
        self._digest = xxhash.xxh3_128()
        self._rows = 0
        self._claim: Claim | None = None
        self._synced_at = time.monotonic()
        self._pid = os.getpid()
        self._dropped = False
        self._writing = self._told("cannot write the rows; free some space and run again")
        self._row_bytes = job.layout.row_bytes
        self._first_byte = job.data_offset + segment.start * self._row_bytes
        self._unsent = sys.maxsize  # the first byte whose write-back was not asked for

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
            OtherJobError: The target was allocated anew meanwhile.
            ForeignFileError: Its records were removed meanwhile.
            StorageError: The disk refused, or the seal is not this user's to lift.
        """
        self._ledger.check_writable()
        before = self.before
        resume = resume and before.work == self._work.fingerprint
        with self._noting():
            record_work(self.job, self._work)
        # A kill right after the claim must not leave a seal on what is not done.
        self._lift_seal()
        if not self._writable:
            self._open_for_writing()
        source = digest_for(self.job, self._work, before if resume else None)
        changes = {"state": "running", "source": source} | ({} if resume else NO_ROWS)
        try:
            self._claim = Claim(self._ledger, before, self._work.fingerprint, **changes)
        finally:
            # After the claim, too: a validation that seals meanwhile looks at the claims once
            # more. A claim that was lost may have taken the place of a record that was done.
            self._lift_seal()
        if before.state == "done":  # before a byte changes that this record vouches for
            self._sync_ledger()
            # `clean` takes the records away, and looks for a claim then: one sees the other.
            refuse_replaced(self.job)
        whole = not resume or (
            self._take_over(before.rows_durable, before.digest_durable, rewrite=False)
            and self._take_over(before.rows_done, before.digest, rewrite=True)
        )
        if not whole:  # nor may the next attempt trust what this one did not find
            digest = self._digest.hexdigest() if self._rows else ""
            self._claim.note(
                rows_done=self._rows,
                rows_durable=self._rows,
                digest=digest,
                digest_durable=digest,
                source=source if self._rows else digest_for(self.job, self._work, None),
            )

    def _lift_seal(self) -> None:
        if self.before.state in FINISHED:  # as all are of a sealed job, perhaps by another host
            Sidecar.of(self.job.path).look_afresh()
        sealing.lift(self.job)

    def _open_for_writing(self) -> None:
        """Open the target for writing, too, now that no seal stands against it."""
        doing = "cannot open the target for writing; see who may (ls -l, lsattr)"
        with self._told(doing), opened(self.segment.path, write=True) as again:
            same = os.path.samestat(os.fstat(again), os.fstat(self._target))
            if same:
                os.dup2(again, self._target, inheritable=False)
        if not same:
            raise self.replaced()
        self._writable = True

    def _told(self, doing: str) -> told:
        return told(f"{self.segment.name}: {doing}", self.segment.path)

    def _noting(self) -> told:
        doing = f"{self.segment.name}: cannot record progress; free some space, run again"
        return told(doing, Sidecar.of(self.job.path).folder)

    def _take_over(self, rows: int, digest: str, *, rewrite: bool) -> bool:
        """Read on up to `rows`; keep them and return True if they match `digest`.

        What was not synced is written again, the same bytes: after a failed write-back
        the page cache may hold what the disk does not, and this attempt's sync must cover
        it. Where the digest differs the filler computes the rows again.
        """
        reached = self._digest.copy()
        if self._ledger.on_network:
            forget_cached(self._target)
        for offset, chunk in self._chunks(self._rows, rows):
            try:
                count = read_into(self._target, chunk, offset)
            except OSError:  # a bad sector: computing it again writes it anew
                return False
            if count < len(chunk):
                return False
            reached.update(chunk.data)
            if rewrite:
                self._held().check()
                drop_cached(self._target, offset, len(chunk))
                self._write(chunk, offset)
        if rows > self._rows and reached.hexdigest() != digest:
            return False
        self._digest, self._rows = reached, max(rows, self._rows)
        return True

    def _chunks(self, first: int, last: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the byte at which each chunk of some rows lies, and a buffer for it.

        No page is in two chunks: dropped for the one, it would be lost to the other.
        """
        begin, end = self._byte(first), self._byte(last)
        buffer = block_buffer(min(CHUNK, end - begin), self.segment)
        while begin < end:
            stop = min(begin - begin % CHUNK + CHUNK, end)
            yield begin, buffer[: stop - begin]
            begin = stop

    def _byte(self, row: int) -> int:
        """Return the byte of the file where a row of the segment begins."""
        return self._first_byte + row * self._row_bytes

    def _drop_cached_from(self, row: int) -> None:
        first = self._byte(row)
        drop_cached(self._target, first, self._byte(self.segment.rows) - first)
        self._dropped = True

    def _write(self, data: NDArray[np.uint8], offset: int) -> None:
        with self._writing:
            write_all(self._target, data.data, offset)
        self._unsent = min(self._unsent, offset)
        end = offset + len(data)
        whole = end - end % PAGE  # the next block changes the page in which this one ends
        if whole - self._unsent >= CHUNK:  # to ask for little takes longer than to write it
            start_writeback(self._target, self._unsent, whole - self._unsent)
            self._unsent = whole

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
        if not self._dropped:  # what an attempt before this left, or one at the next segment
            self._drop_cached_from(self._rows)
        first = self._byte(self._rows)
        for at in range(0, len(data), CHUNK):  # the disk begins early, the cache has it still
            piece = data[at : at + CHUNK]
            self._write(piece, first + at)
            self._digest.update(piece.data)
        self._rows += rows
        claim.advance(self._rows, self._digest.digest())
        due = time.monotonic() - self._synced_at >= self.job.checkpoint_seconds
        if due and self.job.durability == "segment":
            self._record_durable("running")

    def pause(self) -> NoReturn:
        """Make what was written durable, and leave the segment to whoever goes on with it.

        Raises:
            StoppedError: Always, if nothing else.
            ClaimLostError, StorageError: As in `commit`.
        """
        if self.job.durability == "end":
            self._held().note(state="pending")
        else:
            self._record_durable("pending")
        raise StoppedError(f"{self.segment.name} was stopped; run again to go on with it.")

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
            self._held().note(state="written", rows_done=self._rows, digest=digest)
        else:
            self._record_durable("done")
        self._held().check()
        return self._held().record

    def _record_durable(self, state: str) -> None:
        with self._told("cannot sync the rows to disk; run again, and look at the disk"):
            self._sync()
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

    def _sync(self) -> None:
        sync_data(self._target)

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
                look_afresh(self.job.path.parent)  # another host may have replaced it
                there = self.job.path.lstat()
                same = os.path.samestat(there, os.fstat(self._target))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
                same = False
        if not same:
            raise self.replaced()

    def replaced(self) -> OtherJobError:
        """Return the error for a target that is not at its path any more."""
        return OtherJobError(
            f"{self.segment.name}: {self.job.path} was allocated anew, moved or removed while "
            "the segment was being filled; the rows went into the file that was there before. "
            f"{segments_anew()}",
            path=str(self.job.path),
        )

    def fail(self, error: BaseException) -> None:
        """Record why the attempt ended, if it still has the segment and the disk allows it."""
        if self._claim is not None and not isinstance(error, ClaimLostError | StoppedError):
            cause = error.__cause__ or error
            reason = cut(said(cause), REASON_BYTES)
            with contextlib.suppress(ClaimLostError, OSError):
                record = self._held().note(state="failed", reason=reason)
                record_failure(self.job, record.index, record.attempt, cause)

    def _held(self) -> Claim:
        assert self._claim is not None, "begin() comes first"
        if self._pid != os.getpid():
            raise ClaimLostError(
                f"{self.segment.name} was claimed by process {self._pid}, of which this one is "
                "a fork; only that one can finish it. Leave a fork by os._exit().",
                segment=self.segment.name,
            )
        return self._claim
