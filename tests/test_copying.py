"""The filler `copy`: rows of files that are there, in whatever order; what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import DTYPES, ORDERS, data_bytes, in_blocks, oracle, ramp, saved_bytes

import flowmap
from flowmap import copying, mapping
from flowmap.casting import check_cast
from flowmap.copying import copy
from flowmap.errors import (
    DamagedJobError,
    FillerError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
    WrongTypeError,
)
from flowmap.ledger import Ledger
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from numpy.typing import NDArray


AB = [("a", "f4"), ("b", "f4")]


def save(path: Path, array: Any, *, fortran_order: bool = False) -> str:
    """Save an array; return the path as a user would give it."""
    ordered = np.zeros(np.shape(array), np.asarray(array).dtype, "F" if fortran_order else "C")
    ordered[...] = array
    np.save(path, ordered)
    return str(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, so that paths may be relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestRows:
    """Which rows come from which file."""

    @pytest.mark.parametrize("fortran_order", ORDERS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_one_file(self, here: Path, dtype: np.dtype[Any], fortran_order: bool) -> None:
        """A target filled from a file of either order is what `np.save` makes of it."""
        array = oracle((3, 2, 5) if fortran_order else (5, 2, 3), dtype)
        wanted = saved_bytes(array, here, fortran_order=fortran_order)
        for order in ORDERS:
            source = save(here / "source.npy", array, fortran_order=order)
            target = flowmap.allocate(
                f"to-{order}.npy",
                array.shape,
                dtype,
                fortran_order=fortran_order,
                segments=[4, 1],
                block_rows=3,
            )
            flowmap.fill(target, "copy", {"source": source}, executor="threads", workers=1)
            assert data_bytes(target.path, target.job.data_offset) == wanted
            assert flowmap.validate(target).ok

    @given(data=st.data(), fortran_order=st.booleans(), block_rows=st.integers(1, 9))
    def test_many_files(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        data: st.DataObject,
        fortran_order: bool,
        block_rows: int,
    ) -> None:
        """Files, in either order and some without rows, are taken one after the other."""
        folder = tmp_path_factory.mktemp("files")
        inner = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
        counts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
        parts, paths = [], []
        for number, count in enumerate(counts):
            shape = (*inner, count) if fortran_order else (count, *inner)
            parts.append(oracle(shape, np.dtype("<f8"), seed=number))
            path = folder / f"{number}.npy"
            paths.append(save(path, parts[-1], fortran_order=data.draw(st.booleans())))
        whole = np.concatenate(parts, axis=-1 if fortran_order else 0)
        rows = data.draw(st.integers(0, sum(counts)))  # those beyond are left out
        whole = whole[..., :rows] if fortran_order else whole[:rows]
        found = in_blocks(
            copy,
            whole.shape,
            "<f8",
            fortran_order=fortran_order,
            block_rows=block_rows,
            source=paths,
        )
        assert found.tobytes() == whole.tobytes()

    def test_a_scalar(self, here: Path) -> None:
        """A 0-d target takes a 0-d file, and no array of one."""
        save(here / "a.npy", np.array(2.5))
        assert in_blocks(copy, (), "<f8", source="a.npy") == 2.5
        save(here / "b.npy", np.array([2.5]))
        with pytest.raises(InvalidArgumentError, match=r"b.npy has shape \(1,\)"):
            in_blocks(copy, (), "<f8", source="b.npy")
        with pytest.raises(InvalidArgumentError, match=r"a.npy has shape \(\)"):
            in_blocks(copy, (1,), "<f8", source="a.npy")

    def test_a_target_that_is_done(self, here: Path) -> None:
        """A target is a file as any other once it is done; its other rows never were."""
        target = flowmap.allocate("a.npy", 100, "<f8", segments=4)
        flowmap.fill(target, ramp, executor="threads", workers=1)
        found = in_blocks(copy, (100,), "<f8", block_rows=7, source="a.npy")
        assert (found == np.sqrt(np.arange(100.0))).all()

    def test_headers_are_read_once(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many blocks there are, each header is read once as long as it is the same."""
        paths = [save(here / f"{n}.npy", np.arange(4.0) + 4 * n) for n in range(5)]
        opened, read = mapping.opened_npy, []

        def noted(path: str, most: int, **options: Any) -> Any:
            read.append(Path(path).name)
            return opened(path, most, **options)

        monkeypatch.setattr("flowmap.copying.opened_npy", noted)
        for _ in range(2):
            found = in_blocks(copy, (20,), "<f8", block_rows=1, source=paths)
            assert (found == np.arange(20)).all()
        assert read == [f"{n}.npy" for n in range(5)]

    def test_files_are_looked_at_once_in_a_run(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Twenty blocks of four files look four times, not once for each file before theirs."""
        paths = [save(here / f"{n}.npy", np.arange(5.0) + 5 * n) for n in range(4)]
        look, looks = copying._look, []

        def noted(path: Any, *args: Any) -> Any:
            looks.append(Path(path).name)
            return look(path, *args)

        monkeypatch.setattr(copying, "_look", noted)
        target = flowmap.allocate("all.npy", 20, "<f8", segments=2, block_rows=1)
        flowmap.fill(target, "copy", {"source": paths}, executor="threads", workers=1)
        assert (target.asarray() == np.arange(20)).all()
        assert looks == [f"{n}.npy" for n in range(4)]

    def test_the_next_run_looks_again(self, here: Path) -> None:
        """A file that has more rows by the time of the next run moves those after it."""
        paths = [save(here / f"{n}.npy", np.full(3, n)) for n in range(2)]
        for number, rows in enumerate((3, 5)):
            save(here / "b.npy", np.zeros(rows, int))
            Path("b.npy").replace("0.npy")
            target = flowmap.allocate(f"to-{number}.npy", 6, "<i8", segments=[4, 2])
            for segment in target.segments[::-1]:  # first the rows that are not of that file
                flowmap.fill_segment(segment, "copy", {"source": paths})
            assert target.asarray().tolist() == [0] * rows + [1] * (6 - rows)

    def test_no_more_is_read_than_wanted(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A block reads the bytes of its rows, of the files that have them."""
        paths = [save(here / f"{n}.npy", np.zeros((1000, 8))) for n in range(5)]
        sizes: list[int] = []

        def noted(descriptor: int, buffer: NDArray[np.uint8], offset: int) -> int:
            sizes.append(len(buffer))
            return len(buffer)

        monkeypatch.setattr(copying, "read_into", noted)
        out = np.zeros((30, 8))
        copy(out, flowmap.Block(2990, 3020, 0), source=paths)
        assert sizes == [10 * 64, 20 * 64]

    def test_a_link(self, here: Path) -> None:
        """A link to a file is followed; a link to a target that is not done is refused."""
        save(here / "a.npy", np.arange(3.0))
        Path("b.npy").symlink_to("a.npy")
        assert in_blocks(copy, (3,), "<f8", source="b.npy").tolist() == [0, 1, 2]
        flowmap.allocate("c.npy", 3, "<f8")
        Path("d.npy").symlink_to("c.npy")
        with pytest.raises(InvalidArgumentError, match="1 of 1 segments are not done"):
            in_blocks(copy, (3,), "<f8", source="d.npy")


class TestCasting:
    """Casts follow NumPy's rule, and lose nothing silently."""

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (np.arange(3, dtype="<i2"), "<f8"),
            (np.array([1.5, 1e30]), ">f4"),
            (np.array(["a", "bc"], "<U9"), "<U2"),
            (np.arange(3, dtype="<i8"), "i1"),
            (np.zeros(2, [("a", "f4"), ("b", "i8")]), [("a", "f8"), ("b", "i4")]),
        ],
        ids=str,
    )
    def test_allowed(self, here: Path, values: NDArray[Any], dtype: Any) -> None:
        """What fits is cast."""
        save(here / "a.npy", values)
        found = in_blocks(copy, values.shape, dtype, source="a.npy")
        assert found.tobytes() == values.astype(dtype).tobytes()

    @pytest.mark.parametrize(
        ("values", "dtype", "casting", "error", "message"),
        [
            (np.array([1.5]), "<i4", "same_kind", WrongTypeError, "float64 cannot be cast"),
            (np.arange(2), "<f8", "no", WrongTypeError, "by the rule 'no'"),
            (np.array([0, 300]), "i2", "safe", WrongTypeError, "by the rule 'safe'"),
            (np.array([0, 300]), "i1", "same_kind", InvalidArgumentError, "become 44"),
            (np.array([1e300]), "<f4", "same_kind", InvalidArgumentError, "become inf"),
            (np.array(["abc"]), "<U2", "same_kind", InvalidArgumentError, "become 'ab'"),
            (
                np.zeros(1, "f4,f4"),
                [("a", "f4"), ("b", "f4")],
                "unsafe",
                WrongTypeError,
                r"rule 'unsafe'\. Convert the values first",
            ),
            (np.arange(2), "<f8", "loosely", InvalidArgumentError, "casting is 'loosely'"),
            (np.arange(2), "<f8", 5, InvalidArgumentError, "casting is 5"),
        ],
    )
    def test_refused(
        self,
        here: Path,
        values: NDArray[Any],
        dtype: Any,
        casting: Any,
        error: type[Exception],
        message: str,
    ) -> None:
        """What does not fit is refused, with the file."""
        save(here / "a.npy", values)
        with pytest.raises(error, match=message):
            in_blocks(copy, values.shape, dtype, source="a.npy", casting=casting)

    def test_unsafe(self, here: Path) -> None:
        """By the explicit word NumPy's casts are done as they are."""
        save(here / "a.npy", np.array([1.5, -2.5]))
        found = in_blocks(copy, (2,), "<i4", source="a.npy", casting="unsafe")
        assert found.tolist() == [1, -2]


class TestRefused:
    """What is no source."""

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            ("nothing.npy", NotFoundError, "cannot find the source"),
            ("a\0b", InvalidArgumentError, "names no file"),
            (".", InvalidArgumentError, "names a folder"),
            ("text.npy", InvalidArgumentError, "text.npy cannot be read"),
            ("empty.npy", InvalidArgumentError, "empty.npy cannot be read"),
            ("objects.npy", InvalidArgumentError, "objects.npy holds Python objects"),
            ("pickle.npy", InvalidArgumentError, "pickle.npy cannot be read"),
            ("zip.npz", InvalidArgumentError, "zip.npz cannot be read"),
            ("short.npy", InvalidArgumentError, "short.npy is too short"),
            ("three.npy", InvalidArgumentError, "3 rows in 1 files.*three.npy.*has 4 or more"),
            (["three.npy"] * 2, None, ""),
            (["three.npy", "wide.npy"], InvalidArgumentError, r"wide.npy has shape \(3, 2\)"),
            ([], InvalidArgumentError, "0 rows in 0 files"),
            (None, WrongTypeError, "source is None"),
            ("", InvalidArgumentError, "source is ''"),
            (["three.npy", 5], WrongTypeError, "source is 5"),
            (b"three.npy", WrongTypeError, "source is"),
        ],
    )
    def test_source(
        self, here: Path, source: Any, error: type[Exception] | None, message: str
    ) -> None:
        """Each is named, with what is wrong; nothing is unpickled."""
        save(here / "three.npy", np.arange(3.0))
        save(here / "wide.npy", np.zeros((3, 2)))
        (here / "text.npy").write_text("no array")
        (here / "empty.npy").touch()
        np.save(here / "objects.npy", np.array([None, 1]), allow_pickle=True)
        (here / "pickle.npy").write_bytes(pickle.dumps(np.zeros(3)))
        np.savez(here / "zip.npz", np.zeros(3))
        (here / "short.npy").write_bytes((here / "three.npy").read_bytes()[:-1])
        if error is None:
            assert in_blocks(copy, (4,), "<f8", source=source).tolist() == [0, 1, 2, 0]
            return
        with pytest.raises(error, match=message):
            in_blocks(copy, (4,), "<f8", source=source)

    def test_a_pipe(self, here: Path) -> None:
        """A pipe is refused at once, and not waited for."""
        os.mkfifo("pipe.npy")
        with pytest.raises(InvalidArgumentError, match="no regular file"):
            in_blocks(copy, (4,), "<f8", source="pipe.npy")

    def test_unreadable(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error of the disk is told, with the file."""
        save(here / "a.npy", np.arange(3.0))

        def fail(*_: object, **__: object) -> int:
            raise OSError(5, "bad sector")

        monkeypatch.setattr(copying, "read_into", fail)
        with pytest.raises(StorageError, match="cannot read the source"):
            in_blocks(copy, (3,), "<f8", source="a.npy")
        copying._read_header.cache_clear()
        monkeypatch.setattr(mapping, "read_header", fail)
        with pytest.raises(StorageError, match="cannot read the header"):
            in_blocks(copy, (3,), "<f8", source="a.npy")

    @pytest.mark.parametrize("how", ["replaced", "cut"])
    def test_changed_meanwhile(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        """A file that is replaced or cut between header and rows is refused."""
        save(here / "a.npy", np.arange(3.0))
        look = copying._look

        def and_replace(*args: Any) -> Any:
            file = look(*args)
            if how == "replaced":
                save(here / "b.npy", np.arange(3.0) + 7)
                Path("b.npy").replace("a.npy")
            else:
                monkeypatch.setattr(copying, "read_into", lambda *_: 5)
            return file

        monkeypatch.setattr(copying, "_look", and_replace)
        with pytest.raises(StorageError, match="changed or replaced"):
            in_blocks(copy, (3,), "<f8", source="a.npy")

    def test_changed_between_blocks(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that is replaced within a run is not copied half old, half new."""
        save(here / "a.npy", np.arange(6.0))
        target = flowmap.allocate("to.npy", 6, "<f8", segments=1, block_rows=3)

        def and_replace(*args: Any, **options: Any) -> None:
            check_cast(*args, **options)
            save(here / "b.npy", np.arange(6.0) + 70)
            Path("b.npy").replace("a.npy")

        with monkeypatch.context() as patch:
            patch.setattr("flowmap.copying.check_cast", and_replace)
            with pytest.raises(FillerError, match=r"rows 3 to 6.*changed or replaced"):
                flowmap.fill_segment(target.segments[0], "copy", {"source": "a.npy"})
        flowmap.fill_segment(target.segments[0], "copy", {"source": "a.npy"})

    def test_a_new_file_at_the_path(self, here: Path) -> None:
        """What was remembered of a file is not taken for that of a later one."""
        save(here / "a.npy", np.arange(3.0))
        assert in_blocks(copy, (3,), "<f8", source="a.npy").tolist() == [0, 1, 2]
        save(here / "b.npy", np.arange(5)[::-1])
        Path("b.npy").replace("a.npy")
        assert in_blocks(copy, (5,), "<i8", source="a.npy").tolist() == [4, 3, 2, 1, 0]

    def test_within_the_root(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`FLOWMAP_ROOT` confines reading, and is what relative paths are relative to."""
        (here / "root").mkdir()
        save(here / "root/a.npy", np.arange(3.0))
        outside = save(here / "b.npy", np.arange(3.0))
        (here / "root/link.npy").symlink_to(outside)
        monkeypatch.setenv("FLOWMAP_ROOT", str(here / "root"))
        assert in_blocks(copy, (3,), "<f8", source="a.npy").tolist() == [0, 1, 2]
        for source in (outside, "../b.npy", "link.npy"):
            with pytest.raises(InvalidArgumentError, match="leads out of"):
                in_blocks(copy, (6,), "<f8", source=["a.npy", source])


class TestTargets:
    """A source that is a target itself."""

    def test_not_done(self, here: Path) -> None:
        """Rows that nobody wrote are not copied; nor those that only validation vouches for."""
        target = flowmap.allocate("a.npy", 100, "<f8", segments=4, durability="end")
        with pytest.raises(InvalidArgumentError, match="4 of 4 segments are not done"):
            in_blocks(copy, (100,), "<f8", source="a.npy")
        for segment in target.segments:
            flowmap.fill_segment(segment, ramp)
        with pytest.raises(InvalidArgumentError, match="Fill and validate it first"):
            in_blocks(copy, (100,), "<f8", source="a.npy")
        flowmap.validate(target)
        in_blocks(copy, (100,), "<f8", source="a.npy")
        flowmap.reset(target, [2])
        with pytest.raises(InvalidArgumentError, match="1 of 4 segments are not done"):
            in_blocks(copy, (100,), "<f8", source="a.npy")

    @pytest.mark.parametrize("fortran_order", ORDERS)
    def test_a_block_reads_the_records_of_its_rows(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, fortran_order: bool
    ) -> None:
        """A block reads no other records of a source; one across all rows reads each."""
        source = flowmap.allocate(
            "a.npy", (9, 9), "<f8", segments=[4, 1, 4], fortran_order=fortran_order
        )
        for segment in source.segments[:2]:
            flowmap.fill_segment(segment, "arange")
        pages, page = [], Ledger.page

        def noted(self: Ledger, index: int) -> bytes:
            if self.path == Sidecar.of(source.path).ledger:
                pages.append(index)
            return page(self, index)

        monkeypatch.setattr(Ledger, "page", noted)
        axis: Any = -1 if fortran_order else 0
        out = np.zeros((9, 2) if fortran_order else (2, 9), order="F" if fortran_order else "C")
        copy(out, flowmap.Block(3, 5, axis), source="a.npy")
        assert pages == [0, 1]
        assert (out == (np.array([3, 4]) if fortran_order else np.array([[3], [4]]))).all()
        other: Any = 0 if fortran_order else -1
        for block, across in (
            (flowmap.Block(4, 6, axis), axis),
            (flowmap.Block(0, 2, other), other),
        ):
            out = np.zeros((2, 9) if across == 0 else (9, 2))
            with pytest.raises(InvalidArgumentError, match="1 of 3 segments are not done"):
                copy(out, block, source="a.npy")
        assert set(pages) == {0, 1, 2}

    def test_itself(self, here: Path) -> None:
        """No target is copied into itself."""
        target = flowmap.allocate("a.npy", 100, "<f8", segments=4)
        for segment in target.segments:
            with pytest.raises(FillerError, match="cannot be copied into itself"):
                flowmap.fill_segment(segment, "copy", {"source": "a.npy"})
        assert len(target.pending()) == 4

    def test_damaged(self, here: Path) -> None:
        """A target whose records are damaged is no source."""
        target = flowmap.allocate("a.npy", 100, "<f8")
        Sidecar.of(target.path).job.write_text("{")
        with pytest.raises(DamagedJobError, match="is damaged"):
            in_blocks(copy, (100,), "<f8", source="a.npy")

    def test_forgotten(self, here: Path) -> None:
        """A target whose records were deleted is a file as any other."""
        target = flowmap.allocate("a.npy", 3, "<f8")
        Sidecar.of(target.path).job.unlink()
        assert in_blocks(copy, (3,), "<f8", source="a.npy").tolist() == [0, 0, 0]
