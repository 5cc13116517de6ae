"""The ledger: slots and who owns them, torn writes, zombies, and claims that race."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import flip, ramp, states

import flowmap
from flowmap.claims import Claim
from flowmap.errors import ClaimLostError, DamagedJobError, OtherJobError, StorageError
from flowmap.ledger import Ledger, create_ledger
from flowmap.records import SLOT, SLOTS, SegmentRecord, advanced, checksum_matches
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.segments import Block

JOB = "0" * 32
START, STOP = 0, 100

texts = st.text(st.characters(min_codepoint=32, max_codepoint=126))
marks = st.binary(min_size=16, max_size=16).filter(any).map(bytes.hex) | st.just("")
numbers = st.integers(0, 2**63 - 1)
records = st.builds(
    SegmentRecord,
    index=st.integers(0, 2),
    start=numbers,
    stop=numbers,
    state=st.sampled_from(["pending", "running", "written", "failed", "damaged", "done"]),
    rows_done=numbers,
    rows_durable=numbers,
    attempt=st.integers(1, 2**28 - 1),
    sequence=st.integers(0, 2**36 - 1),
    work=marks,
    token=marks,
    digest=marks,
    digest_durable=marks,
    started=st.floats(allow_nan=False),
    finished=st.floats(allow_nan=False),
    host=texts.map(lambda text: text[:32]),
    pid=st.integers(0, 2**32 - 1),
    reason=texts.map(lambda text: text[:40]),
)
possible = records.map(
    lambda record: dataclasses.replace(
        record, start=START, stop=STOP, rows_done=record.rows_done % STOP, rows_durable=0
    )
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Return an open ledger of three segments."""
    create_ledger(tmp_path / "ledger.npy", 3)
    with Ledger(tmp_path / "ledger.npy", JOB, 3, write=True) as opened:
        yield opened


def put(ledger: Ledger, record: SegmentRecord) -> None:
    """Write one record into its slot."""
    ledger.write(record)


def now(ledger: Ledger, index: int = 0) -> SegmentRecord:
    """Read the record that counts."""
    return ledger.read(index, START, STOP)


def claim(ledger: Ledger, record: SegmentRecord | None = None, **changes: Any) -> Claim:
    """Claim segment 0 as an attempt does."""
    return Claim(ledger, record or now(ledger), "11" * 16, state="running", **changes)


def slot_of(attempt: int, sequence: int) -> int:
    """Return the slot that the contract gives to a record."""
    return 2 * (attempt % 8) + sequence % 2


@given(records)
def test_a_record_survives_its_slot(record: SegmentRecord) -> None:
    """Packing and unpacking gives the same record, with a checksum that matches."""
    packed = record.pack(JOB)
    assert len(packed) == SLOT.itemsize == 256
    assert checksum_matches(packed)
    assert SegmentRecord.unpack(packed) == record


@given(
    records,
    st.integers(0, 2**36 - 1),
    st.integers(0, 2**62),
    st.binary(min_size=16, max_size=16),
)
def test_an_advanced_slot_is_the_next_record(
    record: SegmentRecord, sequence: int, rows: int, digest: bytes
) -> None:
    """What is changed in the bytes is what replacing the fields and packing again gives."""
    slot = advanced(record.pack(JOB), sequence, rows, digest)
    assert checksum_matches(slot)
    found = SegmentRecord.unpack(slot)
    assert found == dataclasses.replace(
        record,
        sequence=sequence,
        rows_done=rows,
        digest=digest.hex() if any(digest) else "",
        finished=found.finished,
    )
    assert time.time() - 60 < found.finished <= time.time()


def test_a_long_reason_is_cut() -> None:
    """A reason that does not fit costs its end, not the record."""
    record = SegmentRecord(0, 0, 1, reason="x" * 99)
    assert SegmentRecord.unpack(record.pack(JOB)).reason == "x" * 40


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("simulate-7d9f8b6c5-" * 3 + "abcde", "simulate-7d9f8b6c5-" * 3 + "fghij"),
        ("node1." + "cluster." * 6 + "org", "node2." + "cluster." * 6 + "org"),
        ("a" * 20 + "1" + "b" * 20, "a" * 20 + "2" + "b" * 20),
        ("knüppel", "knöppel"),
        ("\udcfc", "\udcf6"),  # bytes that are not UTF-8, as Python reads them
        ("ü" * 40, "ü" * 41),
    ],
)
def test_hosts_of_different_names_stay_different(one: str, other: str) -> None:
    """Where a name does not fit, or is not ASCII, what differs is kept."""
    found = [
        SegmentRecord.unpack(SegmentRecord(0, 0, 1, host=name).pack(JOB)).host
        for name in (one, other)
    ]
    assert found[0] != found[1]
    for name, short in zip((one, other), found, strict=True):
        assert len(short) <= 32
        assert not name.isascii() or (short[0], short[-1]) == (name[0], name[-1])


@pytest.mark.parametrize("name", ["here", "n" * 32])
def test_a_name_that_fits_is_kept(name: str) -> None:
    """As the versions before this one did."""
    assert SegmentRecord.unpack(SegmentRecord(0, 0, 1, host=name).pack(JOB)).host == name


@settings(max_examples=300)
@given(records, st.integers(0, 256 * 8 - 1))
def test_any_flipped_bit_is_caught(record: SegmentRecord, bit: int) -> None:
    """No single bit of a slot can change without its checksum telling."""
    packed = bytearray(record.pack(JOB))
    packed[bit // 8] ^= 1 << bit % 8
    assert not checksum_matches(bytes(packed))


def test_each_attempt_owns_two_slots(ledger: Ledger) -> None:
    """Attempts and their records go where the contract says, and alternate."""
    for attempt in range(1, 20):
        for sequence in range(3):
            before = ledger.page(1)
            record = SegmentRecord(1, START, STOP, "running", 0, 0, attempt, sequence)
            put(ledger, record)
            changed = np.frombuffer(before, SLOT) != np.frombuffer(ledger.page(1), SLOT)
            assert np.nonzero(changed)[0].tolist() == [slot_of(attempt, sequence)]
            assert now(ledger, 1) == record
    assert now(ledger, 0) == SegmentRecord(0, START, STOP)
    assert now(ledger, 2) == SegmentRecord(2, START, STOP)


def test_a_page_a_segment(ledger: Ledger) -> None:
    """Every segment's records lie in one page of the file, which no other shares."""
    for index in range(3):
        put(ledger, SegmentRecord(index, START, STOP, "running", attempt=1))
    content = np.frombuffer(ledger.path.read_bytes(), np.uint8)
    used = np.unique(np.nonzero(content[PAGE:])[0] // PAGE)
    assert used.tolist() == [0, 1, 2]
    assert content.size % PAGE == 0


def test_numpy_opens_it(ledger: Ledger) -> None:
    """`np.load` reads the ledger with no flowmap."""
    put(ledger, SegmentRecord(2, START, STOP, "done", 100, 100, 3, 7, host="here"))
    table = np.load(ledger.path)
    assert table.shape == (3, SLOTS)
    slot = table[2, slot_of(3, 7)]
    assert (slot["state"], slot["rows_done"], slot["host"]) == (b"done", 100, b"here")


def test_a_torn_write_leaves_the_one_before(ledger: Ledger) -> None:
    """Where the newest slot is damaged, in any byte, the record before it counts."""
    mine = claim(ledger)
    good = mine.note(rows_done=10, digest="22" * 16)
    newest = mine.note(rows_done=20, digest="33" * 16)
    offset = PAGE + slot_of(newest.attempt, newest.sequence) * 256
    for byte in range(256):
        flip(ledger.path, offset + byte)
        assert now(ledger) == good
        flip(ledger.path, offset + byte)
    assert now(ledger) == newest


def test_many_torn_slots(ledger: Ledger) -> None:
    """Damage is skipped, slot by slot, down to nothing."""
    kept = []
    for attempt in range(1, 5):
        kept.append(SegmentRecord(0, START, STOP, "running", attempt, 0, attempt, 0))
        put(ledger, kept[-1])
    while kept:
        assert now(ledger) == kept[-1]
        flip(ledger.path, PAGE + slot_of(kept.pop().attempt, 0) * 256 + 80)
    assert now(ledger) == SegmentRecord(0, START, STOP)


@pytest.mark.parametrize("sequence", [0, 1])
def test_damage_brings_no_done_record_back(ledger: Ledger, sequence: int) -> None:
    """A claim on a segment that is done stands, whichever one slot of it is damaged."""
    claim(ledger).note(state="done", rows_done=STOP)
    again = claim(ledger).record
    flip(ledger.path, PAGE + slot_of(again.attempt, sequence) * 256 + 80)
    assert now(ledger).token == again.token


def test_slots_of_another_job_are_ignored(ledger: Ledger) -> None:
    """However new, a record of another allocation or another segment does not count."""
    mine = claim(ledger).record
    foreign = SegmentRecord(0, START, STOP, "done", 100, 100, 6)
    with Ledger(ledger.path, "f" * 32, 3, write=True) as other:
        put(other, foreign)
    assert now(ledger) == mine
    packed = dataclasses.replace(foreign, index=2, attempt=7).pack(JOB)
    with ledger.path.open("r+b") as file:
        file.seek(PAGE + slot_of(7, 0) * 256)
        file.write(packed)
    assert now(ledger) == mine


def test_a_page_of_another_job_is_not_claimed(ledger: Ledger) -> None:
    """Whole records of another job are left as they are; torn ones are nobody's."""
    with Ledger(ledger.path, "f" * 32, 3, write=True) as other:
        put(other, SegmentRecord(0, START, STOP, "done", 100, 100, 6))
        before = other.page(0)
        with pytest.raises(OtherJobError, match="another job"):
            claim(ledger)
        assert other.page(0) == before
    flip(ledger.path, PAGE + slot_of(6, 0) * 256 + 100)
    assert claim(ledger).record.attempt == 1


@settings(max_examples=50)
@given(st.lists(possible, max_size=30), st.lists(st.integers(0, 3 * PAGE - 1), max_size=5))
def test_one_and_all_agree(
    tmp_path_factory: pytest.TempPathFactory, written: list[SegmentRecord], torn: list[int]
) -> None:
    """Reading all segments at once finds what reading each one finds, damage or not."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.npy"
    create_ledger(path, 3)
    with Ledger(path, JOB, 3, write=True) as ledger:
        for record in written:
            put(ledger, record)
        for byte in torn:
            flip(path, PAGE + byte)
        table = ledger.read_all(np.full((3, 2), (START, STOP)))
        for index in range(3):
            found = SegmentRecord.unpack(table[index].tobytes())
            assert found == now(ledger, index)


def test_a_zombie_stops_before_its_next_record(ledger: Ledger) -> None:
    """The attempt that was overtaken records nothing more, and its retry keeps all."""
    zombie = claim(ledger)
    retry = claim(ledger)
    kept = retry.note(rows_done=7)
    with pytest.raises(ClaimLostError, match="attempt 1 found that attempt 2"):
        zombie.check()
    with pytest.raises(ClaimLostError):
        zombie.note(state="done", rows_done=STOP)
    assert now(ledger) == kept


@pytest.mark.parametrize("writes", [1, 2, 3, 10])
def test_a_zombie_cannot_overwrite_its_retry(ledger: Ledger, writes: int) -> None:
    """Even one that never looks again writes into slots that its retries do not own."""
    zombie = claim(ledger)
    for _ in range(7):  # the eighth attempt after it is the first to share its slots
        retry = claim(ledger)
        done = retry.note(state="done", rows_done=STOP)
        for sequence in range(1, writes + 1):
            late = dataclasses.replace(zombie.record, sequence=sequence, state="done")
            ledger.write(late)
        assert now(ledger) == done


@pytest.mark.parametrize("records_before", [0, 1, 2, 3])
def test_the_later_of_two_equal_claims(ledger: Ledger, records_before: int) -> None:
    """Who claims on old knowledge, after the other made records, is the one that stops."""
    seen = now(ledger)
    first = claim(ledger, seen)
    for count in range(records_before):
        first.note(rows_done=count)
    with pytest.raises(ClaimLostError):
        claim(ledger, seen)
    first.check()
    assert now(ledger) == first.record


class Interleaved(Ledger):
    """A ledger in which something happens between a claim's look and its write."""

    between: Any = None

    def put(self, slot: bytes, index: int, first: int) -> None:
        """Let the other one go first."""
        happen, self.between = self.between, None
        if happen is not None:
            happen()
        super().put(slot, index, first)


@pytest.mark.parametrize("records_before", [0, 1, 2, 3, 4])
def test_equal_claims_at_the_same_moment(ledger: Ledger, records_before: int) -> None:
    """Of two that claim at once, whichever comes second to the disk, one stops, not both."""
    won: list[Claim] = []

    def other() -> None:
        won.append(claim(ledger))
        for count in range(records_before):
            won[0].note(rows_done=count)

    alive = []
    with Interleaved(ledger.path, JOB, 3, write=True) as slow:
        slow.between = other
        try:
            alive.append(claim(slow))
        except ClaimLostError:
            assert records_before
        survivors = []
        for one in (*alive, *won):
            try:
                one.note(rows_done=50)
                one.check()
            except ClaimLostError:
                continue
            survivors.append(one)
        assert len(survivors) == 1
        survivors[0].check()
        assert now(ledger).token == survivors[0].record.token


@pytest.mark.parametrize("records", [3, 4, 5, 6])
@pytest.mark.parametrize("goes_on", [True, False])
def test_equal_claims_that_both_went_on(ledger: Ledger, records: int, goes_on: bool) -> None:
    """Who was written over between its look and its record finds the other beside it."""
    claim(ledger).note(state="done", rows_done=STOP)
    with Interleaved(ledger.path, JOB, 3, write=True) as held:
        first = claim(held)  # of what is done: in two records
        for count in range(records):
            first.note(rows_done=count)
        rival = dataclasses.replace(first.record, token="f" * 32)

        def other() -> None:
            for sequence in range(records + 2 if goes_on else 2):
                ledger.write(dataclasses.replace(rival, sequence=sequence))

        held.between = other
        with pytest.raises(ClaimLostError) if goes_on else contextlib.nullcontext():
            first.note(state="done", rows_done=STOP)
            first.check()


def test_a_claim_is_not_made_on_what_is_done_meanwhile(ledger: Ledger) -> None:
    """A segment that was finished since it was looked at is left alone."""
    attempt = claim(ledger)
    seen = now(ledger)
    done = attempt.note(state="done", rows_done=STOP)
    with pytest.raises(ClaimLostError):
        claim(ledger, seen)
    assert now(ledger) == done


def test_progress_meanwhile_does_not_stop_a_claim(ledger: Ledger) -> None:
    """A retry overtakes an attempt that is still making progress."""
    attempt = claim(ledger)
    seen = now(ledger)
    attempt.note(rows_done=10)
    claim(ledger, seen).check()
    with pytest.raises(ClaimLostError):
        attempt.check()


def overtaken_at(moment: str, target: flowmap.Target) -> Any:
    """Return what overtakes the attempt at the only segment, once, when it is called."""
    done = False

    def overtake(*_: object) -> None:
        nonlocal done
        if not done:
            done = True
            with target.job.ledger(write=True) as ledger:
                record = ledger.read(0, 0, 10)
                Claim(ledger, record, record.work, state="running")

    return overtake


@pytest.mark.parametrize("moment", ["filler", "sync target", "sync ledger"])
def test_a_lost_claim_is_noticed_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Before the write, before the last record and after the last sync."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=1, block_rows=10)
    overtake = overtaken_at(moment, target)
    written: list[int] = []

    def fill(out: NDArray[Any], block: Block) -> None:
        if moment == "filler":
            overtake()
        ramp(out, block)

    if moment == "filler":
        monkeypatch.setattr("flowmap.attempt.write_all", lambda *_: written.append(1))
    if moment == "sync target":
        monkeypatch.setattr("flowmap.attempt.sync_data", overtake)
    if moment == "sync ledger":
        monkeypatch.setattr("flowmap.ledger.sync_data", overtake)
    with pytest.raises(ClaimLostError):
        flowmap.fill_segment(target.segments[0], fill)
    assert not written
    assert states(target) == ["running"]
    assert target.status()["attempt"].tolist() == [2]


def test_racing_attempts_end_with_one_record(tmp_path: Path) -> None:
    """Threads that fill one segment at once: some stop, none harms, the bytes are right."""
    target = flowmap.allocate(tmp_path / "a.npy", 100, "f8", segments=1, block_rows=3)
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def attempt() -> None:
        barrier.wait()
        try:
            outcomes.append(flowmap.fill_segment(target.segments[0], ramp).state)
        except ClaimLostError:
            outcomes.append("lost")

    for _ in range(10):
        outcomes.clear()
        flowmap.reset(target, 0)
        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 4
        assert set(outcomes) <= {"done", "lost"}
        flowmap.fill_segment(target.segments[0], ramp)
        assert flowmap.validate(target).ok
        np.testing.assert_array_equal(target.asarray(), np.sqrt(np.arange(100)))


def next_descriptor() -> int:
    """Return the lowest number that is free: it grows with what is left open."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_a_ledger_that_cannot_be_read(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of reading gives flowmap's error, and opening leaves no descriptor open."""

    def bad(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", bad)
    monkeypatch.setattr("os.preadv", bad)
    before = next_descriptor()
    with pytest.raises(StorageError, match="cannot read the ledger"):
        Ledger(ledger.path, JOB, 3)
    assert next_descriptor() == before
    with pytest.raises(StorageError, match="segment 0001"):
        ledger.page(1)
    with pytest.raises(StorageError, match="cannot read the ledger"):
        ledger.read_all(np.zeros((3, 2), np.int64))


def test_a_ledger_that_is_cut_short_while_open(ledger: Ledger) -> None:
    """Half a page is damage, not an array that cannot be reshaped."""
    os.truncate(ledger.path, 2 * PAGE + 100)
    with pytest.raises(DamagedJobError, match="ends within the pages"):
        ledger.read_all(np.zeros((3, 2), np.int64))
    with pytest.raises(DamagedJobError, match="ends within"):
        ledger.page(1)
