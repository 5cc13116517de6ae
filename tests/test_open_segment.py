"""`open_segment`: Vik's way, with a claim before and the proof behind."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import gc
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from mounts import mounted
from support import (
    DTYPES,
    ORDERS,
    data_bytes,
    flip,
    oracle,
    ramp,
    run,
    saved_bytes,
    script,
    start,
    states,
)

import flowmap
from flowmap import attempt as attempts
from flowmap import kernel, mapped, storage
from flowmap.errors import (
    ClaimLostError,
    OtherJobError,
    OtherWorkError,
    SegmentDoneError,
    StorageError,
    WrongTypeError,
)

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """Return a target of three segments."""
    return flowmap.allocate(tmp_path / "a.npy", (3000, 2), "<f8", segments=3)


def within(segment: flowmap.Segment, body: Callable[[NDArray[Any]], object]) -> None:
    """Open a segment for a function that is the body of the block."""
    with flowmap.open_segment(segment) as out:
        body(out)


class TestFilling:
    """What is written in the block is there, synced, hashed and done."""

    @pytest.mark.parametrize("fortran", ORDERS, ids=["C", "F"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 3, 2), (3, 0), (), (0,)], ids=str)
    def test_byte_for_byte(
        self, tmp_path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool
    ) -> None:
        """Every dtype, order and shape; the array is mapped, and is the target's slice."""
        whole = oracle(shape, dtype)
        rows = 1 if not shape else shape[-1] if fortran else shape[0]
        target = flowmap.allocate(
            tmp_path / "a.npy",
            shape,
            dtype,
            fortran_order=fortran,
            segments=min(rows, 3) or None,
        )
        for segment in target.segments:
            rows_of = slice(segment.start, segment.stop)
            with flowmap.open_segment(segment) as out:
                assert type(out) is np.memmap
                assert not out.size or not out.any() if dtype.kind in "fib" else True
                index: Any = () if not shape else (..., rows_of) if fortran else rows_of
                assert out.shape == np.asarray(whole[index]).shape
                assert out.flags.f_contiguous if fortran else out.flags.c_contiguous
                out[...] = whole[index]
        assert states(target) == ["done"] * len(target.segments)
        assert flowmap.validate(target).ok
        wanted = saved_bytes(whole, tmp_path, fortran_order=fortran)
        assert data_bytes(target.path, target.job.data_offset) == wanted

    def test_record(self, target: flowmap.Target) -> None:
        """It is one attempt, running while the block runs, done when it has ended."""
        with flowmap.open_segment(target.segments[1]) as out:
            assert states(target) == ["pending", "running", "pending"]
            out[...] = 1
        row = target.status()[1]
        assert (row["state"], row["attempt"], row["rows_done"]) == ("done", 1, 1000)
        with pytest.raises(ValueError, match="read-only"):
            out[0] = 2

    def test_reads_what_is_there(self, target: flowmap.Target) -> None:
        """The rows that a cut short or failed block left are there for the next one."""

        def fill_half(out: NDArray[Any]) -> None:
            out[:500] = 7
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            within(target.segments[0], fill_half)
        with flowmap.open_segment(target.segments[0]) as out:
            assert (out[:500] == 7).all()
            out[500:] = out[:500] + 1
        assert flowmap.validate(target).bad_segments == target.segments[1:]
        assert np.load(target)[999].tolist() == [8, 8]

    def test_is_the_target(self, target: flowmap.Target) -> None:
        """The array tells where it lies, and what is written to its address counts."""
        with flowmap.open_segment(target.segments[1]) as out:
            assert str(out.filename) == str(target.path)
            assert out.offset == target.job.data_offset + 16_000
            ctypes.memset(out.ctypes.data, 0x40, out.nbytes)
        assert (np.load(target)[1000:2000].view("u1") == 0x40).all()
        assert flowmap.validate(target).bad_segments == target.segments[::2]

    def test_with_written_segments(self, target: flowmap.Target) -> None:
        """Segments that are opened and segments that are written are one work."""
        first, second, third = target.segments
        flowmap.write_segment(first, np.ones((1000, 2)))
        for segment in (second, third):
            with flowmap.open_segment(segment) as out:
                out[...] = 1
        report = flowmap.validate(target)
        assert report.ok
        assert report.sealed

    def test_durability_end(self, tmp_path: Path) -> None:
        """With durability "end" the segment is written, and validation makes it done."""
        target = flowmap.allocate(tmp_path / "a.npy", 10, "<f8", segments=2, durability="end")
        for segment in target.segments:
            with flowmap.open_segment(segment) as out:
                out[...] = 1
        assert states(target) == ["written", "written"]
        assert flowmap.validate(target).ok
        assert states(target) == ["done", "done"]

    def test_flush_within(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A flush in the block syncs the target; after the block there is nothing to do."""
        synced: list[int] = []

        def noted(descriptor: int) -> None:
            synced.append(descriptor)
            os.fdatasync(descriptor)

        monkeypatch.setattr(attempts, "sync_data", noted)
        with flowmap.open_segment(target.segments[0]) as out:
            out[...] = 1
            out.flush()
            cast("np.memmap[Any, Any]", out[5:]).flush()
            assert len(synced) == 2
        count = len(synced)
        out.flush()
        assert len(synced) == count
        assert states(target)[0] == "done"

    def test_no_sync_with_durability_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With durability "end" nothing syncs: the error may be another segment's."""
        target = flowmap.allocate(tmp_path / "a.npy", 10, "<f8", segments=2, durability="end")
        for name in ("flowmap.windows._Mapping.sync", "flowmap.attempt.sync_data"):
            monkeypatch.setattr(name, _fail)
        with flowmap.open_segment(target.segments[0]) as out:
            out[...] = 1
            out.flush()
        assert states(target)[0] == "written"
        with pytest.raises(SegmentDoneError, match="is written"):
            within(target.segments[0], lambda _: pytest.fail("it was opened"))

    def test_other_dtype_in_place(self, target: flowmap.Target) -> None:
        """What the block makes of its array's shape does not change which bytes count."""
        with flowmap.open_segment(target.segments[0]) as out:
            out[...] = 3
            out.shape = (2000,)
        assert states(target)[0] == "done"
        assert flowmap.validate(target).bad_segments == target.segments[1:]

    @pytest.mark.system("strace", packages="strace")
    def test_order_of_system_calls(self, target: flowmap.Target) -> None:
        """Reserve, confirm the claim, store, sync file and window, record, sync the ledger."""
        program = """
            import sys, os, flowmap
            (segment, *_) = flowmap.open_target(sys.argv[1]).segments
            with flowmap.open_segment(segment) as out:
                out[...] = 1
                os.write(2, b"stored")
        """
        calls = "fallocate,msync,fdatasync,pwrite64,write"
        command = ["strace", "-y", "-e", f"trace={calls}", *script(program, target.path)]
        lines = run(command).stderr.splitlines()
        seen = [
            f"{line.partition('(')[0]} {'ledger' if 'ledger.npy' in line else ''}".strip()
            for line in lines
            if "a.npy" in line or "msync" in line or "stored" in line
        ]
        kept = [call for call in seen if call != "pwrite64"]  # of JSON beside
        begin = kept.index("fallocate")
        assert kept[begin:] == [
            *("fallocate", "pwrite64 ledger", "write", "fdatasync", "msync", "fdatasync"),
            *("pwrite64 ledger", "pwrite64 ledger", "fdatasync ledger"),
        ]


class TestFailing:
    """After an error nothing is called done that is not."""

    def test_exception(self, target: flowmap.Target) -> None:
        """The failure is recorded with its reason, and the error is the block's own."""
        seen: list[NDArray[Any]] = []

        def fail(out: NDArray[Any]) -> None:
            seen.append(out)
            raise RuntimeError("an error of my own")

        with pytest.raises(RuntimeError, match="of my own"):
            within(target.segments[1], fail)
        row = target.status()[1]
        assert (row["state"], row["reason"]) == ("failed", "RuntimeError: an error of my own")
        with pytest.raises(ValueError, match="read-only"):
            seen[0][0] = 2
        assert [segment.index for segment in target.pending()] == [0, 1, 2]

    def test_interrupt(self, target: flowmap.Target) -> None:
        """Ctrl-C is a failure like any other."""
        with pytest.raises(KeyboardInterrupt), flowmap.open_segment(target.segments[0]):
            raise KeyboardInterrupt
        assert states(target)[0] == "failed"

    def test_killed(self, target: flowmap.Target) -> None:
        """A process that is killed in the block leaves its segment pending, to be filled."""
        program = """
            import sys, time, flowmap
            with flowmap.open_segment(flowmap.open_target(sys.argv[1]).segments[0]) as out:
                out[...] = 5
                print("stored", flush=True)
                time.sleep(60)
        """
        child = start(script(program, target.path))
        assert child.stdout is not None
        assert child.stdout.readline() == "stored\n"
        assert states(target)[0] == "running"
        child.kill()
        child.wait()
        child.stdout.close()
        assert states(target)[0] == "pending"
        flowmap.fill_segment(target.segments[0], fives)
        assert states(target)[0] == "done"

    def test_zombie(self, target: flowmap.Target) -> None:
        """A block that lost its segment records nothing; what it overwrote is found."""
        (segment, *_) = target.segments

        def lose(out: NDArray[Any]) -> None:
            flowmap.write_segment(segment, np.ones((1000, 2)))
            out[...] = 5

        with pytest.raises(ClaimLostError, match="attempt 1 found"):
            within(segment, lose)
        assert states(target)[0] == "done"
        assert target.status()["attempt"][0] == 2
        assert segment in flowmap.validate(target).bad_segments
        assert states(target)[0] == "damaged"

    def test_slow_claim(self, target: flowmap.Target) -> None:
        """One on the same knowledge, written late, takes the segment from no open block."""
        (segment, *_) = target.segments

        def claimed(out: NDArray[Any]) -> None:
            with target.job.ledger(write=True) as ledger:
                mine = ledger.read(0, segment.start, segment.stop)
                slow = dataclasses.replace(mine, sequence=0, token="f" * 32)
                ledger.write(slow)
            out[...] = 1

        within(segment, claimed)
        assert states(target)[0] == "done"

    def test_sync_fails(self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the disk does not take the rows, the segment failed."""
        for name in ("flowmap.windows._Mapping.sync", "flowmap.attempt.sync_data"):
            with monkeypatch.context() as patch:
                patch.setattr(name, _fail)
                with pytest.raises(StorageError, match="cannot sync the rows"):
                    within(target.segments[0], lambda out: out.fill(1))
            assert states(target)[0] == "failed"

    def test_flush_fails(self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """A flush that failed fails the segment, even if the block goes on after it."""
        answers = [OSError(errno.ENOSPC, "full"), None, None, None]

        def once(_: int) -> None:
            answer = answers.pop(0)
            if answer is not None:
                raise answer

        def go_on(out: NDArray[Any]) -> None:
            out[...] = 1
            for _ in range(2):
                with contextlib.suppress(StorageError):
                    cast("np.memmap[Any, Any]", out).flush()

        monkeypatch.setattr(attempts, "sync_data", once)
        with pytest.raises(StorageError, match="cannot sync the rows") as caught:
            within(target.segments[0], go_on)
        assert caught.value.errno == errno.ENOSPC
        assert states(target)[0] == "failed"

    @pytest.mark.parametrize("before", [True, False], ids=["just before", "just after"])
    @pytest.mark.parametrize("step", ["reserve_range", "take_pages"])
    def test_zombie_before_the_block(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
    ) -> None:
        """An attempt that lost its segment before the block neither opens nor changes it."""
        (segment, *_) = target.segments
        flowmap.write_segment(segment, np.zeros((1000, 2)))
        flowmap.reset(target, 0)
        real = vars(mapped)[step]

        def lose(*arguments: Any) -> bool:
            monkeypatch.undo()
            done = not before and real(*arguments)
            flowmap.write_segment(segment, np.full((1000, 2), 3.0), replace=True)
            return bool(done or real(*arguments))

        monkeypatch.setattr(mapped, step, lose)
        with pytest.raises(ClaimLostError):
            within(segment, lambda _: pytest.fail("it was opened"))
        assert states(target)[0] == "done"
        assert (np.load(target)[:1000] == 3).all()
        gc.collect()
        for maps in Path("/proc/self").glob("maps"):  # where there is one
            assert str(target.path) not in maps.read_text()

    def test_zombie_on_an_older_system(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where pages are taken by writing, one that lost its segment writes none of them."""
        (segment, *_) = target.segments

        def lose(descriptor: int, chunk: NDArray[Any], offset: int) -> int:
            count = storage.read_into(descriptor, chunk, offset)
            monkeypatch.undo()
            flowmap.write_segment(segment, np.full((1000, 2), 3.0), replace=True)
            return count

        monkeypatch.setattr(kernel, "_MADV_POPULATE_WRITE", -1)
        monkeypatch.setattr(mapped, "reserve_range", lambda *_: False)
        monkeypatch.setattr(mapped, "read_into", lose)
        with pytest.raises(ClaimLostError):
            within(segment, lambda _: pytest.fail("it was opened"))
        assert (np.load(target)[:1000] == 3).all()

    @pytest.mark.parametrize("way", ["falls out", "exits"])
    def test_fork_within(self, target: flowmap.Target, way: str) -> None:
        """A fork that leaves the block neither finishes the segment nor fails it."""
        program = f"""
            import os, sys, flowmap
            segment = flowmap.open_target(sys.argv[1]).segments[0]
            try:
                with flowmap.open_segment(segment) as out:
                    out[...] = 1
                    child = os.fork()
                    if child == 0 and {way == "exits"}:
                        raise SystemExit(7)
                    if child:
                        _, status = os.waitpid(child, 0)
                        print(os.waitstatus_to_exitcode(status))
                        print(flowmap.open_target(sys.argv[1]).status()["state"][0])
            except flowmap.FlowmapError as error:
                print(type(error).__name__, "fork" in str(error), flush=True)
                os._exit(5)
        """
        done = run(script(program, target.path))
        said = done.stdout.split("\n")
        assert said[-3:] == ["7" if way == "exits" else "5", "running", ""], done
        assert (said[0] == "ClaimLostError True") == (way == "falls out")
        assert states(target)[0] == "done"

    def test_taken_again_after_a_failure(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The pages that an earlier attempt had are taken, for this one to sync; no others."""
        taken: list[int] = []
        real = kernel.take_pages

        def noted(mapping: mmap.mmap) -> bool:
            taken.append(len(mapping))
            return real(mapping)

        monkeypatch.setattr(mapped, "take_pages", noted)
        (segment, *_) = target.segments

        def store_and_fail(out: NDArray[Any]) -> None:
            out[...] = 4
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            within(segment, store_and_fail)
        assert taken == []
        with flowmap.open_segment(segment) as out:
            assert len(taken) == 1
            assert (out == 4).all()
        flowmap.reset(target, 0)
        with flowmap.open_segment(segment):
            assert len(taken) == 2
        with flowmap.open_segment(segment, replace=True):  # it may be a reflinked copy
            assert len(taken) == 3


class TestRefused:
    """What cannot be opened, before anything changes."""

    def test_done(self, target: flowmap.Target) -> None:
        """A segment that is done is opened on an explicit word only, and lifts the seal."""
        for segment in target.segments:
            flowmap.write_segment(segment, np.ones((1000, 2)))
        assert flowmap.validate(target).sealed
        with (
            pytest.raises(SegmentDoneError, match="replace=True"),
            flowmap.open_segment(target.segments[0]),
        ):
            pytest.fail("it was opened")
        assert flowmap.validate(target, mark=False).ok
        with flowmap.open_segment(target.segments[0], replace=True) as out:
            assert states(target)[0] == "running"
            out[0] = 2
        assert flowmap.validate(target).ok
        assert np.load(target)[:2].tolist() == [[2, 2], [1, 1]]

    def test_pinned(self, tmp_path: Path) -> None:
        """A job that is pinned to a filler is filled by that."""
        target = flowmap.allocate(tmp_path / "a.npy", 10, "<f8", filler=ramp)
        with pytest.raises(OtherWorkError), flowmap.open_segment(target.segments[0]):
            pytest.fail("it was opened")
        assert set(states(target)) == {"pending"}

    def test_other_allocation(self, target: flowmap.Target) -> None:
        """A segment of a target that was allocated anew."""
        flowmap.allocate(target.path, (3000, 2), "<f8", segments=3, exist="overwrite")
        with pytest.raises(OtherJobError), flowmap.open_segment(target.segments[0]):
            pytest.fail("it was opened")

    def test_allocated_anew_meanwhile(self, target: flowmap.Target) -> None:
        """A target that is replaced while the block runs is not touched by it."""

        def replace(out: NDArray[Any]) -> None:
            flowmap.allocate(target.path, (3000, 2), "<f8", segments=3, exist="overwrite")
            out[...] = 1

        with pytest.raises(OtherJobError):
            within(target.segments[0], replace)
        assert not np.load(target).any()
        assert set(states(flowmap.open_target(target.path))) == {"pending"}

    @pytest.mark.parametrize("wrong", [None, 0, "segment 0000", "path"])
    def test_no_segment(self, wrong: Any) -> None:
        """What is no segment."""
        with (
            pytest.raises(WrongTypeError, match=r"target\.pending"),
            flowmap.open_segment(wrong),
        ):
            pytest.fail("it was opened")

    def test_replace_is_a_flag(self, target: flowmap.Target) -> None:
        """The option takes True or False."""
        with (
            pytest.raises(WrongTypeError),
            flowmap.open_segment(
                target.segments[0],
                replace=1,  # type: ignore[arg-type]  # what the test is about
            ),
        ):
            pytest.fail("it was opened")
        assert set(states(target)) == {"pending"}


class TestSpace:
    """A store does not meet a full disk."""

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Path]:
        """Return a file system of four mebibytes."""
        folder = tmp_path / "small"
        folder.mkdir()
        with mounted(folder, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
            yield folder

    PROGRAM = """
        import sys, flowmap, flowmap.kernel, flowmap.mapped
        if sys.argv[2] != "with":
            flowmap.mapped.reserve_range = lambda *_: False
        if sys.argv[2] == "older":
            flowmap.kernel._MADV_POPULATE_WRITE = -1
        for segment in flowmap.open_target(sys.argv[1]).segments:
            try:
                with flowmap.open_segment(segment) as out:
                    out[...] = 1
            except OSError as error:
                print(segment.index, error.errno, error)
    """

    @pytest.mark.system("mount", "umount", packages="mount", root=True)
    @pytest.mark.parametrize("fallocate", ["with", "without", "older"])
    def test_full_disk(self, small: Path, fallocate: str) -> None:
        """Where there is no space there is an error, and not the end of the process."""
        target = flowmap.allocate(
            small / "a.npy", 1 << 20, "<f8", segments=4, reserve=False
        )  # eight mebibytes
        done = run(script(self.PROGRAM, target.path, fallocate))
        assert done.returncode == 0, done
        assert f"{errno.ENOSPC} [Errno {errno.ENOSPC}] segment 0001" in done.stdout
        assert "free some" in done.stdout
        assert states(target) == ["done", "failed", "failed", "failed"]
        report = flowmap.validate(target)
        assert report.bad_segments == target.segments[1:]

    @pytest.mark.system("mount", "umount", packages="mount", root=True)
    def test_what_would_happen(self, small: Path) -> None:
        """The same by `open_memmap` alone ends the process: what the reservation is for."""
        target = flowmap.allocate(small / "a.npy", 1 << 20, "<f8", reserve=False)
        program = "import sys, flowmap; flowmap.open_memmap(sys.argv[1])[...] = 1"
        assert run(script(program, target.path)).returncode == -7  # SIGBUS

    @pytest.mark.parametrize("older", [True, False])
    def test_without_reservation(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch, older: bool
    ) -> None:
        """Where the file system cannot reserve, pages are taken, and hold what they held."""
        (segment, *_) = target.segments
        if older:
            monkeypatch.setattr(kernel, "_MADV_POPULATE_WRITE", -1)
        flip(target.path, target.job.data_offset + 9)
        before = target.path.read_bytes()
        monkeypatch.setattr(mapped, "reserve_range", lambda *_: False)
        with flowmap.open_segment(segment) as out:
            assert target.path.read_bytes() == before
            out[...] = 1
        assert states(target)[0] == "done"

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
    def test_reservation_fails(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """XFS wants as much space again as is reserved: taking pages tells if there is any."""

        def refuse(*_: Any) -> bool:
            raise OSError(number, "no")

        monkeypatch.setattr(mapped, "reserve_range", refuse)
        if number == errno.EIO:
            with pytest.raises(StorageError, match="look at the disk"):
                within(target.segments[0], lambda _: pytest.fail("it was opened"))
        else:
            within(target.segments[0], lambda out: out.fill(1))
        assert states(target)[0] == ("failed" if number == errno.EIO else "done")

    @pytest.mark.system("mkfs.xfs", "mount", "umount", packages="xfsprogs mount", root=True)
    def test_full_xfs(self, tmp_path: Path) -> None:
        """On a real XFS, too, a segment larger than the free space is opened and filled."""
        image, folder = tmp_path / "image", tmp_path / "mounted"
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(320 << 20)
        subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
        with mounted(folder, "-o", "loop", str(image)):
            free = shutil.disk_usage(folder).free
            rows = (free - (24 << 20)) // 8
            target = flowmap.allocate(folder / "a.npy", rows, "<f8", segments=2)
            assert shutil.disk_usage(folder).free < 8 * target.segments[0].rows
            for segment in target.segments:
                within(segment, lambda out: out.fill(1))
            assert flowmap.validate(target).ok

    def test_unreadable(self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """What cannot be read cannot be mapped either; it is said what can be done."""
        (segment, *_) = target.segments
        monkeypatch.setattr(mapped, "reserve_range", lambda *_: False)
        with monkeypatch.context() as patch:
            patch.setattr(mapped, "take_pages", lambda _: False)
            patch.setattr(mapped, "read_into", _fail)
            with (
                pytest.raises(StorageError, match="write_segment"),
                flowmap.open_segment(segment),
            ):
                pytest.fail("it was opened")
        assert states(target)[0] == "failed"
        flowmap.write_segment(segment, np.ones((1000, 2)))


@flowmap.filler
def fives(out: Any, block: flowmap.Block) -> None:
    """Fill with fives."""
    out[...] = 5


def _fail(*_: Any) -> int:
    raise OSError(errno.EIO, "no")
