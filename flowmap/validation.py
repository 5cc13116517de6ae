"""Proving that every byte is there: `validate`."""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from flowmap import sealing
from flowmap.arguments import flag
from flowmap.blocks import block_buffer
from flowmap.checks import complaint_of, is_finite, refuse_odd_check
from flowmap.claims import Claim
from flowmap.errors import (
    ClaimLostError,
    DamagedJobError,
    FlowmapError,
    StorageError,
    said,
    storage_error,
)
from flowmap.job import Job, refuse_replaced
from flowmap.kernel import drop_cached, forget_cached
from flowmap.machine import available_cpus, is_on_network
from flowmap.records import FINISHED, digest_of
from flowmap.report import ValidationReport
from flowmap.segments import Block, Segment
from flowmap.sidecar import Sidecar
from flowmap.stopping import refuse_if_asked
from flowmap.storage import CHUNK, open_existing, read_into, sync_data
from flowmap.target import job_of
from flowmap.wording import call, either, setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from flowmap.checks import Check
    from flowmap.ledger import Ledger
    from flowmap.records import SegmentRecord


def validate(
    path: str | os.PathLike[str],
    *,
    check: Check | None = None,
    finite: bool = False,
    mark: bool = True,
    mixed: bool = False,
) -> ValidationReport:
    """Validate a target, as `examination.validate` says, and compare no sources."""
    refuse_odd_check(check)
    finite, mark, mixed = flag("finite", finite), flag("mark", mark), flag("mixed", mixed)
    job = job_of(path)
    try:
        target = open_existing(job.path)
    except OSError as error:
        raise storage_error(error, "cannot open the target to validate it", job.path) from error
    try:
        try:
            problem = job.problem_with(target)
        except OSError as error:
            doing = "cannot read the target to validate it; look at the disk"
            raise storage_error(error, doing, job.path) from error
        if is_on_network(job.path):
            forget_cached(target)
        if problem is not None:
            refuse_replaced(job)
            notes = tuple(_unseal(job) if mark else [])
            problem = f"The file {problem}; nothing was marked."
            return ValidationReport(job.path, (problem,), notes=notes)
        return _Validation(job, target, mixed=mixed).report(check, finite=finite, mark=mark)
    finally:
        os.close(target)


class _Validation:
    """One validation of a target whose size and header are right."""

    def __init__(self, job: Job, target: int, *, mixed: bool) -> None:
        self.job = job
        self.target = target
        self.mixed = mixed
        self.segments: tuple[Segment, ...] = ()
        self.bounds = np.empty((0, 2), np.int64)
        self.problems: list[str] = []
        self.bad: set[int] = set()

    def report(self, check: Check | None, *, finite: bool, mark: bool) -> ValidationReport:
        try:
            with self.job.ledger() as ledger:  # of so many segments, before they are listed
                self.bounds = np.array(list(self.job.plan.bounds()), np.int64).reshape(-1, 2)
                records = ledger.records(self.bounds)
                self.segments = self.job.segments()
        except (DamagedJobError, StorageError) as error:
            why = tuple(_unseal(self.job) if mark else [])
            return ValidationReport(self.job.path, (str(error),), self.segments, notes=why)
        self._compare_states(records)
        finished = [record for record in records if record.index not in self.bad]
        written = [record for record in finished if record.state == "written"]
        if mark and written:
            self._sync()
        damaged = self._compare_bytes(finished)
        self._compare_works(records)
        digest = None if self.bad else digest_of(records)
        self._look_at_values(check, finite=finite)
        gone = {record.index for record in damaged}
        synced = [record for record in written if record.index not in gone]
        marked, notes = self._record(synced, damaged) if mark else ([], _unsynced(written))
        sealed = False
        if mark and not self.problems and not notes:
            sealed, notes = self._seal(str(digest), records)
        return ValidationReport(
            self.job.path,
            tuple(self.problems),
            tuple(self.segments[index] for index in sorted(self.bad)),
            digest,
            tuple(marked),
            sealed,
            tuple(notes),
            tuple(self.segments[index] for index in sorted(gone)),
        )

    def _problem(self, segment: Segment, what: str) -> None:
        self.bad.add(segment.index)
        self.problems.append(f"{segment.name} {what}")

    def _compare_states(self, records: list[SegmentRecord]) -> None:
        for segment, record in zip(self.segments, records, strict=True):
            if record.state not in FINISHED:
                reason = f" ({record.reason})" if record.reason else ""
                self._problem(
                    segment,
                    f"is not done but {_STATES[record.state]}{reason}: run the job again.",
                )

    def _sync(self) -> None:
        """Bring what was left unsynced to the disk; where that fails, trust none of it.

        It is read from the disk then: an error that somebody else was told is not told here.
        """
        try:
            sync_data(self.target)
            drop_cached(self.target, self.job.data_offset, self.job.layout.nbytes)
        except OSError as error:
            # A second sync may succeed for data that is gone: only writing them again helps.
            doing = "cannot sync the target; look at the disk, and run the job again"
            try:
                self._distrust()
            except (OSError, FlowmapError) as second:
                doing = (
                    "cannot sync the target, nor mark its segments as failed "
                    f"({said(second)}), so that a later validation may pass although rows are "
                    f"lost; look at the disk, {call('reset')} every segment and run the job "
                    "again"
                )
            raise storage_error(error, doing, self.job.path) from error

    def _distrust(self) -> None:
        """Mark as failed all that is not on the disk for certain, as the ledger is now."""
        with self.job.ledger(write=True) as ledger:
            for segment in self.segments:
                record = ledger.read(segment.index, segment.start, segment.stop)
                if record.state in ("written", "running"):
                    # Whoever claims it meanwhile writes all of it again.
                    with contextlib.suppress(ClaimLostError):
                        Claim(ledger, record, record.work, state="failed")
            ledger.sync()

    def _compare_bytes(self, finished: list[SegmentRecord]) -> list[SegmentRecord]:
        """Recompute the digests of what is finished; return the records that do not match."""
        damaged = []
        with ThreadPoolExecutor(available_cpus()) as threads:
            digests = threads.map(self._digest, [self.segments[r.index] for r in finished])
            for record, found in zip(finished, digests, strict=True):
                if found != record.digest or record.rows_done != record.stop - record.start:
                    damaged.append(record)
                    self._problem(
                        self.segments[record.index],
                        f"is damaged: its bytes have digest {found}, not {record.digest}."
                        if isinstance(found, str)
                        else f"is damaged: {found.strerror} while it was read.",
                    )
        return damaged

    def _digest(self, segment: Segment) -> str | OSError:
        """Return the digest of a segment's bytes, or why they cannot be read."""
        digest = xxhash.xxh3_128()
        try:
            for data in self._read(segment, CHUNK):
                digest.update(data.data)
        except StorageError:  # no memory, which is no fault of the segment
            raise
        except OSError as error:
            return error
        return digest.hexdigest()

    def _read(self, segment: Segment, nbytes: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes of a segment, up to `nbytes` at a time, in one buffer."""
        first = self.job.data_offset + segment.start * self.job.layout.row_bytes
        last = first + segment.rows * self.job.layout.row_bytes
        buffer = block_buffer(min(nbytes, last - first), segment)
        for offset in range(first, last, max(nbytes, 1)):
            refuse_if_asked()
            data = buffer[: last - offset]
            if read_into(self.target, data, offset) < len(data):
                raise OSError(errno.EIO, "the file ended")
            yield data

    def _compare_works(self, records: list[SegmentRecord]) -> None:
        if self.mixed:
            return
        works = {r.work for r in records if r.state in FINISHED}
        if self.job.work is not None:
            works.add(self.job.work["fingerprint"])
        if len(works) > 1:
            self.problems.append(
                f"The segments were filled by {len(works)} different works (filler, version or "
                f"arguments). {call('reset')} those of the wrong one and run again, or pass "
                f"{setting(mixed=True)}."
            )

    def _look_at_values(self, check: Check | None, *, finite: bool) -> None:
        if check is None and not finite:
            return
        for segment in self.segments:
            if segment.index not in self.bad:
                self._look_at(segment, check, finite=finite)

    def _look_at(self, segment: Segment, check: Check | None, *, finite: bool) -> None:
        """Give each block of a segment to the user's check; stop at the first that fails."""
        layout = self.job.layout
        for start in range(segment.start, segment.stop, self.job.block_rows):
            stop = min(start + self.job.block_rows, segment.stop)
            block = Block(start, stop, layout.axis)
            rows = Segment(segment.path, segment.job, segment.index, block.start, block.stop)
            data = np.empty(0, np.uint8)
            try:
                for read in self._read(rows, len(block) * layout.row_bytes):
                    data = read
            except StorageError:  # no memory, which is no fault of the segment
                raise
            except OSError as error:
                self._problem(segment, f"cannot be read: {error.strerror}.")
                return
            values = layout.as_array(data, len(block))
            values.flags.writeable = False
            problem = "holds NaN or infinity" if finite and not is_finite(values) else None
            problem = problem or (None if check is None else complaint_of(check, values, block))
            if problem is not None:
                self._problem(segment, f"{problem} in rows {block.start} to {block.stop}.")
                return

    def _record(
        self, synced: list[SegmentRecord], damaged: list[SegmentRecord]
    ) -> tuple[list[Segment], list[str]]:
        """Make done what was synced, mark what is damaged; return the marked, and notes."""
        marked: list[Segment] = []
        try:
            if damaged:
                Sidecar.of(self.job.path).look_afresh()
                sealing.lift(self.job)
                marked = self._mark(damaged, "damaged")
            if synced:
                with self.job.ledger(write=True) as ledger:
                    now = ledger.records(self.bounds)
                    for record in synced:
                        # A claim that comes meanwhile has a higher number, and other slots.
                        if now[record.index].says_the_same(record):
                            durable = now[record.index].made_durable()
                            ledger.write(durable)
                            ledger.write(replace(durable, sequence=durable.sequence + 1))
                    ledger.sync()
        except (OSError, FlowmapError) as error:
            what = "Nothing" if not marked else "Not everything"
            return marked, [f"{what} was marked or sealed: {error}."]
        return marked, []

    def _mark(self, records: list[SegmentRecord], state: str) -> list[Segment]:
        """Claim segments for nobody; what changed since it was read is left to its owner."""
        with self.job.ledger(write=True) as ledger:
            same = [record for record in records if _now(ledger, record).says_the_same(record)]
            for record in same:
                Claim(ledger, record, record.work, state=state)
            ledger.sync()
        Sidecar.of(self.job.path).look_afresh()
        refuse_replaced(self.job)  # as in `reset`
        return [self.segments[record.index] for record in same]

    def _seal(self, digest: str, records: list[SegmentRecord]) -> tuple[bool, list[str]]:
        def claimed() -> bool:
            with self.job.ledger() as ledger:
                now = ledger.records(self.bounds)
            return any(
                a.token != b.token or a.state != "done"
                for a, b in zip(now, records, strict=True)
            )

        try:
            return sealing.put(self.job, self.target, digest, claimed=claimed)
        except (OSError, FlowmapError) as error:
            return False, [f"Nothing was marked or sealed: {error}."]


_STATES = {
    "pending": "pending",
    "running": "being filled, or cut short",
    "failed": "failed",
    "damaged": "damaged",
}


def _unseal(job: Job) -> list[str]:
    """Lift the seal of what is damaged; return a note where that cannot be."""
    try:
        sealing.lift(job)
    except OSError as error:
        return [f"The seal could not be lifted: {error}."]
    return []


def _unsynced(written: list[SegmentRecord]) -> list[str]:
    if not written:
        return []
    return [
        f"{len(written)} segments are written and not synced; "
        + either("validate(mark=True) does that.", "`flowmap validate` without --no-mark does.")
    ]


def _now(ledger: Ledger, record: SegmentRecord) -> SegmentRecord:
    return ledger.read(record.index, record.start, record.stop)
