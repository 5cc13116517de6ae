"""Segments and blocks: whatever is asked, they tile the rows exactly, disjointly, in order."""

from __future__ import annotations

import enum
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flowmap.errors import InvalidArgumentError, WrongTypeError
from flowmap.segments import Block, Plan, Segment, plan_blocks, plan_segments

ROWS = st.integers(0, 200_000)
ROW_BYTES = st.one_of(
    st.integers(0, 100), st.integers(1, 1 << 24), st.sampled_from([4096, 8192])
)
ALIGNS = st.sampled_from([64, 512, 4096, 1 << 16])


def _unit(row_bytes: int, align: int) -> int:
    return math.lcm(align, row_bytes) // row_bytes if row_bytes else 1


def _check_tiles(plan: Plan, rows: int) -> list[tuple[int, int]]:
    bounds = list(plan.bounds())
    assert len(bounds) == len(plan)
    assert plan.rows == rows
    edges = [0, *(stop for _, stop in bounds)]
    assert [start for start, _ in bounds] == edges[:-1]
    assert edges[-1] == rows
    assert all(start < stop for start, stop in bounds)
    assert [plan.bounds_of(index) for index in range(len(plan))] == bounds
    return bounds


class TestPlan:
    """Cutting rows into segments."""

    @given(rows=ROWS, row_bytes=ROW_BYTES, align=ALIGNS)
    def test_chosen(self, rows: int, row_bytes: int, align: int) -> None:
        """None tiles, begins each segment on a page, and stays within a handful of counts."""
        plan = plan_segments(rows, row_bytes, None, align)
        bounds = _check_tiles(plan, rows)
        assert all(start * row_bytes % align == 0 for start, _ in bounds)
        assert len(plan) <= 1024
        assert len(plan) == 0 if rows == 0 else len(plan) >= 1
        units = -(-rows // _unit(row_bytes, align))
        assert len(plan) >= min(64, units)

    @given(
        rows=st.integers(1, 10**9),
        row_bytes=ROW_BYTES,
        block_rows=st.integers(1, 10**5),
        apart=st.booleans(),
    )
    def test_chosen_for_blocks(
        self, rows: int, row_bytes: int, block_rows: int, apart: bool
    ) -> None:
        """No block but the last is cut short, and no parallel work is lost for whole pages."""
        plan = plan_segments(rows, row_bytes, None, 4096, block_rows, apart=apart)
        bounds = _check_tiles(plan, rows)
        assert all(start % min(block_rows, rows) == 0 for start, _ in bounds)
        if apart:
            assert all(start * row_bytes % 4096 == 0 for start, _ in bounds)
        else:
            blocks = -(-rows // block_rows)
            assert len(plan) >= min(blocks, len(plan_segments(rows, row_bytes, None)))

    @given(rows=st.integers(1, 200_000), row_bytes=ROW_BYTES, align=ALIGNS, data=st.data())
    def test_count(self, rows: int, row_bytes: int, align: int, data: st.DataObject) -> None:
        """A count is exact; segments differ by one unit at most, except for the last."""
        count = data.draw(st.integers(1, min(rows, 3000)))
        plan = plan_segments(rows, row_bytes, count, align)
        bounds = _check_tiles(plan, rows)
        assert len(bounds) == count
        unit = _unit(row_bytes, align)
        rounded = rows >= 100 * unit * count
        if rounded:
            assert all(start * row_bytes % align == 0 for start, _ in bounds)
        lengths = [stop - start for start, stop in bounds]
        step = unit if rounded else 1
        assert max(lengths) - min(lengths[:-1] or lengths) <= step
        assert max(lengths) - lengths[-1] < 2 * step
        assert plan.shares_pages(row_bytes, align) == any(
            start * row_bytes % align for start, _ in bounds
        )

    @given(lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=60))
    def test_sequence(self, lengths: list[int]) -> None:
        """A sequence is taken as it is, whatever kind of sequence."""
        rows = sum(lengths)
        for asked in (lengths, tuple(lengths), np.array(lengths)):
            plan = plan_segments(rows, 24, asked)  # type: ignore[arg-type]  # arrays too
            bounds = _check_tiles(plan, rows)
            assert [stop - start for start, stop in bounds] == lengths

    @given(
        lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20),
        row_bytes=st.integers(0, 9000),
        offset=st.integers(0, 9000),
    )
    def test_shared_pages(self, lengths: list[int], row_bytes: int, offset: int) -> None:
        """Whether pages are shared is what looking at every boundary finds."""
        plan = plan_segments(sum(lengths), row_bytes, lengths)
        inner = [start for start, _ in plan.bounds()][1:]
        found = any((offset + start * row_bytes) % 4096 for start in inner)
        assert plan.shares_pages(row_bytes, 4096, offset) == (found and row_bytes > 0)

    @given(count=st.integers(2, 60), rows=st.integers(1, 40), row_bytes=st.integers(1, 9000))
    def test_shared_pages_of_equal_segments(
        self, count: int, rows: int, row_bytes: int
    ) -> None:
        """The same where one run of many equal segments stands for all."""
        assume(row_bytes)
        plan = Plan(((count, rows),))
        for offset in (0, 64, 4096, rows * row_bytes, -rows * row_bytes % 4096):
            inner = [start for start, _ in plan.bounds()][1:]
            found = any((offset + start * row_bytes) % 4096 for start in inner)
            assert plan.shares_pages(row_bytes, 4096, offset) == found

    @pytest.mark.parametrize("segments", [None, 1, 7, [3, 4], []])
    def test_no_rows(self, segments: Any) -> None:
        """Zero rows have zero segments whatever is asked."""
        plan = plan_segments(0, 8, segments)
        assert len(plan) == 0
        assert list(plan.bounds()) == []
        assert plan == Plan(())

    def test_rounding_begins_at_a_hundred_units(self) -> None:
        """A count is rounded to pages exactly from 100 units a segment on."""
        unit = 512  # rows of 8 bytes to a page
        rounded = plan_segments(2 * 100 * unit + 1, 8, 2)
        assert [start % unit for start, _ in rounded.bounds()] == [0, 0]
        equal = plan_segments(2 * 100 * unit - 1, 8, 2)
        assert list(equal.bounds()) == [(0, 51200), (51200, 102399)]
        assert [start % 511 for start, _ in plan_segments(1022, 8, 2).bounds()] == [0, 0]

    def test_huge(self) -> None:
        """Arithmetic is exact, and quick, beyond what a float holds."""
        plan = plan_segments(2**60, 4, 1000)
        assert plan.rows == 2**60
        assert plan.bounds_of(999)[1] == 2**60
        assert len(plan.runs) <= 3

    def test_same_everywhere(self) -> None:
        """The choice for a few sizes is settled: a resume on another machine finds the same."""
        assert len(plan_segments(1, 8)) == 1
        assert len(plan_segments(1000, 8)) == 2
        assert len(plan_segments(1 << 27, 8)) == 64
        assert len(plan_segments(1 << 30, 8)) == 128
        assert len(plan_segments(1 << 40, 8)) == 1024
        assert plan_segments(100_000_000, 24, 64).runs[0] == (49, 3052 * 512)

    def test_many_equal_segments_are_one_run(self) -> None:
        """However the same plan comes about it is equal, so that a resume finds its job."""
        assert plan_segments(10_000, 8, 10_000) == plan_segments(10_000, 8, [1] * 10_000)
        assert plan_segments(10_000, 8, 10_000).runs == ((10_000, 1),)

    @pytest.mark.parametrize(
        ("segments", "kind"),
        [
            (0, InvalidArgumentError),
            (-1, InvalidArgumentError),
            (11, InvalidArgumentError),
            (2**70, InvalidArgumentError),
            ([], InvalidArgumentError),
            ([5, 4], InvalidArgumentError),
            ([5, 6], InvalidArgumentError),
            ([5, 0, 5], InvalidArgumentError),
            ([11, -1], InvalidArgumentError),
            (2.0, WrongTypeError),
            (True, WrongTypeError),
            (np.True_, WrongTypeError),
            ("2", WrongTypeError),
            (b"2", WrongTypeError),
            ("55", WrongTypeError),
            ([5.0, 5.0], WrongTypeError),
            ([True] * 10, WrongTypeError),
            ([[5], [5]], WrongTypeError),
            (np.ones((5, 2), int), WrongTypeError),
            (np.array(2.0), WrongTypeError),
            ({4, 6}, WrongTypeError),
            ({5: 1, 6: 1}, WrongTypeError),
            (iter([5, 5]), WrongTypeError),
            (object(), WrongTypeError),
        ],
    )
    def test_refusals(self, segments: Any, kind: type[Exception]) -> None:
        """What cannot cut ten rows is refused, by an error that names the argument."""
        with pytest.raises(kind, match="segments"):
            plan_segments(10, 8, segments)

    @pytest.mark.parametrize("segments", ["x", 1.5, True, object()])
    def test_wrong_types_without_rows(self, segments: Any) -> None:
        """A wrong type is refused even where there is nothing to cut."""
        with pytest.raises(WrongTypeError, match="segments"):
            plan_segments(0, 8, segments)

    def test_whole_numbers_of_other_types(self) -> None:
        """Whatever is a whole number counts as one, and becomes a plain one."""

        class Count(enum.IntEnum):
            FIVE = 5

        for asked in (np.int8(5), np.array(5), Count.FIVE):
            assert plan_segments(10, 8, asked) == plan_segments(10, 8, 5)  # type: ignore[arg-type]  # on purpose
        (run,) = plan_segments(10, 8, [Count.FIVE, Count.FIVE]).runs
        assert type(run[1]) is int

    @pytest.mark.parametrize("runs", [((0, 1),), ((1, 0),), ((1, 5), (-1, 5))])
    def test_cannot_be_built_wrong(self, runs: Any) -> None:
        """A plan with empty segments does not exist."""
        with pytest.raises(InvalidArgumentError, match="No segments"):
            Plan(runs)

    @given(
        lengths=st.lists(st.integers(1, 3), min_size=1, max_size=30),
        first=st.integers(0, 90),
        length=st.integers(0, 90),
    )
    def test_holding(self, lengths: list[int], first: int, length: int) -> None:
        """The segments of some rows are those that have one of them."""
        plan = plan_segments(sum(lengths), 8, lengths)
        last = min(first + length, plan.rows)
        wanted = [i for i, (a, b) in enumerate(plan.bounds()) if max(a, first) < min(b, last)]
        assert list(plan.holding(first, last)) == wanted

    @pytest.mark.parametrize("index", [-1, 2, 100])
    def test_bounds_of_no_segment(self, index: int) -> None:
        """There are no bounds of a segment that is not there."""
        with pytest.raises(IndexError):
            plan_segments(10, 8, 2).bounds_of(index)


class TestBlocks:
    """How many rows a filler computes at once."""

    @given(
        row_bytes=ROW_BYTES,
        longest=st.integers(1, 1 << 40),
        asked=st.none() | st.integers(1, 1 << 41),
        align=ALIGNS,
    )
    def test_within_a_segment(
        self, row_bytes: int, longest: int, asked: int | None, align: int
    ) -> None:
        """A block has at least one row, and at most those of the longest segment."""
        rows = plan_blocks(row_bytes, longest, asked, align)
        assert 1 <= rows <= longest
        if asked is not None:
            assert rows == min(asked, longest)
        elif row_bytes:
            assert rows == 1 or rows * row_bytes <= 1 << 20
            if 1 < _unit(row_bytes, align) < rows < longest:
                assert rows * row_bytes % align == 0

    def test_a_mebibyte(self) -> None:
        """Without a word a block is a mebibyte; rows of nothing are one block."""
        assert plan_blocks(8, 1 << 30, None) == 1 << 17
        assert plan_blocks(0, 12345, None) == 12345

    @pytest.mark.parametrize(
        ("asked", "kind"),
        [
            (0, InvalidArgumentError),
            (-3, InvalidArgumentError),
            (1.0, WrongTypeError),
            (True, WrongTypeError),
            ("1", WrongTypeError),
            ([1], WrongTypeError),
        ],
    )
    def test_refusals(self, asked: Any, kind: type[Exception]) -> None:
        """What is no positive whole number is refused by name."""
        with pytest.raises(kind, match="block_rows"):
            plan_blocks(8, 10, asked)

    def test_block_length(self) -> None:
        """A block is as long as its rows."""
        assert len(Block(3, 10)) == 7


class TestSegment:
    """The value that travels to the workers."""

    def test_name_and_repr(self) -> None:
        """The name is what people search for; the repr adds the file."""
        segment = Segment(Path("/data/x.npy"), "ab" * 16, 7, 7000, 8000)
        assert segment.name == "segment 0007 [7000:8000]"
        assert segment.rows == 1000
        assert repr(segment) == "<segment 0007 [7000:8000] of /data/x.npy>"

    def test_value(self) -> None:
        """It is small and frozen, hashes, compares by value and survives pickling."""
        segment = Segment(Path("/data/x.npy"), "ab" * 16, 7, 7000, 8000)
        data = pickle.dumps(segment)
        again = pickle.loads(data)
        assert again == segment
        assert hash(again) == hash(segment)
        assert len(data) < 400
        with pytest.raises(AttributeError):
            segment.stop = 9000  # type: ignore[misc]  # on purpose

    @pytest.mark.parametrize(("index", "start", "stop"), [(-1, 0, 1), (0, -1, 1), (0, 2, 1)])
    def test_cannot_be_built_wrong(self, index: int, start: int, stop: int) -> None:
        """A segment with impossible numbers does not exist."""
        with pytest.raises(InvalidArgumentError, match="No segment can have"):
            Segment(Path("/data/x.npy"), "ab" * 16, index, start, stop)


def test_plans_of_an_earlier_version() -> None:
    """A plan that was pickled before it knew its bounds knows them when it is read."""
    earlier = object.__new__(Plan)
    earlier.__setstate__([((2, 5), (1, 3))])
    assert earlier == Plan(((2, 5), (1, 3)))
    assert [earlier.bounds_of(index) for index in range(3)] == [(0, 5), (5, 10), (10, 13)]
