"""Fills that are killed or meet a failing disk, and are taken up where they were."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import damage, logged, logged_rows, ramp, rows, run, script, states

import flowmap
from flowmap.claims import Claim
from flowmap.errors import ClaimLostError, FillerError, StorageError
from flowmap.ledger import Ledger
from flowmap.records import SegmentRecord
from flowmap.sidecar import Sidecar
from flowmap.storage import read_into, write_all
from flowmap.work import Work
from flowmap.write import fill_work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.segments import Block
    from flowmap.target import Target

ROWS = 10
BLOCK = 2

KILLED = """
import os, pathlib, signal, sys
import flowmap, flowmap.attempt, flowmap.ledger
from support import logged

folder, half, seconds = pathlib.Path(sys.argv[1]), sys.argv[2] == "half", float(sys.argv[3])

def fill_until_call(path, at):
    calls = 0

    def dying(real):
        def call(descriptor, *write):
            nonlocal calls
            calls += 1
            if calls == at:
                if half and write:
                    data, offset = write
                    os.pwrite(descriptor, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor, *write)
        return call

    for module in (flowmap.attempt, flowmap.ledger):
        for name in ("write_all", "sync_data"):
            setattr(module, name, dying(getattr(module, name)))
    target = flowmap.open_target(path)
    flowmap.fill_segment(target.segments[0], logged, {"log": f"{path}.log"})
    os._exit(0)

for at in range(1, 1000):
    path = folder / f"{at}.npy"
    flowmap.allocate(path, 10, "f8", segments=1, block_rows=2, checkpoint_seconds=seconds)
    child = os.fork()
    if not child:
        fill_until_call(path, at)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        break
print(at)
"""


@pytest.mark.parametrize("half", ["before", "half"])
@pytest.mark.parametrize("seconds", [0, 1000])
def test_killed_at_every_call_and_resumed(tmp_path: Path, half: str, seconds: int) -> None:
    """SIGKILL before, or halfway into, each write and sync: the rest is computed."""
    child = run(script(KILLED, tmp_path, half, seconds))
    assert child.returncode == 0, child.stderr
    calls = int(child.stdout)
    assert calls > (25 if seconds == 0 else 12)
    for at in range(1, calls):
        target = flowmap.open_target(tmp_path / f"{at}.npy")
        before = target.status()[0]
        log = tmp_path / f"{at}.again"
        record = flowmap.fill_segment(target.segments[0], logged, {"log": str(log)})
        assert record.state == "done"
        left = [] if before["state"] == "done" else range(before["rows_done"], ROWS, BLOCK)
        assert logged_rows(log) == list(left)
        np.testing.assert_array_equal(np.load(target.path), np.sqrt(np.arange(ROWS)))
        assert flowmap.validate(target).ok


def as_ramp(function: Callable[[NDArray[Any], Block], None]) -> Work:
    """Return the work of `ramp`, done by another function."""
    return replace(Work.of(ramp), function=function)


def counted(calls: list[int]) -> Work:
    """Return the work of `ramp`, which notes the first row of each block."""

    def fill(out: NDArray[Any], block: Block) -> None:
        calls.append(block.start)
        ramp(out, block)

    return as_ramp(fill)


def half_filled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, durable: int, done: int
) -> Target:
    """Make a target of one segment, interrupted with so many rows durable and recorded."""
    target = flowmap.allocate(
        folder / "a.npy", ROWS, "f8", segments=1, block_rows=BLOCK, checkpoint_seconds=30
    )
    clock = 0.0

    def fill(out: NDArray[Any], block: Block) -> None:
        nonlocal clock
        if block.start == done:
            raise KeyboardInterrupt
        if block.stop == durable:
            clock += 31
        out[...] = rows(block)

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.attempt.time.monotonic", lambda: clock)
        with pytest.raises(KeyboardInterrupt):
            fill_work(target.segments[0], as_ramp(fill))
    record = record_of(target)
    assert (record.rows_durable, record.rows_done) == (durable, done)
    return target


def record_of(target: Target, index: int = 0) -> SegmentRecord:
    """Return the ledger's record of a segment."""
    segment = target.segments[index]
    with target.job.ledger() as ledger:
        return ledger.read(segment.index, segment.start, segment.stop)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes]]:
    """Return a list that gets the (offset, bytes) of each write to a target from now on."""
    calls: list[tuple[int, bytes]] = []
    real = write_all

    def write(descriptor: int, data: memoryview, offset: int) -> None:
        calls.append((offset, bytes(data)))
        real(descriptor, data, offset)

    monkeypatch.setattr("flowmap.attempt.write_all", write)
    return calls


def rows_of(calls: list[tuple[int, bytes]], target: Target) -> list[int]:
    """Return the rows that writes have covered, in order."""
    covered: list[int] = []
    for offset, data in calls:
        first, rest = divmod(offset - target.job.data_offset, target.job.layout.row_bytes)
        assert not rest
        covered += range(first, first + len(data) // target.job.layout.row_bytes)
    return covered


@pytest.mark.parametrize(("durable", "done"), [(4, 8), (4, 4), (0, 6), (0, 0), (0, 2)])
def test_what_was_not_synced_is_written_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: list[tuple[int, bytes]],
    durable: int,
    done: int,
) -> None:
    """Rows beyond the last checkpoint are written anew, the same bytes; no others are."""
    target = half_filled(tmp_path, monkeypatch, durable=durable, done=done)
    written.clear()
    calls: list[int] = []
    fill_work(target.segments[0], counted(calls))
    assert rows_of(written, target) == list(range(durable, ROWS))
    assert b"".join(data for _, data in written) == np.sqrt(np.arange(ROWS))[durable:].tobytes()
    assert calls == list(range(done, ROWS, BLOCK))
    assert flowmap.validate(target).ok


@pytest.mark.parametrize(
    ("row", "kept"), [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (9, 8)], ids=str
)
def test_damaged_rows_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int, kept: int
) -> None:
    """The filler is called from the last prefix on that is as it was recorded."""
    target = half_filled(tmp_path, monkeypatch, durable=4, done=8)
    damage(target, 0, row * 8)
    calls: list[int] = []
    fill_work(target.segments[0], counted(calls))
    assert calls == list(range(kept, ROWS, BLOCK))
    assert flowmap.validate(target).ok
    np.testing.assert_array_equal(target.asarray(), np.sqrt(np.arange(ROWS)))


def test_an_attempt_that_is_overtaken_rewrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[tuple[int, bytes]]
) -> None:
    """While it takes over an earlier attempt's rows, too, a zombie must not write old bytes."""
    target = half_filled(tmp_path, monkeypatch, durable=0, done=8)
    written.clear()

    def overtaken(*arguments: Any) -> int:
        with target.job.ledger(write=True) as ledger:
            record = ledger.read(0, 0, ROWS)
            Claim(ledger, record, record.work, state="running")
        return read_into(*arguments)

    monkeypatch.setattr("flowmap.attempt.read_into", overtaken)
    with pytest.raises(ClaimLostError):
        flowmap.fill_segment(target.segments[0], ramp)
    assert not written


@pytest.mark.parametrize(("durability", "last"), [("segment", "done"), ("end", "written")])
def test_an_attempt_that_is_overtaken_at_its_last_record_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, last: str
) -> None:
    """It has looked at its claim, and is slow to write: it looks again afterwards."""
    target = flowmap.allocate(tmp_path / "a.npy", ROWS, "f8", segments=1, durability=durability)
    put = Ledger.put

    def slow(ledger: Ledger, slot: bytes, index: int, first: int) -> None:
        if SegmentRecord.unpack(slot).state == last:
            monkeypatch.undo()
            flowmap.fill_segment(target.segments[0], ramp)
        put(ledger, slot, index, first)

    monkeypatch.setattr(Ledger, "put", slow)
    with pytest.raises(ClaimLostError):
        flowmap.fill_segment(target.segments[0], ramp)
    assert target.status()["attempt"][0] == 2
    assert states(target) == [last]


@pytest.mark.parametrize("durability", ["segment", "end"])
def test_a_claim_that_comes_too_late_leaves_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any
) -> None:
    """It takes the place of one of the two records that say so while it is being written."""
    target = flowmap.allocate(tmp_path / "a.npy", ROWS, "f8", segments=1, durability=durability)
    put = Ledger.put

    def slow(ledger: Ledger, slot: bytes, index: int, first: int) -> None:
        monkeypatch.undo()
        with flowmap.open_segment(target.segments[0]) as out:  # few records, of every parity
            out[:] = np.arange(ROWS)
        assert flowmap.validate(target).sealed
        put(ledger, slot, index, first)

    monkeypatch.setattr(Ledger, "put", slow)
    with pytest.raises(ClaimLostError):
        flowmap.write_segment(target.segments[0], np.arange(ROWS))
    assert states(target) == ["done"]
    assert flowmap.validate(target).sealed


def test_a_claim_that_comes_too_late_leaves_no_seal_on_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim to what is done takes the place of both records that were sealed meanwhile."""
    target = flowmap.allocate(tmp_path / "a.npy", ROWS, "f8", segments=1)
    flowmap.write_segment(target.segments[0], np.zeros(ROWS))
    put = Ledger.put

    def slow(ledger: Ledger, slot: bytes, index: int, first: int) -> None:
        monkeypatch.undo()
        flowmap.write_segment(target.segments[0], np.ones(ROWS), replace=True)
        assert flowmap.validate(target).sealed
        put(ledger, slot, index, first)

    monkeypatch.setattr(Ledger, "put", slow)
    flowmap.write_segment(target.segments[0], np.ones(ROWS) * 2, replace=True)
    assert states(target) == ["done"]
    assert (target.asarray() == 2).all()
    assert not Sidecar.of(target.path).seal.exists()
    assert flowmap.validate(target).sealed


def test_a_bad_sector_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that cannot be read back are written anew, not given up on."""
    target = half_filled(tmp_path, monkeypatch, durable=4, done=8)

    def unreadable(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.attempt.read_into", unreadable)
        flowmap.fill_segment(target.segments[0], ramp)
    assert flowmap.validate(target).ok


def test_damage_is_not_believed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where durable rows were lost, an attempt that is cut short again records so."""
    target = half_filled(tmp_path, monkeypatch, durable=8, done=8)
    damage(target, 0)

    def one_block(out: NDArray[Any], block: Block) -> None:
        if block.start == BLOCK:
            raise RuntimeError("enough")
        ramp(out, block)

    with pytest.raises(FillerError):
        fill_work(target.segments[0], as_ramp(one_block))
    record = record_of(target)
    assert (record.rows_done, record.rows_durable) == (BLOCK, 0)
    assert flowmap.fill_segment(target.segments[0], ramp).state == "done"
    assert flowmap.validate(target).ok


Events = list[str]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """Return a list of what a fill does to target and ledger, in order."""
    seen: Events = []

    def noted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(descriptor: int, *write: Any) -> None:
            if name == "note":
                record = SegmentRecord.unpack(write[0])
                seen.append(f"note {record.state} {record.rows_done}/{record.rows_durable}")
            else:
                seen.append(name)
            real(descriptor, *write)

        return call

    for where, name in [
        ("attempt.write_all", "write"),
        ("attempt.sync_data", "sync target"),
        ("ledger.write_all", "note"),
        ("ledger.sync_data", "sync ledger"),
    ]:
        module, function = where.split(".")
        real = getattr(getattr(flowmap, module), function)
        monkeypatch.setattr(f"flowmap.{where}", noted(name, real))
    return seen


def test_order_of_a_commit(tmp_path: Path, events: Events) -> None:
    """The target is synced before "done" is recorded, the ledger after; nothing comes later."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", segments=1, block_rows=2)
    events.clear()
    flowmap.fill_segment(target.segments[0], ramp)
    assert events == [
        "note running 0/0",
        "write",
        "note running 2/0",
        "write",
        "note running 4/0",
        "sync target",
        *["note done 4/4"] * 2,
        "sync ledger",
    ]


def test_order_of_checkpoints(tmp_path: Path, events: Events) -> None:
    """`checkpoint_seconds=0` syncs each block before its rows are recorded as durable."""
    target = flowmap.allocate(
        tmp_path / "a.npy", 4, "f8", segments=1, block_rows=2, checkpoint_seconds=0
    )
    events.clear()
    flowmap.fill_segment(target.segments[0], ramp)
    block = ["write", "note running 2/0", "sync target", "note running 2/2", "sync ledger"]
    assert events[1 : 1 + len(block)] == block
    assert events[-4:] == ["sync target", *["note done 4/4"] * 2, "sync ledger"]


def test_durability_end_syncs_nothing(tmp_path: Path, events: Events) -> None:
    """Segments that validation will sync are written, not done, and have no checkpoints."""
    target = flowmap.allocate(
        tmp_path / "a.npy",
        4,
        "f8",
        segments=1,
        block_rows=1,
        durability="end",
        checkpoint_seconds=0,
    )
    events.clear()
    record = flowmap.fill_segment(target.segments[0], ramp)
    assert (record.state, record.rows_done, record.rows_durable) == ("written", 4, 0)
    assert not [event for event in events if event.startswith("sync")]


@pytest.mark.system("strace", packages="strace")
def test_order_of_system_calls(tmp_path: Path) -> None:
    """As the kernel sees it: pwrite, fdatasync of the target, the record, its fdatasync."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", segments=1)
    trace = tmp_path / "trace"
    program = """
    import sys
    import flowmap
    flowmap.fill_segment(flowmap.open_target(sys.argv[1]).segments[0], "support:ramp")
    """
    # The kernel's names of the calls; -y writes the path of each descriptor.
    options = ["-f", "-y", "-o", str(trace), "-e", "trace=pwrite64,fdatasync,fsync"]
    child = run(["strace", *options, *script(program, target.path)])
    assert child.returncode == 0, child.stderr
    calls = re.findall(r"(pwrite64|fdatasync)\(\d+<[^>]*/(\S+\.npy)>", trace.read_text())
    assert calls[-5:] == [
        ("pwrite64", "ledger.npy"),
        ("fdatasync", "a.npy"),
        *[("pwrite64", "ledger.npy")] * 2,
        ("fdatasync", "ledger.npy"),
    ]
    assert ("pwrite64", "a.npy") in calls


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize(
    "where", ["attempt.write_all", "attempt.sync_data", "ledger.write_all", "ledger.sync_data"]
)
def test_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, at: int, number: int
) -> None:
    """Any error of any write or sync fails the attempt; nothing is done; the next completes."""
    target = flowmap.allocate(
        tmp_path / "a.npy", 8, "f8", segments=1, block_rows=2, checkpoint_seconds=0
    )
    module, function = where.split(".")
    real = getattr(getattr(flowmap, module), function)
    calls = 0

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(number, os.strerror(number))
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(f"flowmap.{where}", failing)
        if where == "attempt.write_all" and at == 5:  # there are only four blocks
            assert flowmap.fill_segment(target.segments[0], ramp).state == "done"
            return
        with pytest.raises(StorageError, match="segment 0000") as caught:
            flowmap.fill_segment(target.segments[0], ramp)
    assert caught.value.errno == number
    assert states(target)[0] in ("failed", "pending")
    assert flowmap.fill_segment(target.segments[0], ramp).state == "done"
    assert flowmap.validate(target).ok
    np.testing.assert_array_equal(target.asarray(), np.sqrt(np.arange(8)))


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes a few bytes at a time is asked until all are written."""
    target = flowmap.allocate(tmp_path / "a.npy", 100, "f8", segments=3)
    real = os.pwrite

    def short(descriptor: int, data: memoryview, offset: int) -> int:
        return real(descriptor, memoryview(data)[:7], offset)

    monkeypatch.setattr("os.pwrite", short)
    for segment in target.segments:
        flowmap.fill_segment(segment, ramp)
    assert flowmap.validate(target).ok
    np.testing.assert_array_equal(target.asarray(), np.sqrt(np.arange(100)))


def test_a_write_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes no byte at all is an error, not an endless loop."""
    target = flowmap.allocate(tmp_path / "a.npy", 100, "f8", segments=1)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", lambda *_: 0)
        with pytest.raises(StorageError):
            flowmap.fill_segment(target.segments[0], ramp)
    assert states(target) == ["pending"]
