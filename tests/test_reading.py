"""Reading a target while it is being filled: masks from the ledger, segments as they come."""

from __future__ import annotations

import copy
import errno
import mmap
import pickle
import threading
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import DTYPES, ORDERS, oracle, ramp, rows, run, script, start

import flowmap
from flowmap.errors import (
    InvalidArgumentError,
    NotDoneTimeoutError,
    NotFoundError,
    OtherJobError,
    StorageError,
    WrongTypeError,
)
from flowmap.storage import read_into

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """Return a target of 1000 rows in 8 segments."""
    return flowmap.allocate(tmp_path / "a.npy", 1000, "<f8", segments=8)


def masked_rows(found: np.ma.MaskedArray[Any, Any], *, fortran: bool) -> NDArray[np.bool]:
    """Return which rows are masked; each must be masked in all its elements or in none."""
    mask = np.ascontiguousarray(np.ma.getmaskarray(found))
    bits = mask.view(bool).reshape(*found.shape, -1)
    if fortran and found.ndim:
        bits = np.moveaxis(bits, found.ndim - 1, 0)
    flat = bits.reshape(len(bits) if found.ndim else 1, -1)
    assert (flat.all(axis=1) == flat.any(axis=1)).all()
    return np.asarray(flat.any(axis=1))


def mask_of(target: flowmap.Target) -> NDArray[np.bool]:
    """Return the mask of a target, as the array that it is."""
    mask = target.masked().mask
    assert isinstance(mask, np.ndarray)
    return mask


class TestMasked:
    """`Target.masked`."""

    @pytest.mark.parametrize("fortran", ORDERS, ids=["C", "F"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("row", [(), (8,), (8, 2)], ids=str)
    def test_some_done(
        self, tmp_path: Path, row: tuple[int, ...], dtype: np.dtype[Any], fortran: bool
    ) -> None:
        """What is done is there, what is not is masked: every dtype and order, and windows."""
        shape = (*row, 9) if fortran else (9, *row)
        whole = oracle(shape, dtype)
        target = flowmap.allocate(
            tmp_path / "a.npy", shape, dtype, fortran_order=fortran, segments=[2, 3, 1, 3]
        )
        for segment in target.segments[1::2]:
            part = slice(segment.start, segment.stop)
            flowmap.write_segment(segment, whole[(..., part) if fortran else part])
        wanted = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0], bool)
        for found in (target.masked(), flowmap.load(target.path, masked=True)):
            assert (found.shape, found.dtype) == (shape, dtype)
            assert np.array_equal(masked_rows(found, fortran=fortran), wanted)
            there = (..., ~wanted) if fortran else ~wanted
            assert np.array_equal(found.data[there], whole[there])
        for mode in (None, "r"):
            window = flowmap.load(target, mode, masked=True, offset=4, shape=(3, *shape[1:]))
            first_axis_only = not fortran or len(shape) == 1
            kept = wanted[4:7] if first_axis_only else wanted
            assert np.array_equal(masked_rows(window, fortran=fortran), kept)
            part = slice(4, 7)
            there = ~kept if first_axis_only else (..., ~kept)
            assert np.array_equal(window.data[there], whole[part][there])

    @pytest.mark.parametrize("fortran", ORDERS, ids=["C", "F"])
    def test_no_rows_or_axes(self, tmp_path: Path, fortran: bool) -> None:
        """No rows, rows without elements, and a 0-d array."""
        for number, shape in enumerate([(0, 3), (3, 0), (0,), ()]):
            path = tmp_path / f"{number}.npy"
            target = flowmap.allocate(path, shape, "<i4", fortran_order=fortran)
            assert target.masked().shape == shape
            assert target.masked().mask.all()
            flowmap.fill(target, "constant", {"value": 5}, executor="threads", workers=1)
            for found in (target.masked(), flowmap.load(target, masked=True)):
                assert found.shape == shape
                assert not found.mask.any()
                assert (found.data == 5).all()

    @pytest.mark.parametrize("state", ["running", "written", "failed", "damaged", "reset"])
    def test_only_what_is_done(self, tmp_path: Path, state: str) -> None:
        """Rows that are written, but may not be on the disk or not be right, are masked."""
        target = flowmap.allocate(
            tmp_path / "a.npy",
            100,
            "<f8",
            segments=2,
            block_rows=10,
            durability="end" if state == "written" else "segment",
        )
        flowmap.fill_segment(target.segments[1], ramp)
        if state == "running":
            with flowmap.open_segment(target.segments[0]) as out:
                out[...] = 1
                assert mask_of(target)[:50].all()
            return
        if state == "failed":
            with pytest.raises(ZeroDivisionError), flowmap.open_segment(target.segments[0]):
                raise ZeroDivisionError
        else:
            flowmap.fill_segment(target.segments[0], ramp)
        if state == "damaged":
            flowmap.open_memmap(target.path)[3] = 7
            assert not flowmap.validate(target).ok
        if state == "reset":
            flowmap.reset(target, 0)
        assert mask_of(target)[:50].all()
        assert mask_of(target)[50:].all() == (state == "written")

    def test_is_read_only(self, target: flowmap.Target) -> None:
        """Neither the values nor the mask can be written to."""
        found = target.masked()
        with pytest.raises(ValueError, match="read-only"):
            found.data[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            mask_of(target)[0] = False

    def test_is_copied_and_pickled(self, target: flowmap.Target) -> None:
        """What is made of it is in memory, and no map."""
        flowmap.fill_segment(target.segments[0], ramp)
        found = target.masked()
        for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), found + 0):
            assert type(copied.data) is np.ndarray
            assert copied.count() == 125
            copied[0] = 5
        assert type(found.filled(0)) is np.ndarray

    def test_claimed_while_it_is_read(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A segment that is filled anew while it is read may be half of each: it is masked."""
        for segment in target.segments:
            flowmap.fill_segment(segment, ramp)

        def and_claim(descriptor: int, part: NDArray[np.uint8], offset: int) -> int:
            monkeypatch.undo()
            count = read_into(descriptor, part[:400], offset)
            flowmap.reset(target, 0)
            flowmap.fill_segment(target.segments[0], ramp)
            return count + read_into(descriptor, part[400:], offset + 400)

        monkeypatch.setattr("flowmap.masking.read_into", and_claim)
        found = flowmap.load(target, masked=True)
        assert found.mask[:125].all()
        assert not found.mask[125:].any()
        assert not flowmap.load(target, masked=True).mask.any()

    def test_disk_that_cannot_be_read(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reading rows that are done meets an error, not the end of the process."""

        def fail(*_: Any) -> int:
            raise OSError(errno.EIO, "bad sector")

        flowmap.fill_segment(target.segments[0], ramp)
        monkeypatch.setattr("flowmap.masking.read_into", fail)
        with pytest.raises(StorageError, match="cannot read the rows that are done"):
            flowmap.load(target, masked=True)

    def test_what_is_not_done_is_not_read(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only the rows that are done are read."""
        read: list[int] = []

        def noted(descriptor: int, part: NDArray[np.uint8], offset: int) -> int:
            read.append((offset - target.job.data_offset) // 8)
            return read_into(descriptor, part, offset)

        for index in (1, 3):
            flowmap.fill_segment(target.segments[index], ramp)
        monkeypatch.setattr("flowmap.masking.read_into", noted)
        assert flowmap.load(target, masked=True).count() == 250
        assert read == [125, 375]

    def test_is_of_its_moment(self, target: flowmap.Target) -> None:
        """What is done later is seen by the next call."""
        before = target.masked()
        flowmap.fill_segment(target.segments[0], ramp)
        assert before.mask.all()
        assert not mask_of(target)[:125].any()

    def test_costs_little(self, tmp_path: Path) -> None:
        """Of a sparse target of 64 GiB neither data nor a mask of each element is held."""
        for dtype in ("<f8", [("a", "<f4"), ("b", "<f4")]):
            target = flowmap.allocate(
                tmp_path / "a.npy", (1 << 20, 8192), dtype, reserve=False, exist="overwrite"
            )
            resident = Path("/proc/self/statm").read_text().split()[1]
            found = target.masked()
            grown = int(Path("/proc/self/statm").read_text().split()[1]) - int(resident)
            assert grown * mmap.PAGESIZE < 32 << 20
            assert all(np.asarray(found.mask)[-1, -1].reshape(1).view(bool))

    def test_costs_a_byte_for_each_row(self, tmp_path: Path) -> None:
        """Of a sparse target of one axis the mask is held, and nothing else."""
        target = flowmap.allocate(
            tmp_path / "a.npy", 1 << 26, "<f8", segments=64, reserve=False
        )
        flowmap.fill_segment(target.segments[1], "constant", {"value": 1})
        tracemalloc.start()
        found = target.masked()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 1.1 * (1 << 26)
        assert mask_of(target).sum() == 63 << 20
        assert found[1 << 20] == 1

    def test_refused(self, target: flowmap.Target) -> None:
        """A target that was allocated anew, or is gone."""
        flowmap.allocate(target.path, 1000, "<f8", segments=8, exist="overwrite")
        with pytest.raises(OtherJobError, match="open it again"):
            target.masked()
        target.path.unlink()
        with pytest.raises(NotFoundError):
            target.masked()

    def test_never_ahead_of_the_rows(self, target: flowmap.Target) -> None:
        """While another process fills, resets and fills: what is not masked is right."""
        program = """
            import sys, flowmap
            from support import ramp
            target = flowmap.open_target(sys.argv[1])
            for _ in range(12):
                for segment in target.segments:
                    flowmap.fill_segment(segment, ramp)
                    if segment.index % 3 == 0:
                        flowmap.reset(target, segment.index)
        """
        child, looks, valid = start(script(program, target.path)), 0, 0
        whole = rows(flowmap.Block(0, 1000))
        while child.poll() is None:
            found = target.masked()
            assert np.array_equal(found.compressed(), whole[~found.mask])
            looks, valid = looks + 1, valid + int(found.count() > 0)
        assert child.communicate()[0] == ""
        assert child.returncode == 0
        assert looks > 10
        assert valid > 5
        assert len(target.masked().compressed()) == 625

    def test_of_a_run_that_was_killed(self, target: flowmap.Target) -> None:
        """The mask is of what that run had done."""
        program = """
            import sys, os, flowmap
            from support import ramp
            for segment in flowmap.open_target(sys.argv[1]).segments[:3]:
                flowmap.fill_segment(segment, ramp)
            os.kill(os.getpid(), 9)
        """
        assert run(script(program, target.path)).returncode == -9
        found = target.masked()
        assert found.mask.tolist() == [False] * 375 + [True] * 625
        assert np.array_equal(found.compressed(), rows(flowmap.Block(0, 375)))


class TestAsCompleted:
    """`Target.as_completed`."""

    def test_all_there(self, target: flowmap.Target) -> None:
        """Of a job that is done all come at once, in order."""
        flowmap.fill(target, ramp, executor="threads")
        assert list(target.as_completed(timeout=0)) == list(target.segments)

    def test_as_they_come(self, target: flowmap.Target) -> None:
        """Each comes once, when it is done, and its rows are there."""
        order = [5, 0, 7, 1, 2, 3, 6, 4]

        def fill() -> None:
            for index in order:
                flowmap.fill_segment(target.segments[index], ramp)
                seen.wait(10)
                seen.clear()

        seen, came = threading.Event(), []
        worker = threading.Thread(target=fill)
        worker.start()
        for segment in target.as_completed(timeout=60, poll_seconds=0.01):
            came.append(segment.index)
            values = target.asarray()[segment.start : segment.stop]
            assert np.array_equal(values, rows(flowmap.Block(segment.start, segment.stop)))
            seen.set()
        worker.join()
        assert came == order

    def test_while_a_run_fills(self, target: flowmap.Target) -> None:
        """From another process, while a run with worker processes is at work."""
        program = """
            import sys, flowmap
            target = flowmap.open_target(sys.argv[1])
            total = sum(
                target.asarray()[segment.start : segment.stop].sum()
                for segment in target.as_completed(timeout=60, poll_seconds=0.05)
            )
            print(round(total))
        """
        reader = start(script(program, target.path))
        flowmap.fill(target, ramp)
        assert reader.communicate()[0] == f"{round(np.sqrt(np.arange(1000)).sum())}\n"

    def test_time_is_up(self, target: flowmap.Target) -> None:
        """What is done comes before the error that the rest is not."""
        flowmap.fill_segment(target.segments[2], ramp)
        coming = target.as_completed(timeout=0.2, poll_seconds=0.01)
        assert next(coming).index == 2
        with pytest.raises(NotDoneTimeoutError, match="7 of 8 segments") as caught:
            next(coming)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.errno == errno.ETIMEDOUT
        assert list(coming) == []

    def test_failed_is_waited_for(self, target: flowmap.Target) -> None:
        """A segment that failed comes when a retry has done it."""
        for segment in target.segments[1:]:
            flowmap.fill_segment(segment, ramp)
        with pytest.raises(ZeroDivisionError), flowmap.open_segment(target.segments[0]):
            raise ZeroDivisionError
        coming = target.as_completed(timeout=60, poll_seconds=0.01)
        assert [next(coming).index for _ in range(7)] == list(range(1, 8))
        threading.Timer(0.2, flowmap.fill_segment, (target.segments[0], ramp)).start()
        assert next(coming).index == 0

    def test_does_not_spin(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between two looks at the ledger it sleeps, and never beyond the timeout."""
        naps: list[float] = []
        monkeypatch.setattr(time, "sleep", naps.append)
        coming = target.as_completed(timeout=0.05, poll_seconds=30)
        with pytest.raises(NotDoneTimeoutError):
            next(coming)
        assert naps
        assert all(0 <= nap <= 0.05 for nap in naps)

    def test_looks_no_more_often_while_there_is_news(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After each look it rests, also after one that found a segment."""
        naps: list[float] = []
        looks: list[int] = []
        status = flowmap.Target.status

        def look(self: flowmap.Target) -> NDArray[Any]:
            looks.append(len(naps))
            return status(self)

        def fill_and_nap(seconds: float) -> None:
            naps.append(seconds)
            flowmap.fill_segment(target.segments[len(naps)], ramp)

        flowmap.fill_segment(target.segments[0], ramp)
        monkeypatch.setattr(flowmap.Target, "status", look)
        monkeypatch.setattr(time, "sleep", fill_and_nap)
        assert len(list(target.as_completed(timeout=600, poll_seconds=30))) == 8
        assert len(naps) == 7
        assert looks == list(range(8))
        assert all(0 < nap <= 30 for nap in naps)

    def test_overwritten_meanwhile(self, target: flowmap.Target) -> None:
        """A target that is allocated anew is not waited for."""
        coming = target.as_completed(poll_seconds=0.01)
        flowmap.allocate(target.path, 1000, "<f8", segments=8, exist="overwrite")
        with pytest.raises(OtherJobError):
            next(coming)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"timeout": -1}, InvalidArgumentError),
            ({"timeout": float("nan")}, InvalidArgumentError),
            ({"timeout": "1"}, WrongTypeError),
            ({"poll_seconds": -0.1}, InvalidArgumentError),
            ({"poll_seconds": None}, WrongTypeError),
            ({"poll_seconds": True}, WrongTypeError),
        ],
    )
    def test_refused(
        self, target: flowmap.Target, options: dict[str, Any], error: type[Exception]
    ) -> None:
        """What is no time, at the call and not only when it is waited for."""
        with pytest.raises(error, match=next(iter(options))):
            target.as_completed(**options)
