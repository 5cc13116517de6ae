"""`Target.zarr_references`: opened by zarr itself, the `.npy` staying where and as it is."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.reference import ReferenceNotReachable
from support import DTYPES, ORDERS, oracle, snapshot, written
from zarr.storage import FsspecStore

import flowmap
from flowmap.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPES: list[tuple[int, ...]] = [(), (0,), (0, 3), (3, 0), (7,), (12, 4), (4, 2, 6), (11, 13)]

HELD = [
    *(dtype for dtype in DTYPES if dtype.names is None),
    *(np.dtype(dtype) for dtype in (">f8", "<f2", ">c16", ">U3", ">M8[us]", "<M8[25s]")),
    *(np.dtype(dtype) for dtype in ("<m8[D]", "u1", "V1")),
    np.dtype([("x", "<f4"), ("flag", "?"), ("name", "<U3"), ("when", "<M8[s]")]),
    np.dtype([("n", [("x", "<i8"), ("y", "S2")]), ("z", "<c8")]),
]
NOT_HELD = [
    *(dtype for dtype in DTYPES if dtype.names is not None),
    np.dtype("<M8"),  # without a unit
    np.dtype("longdouble"),
    np.dtype([("x", ">f4"), ("y", "<i4")]),
    np.dtype([(("A title", "x"), "<f4")]),
    np.dtype([("v", "<f4", (3,))]),
]


def opened(references: dict[str, Any]) -> zarr.Array[Any]:
    """Open references as the docstring says, by way of JSON."""
    again = json.loads(json.dumps(references))
    assert again == references
    return zarr.open_array("reference://", storage_options={"fo": again}, mode="r")


def chunks_of(references: dict[str, Any]) -> list[list[Any]]:
    """Return what the references say of chunks: path, first byte, bytes."""
    return [where for key, where in references["refs"].items() if key != "zarr.json"]


def same(found: Any, wanted: NDArray[Any]) -> None:
    """Assert that values are the same in every bit but for the order of bytes in memory."""
    values = np.asarray(found, wanted.dtype)
    assert values.shape == wanted.shape
    assert values.tobytes() == wanted.tobytes()


class TestValues:
    """The values are those of the file."""

    @pytest.mark.parametrize("fortran", ORDERS)
    @pytest.mark.parametrize("dtype", HELD, ids=str)
    def test_any_dtype(self, tmp_path: Path, dtype: np.dtype[Any], fortran: bool) -> None:
        """Every dtype that zarr has, in either order; nothing is changed."""
        values = oracle((6, 9), dtype)
        target = written(tmp_path / "a.npy", values, fortran_order=fortran)
        before = snapshot(target.path)
        array = opened(target.zarr_references())
        assert array.metadata.zarr_format == 3
        assert array.chunks == ((6, 3) if fortran else (2, 9))
        same(array[...], np.load(target.path))
        same(array[3:5, 7], values[3:5, 7])
        assert snapshot(target.path) == before

    @pytest.mark.parametrize("fortran", ORDERS)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_any_shape(self, tmp_path: Path, shape: tuple[int, ...], fortran: bool) -> None:
        """0-d, empty and many-dimensional targets; every byte is in one chunk."""
        values = oracle(shape, np.dtype(">i4"))
        target = written(tmp_path / "a.npy", values, fortran_order=fortran)
        references = target.zarr_references()
        array = opened(references)
        assert array.shape == shape
        same(array[...], np.load(target.path))
        end = target.job.data_offset
        for path, first, length in chunks_of(references):
            assert (path, first) == (str(target.path), end)
            end += length
        assert end == target.path.stat().st_size

    @pytest.mark.parametrize("name", ["a b#c?%20.npy", "{{x}}[1]*.npy", "~é::zip.npy"])
    def test_odd_names(self, tmp_path: Path, name: str) -> None:
        """No character of a path is taken for an instruction."""
        target = written(tmp_path / name, np.arange(12))
        same(opened(target.zarr_references())[...], np.arange(12))

    @pytest.mark.parametrize("dtype", NOT_HELD, ids=str)
    def test_refused_dtype(self, tmp_path: Path, dtype: np.dtype[Any]) -> None:
        """A dtype that zarr lacks, or would read as another, is named."""
        target = flowmap.allocate(tmp_path / "a.npy", (6, 9), dtype)
        with pytest.raises(InvalidArgumentError, match="to_dask") as caught:
            target.zarr_references()
        assert str(caught.value).startswith(f"zarr cannot read dtype {target.dtype} where")


class TestReferences:
    """What the set says, and how it is opened."""

    def test_text(self, tmp_path: Path) -> None:
        """Metadata in zarr's words, and a line for each chunk."""
        target = written(tmp_path / "a.npy", oracle((12, 5), np.dtype(">f8")))
        references = target.zarr_references()
        assert references["version"] == 1
        metadata = json.loads(references["refs"].pop("zarr.json"))
        assert (metadata["zarr_format"], metadata["node_type"]) == (3, "array")
        assert metadata["codecs"] == [{"name": "bytes", "configuration": {"endian": "big"}}]
        assert references["refs"] == {
            "c/0/0": [str(target.path), 4096, 160],
            "c/1/0": [str(target.path), 4256, 160],
            "c/2/0": [str(target.path), 4416, 160],
        }

    def test_other_ways_to_open(self, tmp_path: Path) -> None:
        """From a file of JSON, and from a file system of fsspec's."""
        target = written(tmp_path / "a.npy", np.arange(12))
        references = target.zarr_references()
        saved = tmp_path / "a.json"
        saved.write_text(json.dumps(references))
        options = {"fo": str(saved)}
        system = fsspec.filesystem("reference", fo=references, asynchronous=True)
        for array in (
            zarr.open_array("reference://", storage_options=options, mode="r"),
            zarr.open_array(FsspecStore(system, read_only=True), mode="r"),
        ):
            same(array[...], np.arange(12))

    def test_reads_only_the_chunk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To make them nothing is read; to read a row, one chunk."""
        asked: list[tuple[int, int]] = []
        cat_file = LocalFileSystem.cat_file

        def look(self: Any, path: str, start: Any = None, end: Any = None, **more: Any) -> Any:
            asked.append((start, end))
            return cat_file(self, path, start, end, **more)

        monkeypatch.setattr(LocalFileSystem, "cat_file", look)
        target = written(tmp_path / "a.npy", np.arange(12))
        array = opened(target.zarr_references())
        assert asked == []
        assert array[5] == 5
        assert asked == [(4096 + 32, 4096 + 64)]

    def test_never_written(self, tmp_path: Path) -> None:
        """What is opened for reading refuses writing; opened otherwise, the file is spared."""
        target = written(tmp_path / "a.npy", np.arange(12))
        before = snapshot(target.path)
        references = target.zarr_references()
        with pytest.raises(ValueError, match="read-only"):
            opened(references)[0] = 5
        array = zarr.open_array("reference://", storage_options={"fo": references})
        array[0] = 5
        assert snapshot(target.path) == before
        assert references == target.zarr_references()

    def test_gone(self, tmp_path: Path) -> None:
        """A file that is gone or cut short is an error, never fill values."""
        target = written(tmp_path / "a.npy", np.arange(12))
        array = opened(target.zarr_references())
        with target.path.open("r+b") as file:
            file.truncate(4096 + 90)
        assert array[0] == 0
        with pytest.raises(ValueError, match="size"):
            array[11]
        target.path.unlink()
        with pytest.raises(ReferenceNotReachable):
            array[0]


class TestChunks:
    """A length that divides the rows, near that of the segments."""

    @pytest.mark.parametrize(
        ("rows", "segments", "count"),
        [
            (100, 4, 4),
            (100, 3, 4),  # 3 does not divide 100; of 2 and 4 the nearer ratio
            (100, [97, 3], 2),
            (101, 4, 1),  # a prime: all of it, which is small
            (101, 101, 101),
            (101, 60, 101),
            (1 << 26, 128, 128),
            (60_000_000, 7, 8),  # nearer than 6
        ],
    )
    def test_count(
        self, tmp_path: Path, rows: int, segments: int | list[int], count: int
    ) -> None:
        """About as many chunks as segments."""
        target = flowmap.allocate(
            tmp_path / "a.npy", rows, "<f8", segments=segments, reserve=False
        )
        chunks = chunks_of(target.zarr_references())
        assert len(chunks) == count
        assert {length for _, _, length in chunks} == {rows * 8 // count}

    @pytest.mark.parametrize("fortran", ORDERS)
    def test_no_useful_length(self, tmp_path: Path, fortran: bool) -> None:
        """A big prime: it says why, and a number of rows that does."""
        shape = (1, 1_000_000_007) if fortran else (1_000_000_007,)
        target = flowmap.allocate(
            tmp_path / "a.npy", shape, "<f8", fortran_order=fortran, reserve=False
        )
        with pytest.raises(InvalidArgumentError, match="of one length, as Zarr wants") as no:
            target.zarr_references()
        found = re.search(r"Allocate (\d+) rows, which make (\d+) chunks", str(no.value))
        assert found
        rows, count = map(int, found.groups())
        assert rows >= 1_000_000_007
        better = flowmap.allocate(
            tmp_path / "b.npy", rows, "<f8", segments=count, reserve=False
        )
        assert len(chunks_of(better.zarr_references())) == count

    def test_segments_of_the_users_size(self, tmp_path: Path) -> None:
        """Segments may be bigger, or more, than chunks would be by themselves."""
        rows = 100_003  # a prime, and too many rows but for the segments
        wide = flowmap.allocate(
            tmp_path / "a.npy", (rows, 500), "<f8", segments=1, reserve=False
        )
        assert len(chunks_of(wide.zarr_references())) == 1
        many = flowmap.allocate(
            tmp_path / "b.npy", (rows, 500), "<f8", segments=rows, reserve=False
        )
        assert len(chunks_of(many.zarr_references())) == rows

    def test_sparse(self, tmp_path: Path) -> None:
        """8 GiB: a few KB of references, and one chunk read for a few rows."""
        target = flowmap.allocate(tmp_path / "a.npy", 1 << 30, "<f8", reserve=False)
        references = target.zarr_references()
        assert len(json.dumps(references)) < 30_000
        same(opened(references)[-5:], np.zeros(5))
