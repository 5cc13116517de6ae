"""Values at hand, written to a segment: what fits, what is refused, what is never lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import DTYPES, ORDERS, data_bytes, oracle, ramp, saved_bytes, states

import flowmap
from flowmap.errors import InvalidArgumentError, SegmentDoneError, WrongTypeError
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from pathlib import Path


def untouched(target: flowmap.Target) -> bool:
    """Say whether no attempt was ever made."""
    return not target.status()["attempt"].any()


@pytest.mark.parametrize("fortran_order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_are_those_of_save(
    tmp_path: Path, dtype: np.dtype[Any], fortran_order: bool
) -> None:
    """Slices written in several blocks make the file that `np.save` makes."""
    array = oracle((3, 2, 5) if fortran_order else (5, 2, 3), dtype)
    target = flowmap.allocate(
        tmp_path / "a.npy",
        array.shape,
        dtype,
        fortran_order=fortran_order,
        segments=[4, 1],
        block_rows=3,
    )
    for segment in target.segments:
        rows = slice(segment.start, segment.stop)
        record = flowmap.write_segment(
            segment, array[..., rows] if fortran_order else array[rows]
        )
        assert record.state == "done"
    wanted = saved_bytes(array, tmp_path, fortran_order=fortran_order)
    assert data_bytes(target.path, target.job.data_offset) == wanted
    assert flowmap.validate(target).ok


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scalar(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    """A 0-d target takes one element, and no array of one."""
    value = oracle((), dtype)
    target = flowmap.allocate(tmp_path / "a.npy", (), dtype)
    with pytest.raises(InvalidArgumentError, match="shape"):
        flowmap.write_segment(target.segments[0], value.reshape(1))
    flowmap.write_segment(target.segments[0], value)
    assert target.path.read_bytes()[target.job.data_offset :] == value.tobytes()


def test_equal_bytes_on_done_write_nothing(tmp_path: Path) -> None:
    """Writing again what is there returns the record, also where a filler made it."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    first = flowmap.fill_segment(target.segments[0], ramp)
    ledger = Sidecar.of(target.path).ledger
    before = ledger.read_bytes()
    assert flowmap.write_segment(target.segments[0], np.sqrt(np.arange(5))) == first
    assert ledger.read_bytes() == before


@pytest.mark.parametrize("durability", ["segment", "end"])
def test_other_bytes_on_done_need_replace(tmp_path: Path, durability: Any) -> None:
    """What is finished stays, unless the user says so; then the seal goes."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", segments=1, durability=durability)
    (segment,) = target.segments
    flowmap.write_segment(segment, [1, 2, 3, 4])
    with pytest.raises(SegmentDoneError, match="replace=True"):
        flowmap.write_segment(segment, [1, 2, 3, 5])
    assert target.asarray().tolist() == [1, 2, 3, 4]
    assert flowmap.validate(target).sealed
    flowmap.write_segment(segment, [1, 2, 3, 5], replace=True)
    assert not Sidecar.of(target.path).seal.exists()
    assert target.asarray().tolist() == [1, 2, 3, 5]
    assert flowmap.validate(target).sealed


def test_a_segment_to_be_replaced_is_durably_not_done_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that vouches for the old bytes is void on disk before one of them changes."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", segments=1)
    flowmap.write_segment(target.segments[0], [1, 2, 3, 4])
    events: list[str] = []
    monkeypatch.setattr("flowmap.attempt.write_all", lambda *_: events.append("write"))
    monkeypatch.setattr("flowmap.ledger.sync_data", lambda _: events.append("sync ledger"))
    flowmap.write_segment(target.segments[0], [5, 6, 7, 8], replace=True)
    assert events[:2] == ["sync ledger", "write"]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros(3), InvalidArgumentError),
        (np.zeros((4, 1)), InvalidArgumentError),
        (1.0, InvalidArgumentError),
        ([[1], [2, 3]], InvalidArgumentError),
        (np.zeros(4, complex), WrongTypeError),
        (["a", "b", "c", "d"], WrongTypeError),
        ([None, 1, 2, 3], WrongTypeError),
        ([2**80 + 1] * 4, InvalidArgumentError),
        ([2**1100] * 4, InvalidArgumentError),
        (np.ma.masked_equal([1.0, 2, 3, 4], 2), WrongTypeError),
        (np.zeros(4, [("a", "f8")]), WrongTypeError),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, values: Any, error: type[Exception]) -> None:
    """A wrong shape or kind is refused before anything is claimed."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", segments=1)
    with pytest.raises(error, match="segment 0000"):
        flowmap.write_segment(target.segments[0], values)
    assert untouched(target)


@pytest.mark.parametrize(
    ("casting", "given", "wanted", "fits"),
    [
        ("same_kind", "f8", "f4", True),
        ("safe", "f8", "f4", False),
        ("safe", "f4", "f8", True),
        ("equiv", ">f8", "<f8", True),
        ("no", ">f8", "<f8", False),
        ("same_kind", "f8", "i8", False),
        ("unsafe", "f8", "i8", True),
        ("unsafe", "U3", "f8", True),
    ],
)
def test_casting_is_numpys(
    tmp_path: Path, casting: Any, given: str, wanted: str, fits: bool
) -> None:
    """The casting rules are those of `numpy.can_cast`, and the values are cast so."""
    values = np.array([1, 2, 3]).astype(given)
    target = flowmap.allocate(tmp_path / "a.npy", 3, wanted, segments=1)
    if fits:
        flowmap.write_segment(target.segments[0], values, casting=casting)
        np.testing.assert_array_equal(target.asarray(), values.astype(wanted))
    else:
        with pytest.raises(WrongTypeError, match=casting):
            flowmap.write_segment(target.segments[0], values, casting=casting)
        assert untouched(target)


@pytest.mark.parametrize("values", [["1", "x", "3"], [1, None, object()]])
def test_a_cast_that_fails_claims_nothing(tmp_path: Path, values: Any) -> None:
    """Texts that are no numbers are refused with flowmap's error, before the claim."""
    target = flowmap.allocate(tmp_path / "a.npy", 3, "f8", segments=1)
    with pytest.raises(InvalidArgumentError, match="cannot be cast"):
        flowmap.write_segment(target.segments[0], np.array(values), casting="unsafe")
    assert untouched(target)


def test_a_rule_that_is_none(tmp_path: Path) -> None:
    """A casting rule that NumPy does not know is refused."""
    target = flowmap.allocate(tmp_path / "a.npy", 3, "f8", segments=1)
    with pytest.raises(InvalidArgumentError, match="casting"):
        flowmap.write_segment(
            target.segments[0],
            [1, 2, 3],
            casting="anything",  # type: ignore[arg-type]  # what is tested
        )
    assert untouched(target)


def test_structured_values(tmp_path: Path) -> None:
    """Lists of tuples are rows; arrays must have the same fields in the same order."""
    inner = [("x", "f4"), ("y", "f4")]
    dtype = np.dtype([("a", "i4"), ("p", inner)])
    target = flowmap.allocate(tmp_path / "a.npy", 2, dtype, segments=1)
    (segment,) = target.segments
    swapped = [np.dtype([("p", inner), ("a", "i4")])]
    swapped.append(np.dtype([("b", "i4"), ("p", inner)]))
    swapped.append(np.dtype([("a", "i4"), ("p", inner[::-1])]))
    for other in swapped:
        with pytest.raises(WrongTypeError, match="cannot be cast"):
            flowmap.write_segment(segment, np.zeros(2, other), casting="unsafe")
    with pytest.raises(InvalidArgumentError):
        flowmap.write_segment(segment, [(1, 2, 3), (4, 5, 6)])
    assert untouched(target)
    flowmap.write_segment(segment, [(1, (2, 3)), (4, (5, 6))])
    assert target.asarray().tolist() == [(1, (2, 3)), (4, (5, 6))]


def test_segments_do_not_touch_their_neighbours(tmp_path: Path) -> None:
    """Writing one segment leaves the rest pending and zero."""
    target = flowmap.allocate(tmp_path / "a.npy", (9, 3), "u1", segments=3)
    flowmap.write_segment(target.segments[1], np.full((3, 3), 255, "u1"))
    assert target.asarray().any(axis=1).tolist() == [False] * 3 + [True] * 3 + [False] * 3
    assert states(target) == ["pending", "done", "pending"]


def test_resuming_a_write_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values may be others the second time: nothing of a failed write is kept."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", segments=1, block_rows=2)
    (segment,) = target.segments
    with monkeypatch.context() as patch:

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        patch.setattr("flowmap.attempt.sync_data", fail)
        with pytest.raises(flowmap.FlowmapError):
            flowmap.write_segment(segment, [1, 2, 3, 4])
    assert states(target) == ["failed"]
    flowmap.write_segment(segment, [5, 6, 7, 8])
    assert target.asarray().tolist() == [5, 6, 7, 8]
    assert flowmap.validate(target).ok


def test_whole_numbers_are_not_wrapped(tmp_path: Path) -> None:
    """Numbers that do not fit are refused, and those that do are taken, however they came."""
    target = flowmap.allocate(tmp_path / "a.npy", 2, "i1", segments=1)
    for values in ([300, -200], np.array([300, -200])):
        with pytest.raises(InvalidArgumentError, match="would become"):
            flowmap.write_segment(target.segments[0], values)
    assert flowmap.write_segment(target.segments[0], np.array([-128, 127])).state == "done"
    other = flowmap.allocate(tmp_path / "b.npy", 2, "u1", segments=1)
    with pytest.raises(InvalidArgumentError, match="would become"):
        flowmap.write_segment(other.segments[0], [1, -1])
    assert flowmap.write_segment(other.segments[0], [0, 255]).state == "done"
    np.testing.assert_array_equal(np.load(other.path), [0, 255])
