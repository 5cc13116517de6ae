"""What is recorded of one segment, and the 256 bytes of the ledger that hold it.

A slot carries the job's id, its attempt, a sequence number and a checksum of its own.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from flowmap.errors import printable
from flowmap.liveness import find_dead
from flowmap.machine import short_host_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

SLOTS: Final = 16
FINISHED: Final = frozenset({"done", "written"})
"""The states of a segment all of whose rows were computed."""

ATTEMPTS: Final = 2**28
"""Attempts at a segment are numbered below this."""

SEQUENCES: Final = 2**36
"""Records of an attempt are numbered below this: with the attempt, one number of 64 bits."""

STATES: Final = ("pending", "running", "written", "failed", "damaged", "done")
"""What a segment can be."""

_STATES: Final = frozenset(state.encode() for state in STATES)
_HOST_BYTES: Final = 32
REASON_BYTES: Final = 40

SLOT: Final = np.dtype(
    [
        ("job", "S32"),
        ("segment", "<u4"),
        ("attempt", "<u4"),
        ("sequence", "<u8"),
        ("state", "S8"),
        ("start", "<i8"),
        ("stop", "<i8"),
        ("rows_done", "<i8"),
        ("rows_durable", "<i8"),
        ("work", "V16"),
        ("token", "V16"),
        ("digest", "V16"),
        ("digest_durable", "V16"),
        ("started", "<f8"),
        ("finished", "<f8"),
        ("host", f"S{_HOST_BYTES}"),
        ("pid", "<u4"),
        ("reserved", "V4"),  # the digest of the source: the header of old ledgers names it so
        ("reason", f"S{REASON_BYTES}"),
        ("checksum", "<u8"),
    ]
)
"""One slot, 256 bytes: it lies within a disk's sector, and `np.load` opens the whole."""

_BODY: Final = struct.Struct("<32sIIQ8sqqqq16s16s16s16sdd32sI4s40s")
"""The same without its checksum; NumPy's scalars would cost ten times as much per block."""
_NUMBER: Final = struct.Struct("<Q")
_TIME: Final = struct.Struct("<d")

assert SLOT.fields is not None
_SEQUENCE_AT, _ROWS_DONE_AT, _DIGEST_AT, _FINISHED_AT = (
    SLOT.fields[name][1] for name in ("sequence", "rows_done", "digest", "finished")
)

STATUS: Final = np.dtype(
    [
        ("index", "<i8"),
        ("start", "<i8"),
        ("stop", "<i8"),
        ("state", "U8"),
        ("rows_done", "<i8"),
        ("attempt", "<i8"),
        ("digest", "U32"),
        ("started", "<f8"),
        ("finished", "<f8"),
        ("host", f"U{_HOST_BYTES}"),
        ("pid", "<i8"),
        ("work", "U32"),
        ("source", "U8"),
        ("reason", f"U{REASON_BYTES}"),
    ]
)
"""One row of `Target.status()`; times in seconds since 1970, digests in hexadecimal."""


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """What the ledger says of one segment.

    Attributes:
        index: The segment's number.
        start: Its first row.
        stop: The row after its last.
        state: "pending", "running", "written", "failed", "damaged" or "done".
        rows_done: Rows written so far, counted from `start`.
        rows_durable: Of these, rows known to be on the disk.
        attempt: How many times it was claimed.
        sequence: Counts the records of one attempt.
        work: The fingerprint of the work, in hexadecimal; empty before the first attempt.
        token: Tells two claims with the same attempt number apart.
        digest: xxh3_128 of the first `rows_done` rows, in hexadecimal.
        digest_durable: The same of the first `rows_durable` rows.
        started: When the attempt began, in seconds since 1970.
        finished: When this was recorded.
        host: Where; a name longer than 32 characters is cut in the middle, with a digest.
        pid: By which process.
        source: The digest of the filler's source, in hexadecimal, as `sources` has it; empty if
            a version recorded it that kept none.
        reason: Why it failed, cut short.
    """

    index: int
    start: int
    stop: int
    state: str = "pending"
    rows_done: int = 0
    rows_durable: int = 0
    attempt: int = 0
    sequence: int = 0
    work: str = ""
    token: str = ""
    digest: str = ""
    digest_durable: str = ""
    started: float = 0.0
    finished: float = 0.0
    host: str = ""
    pid: int = 0
    source: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """How messages call the segment."""
        return f"segment {self.index:04d} [{self.start}:{self.stop}]"

    def pack(self, job: str) -> bytes:
        """Return the 256 bytes of its slot, checksum included."""
        body = _BODY.pack(
            job.encode(),
            self.index,
            self.attempt,
            self.sequence,
            self.state.encode(),
            self.start,
            self.stop,
            self.rows_done,
            self.rows_durable,
            bytes.fromhex(self.work),
            bytes.fromhex(self.token),
            bytes.fromhex(self.digest),
            bytes.fromhex(self.digest_durable),
            self.started,
            self.finished,
            short_host_name(self.host, _HOST_BYTES).encode(),
            self.pid,
            bytes.fromhex(self.source),
            self.reason.encode("ascii", "replace"),
        )
        return _with_checksum(body)

    def says_the_same(self, other: SegmentRecord) -> bool:
        """Return whether two records differ in their number at most.

        A finished segment is recorded twice, and the second time may come late.
        """
        return replace(self, sequence=other.sequence) == other

    def made_durable(self) -> SegmentRecord:
        """Return the record that follows when all its rows were synced."""
        return replace(
            self,
            state="done",
            sequence=self.sequence + 1,
            rows_durable=self.rows_done,
            digest_durable=self.digest,
            finished=time.time(),
        )

    @classmethod
    def unpack(cls, slot: bytes) -> SegmentRecord:
        """Return the record of a slot that is known to be valid."""
        (
            _,
            index,
            attempt,
            sequence,
            state,
            start,
            stop,
            rows_done,
            rows_durable,
            *marks,
            started,
            finished,
            host,
            pid,
            source,
            reason,
        ) = _BODY.unpack(slot[: _BODY.size])
        work, token, digest, digest_durable = (m.hex() if any(m) else "" for m in marks)
        return cls(
            index=index,
            start=start,
            stop=stop,
            state=_text(state),
            rows_done=rows_done,
            rows_durable=rows_durable,
            attempt=attempt,
            sequence=sequence,
            work=work,
            token=token,
            digest=digest,
            digest_durable=digest_durable,
            started=started,
            finished=finished,
            host=_text(host),
            pid=pid,
            source=source.hex() if any(source) else "",
            reason=_text(reason),
        )


def place_of(attempt: int, sequence: int) -> tuple[int, int]:
    """Return where in its page a record's slot begins and ends, by the record's numbers."""
    slot = 2 * (attempt % (SLOTS // 2)) + sequence % 2
    return slot * SLOT.itemsize, (slot + 1) * SLOT.itemsize


def advanced(slot: bytes, sequence: int, rows_done: int, digest: bytes) -> bytes:
    """Return the slot of the record that follows when more rows were written.

    It is what `replace` and `pack` would make, in a quarter of the time: every block needs one.

    Args:
        slot: Of the last record of the attempt.
        sequence: The number of the new one.
        rows_done: Rows written so far.
        digest: Their xxh3_128.
    """
    body = bytearray(slot[: _BODY.size])
    _NUMBER.pack_into(body, _SEQUENCE_AT, sequence)
    _NUMBER.pack_into(body, _ROWS_DONE_AT, rows_done)
    body[_DIGEST_AT : _DIGEST_AT + len(digest)] = digest
    _TIME.pack_into(body, _FINISHED_AT, time.time())
    return _with_checksum(body)


def _with_checksum(body: bytes | bytearray) -> bytes:
    return bytes(body + _NUMBER.pack(xxhash.xxh3_64_intdigest(body)))


def digest_of(records: Iterable[SegmentRecord]) -> str:
    """Return the digest of the whole: over the ordered (start, stop, digest) of all."""
    whole = xxhash.xxh3_128()
    for record in records:
        digest = bytes.fromhex(record.digest)
        whole.update(struct.pack("<qq16s", record.start, record.stop, digest))
    return whole.hexdigest()


def status_of(slots: NDArray[Any]) -> NDArray[Any]:
    """Return what `Target.status` does: shape (segments,), dtype `STATUS`.

    A segment whose process is known to be dead is pending, and keeps its rows.

    Args:
        slots: The slot of each segment that counts: shape (segments,), dtype `SLOT`.
    """
    table = np.zeros(len(slots), STATUS)
    table["index"] = slots["segment"]
    for name in (
        "start",
        "stop",
        "state",
        "rows_done",
        "attempt",
        "started",
        "finished",
        "pid",
    ):
        table[name] = slots[name]
    for name in ("started", "finished"):  # other users may have written what is no time
        table[name][~np.isfinite(table[name])] = 0.0
    for name in ("host", "reason"):  # other users may have written them
        table[name] = [printable(text) for text in slots[name].astype(str).tolist()]
    for name, slot in (("digest", "digest"), ("work", "work"), ("source", "reserved")):
        table[name] = [mark.hex() if any(mark) else "" for mark in slots[slot].tolist()]
    dead = find_dead(slots)
    table["state"][dead], table["reason"][dead] = "pending", "its process died"
    return table


def count_states(status: NDArray[Any]) -> dict[str, int]:
    """Return how many segments are in each state, by the order of `STATES`.

    Args:
        status: What `Target.status` returned.
    """
    return {state: int(np.sum(status["state"] == state)) for state in STATES}


def rows_kept(status: NDArray[Any]) -> int:
    """Return how many rows a job has to go on from; those of damaged segments are none.

    Args:
        status: What `Target.status` returned.
    """
    return int(status["rows_done"][status["state"] != "damaged"].sum())


def checksum_matches(slot: bytes) -> bool:
    """Return whether the 256 bytes of a slot are what was once written, all of it."""
    body, checksum = slot[: _BODY.size], slot[_BODY.size :]
    return xxhash.xxh3_64_intdigest(body) == int.from_bytes(checksum, "little")


def is_possible(slot: bytes) -> bool:
    """Return whether an attempt can have written a slot, whose checksum anyone can make.

    Args:
        slot: Of the segment whose rows it names.
    """
    fields = _BODY.unpack(slot[: _BODY.size])
    attempt, sequence, state, start, stop, rows_done, rows_durable = fields[2:9]
    *_, host, _, _, reason = fields
    return (
        attempt < ATTEMPTS
        and sequence < SEQUENCES
        and state.rstrip(b"\0") in _STATES
        and 0 <= rows_done <= stop - start
        and 0 <= rows_durable <= stop - start
        and (host + reason).isascii()
    )


def _text(field: bytes) -> str:
    return printable(field.rstrip(b"\0").decode("ascii"))
