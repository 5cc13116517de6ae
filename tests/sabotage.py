"""flowmap broken on purpose: what shows that a test of the faults would see such a bug.

A child process calls `sabotage(name)`; a test within its own process passes
`monkeypatch.setattr` along.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

import flowmap.alloc
import flowmap.attempt
import flowmap.claims
import flowmap.documents
import flowmap.job
import flowmap.lease
import flowmap.ledger
import flowmap.mapped
import flowmap.publication
import flowmap.records
import flowmap.sealing
import flowmap.storage
import flowmap.windows
from flowmap.attempt import Attempt
from flowmap.claims import Claim
from flowmap.job import Job
from flowmap.ledger import Ledger
from flowmap.validation import _Validation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment

    Patch = Callable[[Any, str, Any], object]


def _nothing(*_: Any) -> None:
    """Do nothing."""


def _no_sync_of_the_target(patch: Patch) -> None:
    patch(flowmap.attempt, "sync_data", _nothing)
    for module in (flowmap.attempt, flowmap.mapped):
        patch(module, "start_writeback", _nothing)
    patch(flowmap.windows._Mapping, "sync", _nothing)


def _no_sync_of_the_ledger(patch: Patch) -> None:
    patch(flowmap.ledger, "sync_data", _nothing)


def _no_sync_of_names(patch: Patch) -> None:
    for module in (flowmap.publication, flowmap.storage, flowmap.sealing):
        patch(module, "sync_folder", _nothing)


def _done_before_the_sync(patch: Patch) -> None:
    real, names = Attempt._record_durable, vars(flowmap.attempt)
    sync = names["sync_data"]

    def early(self: Attempt, state: str) -> None:
        later: list[int] = []
        names["sync_data"] = later.append
        try:
            real(self, state)
        finally:
            names["sync_data"] = sync
        for descriptor in later:
            sync(descriptor)

    patch(Attempt, "_record_durable", early)


def _no_checkpoints(patch: Patch) -> None:
    real = Attempt._record_durable

    def only_done(self: Attempt, state: str) -> None:
        if state == "done":
            real(self, state)

    patch(Attempt, "_record_durable", only_done)


def _no_look_at_the_claim(patch: Patch) -> None:
    patch(Claim, "check", _nothing)


def _one_pair_of_slots(patch: Patch) -> None:
    real = flowmap.records.place_of
    for module in (flowmap.claims, flowmap.ledger):
        patch(module, "place_of", lambda _, sequence: real(0, sequence))


def _no_comparing_of_digests(patch: Patch) -> None:
    patch(_Validation, "_compare_bytes", lambda self, finished: [])


def _no_writing_again(patch: Patch) -> None:
    real = Attempt._take_over

    def read_only(self: Attempt, rows: int, digest: str, *, rewrite: bool) -> bool:
        return real(self, rows, digest, rewrite=False)

    patch(Attempt, "_take_over", read_only)


def _no_dropping_of_the_cache(patch: Patch) -> None:
    patch(flowmap.attempt, "drop_cached", _nothing)


def _no_removing_of_old_records(patch: Patch) -> None:
    patch(flowmap.publication, "_clear", lambda *_, **__: None)


def _nothing_taken_over(patch: Patch) -> None:
    patch(Attempt, "_take_over", lambda self, rows, digest, *, rewrite: True)


def _a_row_skipped(patch: Patch) -> None:
    row = property(lambda self: self.segment.start + self._rows + bool(self._rows))
    patch(Attempt, "next_row", row)


def _no_look_at_the_mark(patch: Patch) -> None:
    patch(flowmap.job, "job_mark", lambda descriptor: None)


def _no_checksums(patch: Patch) -> None:
    for module in (flowmap.ledger, flowmap.records):
        patch(module, "checksum_matches", lambda slot: True)


def _no_checksum_of_documents(patch: Patch) -> None:
    class AnyText(str):
        """Equal to every text."""

        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    real = flowmap.documents._checksum
    patch(flowmap.documents, "_checksum", lambda document: AnyText(real(document)))


def _no_look_at_values_of_a_job(patch: Patch) -> None:
    patch(Job, "_refuse_odd", _nothing)


def _no_comparing_of(word: str, patch: Patch) -> None:
    real = Job.problem_with

    def blind(self: Job, descriptor: int) -> str | None:
        problem = real(self, descriptor)
        return None if problem is None or word in problem else problem

    patch(Job, "problem_with", blind)


def _no_comparing_of_headers(patch: Patch) -> None:
    _no_comparing_of("header", patch)
    patch(Ledger, "_compare", _nothing)


def _no_comparing_of_sizes(patch: Patch) -> None:
    _no_comparing_of("bytes", patch)
    patch(Ledger, "_compare", _nothing)
    real = flowmap.storage.read_into
    patch(flowmap.ledger, "read_into", lambda *of: max(real(*of), len(of[1])))


def _a_mark_too_many(patch: Patch) -> None:
    real = _Validation._mark

    def mark(self: _Validation, records: list[SegmentRecord], state: str) -> list[Segment]:
        other = self.segments[records[0].index - 1]
        with self.job.ledger(write=True) as ledger:
            record = ledger.read(other.index, other.start, other.stop)
            Claim(ledger, record, record.work, state=state)
        return real(self, records, state)

    patch(_Validation, "_mark", mark)


def _a_mark_too_few(patch: Patch) -> None:
    real = _Validation._mark

    def mark(self: _Validation, records: list[SegmentRecord], state: str) -> list[Segment]:
        return real(self, records[1:], state)

    patch(_Validation, "_mark", mark)


def _a_failed_check_marks(patch: Patch) -> None:
    real = _Validation._look_at_values

    def look_at_values(self: _Validation) -> None:
        real(self)
        for segment, _ in self.complaints:
            with self.job.ledger() as ledger:
                record = ledger.read(segment.index, segment.start, segment.stop)
            self._mark([record], "damaged")

    patch(_Validation, "_look_at_values", look_at_values)


def _records_of_any(patch: Patch) -> None:
    real = flowmap.ledger._newest

    def newest(slots: NDArray[Any], job: str, places: NDArray[np.int64]) -> NDArray[np.int64]:
        pages = []
        for page in slots:
            job = max(page["job"].tolist()).decode()
            place = [page[name].max() for name in ("segment", "start", "stop")]
            pages.append(real(page[None], job, np.array([place], np.int64))[0])
        return np.array(pages, np.int64)

    patch(flowmap.ledger, "_newest", newest)


def _one_slot_for_a_claim(patch: Patch) -> None:
    patch(flowmap.claims, "FINISHED", frozenset())


def _no_header_lock(patch: Patch) -> None:
    for module in (flowmap.alloc, flowmap.lease):
        patch(module, "header_lock", lambda *_: contextlib.nullcontext())


def _names_that_replace(patch: Patch) -> None:
    patch(flowmap.publication, "link", os.replace)


def _no_reservation(patch: Patch) -> None:
    patch(flowmap.publication, "reserve", os.ftruncate)
    patch(flowmap.mapped, "reserve_range", lambda *_: True)


def _named_before_its_job(patch: Patch) -> None:
    publication: Any = flowmap.publication
    real = publication.publish_json

    def late(path: Path, document: dict[str, Any]) -> None:
        for target in path.parent.glob(".target.*") if path.name == "job.json" else ():
            os.link(target, path.parent.with_suffix(""))
        real(path, document)

    patch(publication, "publish_json", late)


def _errors_as_they_come(patch: Patch) -> None:
    patch(flowmap.attempt, "told", lambda *_: contextlib.nullcontext())


def _half_writes(patch: Patch) -> None:
    def once(*arguments: Any) -> None:
        os.pwrite(*arguments)

    for module in (flowmap.attempt, flowmap.ledger, flowmap.publication, flowmap.documents):
        patch(module, "write_all", once)


def _links_are_followed(patch: Patch) -> None:
    for name in ("_READ_FLAGS", "_WRITE_FLAGS"):
        patch(flowmap.storage, name, getattr(flowmap.storage, name) & ~os.O_NOFOLLOW)


def _pipes_are_waited_for(patch: Patch) -> None:
    patch(flowmap.storage, "_READ_FLAGS", flowmap.storage._READ_FLAGS & ~os.O_NONBLOCK)


def _no_look_at_the_job_of_a_lease(patch: Patch) -> None:
    patch(flowmap.lease, "refuse_replaced", _nothing)


SABOTAGES: dict[str, Callable[[Patch], None]] = {
    "no sync of the target": _no_sync_of_the_target,
    "no sync of the ledger": _no_sync_of_the_ledger,
    "no sync of names": _no_sync_of_names,
    "done before the sync": _done_before_the_sync,
    "no checkpoints": _no_checkpoints,
    "no look at the claim": _no_look_at_the_claim,
    "one pair of slots": _one_pair_of_slots,
    "no comparing of digests": _no_comparing_of_digests,
    "no writing again": _no_writing_again,
    "no dropping of the cache": _no_dropping_of_the_cache,
    "no removing of old records": _no_removing_of_old_records,
    "nothing taken over": _nothing_taken_over,
    "a row skipped": _a_row_skipped,
    "no look at the mark": _no_look_at_the_mark,
    "no checksums": _no_checksums,
    "no checksum of documents": _no_checksum_of_documents,
    "no look at the values of a job": _no_look_at_values_of_a_job,
    "no comparing of headers": _no_comparing_of_headers,
    "no comparing of sizes": _no_comparing_of_sizes,
    "a mark too many": _a_mark_too_many,
    "a mark too few": _a_mark_too_few,
    "a failed check marks": _a_failed_check_marks,
    "records of any job and segment": _records_of_any,
    "one slot for a claim": _one_slot_for_a_claim,
    "no header lock": _no_header_lock,
    "names that replace": _names_that_replace,
    "no reservation": _no_reservation,
    "named before its job": _named_before_its_job,
    "errors as they come": _errors_as_they_come,
    "half writes": _half_writes,
    "links are followed": _links_are_followed,
    "pipes are waited for": _pipes_are_waited_for,
    "no look at the job of a lease": _no_look_at_the_job_of_a_lease,
}
"""What can be broken."""


def sabotage(name: str, patch: Patch = setattr) -> None:
    """Break flowmap in this process.

    Args:
        name: One of `SABOTAGES`, or "none".
        patch: What sets an attribute: `monkeypatch.setattr` where it must not stay.
    """
    if name != "none":
        SABOTAGES[name](patch)
