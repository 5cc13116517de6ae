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
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from flowmap.errors import DamagedJobError, OtherJobError, storage_error, told
from flowmap.kernel import forget_cached, reserve
from flowmap.machine import is_on_network
from flowmap.npy import Layout
from flowmap.records import (
    SEQUENCES,
    SLOT,
    SLOTS,
    SegmentRecord,
    checksum_matches,
    is_possible,
    place_of,
)
from flowmap.storage import (
    CHUNK,
    PAGE,
    NotRegularError,
    buffer_of,
    created,
    open_existing,
    read_into,
    sync_data,
    write_all,
)
from flowmap.wording import overwriting, segments_anew

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


_EMPTY: Final = bytes(PAGE)


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
        on_network: Whether other hosts may write to it: see `machine.is_on_network`.

    Raises:
        DamagedJobError: The file is missing, or is not the ledger of such a job.
        StorageError: It cannot be opened.
    """

    def __init__(self, path: Path, job: str, count: int, *, write: bool = False) -> None:
        self.path = path
        self.job = job
        self._count = count
        self._for_writing = write
        header = _header(count)
        self._offset = len(header)
        self.on_network = is_on_network(path)
        try:
            self._descriptor = open_existing(path, write=write)
        except (FileNotFoundError, NotRegularError) as error:
            raise damaged(path, "is missing") from error
        except OSError as error:
            raise storage_error(error, "cannot open the ledger; see who may", path) from error
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
            raise damaged(self.path, f"has {size} bytes instead of {expected}")
        if found != header:
            raise damaged(self.path, "has another header")

    def check_writable(self) -> None:
        """Refuse to begin what must be recorded, where the ledger is open for reading only.

        Raises:
            StorageError: It cannot be opened for writing.
        """
        if not self._for_writing:
            with told("cannot open the ledger for writing; see who may", self.path):
                os.close(open_existing(self.path, write=True))

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
        offset = self._offset + index * PAGE
        if self.on_network:
            forget_cached(self._descriptor)
        try:
            page = os.pread(self._descriptor, PAGE, offset)
        except (OSError, MemoryError) as error:
            doing = f"cannot read the ledger of segment {index:04d}; look at the disk"
            raise storage_error(error, doing, self.path) from error
        if len(page) < PAGE:
            raise damaged(self.path, f"ends within the page of segment {index:04d}")
        return page

    def read(self, index: int, start: int, stop: int) -> SegmentRecord:
        """Return the record of one segment; pending where there is none yet."""
        return self.newest(self.page(index), index, start, stop)

    def newest(self, page: bytes, index: int, start: int, stop: int) -> SegmentRecord:
        """Return the record that counts of a page."""
        if page == _EMPTY:  # as most are that an attempt begins with
            return SegmentRecord(index, start, stop)
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
        if page == _EMPTY:
            return
        for slot in np.frombuffer(page, SLOT):
            other = slot["job"] not in (b"", self.job.encode())
            if other and checksum_matches(slot.tobytes()):
                raise OtherJobError(
                    f"{name}: the ledger {self.path} holds records of another job; the target "
                    "was allocated anew meanwhile, or the ledger came from elsewhere. "
                    f"{segments_anew()}",
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
        if self.on_network:
            forget_cached(self._descriptor)
        step = 1024  # pages at a time: 4 MiB, whatever the number of segments
        for first in range(0, self._count, step):
            last = min(first + step, self._count)
            pages = buffer_of((last - first) * PAGE)
            with told("cannot read the ledger; look at the disk", self.path):
                count = read_into(self._descriptor, pages, self._offset + first * PAGE)
            if count < len(pages):
                raise damaged(self.path, f"ends within the pages from segment {first:04d} on")
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

    def write(self, record: SegmentRecord) -> None:
        """Write a record into the slot that its attempt and sequence number own.

        Raises:
            StorageError: It cannot be written.
        """
        first, _ = place_of(record.attempt, record.sequence)
        self.put(record.pack(self.job), record.index, first)

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
        except (OSError, MemoryError) as error:
            name = SegmentRecord.unpack(slot).name
            doing = f"{name}: cannot record progress; free some space, run again"
            raise storage_error(error, doing, self.path) from error

    def sync(self) -> None:
        """Return only when what was recorded is on the disk.

        Raises:
            StorageError: The disk did not take it.
        """
        with told("cannot sync the ledger to disk; run again", self.path):
            sync_data(self._descriptor)


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


def damaged(path: Path, what: str) -> DamagedJobError:
    """Return the error for a ledger that is not as it was written."""
    return DamagedJobError(
        f"The ledger {path} {what}: nothing is known of which segments are done. Restore it "
        f"from a copy, or begin anew with {overwriting()}.",
        path=str(path),
    )
