"""Segments and blocks: arithmetic only, no I/O."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from operator import itemgetter, mul
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from flowmap import markup
from flowmap.arguments import whole, wholes
from flowmap.errors import InvalidArgumentError, WrongTypeError, printable, short
from flowmap.storage import CHUNK
from flowmap.wording import either, option, setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_SEGMENT_BYTES: Final = 64 << 20  # a second or so of writing: short to retry, cheap to track
_FEWEST: Final = 64  # many more segments than workers, so that none waits long for the last
_MOST: Final = 1024  # task runs that Prefect's UI can still show and its server record
_UNITS_TO_ALIGN: Final = 100  # below this, rounding to pages would make segments unequal


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of consecutive rows: one task run, one unit of retry and status.

    Attributes:
        path: Of the target, absolute.
        job: The id of the job that this is a segment of.
        index: Its number, from 0.
        start: Its first row.
        stop: The row after its last.
    """

    path: Path
    job: str
    index: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not isinstance(self.path, Path):
            raise WrongTypeError(f"path is {short(self.path)}; a segment has a pathlib.Path.")
        if not all(isinstance(n, int) for n in (self.index, self.start, self.stop)):
            raise WrongTypeError(f"{short((self.index, self.start, self.stop))}: not all int.")
        if not 0 <= self.start <= self.stop or self.index < 0:
            raise InvalidArgumentError(
                f"No segment can have index {short(self.index)} and rows {short(self.start)} "
                f"to {short(self.stop)}."
            )

    @property
    def name(self) -> str:
        """Its name in Prefect and in messages: "segment 0007 [7000:8000]"."""
        return f"segment {self.index:04d} [{self.start}:{self.stop}]"

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.start

    def __repr__(self) -> str:
        return f"<{self.name} of {printable(str(self.path))}>"

    def _repr_html_(self) -> str:
        rows = [
            ("target", str(self.path)),
            ("rows", f"{self.start:,} to {self.stop:,}, which are {self.rows:,}"),
        ]
        return markup.table(f"segment {self.index:04d}", rows)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that a filler computes at once.

    Attributes:
        start: The first row, counted in the whole target.
        stop: The row after the last.
        axis: The axis of `out` along which the rows lie: 0, or -1 in Fortran order. None
            where whoever made the block did not say: flowmap always does, since an `out` of
            a single element does not tell.
    """

    start: int
    stop: int
    axis: Literal[0, -1] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows of a target are cut into segments.

    Attributes:
        runs: (count, rows) pairs: so many consecutive segments of so many rows. Equal
            segments take a pair or three, however many they are.
    """

    runs: tuple[tuple[int, int], ...]
    _firsts: tuple[int, ...] = field(init=False, compare=False)  # segments before each run,
    _starts: tuple[int, ...] = field(init=False, compare=False)  # and rows; then all of them

    def __post_init__(self) -> None:
        if any(count < 1 or rows < 1 for count, rows in self.runs):
            raise InvalidArgumentError(f"No segments can have counts and rows {self.runs}.")
        counts, lengths = (count for count, _ in self.runs), itertools.starmap(mul, self.runs)
        object.__setattr__(self, "_firsts", tuple(itertools.accumulate(counts, initial=0)))
        object.__setattr__(self, "_starts", tuple(itertools.accumulate(lengths, initial=0)))

    def __setstate__(self, state: list[Any]) -> None:  # of a pickle of an earlier version
        object.__setattr__(self, "runs", state[0])
        self.__post_init__()

    def __reduce__(self) -> tuple[type[Plan], tuple[Any]]:
        return Plan, (self.runs,)

    def __len__(self) -> int:
        return self._firsts[-1]

    def __repr__(self) -> str:
        runs = ", ".join(f"{count} of {rows} rows" for count, rows in self.runs)
        return f"<{len(self)}: {runs}>"

    @property
    def rows(self) -> int:
        """How many rows all segments have together."""
        return self._starts[-1]

    @property
    def longest(self) -> int:
        """How many rows the longest segment has; 1 where there is none."""
        return max((rows for _, rows in self.runs), default=1)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of each segment in order."""
        start = 0
        for count, rows in self.runs:
            for _ in range(count):
                yield start, start + rows
                start += rows

    def bounds_of(self, index: int) -> tuple[int, int]:
        """Return (start, stop) of one segment.

        Raises:
            IndexError: There is no such segment.
        """
        if not 0 <= index < self._firsts[-1]:
            raise IndexError(index)
        run = bisect_right(self._firsts, index) - 1
        rows = self.runs[run][1]
        start = self._starts[run] + (index - self._firsts[run]) * rows
        return start, start + rows

    def holding(self, first: int, last: int) -> range:
        """Return the indices of the segments that have rows from `first` on, before `last`."""
        if first >= last:
            return range(0)
        return range(self._holding(first), self._holding(last - 1) + 1)

    def _holding(self, row: int) -> int:
        run = bisect_right(self._starts, row) - 1
        return self._firsts[run] + (row - self._starts[run]) // self.runs[run][1]

    def shares_pages(self, row_bytes: int, page: int, offset: int = 0) -> bool:
        """Return whether two segments have bytes of one page.

        Args:
            row_bytes: Bytes of one row.
            page: Bytes of a page.
            offset: The byte at which the data begins.
        """
        start = 0
        for count, rows in self.runs:
            # The first boundaries of a run and the distance between them stand for the rest.
            inner = (start + rows, start + 2 * rows)[: count - 1]
            for boundary in (start, *inner) if start else inner:
                if row_bytes and (offset + boundary * row_bytes) % page:
                    return True
            start += count * rows
        return False

    def keeping_apart(self, row_bytes: int, page: int, offset: int) -> str | None:
        """Say what to pass to `allocate` so that no two segments share a page.

        Args:
            row_bytes: Bytes of one row.
            page: Bytes of a page.
            offset: The byte at which the data begins.

        Returns:
            What to pass; None where no two segments do.
        """
        if not self.shares_pages(row_bytes, page, offset):
            return None
        if offset % page:
            return (
                f"Pass {setting(segments=1)}, or shorten the dtype's field names: with a "
                "header as long as theirs the data does not begin on a page"
            )
        unit = page // math.gcd(page, row_bytes)
        if self.rows <= unit:
            padded = -(-row_bytes // page) * page
            return (
                f"Pass {setting(segments=1)}, since no boundary between two of these "
                f"{self.rows} rows is on a page, or pad each row to {padded} bytes"
            )
        chosen = len(plan_segments(self.rows, row_bytes, None, page))
        counts = self.rows // (unit * _UNITS_TO_ALIGN)
        count = f", or a count of 2 to {counts}" if counts > 1 else ""
        return (
            f"Pass {setting(align=page)} and {either('segments=None', 'no --segments')}, which "
            f"makes {chosen} segments{count}; or a list of row counts, each but the last a "
            f"multiple of {unit}"
        )


def plan_segments(
    rows: int,
    row_bytes: int,
    segments: int | Sequence[int] | None = None,
    align: int = 4096,
    block_rows: int | None = None,
    *,
    apart: bool = False,
) -> Plan:
    """Cut `rows` rows into segments that tile them exactly, in order.

    Args:
        rows: How many rows there are.
        row_bytes: Bytes of one row.
        segments: How many; or the rows of each, taken as they are; or None, chosen from
            the size alone, so that every machine chooses the same.
        align: Bytes that boundaries are rounded to, for None and for a count where a
            segment holds at least 100 alignment units. The unit is the fewest rows that
            are a multiple of `align` bytes.
        block_rows: Rows that a filler computes at once, where the user says so. For None
            segments are then multiples of it, so that no block is cut short. Their boundaries
            are on pages as well where that leaves as many segments.
        apart: Whether no two segments may share a page, even if few segments are left.

    Raises:
        WrongTypeError: `segments` is none of these, or `block_rows` no whole number.
        InvalidArgumentError: More segments than rows, rows that do not add up, or blocks of
            no rows.
    """
    unit = align // math.gcd(align, row_bytes) if row_bytes else 1
    block = min(_checked_block_rows(block_rows) or 1, max(rows, 1))
    asked = None if segments is None else wholes(option("segments"), segments)
    if not rows:
        return Plan(())
    if asked is None:
        most, both = _choose_count(rows, row_bytes, unit), math.lcm(unit, block)
        unit = both if apart or _choose_count(rows, row_bytes, both) >= most else block
        return _equal(rows, unit, _choose_count(rows, row_bytes, unit))
    if isinstance(asked, tuple):
        return _exact(rows, asked)
    if not 1 <= asked <= rows:
        raise InvalidArgumentError(
            f"{option('segments')} is {short(asked)}, but the target has {rows} rows; ask for "
            f"1 to {rows}."
        )
    aligned = rows >= asked * unit * _UNITS_TO_ALIGN
    return _equal(rows, unit if aligned else 1, asked)


def _checked_block_rows(asked: int | None) -> int | None:
    if asked is None:
        return None
    rows = whole(option("block_rows"), asked)
    if rows < 1:
        raise InvalidArgumentError(
            f"{option('block_rows')} is {short(rows)}; a block has at least one row."
        )
    return rows


def _choose_count(rows: int, row_bytes: int, unit: int) -> int:
    wanted = max(_FEWEST, min(_MOST, -(-rows * row_bytes // _SEGMENT_BYTES)))
    return max(1, min(wanted, -(-rows // unit)))


def _equal(rows: int, unit: int, count: int) -> Plan:
    """Give each of `count` segments as many whole units, the first ones one more."""
    units = -(-rows // unit)
    each, longer = divmod(units, count)
    last = rows - (units - each) * unit
    runs = [(longer, (each + 1) * unit), (count - longer - 1, each * unit), (1, last)]
    return Plan(_run_lengths([run for run in runs if run[0]]))


def _exact(rows: int, lengths: tuple[int, ...]) -> Plan:
    if any(length < 1 for length in lengths):
        raise InvalidArgumentError(
            f"{option('segments')} has {short(min(lengths))} rows in one place; each segment "
            "needs at least one."
        )
    if sum(lengths) != rows:
        raise InvalidArgumentError(
            f"{option('segments')} add up to {short(sum(lengths))} rows, but the target has "
            f"{rows}."
        )
    return Plan(_run_lengths([(1, length) for length in lengths]))


def _run_lengths(runs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    groups = itertools.groupby(runs, key=itemgetter(1))
    return tuple((sum(count for count, _ in group), length) for length, group in groups)


def plan_blocks(row_bytes: int, longest: int, block_rows: int | None, align: int = 4096) -> int:
    """Return how many rows a filler computes at once.

    Args:
        row_bytes: Bytes of one row.
        longest: Rows of the longest segment.
        block_rows: What the user asked for, or None: about a mebibyte, and whole pages
            where that is possible.
        align: Bytes of such a page.

    Raises:
        WrongTypeError, InvalidArgumentError: `block_rows` is no positive whole number.
    """
    asked = _checked_block_rows(block_rows)
    if asked is not None:
        return max(1, min(asked, longest))
    rows = max(1, CHUNK // row_bytes if row_bytes else longest)
    return max(1, min(whole_pages(rows, row_bytes, align), longest))


def whole_pages(rows: int, row_bytes: int, align: int = 4096) -> int:
    """Return so many rows or fewer, whole pages of them where there is one.

    Args:
        rows: How many at most.
        row_bytes: Bytes of one row.
        align: Bytes of a page.
    """
    unit = align // math.gcd(align, row_bytes) if row_bytes else 1
    return rows - rows % unit if rows > unit else rows
