"""The types that a user's own type checker sees: mypy reads this file, pytest runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
from dask.array import Array

import flowmap

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@flowmap.filler
def ones(out: NDArray[Any], block: flowmap.Block) -> None:
    """Fill with ones."""
    out[...] = 1


@flowmap.filler(version="2", volatile=("log",), name="twos")
def twos(out: NDArray[Any], block: flowmap.Block, *, log: bool = False) -> None:
    """Fill with twos."""
    out[...] = 2


def test_types_of_the_core(tmp_path: Path) -> None:
    """Each public function returns what its annotation says."""
    target = assert_type(
        flowmap.allocate(tmp_path / "a.npy", (10, 3), np.float32, segments=[4, 3, 3]),
        flowmap.Target,
    )
    assert_type(target.segments, tuple[flowmap.Segment, ...])
    first, second, third = assert_type(target.pending(), list[flowmap.Segment])
    assert_type(flowmap.fill_segment(first, ones), flowmap.SegmentRecord)
    assert_type(flowmap.write_segment(second, [[1, 1, 1]] * 3), flowmap.SegmentRecord)
    assert_type(flowmap.fill_segment(third, twos, {"log": True}), flowmap.SegmentRecord)
    report = assert_type(flowmap.validate(target, mixed=True), flowmap.ValidationReport)
    assert assert_type(report.ok, bool)
    assert_type(report.digest, str | None)
    assert_type(report.bad_segments, tuple[flowmap.Segment, ...])
    assert_type(target.shape, tuple[int, ...])
    assert_type(target.zarr_references(), dict[str, Any])
    assert_type(target.to_dask(), Array)
    assert np.load(target).sum() == 4 * 3 + 3 * 3 + 2 * 3 * 3


def test_types_of_mapping_and_reading(tmp_path: Path) -> None:
    """What is mapped is a `np.memmap`, what is masked a masked array."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "<f8", segments=2)
    with flowmap.open_segment(target.segments[0]) as out:
        assert_type(out, np.memmap[Any, Any])
    assert_type(flowmap.open_memmap(target.path, "r", offset=5), np.memmap[Any, Any])
    assert_type(target.masked(), np.ma.MaskedArray[Any, Any])
    for segment in target.as_completed():
        assert_type(segment, flowmap.Segment)
        break
    assert flowmap.load(target.path, offset=np.int64(5), shape=[5]).shape == (5,)


def test_decorator_keeps_the_type_of_the_function() -> None:
    """A marked filler is still the function that it was."""
    out = np.zeros(2)
    twos(out, flowmap.Block(0, 2), log=True)
    assert out.tolist() == [2, 2]
    assert flowmap.filler(ones) is ones


def test_fill_returns_records(tmp_path: Path) -> None:
    """`fill` returns the records of what it filled."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "<f8", segments=2)
    with flowmap.executor("threads", workers=1) as pool:
        records = assert_type(
            flowmap.fill(target, ones, executor=pool), list[flowmap.SegmentRecord]
        )
    assert [record.state for record in records] == ["done", "done"]
