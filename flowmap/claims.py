"""Claims: how an attempt gets a segment for itself, and what it records of it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from flowmap.errors import ClaimLostError
from flowmap.ledger import damaged
from flowmap.liveness import new_token
from flowmap.machine import host_name
from flowmap.records import ATTEMPTS, FINISHED, SegmentRecord, advanced, place_of

if TYPE_CHECKING:
    from flowmap.ledger import Ledger

NO_ROWS: Final[dict[str, Any]] = {
    "rows_done": 0,
    "rows_durable": 0,
    "digest": "",
    "digest_durable": "",
}
"""The fields of a record of which no row counts."""


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
            what = f"tells of {record.attempt} attempts at {record.name}, and there is no next"
            raise damaged(ledger.path, what)
        self._ledger = ledger
        self._index, self._attempt = record.index, record.attempt + 1
        now = time.time()
        first = replace(
            record,
            attempt=self._attempt,
            sequence=0,
            work=work,
            token=new_token(),
            started=now,
            finished=now,
            host=host_name(),
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
        ledger.refuse_others(page, first.name)
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
        first, last = place_of(self._attempt, sequence)
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
            first, last = place_of(mine.attempt, mine.sequence)
            others = page[:first] + bytes(last - first) + page[last:]
            found = self._ledger.newest(others, mine.index, mine.start, mine.stop)
            gone_on = found.attempt == mine.attempt and found.sequence > self._claimed
            if found.token == mine.token or not gone_on:
                self._page = bytearray(page)
                return
        raise self._lost(found)

    def _lost(self, found: SegmentRecord) -> ClaimLostError:
        mine = self.record
        name = mine.name
        return ClaimLostError(
            f"{name}: attempt {mine.attempt} found that attempt {found.attempt} by process "
            f"{found.pid} on {found.host or 'no host'} has the segment (now "
            f"{found.state}), and stopped without recording anything. Let that one "
            "finish; run the job again if it does not.",
            segment=name,
        )

    def note(self, **changes: Any) -> SegmentRecord:
        """Look at the claim, then record `changes`; not yet durable.

        A finished state is recorded in both slots of the attempt: a claim of the same number
        that is slow to be written, perhaps by another host, takes the place of one of them.
        """
        self._append(finished=time.time(), **changes)
        if self.record.state in FINISHED:
            self._append()
        return self.record

    def _append(self, **changes: Any) -> None:
        # The look comes first: the next slot is where an attempt is seen that has gone on with
        # a claim of the same number.
        self.check()
        self._write(replace(self.record, sequence=self._sequence + 1, **changes))

    def advance(self, rows_done: int, digest: bytes) -> None:
        """Look at the claim, then record that more rows were written; not yet durable.

        Args:
            rows_done: Rows written so far.
            digest: Their xxh3_128.
        """
        self.check()
        sequence = self._sequence + 1
        self._put(advanced(self._slot, sequence, rows_done, digest), sequence)


def _whose(record: SegmentRecord) -> tuple[int, str]:
    return record.attempt, record.token
