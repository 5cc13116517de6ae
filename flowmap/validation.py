"""Proving that every byte is there: `validate`."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowmap import sealing
from flowmap.arguments import flag
from flowmap.checks import refuse_odd_check
from flowmap.claims import Claim
from flowmap.errors import (
    ClaimLostError,
    DamagedJobError,
    FlowmapError,
    StorageError,
    said,
    storage_error,
)
from flowmap.inspection import Inspection
from flowmap.job import Job, refuse_replaced
from flowmap.kernel import again_if_stale, drop_cached, forget_cached
from flowmap.machine import is_on_network
from flowmap.records import FINISHED, digest_of
from flowmap.report import ValidationReport
from flowmap.root import check_within
from flowmap.sidecar import Sidecar, not_regular, why_not_writable
from flowmap.storage import NotRegularError, open_existing, sync_data
from flowmap.target import job_of
from flowmap.wording import call, either, setting

if TYPE_CHECKING:
    from flowmap.checks import Check
    from flowmap.ledger import Ledger
    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment


@again_if_stale
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
        place = Path(os.path.realpath(job.path))
    except OSError as error:  # somebody put a folder in the place of a link meanwhile
        doing = "cannot tell where the path leads; try again"
        raise storage_error(error, doing, job.path) from error
    check_within(job.path, place)
    linked: tuple[str, ...] = ()
    if mark and place != job.path:
        mark, linked = False, (f"{job.path} is a link: nothing was marked or sealed.",)
    target = _opened(job, place)
    try:
        try:
            problem = job.problem_with(target)
        except OSError as error:
            doing = "cannot read the target to validate it; look at the disk"
            raise storage_error(error, doing, job.path) from error
        if is_on_network(place):
            forget_cached(target)
        if problem is not None:
            refuse_replaced(job)
            notes = linked + tuple(_unseal(job) if mark else [])
            problem = f"The file {problem}; nothing was marked."
            return ValidationReport(job.path, (problem,), notes=notes)
        inspection = Inspection(job, target, check, finite)
        report = _Validation(inspection, mixed=mixed).report(mark=mark)
        return replace(report, notes=linked + report.notes)
    finally:
        os.close(target)


def _opened(job: Job, place: Path) -> int:
    """Open what is to be validated for reading.

    Raises:
        ForeignFileError: It is a folder, a pipe or a device.
        StorageError: It cannot be opened.
    """
    try:
        return open_existing(place)
    except NotRegularError as error:
        raise not_regular(place) from error
    except OSError as error:
        doing = "cannot open the target to validate it"
        if place != job.path:
            doing = (
                f"cannot open what {job.path} is a link to; fetch it first (git annex get, dvc "
                "pull)"
            )
        raise storage_error(error, doing, place) from error


class _Validation:
    """One validation of a target whose size and header are right."""

    def __init__(self, inspection: Inspection, *, mixed: bool) -> None:
        self.job = inspection.job
        self.target = inspection.target
        self.inspection = inspection
        self.mixed = mixed
        self.segments: tuple[Segment, ...] = ()
        self.bounds = np.empty((0, 2), np.int64)
        self.complaints: list[tuple[Segment, str]] = []
        self.problems: list[str] = []
        self.bad: set[int] = set()

    @again_if_stale
    def _records(self) -> list[SegmentRecord]:
        with self.job.ledger() as ledger:  # of so many segments, before they are listed
            self.bounds = np.array(list(self.job.plan.bounds()), np.int64).reshape(-1, 2)
            records = ledger.records(self.bounds)
            self.segments = self.job.segments()
            return records

    def report(self, *, mark: bool) -> ValidationReport:
        try:
            records = self._records()
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
        self._look_at_values()
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
        """Read what is finished; return the records whose digest does not match."""
        damaged = []
        segments = [self.segments[record.index] for record in finished]
        for record, (found, complaint) in zip(
            finished, self.inspection.findings(segments), strict=True
        ):
            segment = self.segments[record.index]
            if isinstance(found, OSError) and found.errno == errno.ESTALE:  # another file's now
                raise storage_error(found, f"{segment.name}: cannot read it", self.job.path)
            if found != record.digest or record.rows_done != record.stop - record.start:
                damaged.append(record)
                self._problem(
                    segment,
                    f"is damaged: its bytes have digest {found}, not {record.digest}."
                    if isinstance(found, str)
                    else f"is damaged: {found.strerror} while it was read.",
                )
            elif complaint is not None:  # of bytes that are damaged a check says nothing
                self.complaints.append((segment, complaint))
        return damaged

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

    def _look_at_values(self) -> None:
        """Report what is wrong with values whose bytes are right; it marks nothing."""
        for segment, complaint in self.complaints:
            self._problem(segment, f"{complaint}.")

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
            return marked, [f"{what} was marked or sealed: {_why_not(self.job, error)}."]
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
            return False, [f"Nothing was marked or sealed: {_why_not(self.job, error)}."]


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


def _why_not(job: Job, error: OSError | FlowmapError) -> str:
    """Say why the folder of the records could not be written, as a user understands it."""
    if isinstance(error, FlowmapError):  # it says so itself
        return str(error).rstrip(".")
    return why_not_writable(error, Sidecar.of(job.path).folder) or str(error)


def _unsynced(written: list[SegmentRecord]) -> list[str]:
    if not written:
        return []
    return [
        f"{len(written)} segments are written and not synced; "
        + either("validate(mark=True) does that.", "`flowmap validate` without --no-mark does.")
    ]


def _now(ledger: Ledger, record: SegmentRecord) -> SegmentRecord:
    return ledger.read(record.index, record.start, record.stop)
