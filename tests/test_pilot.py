"""One block computed and measured, in a process of its own, and nothing kept of it."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
from support import Unloadable, logged, logged_rows, ramp, rows, snapshot, states

import flowmap
from flowmap import pilot as piloting
from flowmap.errors import (
    FillerError,
    FillerNotFoundError,
    InvalidArgumentError,
    OtherJobError,
    SegmentsFailedError,
    StorageError,
    WorkerDiedError,
    WrongTypeError,
)
from flowmap.estimates import Pending
from flowmap.machine import available_cpus
from flowmap.pilot import Pilot, pilot
from flowmap.sidecar import Sidecar
from flowmap.storage import buffer_of
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from flowmap.estimates import Measured
    from flowmap.segments import Block
    from flowmap.target import Target

MIB = 1 << 20


def make(folder: Path, n_rows: int = 40, **how: Any) -> Target:
    """Allocate a job of ten segments."""
    how = {"segments": 10, "block_rows": 2} | how
    return flowmap.allocate(folder / "a.npy", n_rows, "f8", **how)


def times(path: Path) -> dict[str, int]:
    """Return when each file of a target was last changed."""
    files = (path, *Sidecar.of(path).folder.iterdir())
    return {str(file): file.stat().st_mtime_ns for file in files}


def piloted(target: Target, work: Work, **how: Any) -> Pilot:
    """Run a pilot, and see that it changes nothing."""
    before, changed = snapshot(target.path), times(target.path)
    beside = sorted(target.path.parent.iterdir())
    try:
        return pilot(target, work, **how)
    finally:
        assert snapshot(target.path) == before
        assert times(target.path) == changed
        assert sorted(target.path.parent.iterdir()) == beside


def measured_here(target: Target, work: Work) -> Measured:
    """Measure in this process, where a test can lay its hand on things."""
    segment, *others = target.pending()
    second = piloting._second(target.job, segment, others)
    return piloting._measure(segment, target.job, second, cloudpickle.dumps(work))[0]


class TestFigures:
    """What is measured, and what comes of it."""

    def test_a_sleeper(self, tmp_path: Path) -> None:
        """Its time is found, per block and for the whole, and nothing changes on disk."""
        target = make(tmp_path)

        def sleeper(out: NDArray[Any], block: Block) -> None:
            time.sleep(0.02 * len(block))
            out[...] = rows(block)

        found = piloted(target, Work.of(sleeper))
        assert found.path == target.path
        assert found.workers == found.cpus == available_cpus()
        block = found.measured
        assert block.rows == 2
        assert block.second_seconds is not None
        assert min(block.first_seconds, block.second_seconds) >= 0.04
        assert block.start_seconds > 0
        assert block.load_seconds > 0
        assert block.write_seconds > 0
        assert block.disk_bytes_per_second is not None
        assert block.disk_bytes_per_second > 0
        assert 0 < block.start_bytes <= block.peak_bytes
        assert (found.pending.segments, found.pending.rows, found.pending.longest) == (
            10,
            40,
            4,
        )
        assert found.seconds_with(1) >= 40 * 0.02
        assert found.seconds_with(2) >= 20 * 0.02
        assert found.seconds_with(1) >= found.seconds_with(2) >= found.seconds_with(10)
        assert found.seconds == dict(found.table)[found.used_workers]
        assert found.room.target_bytes == target.path.stat().st_size
        assert found.room.ledger_bytes == Sidecar.of(target.path).ledger.stat().st_size
        assert found.room.free_bytes
        document = found.document()
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert str(found).startswith("One block of 2 rows (16 B) took ")
        assert "40 rows are pending, in 10 segments." in str(found)

    def test_memory_of_the_filler(self, tmp_path: Path) -> None:
        """What it needs beside its block is seen, though it is given back."""

        def hungry(out: NDArray[Any], block: Block) -> None:
            out[...] = np.ones(25 * MIB).sum()  # 200 MiB

        found = piloted(make(tmp_path), Work.of(hungry)).measured
        assert found.peak_bytes - found.start_bytes >= 150 * MIB

    @pytest.mark.parametrize("text", [None, "", "Name: python\n"])
    def test_memory_where_there_is_no_proc(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
    ) -> None:
        """Another system is asked in its own way."""
        status = tmp_path / "status"
        if text is not None:
            status.write_text(text)
        monkeypatch.setattr(piloting, "Path", lambda _: status)
        assert piloting._peak_bytes() > 10 * MIB

    def test_space_that_is_not_reserved(self, tmp_path: Path) -> None:
        """A sparse file still needs its space."""
        target = make(tmp_path, 10_000, reserve=False)
        room = piloted(target, Work.of(ramp)).room
        assert room.missing_bytes > 0
        assert room.fits

    @pytest.mark.parametrize("workers", [1, 3, 100])
    def test_workers(self, tmp_path: Path, workers: int) -> None:
        """Those that are asked for, and no more than there are segments."""
        found = piloted(make(tmp_path), Work.of(ramp), workers=workers)
        assert found.workers == workers
        assert found.used_workers == min(workers, 10)
        assert found.used_workers in dict(found.table)

    @pytest.mark.parametrize(
        ("workers", "error"),
        [(0, InvalidArgumentError), (-1, InvalidArgumentError), ("2", WrongTypeError)],
    )
    def test_no_workers(self, tmp_path: Path, workers: Any, error: type[Exception]) -> None:
        """Refused before anything is computed."""
        log = tmp_path / "log"
        with pytest.raises(error, match="workers"):
            pilot(make(tmp_path), Work.of(logged, {"log": str(log)}), workers)
        assert not log.exists()


class TestBlocks:
    """Which blocks are computed."""

    @pytest.mark.parametrize(
        ("segments", "block_rows", "computed"),
        [
            (10, 2, [20, 22]),  # the middle segment, and its next block
            (10, 3, [20, 24]),  # which has too few rows: the next segment's
            (10, 4, [20, 24]),
            ([4, 30, 4, 2], 4, [34, 0]),  # the next has too few: another's
            ([2, 38], 30, [2, 2]),  # there is none: the same again
            (1, 40, [0, 0]),
        ],
    )
    def test_of_the_middle(
        self, tmp_path: Path, segments: Any, block_rows: int, computed: list[int]
    ) -> None:
        """Two different ones of as many rows, where there are."""
        target = make(tmp_path, segments=segments, block_rows=block_rows)
        log = tmp_path / "log"
        log.touch()
        piloted(target, Work.of(logged, {"log": str(log)}))
        assert logged_rows(log) == computed

    def test_what_is_done_is_left_out(self, tmp_path: Path) -> None:
        """Segments that are done, and rows that the same work has written."""
        target = make(tmp_path)
        gate = tmp_path / "gate"

        def closed(out: NDArray[Any], block: Block, gate: str, version: int = 1) -> None:
            if block.start >= 22 and not Path(gate).exists():
                raise ValueError("closed")
            out[...] = rows(block)

        arguments = {"gate": str(gate)}
        with pytest.raises(SegmentsFailedError):
            flowmap.fill(target, closed, arguments, executor="threads", workers=1)
        assert states(target) == ["done"] * 5 + ["failed"] * 5
        gate.touch()
        found = piloted(target, Work.of(closed, arguments)).pending
        assert found == Pending(segments=5, rows=18, longest=4)
        found = piloted(target, Work.of(closed, arguments | {"version": 2})).pending
        assert found == Pending(segments=5, rows=20, longest=4)

    @pytest.mark.parametrize("durability", ["segment", "end"])
    def test_nothing_pending(self, tmp_path: Path, durability: Any) -> None:
        """There is nothing to measure once every row is computed."""
        target = make(tmp_path, durability=durability)
        flowmap.fill(target, ramp, executor="threads")
        with pytest.raises(InvalidArgumentError, match=r"Nothing of .*a\.npy is pending"):
            piloted(target, Work.of(ramp))

    def test_no_rows(self, tmp_path: Path) -> None:
        """Nor where there are none."""
        target = flowmap.allocate(tmp_path / "a.npy", 0, "f8")
        with pytest.raises(InvalidArgumentError, match="Nothing of"):
            piloted(target, Work.of(ramp))

    def test_a_long_block_is_computed_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its first time stands for all."""
        monkeypatch.setattr(piloting, "LONG_SECONDS", -1.0)
        log = tmp_path / "log"
        found = measured_here(make(tmp_path), Work.of(logged, {"log": str(log)}))
        assert logged_rows(log) == [0]
        assert found.second_seconds is None
        assert found.warm_seconds == found.first_seconds

    @pytest.mark.parametrize("order", ["C", "Fortran"])
    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            ((), "f8"),
            ((7,), ">i4"),
            ((5, 3), "f8"),
            ((4, 3, 5), [("t", "<f8"), ("v", "<f4", (3,)), ("n", "u1")]),
            ((5, 0, 5), "f8"),
        ],
        ids=["0-d", "big-endian", "2-d", "records", "no bytes"],
    )
    def test_what_the_filler_gets(
        self, tmp_path: Path, shape: tuple[int, ...], dtype: Any, order: str
    ) -> None:
        """Both times a zeroed array of the target's kind."""
        fortran = order == "Fortran"
        target = flowmap.allocate(
            tmp_path / "a.npy",
            shape,
            dtype,
            fortran_order=fortran,
            segments=1,
            block_rows=2,
        )
        expected = target.job.layout.block_shape(2) if shape else ()
        kind = target.dtype

        def check(out: NDArray[Any], block: Block) -> None:
            assert out.shape == expected
            assert out.dtype == kind
            assert out.flags.f_contiguous if fortran else out.flags.c_contiguous
            assert block.axis == (-1 if fortran else 0)
            assert len(block) == (2 if expected else 1)
            assert not any(out.tobytes())
            out[...] = np.ones((), out.dtype)

        found = piloted(target, Work.of(check))
        assert found.block_bytes == int(np.prod(expected)) * kind.itemsize
        assert found.measured.rows == (2 if shape else 1)
        assert (found.measured.disk_bytes_per_second is None) is (found.block_bytes == 0)
        assert found.seconds >= 0
        assert str(found)


class TestFailures:
    """Fillers that fail, and disks that refuse."""

    def test_a_filler_that_raises(self, tmp_path: Path) -> None:
        """It is told as a fill tells it."""
        target = make(tmp_path)

        def bad(out: NDArray[Any], block: Block) -> None:
            raise ZeroDivisionError("by nothing")

        with pytest.raises(FillerError, match="by nothing") as raised:
            piloted(target, Work.of(bad))
        assert raised.value.segment == target.segments[5].name
        assert raised.value.cause_type == "ZeroDivisionError"
        assert not raised.value.transient

    def test_a_filler_that_returns(self, tmp_path: Path) -> None:
        """What no filler does is refused before weeks of it."""

        def returning(out: NDArray[Any], block: Block) -> Any:
            return out + 1

        with pytest.raises(FillerError, match="instead of filling"):
            piloted(make(tmp_path), Work.of(returning))

    def test_a_filler_that_exits(self, tmp_path: Path) -> None:
        """As a fill has it, that is an error of the filler's."""

        def leave(out: NDArray[Any], block: Block) -> None:
            raise SystemExit(3)

        with pytest.raises(FillerError, match="SystemExit"):
            piloted(make(tmp_path), Work.of(leave))

    def test_a_crash_is_tried_once(self, tmp_path: Path) -> None:
        """It takes its own process along, and nothing else."""
        target, log = make(tmp_path), tmp_path / "log"
        log.touch()

        def crash(out: NDArray[Any], block: Block, log: str) -> None:
            with Path(log).open("a") as file:
                file.write(f"{block.start}\n")
            os._exit(9)

        with pytest.raises(WorkerDiedError, match=r"segment 0005 .* process died \("):
            piloted(target, Work.of(crash, {"log": str(log)}))
        assert logged_rows(log) == [20]
        assert states(target) == ["pending"] * 10
        assert piloted(target, Work.of(ramp)).pending.segments == 10

    def test_what_cannot_be_sent(self, tmp_path: Path) -> None:
        """A lock does not travel."""
        lock = threading.Lock()

        def locked(out: NDArray[Any], block: Block) -> None:
            with lock:
                out[...] = 1

        with pytest.raises(InvalidArgumentError, match="cannot be sent to a worker"):
            piloted(make(tmp_path), Work.of(locked))

    def test_what_cannot_be_loaded(self, tmp_path: Path) -> None:
        """What is there when it is sent may not be there where it arrives."""
        odd = Unloadable()

        def holding(out: NDArray[Any], block: Block) -> None:
            out[...] = id(odd)

        with pytest.raises(FillerNotFoundError, match="only where it was pickled"):
            piloted(make(tmp_path), Work.of(holding))

    def test_allocated_anew(self, tmp_path: Path) -> None:
        """A target that another job has replaced is refused."""
        target = make(tmp_path)
        make(tmp_path, exist="overwrite")
        with pytest.raises(OtherJobError):
            pilot(target, Work.of(ramp))

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_a_full_disk_is_not_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """A target that has all the space is no fault."""
        monkeypatch.setattr(piloting, "write_all", refusing(number))
        found = measured_here(make(tmp_path), Work.of(ramp))
        assert (found.write_seconds, found.disk_bytes_per_second) == (0, None)

    def test_no_room_for_a_block(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor is the last of the space taken."""
        space = SimpleNamespace(f_bavail=31, f_frsize=1, f_blocks=99)
        monkeypatch.setattr(os, "fstatvfs", lambda _: space)
        target = make(tmp_path)
        assert measured_here(target, Work.of(ramp)).disk_bytes_per_second is None
        space.f_bavail = 32
        assert measured_here(target, Work.of(ramp)).disk_bytes_per_second is not None

    def test_a_disk_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What else it says is an error."""
        monkeypatch.setattr(piloting, "write_all", refusing(errno.EIO))
        with pytest.raises(StorageError, match="cannot measure the disk") as raised:
            measured_here(make(tmp_path), Work.of(ramp))
        assert raised.value.errno == errno.EIO

    def test_writing_ends(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After so many bytes, or after some time, but not before the first piece."""
        piece = buffer_of(MIB)
        with (tmp_path / "written").open("wb") as file:
            number = file.fileno()
            assert piloting._write_pieces(number, piece, 5 * MIB // 2)[0] == 2 * MIB
            assert os.fstat(number).st_size == 2 * MIB
            monkeypatch.setattr(piloting, "_WRITE_SECONDS", 0.0)
            assert piloting._write_pieces(number, piece, 5 * MIB // 2)[0] == MIB


def refusing(number: int) -> Callable[..., None]:
    """Return a write that fails."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse
