"""The ledger: the durable record, beside the target, of what is done.

One page a segment, each written only by the worker that has the segment: two hosts that
write different bytes of one page over NFS lose data. A page holds 16 slots. Attempt *a*
owns slots 2(*a* mod 8) and the next, and alternates between them, so that a torn write
never costs the last good record and a zombie cannot write over its retry's. The largest
valid (attempt, sequence) counts.
"""

from __future__ import annotations

import functools
import os
import secrets
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from flowmap.errors import ClaimLostError, DamagedJobError, OtherJobError, storage_error, told
from flowmap.npy import Layout
from flowmap.records import (
    ATTEMPTS,
    FINISHED,
    SEQUENCES,
    SLOT,
    SLOTS,
    SegmentRecord,
    advanced,
    checksum_matches,
    is_possible,
)
from flowmap.storage import (
    CHUNK,
    PAGE,
    NotRegularError,
    buffer_of,
    created,
    open_existing,
    read_into,
    reserve,
    sync_data,
    write_all,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NO_ROWS: Final[dict[str, Any]] = {
    "rows_done": 0,
    "rows_durable": 0,
    "digest": "",
    "digest_durable": "",
}
"""The fields of a record of which no row counts."""


class Ledger:
    """The open ledger of a job.

    Args:
        path: Of `ledger.npy`.
        job: The job's id.
        count: How many segments the job has.
        write: Whether records will be written.

    Attributes:
        path: Of `ledger.npy`.
        job: The job's id.

    Raises:
        DamagedJobError: The file is missing, or is not the ledger of such a job.
        StorageError: It cannot be opened.
    """

    def __init__(self, path: Path, job: str, count: int, *, write: bool = False) -> None:
        self.path = path
        self.job = job
        self._count = count
        header = _header(count)
        self._offset = len(header)
        try:
            self._descriptor = open_existing(path, write=write)
        except (FileNotFoundError, NotRegularError) as error:
            raise _damaged(path, "is missing") from error
        except OSError as error:
            raise storage_error(error, "cannot open the ledger", path) from error
        try:
            self._compare(header)
        except BaseException:
            self.close()
            raise

    def _compare(self, header: bytes) -> None:
        """Refuse what is not the ledger of such a job."""
        with told("cannot read the ledger; look at the disk", self.path):
            size = os.fstat(self._descriptor).st_size
            found = os.pread(self._descriptor, len(header), 0)
        expected = len(header) + self._count * PAGE
        if size != expected:
            raise _damaged(self.path, f"has {size} bytes instead of {expected}")
        if found != header:
            raise _damaged(self.path, "has another header")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def page(self, index: int) -> bytes:
        """Return the page of one segment as it is now.

        Raises:
            StorageError: It cannot be read.
            DamagedJobError: The ledger ends before it.
        """
        try:
            page = os.pread(self._descriptor, PAGE, self._offset + index * PAGE)
        except OSError as error:
            doing = f"cannot read the ledger of segment {index:04d}; look at the disk"
            raise storage_error(error, doing, self.path) from error
        if len(page) < PAGE:
            raise _damaged(self.path, f"ends within the page of segment {index:04d}")
        return page

    def read(self, index: int, start: int, stop: int) -> SegmentRecord:
        """Return the record of one segment; pending where there is none yet."""
        return self.newest(self.page(index), index, start, stop)

    def newest(self, page: bytes, index: int, start: int, stop: int) -> SegmentRecord:
        """Return the record that counts of a page."""
        slots = np.frombuffer(page, SLOT)[None]
        best = _newest(slots, self.job, np.array([[index, start, stop]]))
        if best[0] < 0:
            return SegmentRecord(index, start, stop)
        return SegmentRecord.unpack(slots[0, best[0]].tobytes())

    def refuse_others(self, page: bytes, name: str) -> None:
        """Refuse a page that another job has written to: this ledger is not the job's own.

        Args:
            page: The segment's page as it is now.
            name: Of the segment.

        Raises:
            OtherJobError: It holds whole records of another job.
        """
        for slot in np.frombuffer(page, SLOT):
            other = slot["job"] not in (b"", self.job.encode())
            if other and checksum_matches(slot.tobytes()):
                raise OtherJobError(
                    f"{name}: the ledger {self.path} holds records of another job; the target "
                    "was allocated anew meanwhile, or the ledger came from elsewhere. Take "
                    "the segments from open_target(path).",
                    path=str(self.path),
                )

    def read_all(self, bounds: NDArray[np.int64]) -> NDArray[Any]:
        """Return the slot that counts of each segment: shape (segments,), dtype SLOT.

        Args:
            bounds: Shape (segments, 2): start and stop of each. A segment with no record
                yet gets an empty slot with these, attempt 0 and state "pending".

        Raises:
            StorageError: It cannot be read.
            DamagedJobError: The ledger ends before its last page.
        """
        chosen = np.zeros(self._count, SLOT)
        chosen["segment"] = np.arange(self._count)
        chosen["state"] = b"pending"
        chosen["start"], chosen["stop"] = bounds[:, 0], bounds[:, 1]
        step = 1024  # pages at a time: 4 MiB, whatever the number of segments
        for first in range(0, self._count, step):
            last = min(first + step, self._count)
            pages = buffer_of((last - first) * PAGE)
            with told("cannot read the ledger; look at the disk", self.path):
                count = read_into(self._descriptor, pages, self._offset + first * PAGE)
            if count < len(pages):
                raise _damaged(self.path, f"ends within the pages from segment {first:04d} on")
            slots = pages.view(SLOT).reshape(-1, SLOTS)
            places = np.column_stack([np.arange(first, last), bounds[first:last]])
            best = _newest(slots, self.job, places)
            (known,) = np.nonzero(best >= 0)
            chosen[first + known] = slots[known, best[known]]
        return chosen

    def records(self, bounds: NDArray[np.int64]) -> list[SegmentRecord]:
        """Return the record of each segment; arguments and errors are those of `read_all`."""
        slots = self.read_all(bounds).tobytes()
        size = SLOT.itemsize
        return [
            SegmentRecord.unpack(slots[at : at + size]) for at in range(0, len(slots), size)
        ]

    def write(self, record: SegmentRecord, page: bytes) -> bytes:
        """Write a record into the slot that its attempt and sequence number own.

        Args:
            record: What to write.
            page: The segment's page as it was seen last.

        Returns:
            What the page must be now, if nobody else has written to it.

        Raises:
            StorageError: It cannot be written.
        """
        first, last = _place_of(record.attempt, record.sequence)
        packed = record.pack(self.job)
        self.put(packed, record.index, first)
        return page[:first] + packed + page[last:]

    def put(self, slot: bytes, index: int, first: int) -> None:
        """Write a slot into the page of a segment.

        Args:
            slot: All of its bytes.
            index: Of the segment.
            first: The byte of the page where it goes.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            write_all(self._descriptor, slot, self._offset + index * PAGE + first)
        except OSError as error:
            name = _name(SegmentRecord.unpack(slot))
            doing = f"{name}: cannot record progress; free some space, run again"
            raise storage_error(error, doing, self.path) from error

    def sync(self) -> None:
        """Return only when what was recorded is on the disk.

        Raises:
            StorageError: The disk did not take it.
        """
        with told("cannot sync the ledger to disk; run again", self.path):
            sync_data(self._descriptor)


class Claim:
    """A claim to one segment, and the records that its attempt makes.

    Making one writes a new attempt into the ledger, which whoever had the segment notices
    before the next record. The claim is looked at again before each record: a page that
    is byte for byte what this claim last saw holds no other claim.

    Args:
        ledger: Open for writing; the caller closes it.
        record: What the ledger says of the segment now.
        work: The fingerprint of the work of this attempt.
        **changes: Other fields of the first record ("state", "rows_done", ...).

    Raises:
        ClaimLostError: Another attempt claimed it since `record` was read.
        OtherJobError: The page holds records of another job, which are not written over.
        DamagedJobError: No attempt can follow the one of `record`.
    """

    def __init__(
        self,
        ledger: Ledger,
        record: SegmentRecord,
        work: str,
        **changes: Any,
    ) -> None:
        if record.attempt + 1 >= ATTEMPTS:
            what = (
                f"tells of {record.attempt} attempts at {_name(record)}, and there is no next"
            )
            raise _damaged(ledger.path, what)
        self._ledger = ledger
        self._index, self._attempt = record.index, record.attempt + 1
        now = time.time()
        first = replace(
            record,
            attempt=self._attempt,
            sequence=0,
            work=work,
            token=secrets.token_hex(16),
            started=now,
            finished=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            reason="",
            **changes,
        )
        self._slot = first.pack(ledger.job)
        self._sequence = 0
        # Whoever claimed it since may have written to this attempt's other slot already, and
        # would be taken for this claim's own past.
        page = ledger.page(record.index)
        found = ledger.newest(page, record.index, record.start, record.stop)
        if _whose(found) != _whose(record) or found.state != record.state:
            raise self._lost(found)
        ledger.refuse_others(page, _name(first))
        self._page = bytearray(page)
        self._write(first)
        if record.state in FINISHED:  # damage to one slot must not bring that record back
            self._write(replace(first, sequence=1))
        self._claimed = self._sequence
        self.check()

    @property
    def record(self) -> SegmentRecord:
        """What the ledger says of the segment by this claim."""
        return SegmentRecord.unpack(self._slot)

    def _write(self, record: SegmentRecord) -> None:
        self._put(record.pack(self._ledger.job), record.sequence)

    def _put(self, slot: bytes, sequence: int) -> None:
        first, last = _place_of(self._attempt, sequence)
        self._ledger.put(slot, self._index, first)
        self._page[first:last] = slot
        self._slot, self._sequence = slot, sequence

    def check(self) -> None:
        """Look whether the claim still stands.

        Raises:
            ClaimLostError: Another attempt has the segment.
        """
        page = self._ledger.page(self._index)
        if page == self._page:
            return
        mine = self.record
        found = self._ledger.newest(page, mine.index, mine.start, mine.stop)
        if _whose(found) == _whose(mine):
            # A claim of the same number that was slow to be written, and took both slots, saw
            # nothing of this one. Of one that gave up there is no more than the claim.
            first, last = _place_of(mine.attempt, mine.sequence)
            others = page[:first] + bytes(last - first) + page[last:]
            found = self._ledger.newest(others, mine.index, mine.start, mine.stop)
            gone_on = found.attempt == mine.attempt and found.sequence > self._claimed
            if found.token == mine.token or not gone_on:
                self._page = bytearray(page)
                return
        raise self._lost(found)

    def _lost(self, found: SegmentRecord) -> ClaimLostError:
        mine = self.record
        name = _name(mine)
        return ClaimLostError(
            f"{name}: attempt {mine.attempt} found that attempt {found.attempt} by process "
            f"{found.pid} on {found.host or 'no host'} has the segment (now "
            f"{found.state}), and stopped without recording anything. Let that one "
            "finish; run the job again if it does not.",
            segment=name,
        )

    def note(self, **changes: Any) -> SegmentRecord:
        """Look at the claim, then record `changes`; not yet durable."""
        self.check()
        last = self.record
        self._write(replace(last, sequence=last.sequence + 1, finished=time.time(), **changes))
        return self.record

    def advance(self, rows_done: int, digest: bytes) -> None:
        """Look at the claim, then record that more rows were written; not yet durable.

        Args:
            rows_done: Rows written so far.
            digest: Their xxh3_128.
        """
        self.check()
        sequence = self._sequence + 1
        self._put(advanced(self._slot, sequence, rows_done, digest), sequence)


def _name(record: SegmentRecord) -> str:
    return f"segment {record.index:04d} [{record.start}:{record.stop}]"


def _place_of(attempt: int, sequence: int) -> tuple[int, int]:
    """Return where in its page a record's slot begins and ends, by the record's numbers."""
    slot = 2 * (attempt % (SLOTS // 2)) + sequence % 2
    return slot * SLOT.itemsize, (slot + 1) * SLOT.itemsize


def _whose(record: SegmentRecord) -> tuple[int, str]:
    return record.attempt, record.token


def create_ledger(path: Path, count: int) -> None:
    """Make the ledger of a new job: reserved, empty, durable once its folder is synced."""
    header = _header(count)
    size = len(header) + count * PAGE
    zeros = bytes(CHUNK)
    with created(path) as descriptor:
        reserve(descriptor, size)
        write_all(descriptor, header, 0)
        # Written, not only reserved: what `drop_cached` tells of would lose a record for good.
        for offset in range(len(header), size, CHUNK):
            write_all(descriptor, zeros[: size - offset], offset)
        os.fsync(descriptor)


@functools.lru_cache(maxsize=16)  # a worker opens the ledger for each segment
def _header(count: int) -> bytes:
    return Layout((count, SLOTS), SLOT, fortran_order=False).header()


def _newest(slots: NDArray[Any], job: str, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which slot of each page counts: shape (pages,); -1 where none is valid.

    Args:
        slots: Shape (pages, SLOTS).
        job: The job's id.
        places: Shape (pages, 3): the segment's number, start and stop of each page.
    """
    ours = slots["job"] == job.encode()
    for name, values in zip(("segment", "start", "stop"), places.T, strict=True):
        ours &= slots[name] == values[:, None]
    order = np.where(ours, slots["attempt"].astype("u8") * SEQUENCES + slots["sequence"] + 1, 0)
    best = np.argmax(order, axis=1)
    pages = np.arange(len(slots))
    unchecked = np.nonzero(order[pages, best])[0]
    while unchecked.size:  # a torn newest slot leaves the one before it
        bad = [page for page in unchecked if not _counts(slots[page, best[page]].tobytes())]
        order[bad, best[bad]] = 0
        best[bad] = np.argmax(order[bad], axis=1)
        unchecked = np.array([page for page in bad if order[page, best[page]]], np.intp)
    return np.where(order[pages, best] > 0, best, -1)


def _counts(slot: bytes) -> bool:
    return checksum_matches(slot) and is_possible(slot)


def _damaged(path: Path, what: str) -> DamagedJobError:
    return DamagedJobError(
        f"The ledger {path} {what}: nothing is known of which segments are done. Restore it "
        'from a copy, or begin anew with exist="overwrite".',
        path=str(path),
    )
