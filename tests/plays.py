"""What flowmap does while the power is cut: plays, each with what it tells and must then find.

A play prepares a target, acts until the power goes, names what is not as it was told, and then
runs again.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import xxhash
from support import damage, rows, states

import flowmap
from flowmap.documents import read_json
from flowmap.errors import DamagedJobError, FillerError, FlowmapError, ForeignFileError
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.records import SegmentRecord
    from flowmap.segments import Block, Segment
    from flowmap.target import Target

BLOCK_ROWS: Final = 500  # segments share pages
BLOCKS: Final = 3
SEGMENT_ROWS: Final = BLOCK_ROWS * BLOCKS


@flowmap.filler(volatile=("look",))
def noted(out: NDArray[Any], block: Block, *, look: Callable[[int], None]) -> None:
    """Fill like `ramp`, after telling the block's first row."""
    look(block.start)
    out[...] = rows(block)


def values(segment: Segment, change: int = 0) -> NDArray[Any]:
    """Return what a segment shall hold: what `noted` fills, and a change."""
    held: NDArray[Any] = np.sqrt(np.arange(segment.start, segment.stop, dtype=float)) + change
    return held


class Play:
    """Segments of several blocks are filled; the next checkpoint is far off.

    Args:
        path: Of the target.

    Attributes:
        segments: How many there are.
        share: Of two processes, which this one is, or both.
        options: What `allocate` is told.
        most_again: How many blocks, once computed, may be computed again.
        id: Of the job, once told.
        done: The segments that were told to be done, and the change in their values.
        durable: The segments of which rows were told to be durable, and how many.
        undone: The segments that were told not to be done any more.
        damaged: The segments whose bytes are not what was recorded.
        sealed: Whether the job was told to be sealed.
        asked: The first rows of the blocks that were computed.
    """

    segments = 3
    share = (0, 1)
    options: ClassVar[dict[str, Any]] = {}
    most_again = BLOCKS

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = ""
        self.done: MutableMapping[int, int] = {}
        self.durable: MutableMapping[int, int] = {}
        self.undone: set[int] = set()
        self.damaged: set[int] = set()
        self.sealed = False
        self.asked: list[int] = []

    def prepare(self) -> None:
        """Bring the disk to where it is before the power may go."""
        self.id = self.allocate().id

    def act(self) -> None:
        """Do what the power cut interrupts."""
        self.fill()
        self.validate()

    def allocate(self, **options: Any) -> Target:
        """Allocate the target, or attach to it."""
        given = {"segments": self.segments, "block_rows": BLOCK_ROWS} | self.options | options
        return flowmap.allocate(self.path, self.segments * SEGMENT_ROWS, "f8", **given)

    def pending(self) -> list[Segment]:
        """Return what this process is to fill."""
        pending = flowmap.open_target(self.path).pending()
        return [segment for segment in pending if segment.index % 2 in self.share]

    def fill(self) -> None:
        """Fill what is pending."""
        for segment in self.pending():
            flowmap.fill_segment(segment, noted, {"look": self.look})
            self.done[segment.index] = 0

    def look(self, row: int) -> None:
        """Note which block is computed."""
        self.asked.append(row)
        self.undone.discard(row // SEGMENT_ROWS)

    def write(self, change: int = 0) -> None:
        """Write values to every segment, and validate."""
        for segment in flowmap.open_target(self.path).segments:
            flowmap.write_segment(segment, values(segment, change), replace=True)
            self.done[segment.index] = change
        self.validate()

    def validate(self) -> None:
        """Validate, which must seal."""
        report = flowmap.validate(self.path)
        assert report.sealed, (report.problems, report.notes)
        self.sealed = True

    def faults(self) -> Iterator[str]:
        """Name what was told and is not so, and what the records claim and is not so."""
        try:
            target = flowmap.open_target(self.path)
        except FlowmapError as error:
            if self.id or not isinstance(error, FileNotFoundError):
                yield str(error)
            return
        if self.id and target.id != self.id:
            yield f"the job is {target.id}, not {self.id}"
        if self.path.stat().st_blocks * 512 < target.job.size:
            yield "the space is not reserved"
        with target.job.ledger() as ledger:
            records = [ledger.read(s.index, s.start, s.stop) for s in target.segments]
        yield from self._told(records)
        yield from self._vouched(records, target)

    def _told(self, records: list[SegmentRecord]) -> Iterator[str]:
        held = np.load(self.path)
        for index, change in self.done.items():
            record = records[index]
            part = held[record.start : record.stop]
            if record.state != "done":
                yield f"segment {index} was done, is {record.state}"
            elif not np.array_equal(
                part, np.sqrt(np.arange(record.start, record.stop)) + change
            ):
                yield f"segment {index} was done, and its values are others"
        for index, sure in self.durable.items():
            if records[index].rows_durable < sure:
                yield f"segment {index}: {sure} rows were durable, now {records[index]}"
        for index in self.undone:
            if records[index].state == "done":
                yield f"segment {index} was not done any more, and is done"

    def _vouched(self, records: list[SegmentRecord], target: Target) -> Iterator[str]:
        data = np.fromfile(self.path, "u1", offset=target.job.data_offset)
        row_bytes = target.job.layout.row_bytes
        for record in records:
            first = record.start * row_bytes
            sure = data[first : first + record.rows_durable * row_bytes]
            known = record.index in self.damaged - set(self.done)
            if (
                sure.size
                and not known
                and xxhash.xxh3_128_hexdigest(sure.data) != record.digest_durable
            ):
                yield f"segment {record.index}: the ledger vouches for what is not there"
            whole = record.stop - record.start, record.digest
            if record.state == "done" and whole != (record.rows_durable, record.digest_durable):
                yield f"segment {record.index} is done, and not all of it is durable"
        try:
            sealed = read_json(Sidecar.of(self.path).seal)["job"] == target.id
        except FileNotFoundError:
            sealed = False
        if self.sealed and not sealed:
            yield "the seal is gone"
        if sealed and {record.state for record in records} != {"done"}:
            yield "sealed, and not all segments are done"

    def finish(self) -> None:
        """Run again: what is missing is computed and nothing else; then all is there."""
        self.allocate()
        before, done = set(self.asked), set(self.done)
        self.asked.clear()
        self.fill()
        assert len(before & set(self.asked)) <= self.most_again, (before, self.asked)
        assert not {row // SEGMENT_ROWS for row in self.asked} & done, (self.asked, done)
        self.check_whole()

    def check_whole(self, change: int = 0) -> None:
        """Validate, and compare every value."""
        self.validate()
        whole = np.sqrt(np.arange(self.segments * SEGMENT_ROWS)) + change
        np.testing.assert_array_equal(np.load(self.path), whole)


class Allocating(Play):
    """A new target is allocated; what is reported is there."""

    def prepare(self) -> None:
        """Leave the disk empty."""

    def act(self) -> None:
        """Allocate."""
        self.id = self.allocate().id


class Checkpointing(Play):
    """With a checkpoint at every block, no more than the block in hand is computed again."""

    options: ClassVar[dict[str, Any]] = {"checkpoint_seconds": 0}
    most_again = 1

    def look(self, row: int) -> None:
        """Take for durable what the attempt computed before the block."""
        # What it took over from another becomes durable with its own first block.
        if self.asked and self.asked[-1] == row - BLOCK_ROWS and row % SEGMENT_ROWS:
            self.durable[row // SEGMENT_ROWS] = row % SEGMENT_ROWS
        super().look(row)


class Resuming(Play):
    """An attempt that ended with rows that are not durable is taken over."""

    def act(self) -> None:
        """Begin the first segment, then go on with it."""
        first, *_ = flowmap.open_target(self.path).segments

        def end_at_the_last(row: int) -> None:
            if row == (BLOCKS - 1) * BLOCK_ROWS:
                raise RuntimeError
            self.look(row)

        with contextlib.suppress(FillerError):
            flowmap.fill_segment(first, noted, {"look": end_at_the_last})
        self.fill()
        self.validate()


class ResumingCheckpoints(Resuming, Checkpointing):
    """An attempt that ended with durable rows is taken over."""


class Mapping(Play):
    """Segments are mapped, flushed in the block, and stored into again."""

    def fill(self) -> None:
        """Store into what is pending."""
        for segment in self.pending():
            with flowmap.open_segment(segment) as out:
                out[:BLOCK_ROWS] = values(segment)[:BLOCK_ROWS]
                out.flush()
                out[BLOCK_ROWS:] = values(segment)[BLOCK_ROWS:]
            self.done[segment.index] = 0


class Unsynced(Play):
    """With `durability="end"` a segment is done when a validation has said so."""

    options: ClassVar[dict[str, Any]] = {"durability": "end"}
    most_again = BLOCKS * Play.segments

    def fill(self) -> None:
        """Fill what is pending; nothing is told."""
        for segment in self.pending():
            flowmap.fill_segment(segment, noted, {"look": self.look})

    def validate(self) -> None:
        """Validate, which makes all segments done."""
        super().validate()
        self.done = dict.fromkeys(range(self.segments), 0)


class Replacing(Play):
    """Segments that are done are written again, with other values."""

    def prepare(self) -> None:
        """Write every segment, and seal."""
        super().prepare()
        self.write()

    def act(self) -> None:
        """Replace two segments, each in its way, and seal."""
        self.sealed = False
        first, second, _ = flowmap.open_target(self.path).segments
        del self.done[0]
        flowmap.write_segment(first, values(first, 1), replace=True)
        self.done[0] = 1
        del self.done[1]
        with flowmap.open_segment(second, replace=True) as out:
            out[...] = values(second, 1)
        self.done[1] = 1
        self.validate()

    def finish(self) -> None:
        """Replace all."""
        self.write(1)
        self.check_whole(1)


class Sealed(Play):
    """A job that is done and sealed; nothing happens to it."""

    def prepare(self) -> None:
        """Fill and seal."""
        super().prepare()
        super().act()
        self.asked.clear()


class Damaging(Sealed):
    """A bit has flipped; a validation marks the segment, which is then computed again."""

    def prepare(self) -> None:
        """Flip it."""
        super().prepare()
        damage(flowmap.open_target(self.path), 1)
        self.damaged.add(1)
        del self.done[1]

    def act(self) -> None:
        """Validate, run again, and seal."""
        self.sealed = False
        assert len(flowmap.validate(self.path).marked) == 1
        self.undone.add(1)
        super().act()

    def finish(self) -> None:
        """Let a validation find it, where that is not known."""
        flowmap.validate(self.path)
        super().finish()


class Resetting(Sealed):
    """A segment is reset, and computed again."""

    def act(self) -> None:
        """Reset it, run again, and seal."""
        self.sealed = False
        del self.done[1]
        flowmap.reset(self.path, 1)
        self.undone.add(1)
        super().act()


class Overwriting(Sealed):
    """A job is overwritten by one that is just like it: its ledger must not vouch for that."""

    new = False

    def act(self) -> None:
        """Overwrite it."""
        self.sealed = False
        target = self.allocate(exist="overwrite")
        self.id, self.new = target.id, True

    def faults(self) -> Iterator[str]:
        """Name what is neither the old job nor the new one, nor said to be cut short."""
        try:
            target = flowmap.open_target(self.path)
        except DamagedJobError as error:
            if self.new or "was cut short" not in str(error):
                yield str(error)
            self.done.clear()
            return
        except ForeignFileError as error:
            if self.id or not np.load(self.path).all():
                yield str(error)
            return
        if self.new or target.id != self.id:
            self.id, self.new = target.id if not self.new else self.id, True
            self.done.clear()
            if set(states(target)) != {"pending"} or np.load(self.path).any():
                yield "the new job holds something"
        yield from super().faults()

    def finish(self) -> None:
        """Overwrite again what was cut short; run the job that is there."""
        try:
            self.allocate()
        except (DamagedJobError, ForeignFileError):
            self.allocate(exist="overwrite")
        super().finish()


class OverwritingForeign(Overwriting):
    """A file that is none of flowmap's is overwritten."""

    def prepare(self) -> None:
        """Save an array without a zero."""
        np.save(self.path, np.ones(self.segments * SEGMENT_ROWS))
