"""What a block that was computed says of the whole job: time, memory, disk. Arithmetic only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowmap.human import count, seconds, size
from flowmap.segments import plan_blocks, whole_pages
from flowmap.storage import CHUNK
from flowmap.wording import overwriting, setting

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.segments import Plan

_WORKERS: Final = (1, 2, 4, 8, 16, 32, 64)  # that the table tells of
_INSTANT: Final = 1e-9  # seconds: no block takes none, whatever the clock says

_BLOCK_SHORT: Final = 0.005  # seconds: below it, what each block costs beside it begins to show
_BLOCK_GOOD: Final = 1.0  # seconds: of a block that is made larger
_BLOCK_LONG: Final = 60.0  # seconds: so much is lost when a worker dies
_BLOCK_MOST: Final = 10.0  # seconds: of a block that is made smaller

_SEGMENT_SHORT: Final = 0.02  # seconds: its claim and its syncs take about as long
_SEGMENT_LEAST: Final = 1.0  # seconds: of a segment that is made longer
_SEGMENT_MOST: Final = 600.0  # seconds: of a segment that is made shorter
_SEGMENT_LONG: Final = 1200.0  # seconds
_A_WORKER: Final = 4  # segments, so that none waits long for the last
_FEW_A_WORKER: Final = 2
_IDLE: Final = 10.0  # seconds of each worker: what is over sooner is well as it is
_ALWAYS_FINE: Final = 64  # segments: what is chosen where nobody asks
_MOST: Final = 10_000  # segments: as task runs that a server can still record
_FAR: Final = 2  # a suggestion differs by this factor at least


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one block, in a process of its own.

    Attributes:
        rows: Of the block.
        start_seconds: Until the process had started.
        load_seconds: To load the filler and its arguments, with what they import.
        first_seconds: Of the filler's first call.
        second_seconds: Of its second call, for as many rows; None where the first took so long
            that there was none.
        write_seconds: That a worker takes to hash the block and to write it to the page cache.
        disk_bytes_per_second: That the disk takes, the sync included; None where there was
            nothing to write, or no room to write it.
        start_bytes: Peak of the process's memory before the filler was loaded.
        peak_bytes: Peak of its memory in the end.
    """

    rows: int
    start_seconds: float
    load_seconds: float
    first_seconds: float
    second_seconds: float | None
    write_seconds: float
    disk_bytes_per_second: float | None
    start_bytes: int
    peak_bytes: int

    @property
    def cold_seconds(self) -> float:
        """Seconds of a worker's first block, with imports and compiling, not written yet."""
        return self.load_seconds + self.first_seconds

    @property
    def warm_seconds(self) -> float:
        """Seconds of any block after the first, as far as is known."""
        return self.first_seconds if self.second_seconds is None else self.second_seconds

    @property
    def warming_seconds(self) -> float:
        """Seconds that each worker takes once: to start, to import, to compile."""
        compiling = max(0.0, self.first_seconds - self.warm_seconds)
        return self.start_seconds + self.load_seconds + compiling


@dataclass(frozen=True, slots=True)
class Pending:
    """What is still to be computed.

    Attributes:
        segments: How many segments have rows to be computed.
        rows: How many rows that are, those left out that the same work has written.
        longest: Rows of the segment that has most of them.
    """

    segments: int
    rows: int
    longest: int


@dataclass(frozen=True, slots=True)
class Room:
    """What the files take on the disk.

    Attributes:
        target_bytes: Of the target.
        reserved_bytes: Of these, those that the disk keeps for it already.
        ledger_bytes: Of the ledger, all of which were written when it was made.
        free_bytes: Of the file system; None if it does not say.
    """

    target_bytes: int
    reserved_bytes: int
    ledger_bytes: int
    free_bytes: int | None

    @property
    def missing_bytes(self) -> int:
        """Bytes of the target that have no space yet."""
        return max(0, self.target_bytes - self.reserved_bytes)

    @property
    def fits(self) -> bool:
        """Whether what is missing is free, or may be."""
        return self.free_bytes is None or self.missing_bytes <= self.free_bytes

    def __str__(self) -> str:
        text = f"Disk: {size(self.target_bytes)}"
        if not self.missing_bytes:
            return f"{text}, all reserved."
        text += f", of which {size(self.missing_bytes)} are not reserved"
        if self.free_bytes is None:
            return f"{text}; the free space is unknown."
        if self.fits:
            return f"{text}; {size(self.free_bytes)} are free."
        return f"{text}, and only {size(self.free_bytes)} are free: make room before you fill."


class Suggestion(NamedTuple):
    """Another value for an argument of `allocate`.

    Attributes:
        value: What to give.
        reason: Why, and what it takes: sentences.
    """

    value: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pilot:
    """What one block says of the whole job.

    Attributes:
        path: Of the target.
        plan: How its rows are cut into segments.
        block_rows: Rows that a filler computes at once.
        row_bytes: Bytes of one row.
        measured: What was measured of the block.
        pending: What is still to be computed.
        room: What the files take.
        workers: How many workers the job is to have.
        cpus: How many processors this process may use.
    """

    path: Path
    plan: Plan
    block_rows: int
    row_bytes: int
    measured: Measured
    pending: Pending
    room: Room
    workers: int
    cpus: int

    @property
    def block_bytes(self) -> int:
        """Bytes of the block that was computed."""
        return self.measured.rows * self.row_bytes

    @property
    def used_workers(self) -> int:
        """How many of the workers will have a segment."""
        return min(self.workers, self.pending.segments)

    @property
    def memory_bytes(self) -> int:
        """Peak of the memory of all workers together; what they share is counted for each."""
        return self.used_workers * self.measured.peak_bytes

    @property
    def seconds(self) -> float:
        """Seconds for all that is pending, by `workers` workers."""
        return self.seconds_with(self.workers)

    @property
    def table(self) -> tuple[tuple[int, float], ...]:
        """(workers, seconds) for 1 to 64 workers, and for those that the job is to have."""
        counts = sorted({*_WORKERS, self.used_workers})
        return tuple((n, self.seconds_with(n)) for n in counts if n <= self.pending.segments)

    def seconds_with(self, workers: int) -> float:
        """Return the seconds for all that is pending, by so many workers.

        Each computes one segment after another, and the last one to end decides. It takes no
        less than the disk, which all of them share, needs for the bytes.
        """
        used = min(workers, self.pending.segments)
        rounds = -(-self.pending.segments // used)
        # With segments of many lengths it is less: while any are left, no worker is idle.
        uneven = self.pending.rows / used + self.pending.longest * (1 - 1 / used)
        rows = min(rounds * self.pending.longest, uneven)
        rate = self.measured.disk_bytes_per_second
        writing = self.pending.rows * self.row_bytes / rate if rate else 0.0
        return self.measured.warming_seconds + max(rows * self._row_seconds, writing)

    @property
    def _row_seconds(self) -> float:
        block = self.measured.warm_seconds + self.measured.write_seconds
        return max(block, _INSTANT) / self.measured.rows

    @property
    def better_block_rows(self) -> Suggestion | None:
        """Rows a block that suit the filler; None where those that it has do."""
        measured = self.measured
        longest = self._longest
        if (cut := self.better_segments) is not None:
            longest = -(-self.plan.rows // cut.value)
        took = f"A block of {_rows(measured.rows)} takes {seconds(measured.warm_seconds)}"
        if measured.warm_seconds > _BLOCK_LONG:
            wanted = self._rows_in(_BLOCK_MOST)
            if wanted >= measured.rows:
                return None
            why = "and a worker that is ended loses as much"
        elif measured.warm_seconds < _BLOCK_SHORT and self.block_bytes < CHUNK:
            quick = plan_blocks(self.row_bytes, longest, None)
            wanted = min(quick, self._rows_in(_BLOCK_GOOD))
            if wanted < _FAR * self.block_rows:
                return None
            why = "so little that what each block costs beside it counts"
        else:
            return None
        return Suggestion(wanted, f"{took}, {why}. {_anew()}")

    @property
    def better_segments(self) -> Suggestion | None:
        """How many segments suit the job; None where those that it has do."""
        present = len(self.plan)
        whole = self.plan.rows * self._row_seconds
        most = min(_MOST, self.plan.rows)
        enough = min(_A_WORKER * self.workers, most)
        more = min(max(math.ceil(whole / _SEGMENT_MOST), enough), most)
        fewer = min(max(int(whole / _SEGMENT_LEAST), enough), most)
        longest = self._longest * self._row_seconds
        if longest > _SEGMENT_LONG and more >= _FAR * present:
            wanted, why = more, f"The longest segment takes {seconds(longest)}"
        elif (
            present < _FEW_A_WORKER * self.workers
            and whole > _IDLE * self.workers
            and more >= _FAR * present
        ):
            some = f"{count(self.workers)} workers"
            wanted, why = more, f"With {count(present)} segments, not all {some} stay at work"
        elif (
            present > _ALWAYS_FINE
            and whole < _SEGMENT_SHORT * present
            and _FAR * fewer <= present
        ):
            took = seconds(whole / present)
            wanted, why = fewer, f"A segment takes {took}, no longer than to record it"
        elif present > _FAR * _MOST and _FAR * fewer <= present:
            wanted, why = fewer, f"{count(present)} segments are more than can be watched"
        else:
            return None
        return Suggestion(wanted, f"{why}. {_anew()}")

    @property
    def _longest(self) -> int:
        """Rows of the longest of all segments."""
        return max(rows for _, rows in self.plan.runs)

    def _rows_in(self, limit: float) -> int:
        """Return how many rows, whole pages of them if possible, a filler computes in time."""
        row = max(self.measured.warm_seconds, _INSTANT) / self.measured.rows
        rows = int(min(limit / row, self.plan.rows))
        return max(1, whole_pages(rows, self.row_bytes))

    def document(self) -> dict[str, Any]:
        """Return every figure as JSON values: times in seconds, sizes in bytes."""
        measured, room = self.measured, self.room
        return {
            "path": str(self.path),
            "workers": self.workers,
            "seconds": self.seconds,
            "table": [{"workers": n, "seconds": needed} for n, needed in self.table],
            "block": {
                "rows": measured.rows,
                "bytes": self.block_bytes,
                "start_seconds": measured.start_seconds,
                "cold_seconds": measured.cold_seconds,
                "load_seconds": measured.load_seconds,
                "first_seconds": measured.first_seconds,
                "second_seconds": measured.second_seconds,
                "write_seconds": measured.write_seconds,
            },
            "pending": {
                "segments": self.pending.segments,
                "rows": self.pending.rows,
                "bytes": self.pending.rows * self.row_bytes,
            },
            "memory": {
                "bytes": self.memory_bytes,
                "worker_bytes": measured.peak_bytes,
                "worker_start_bytes": measured.start_bytes,
            },
            "disk": {
                "bytes_per_second": measured.disk_bytes_per_second,
                "target_bytes": room.target_bytes,
                "reserved_bytes": room.reserved_bytes,
                "missing_bytes": room.missing_bytes,
                "ledger_bytes": room.ledger_bytes,
                "free_bytes": room.free_bytes,
                "fits": room.fits,
            },
            "suggestions": {
                name: None if better is None else better._asdict()
                for name, better in self._suggestions()
            },
        }

    def _suggestions(self) -> tuple[tuple[str, Suggestion | None], ...]:
        return ("block_rows", self.better_block_rows), ("segments", self.better_segments)

    def __str__(self) -> str:
        pending = self.pending
        verb = "is" if pending.rows == 1 else "are"
        some = "segment" if pending.segments == 1 else "segments"
        return "\n".join(
            [
                self._told_of_block(),
                f"{_rows(pending.rows)} {verb} pending, in {count(pending.segments)} {some}.",
                *self._told_of_workers(),
                f"{self._told_of_memory()} {self.room}",
                *(
                    f"Suggestion: {setting(**{name: better.value})}. {better.reason}"
                    for name, better in self._suggestions()
                    if better is not None
                ),
            ]
        )

    def _told_of_block(self) -> str:
        measured = self.measured
        text = f"One block of {_rows(measured.rows)} ({size(self.block_bytes)}) took "
        if measured.second_seconds is None:
            text += f"{seconds(measured.cold_seconds)}, with what is imported and compiled once"
        else:
            text += seconds(measured.second_seconds)
            text += f" (the first time {seconds(measured.cold_seconds)})"
        rate = measured.disk_bytes_per_second
        if rate is not None:
            text += f", its writing {seconds(measured.write_seconds)}. "
            return text + f"The disk takes {size(round(rate))} a second, synced once a segment."
        if self.block_bytes:
            text += ". The disk has no room to measure how fast it is"
        return f"{text}."

    def _told_of_workers(self) -> list[str]:
        mark = "this machine" if self.workers == self.cpus else "as asked"
        lines = ["workers   time"]
        for workers, needed in self.table:
            line = f"{workers:>7}   {seconds(needed)}"
            lines.append(f"{line:<24}  <- {mark}" if workers == self.used_workers else line)
        if self.table[-1][0] > self.cpus:
            lines.append(
                f"Processors of this process: {self.cpus}; more workers need more of them."
            )
        return lines

    def _told_of_memory(self) -> str:
        text = f"Memory: {size(self.measured.peak_bytes)} a worker"
        if self.used_workers > 1:
            text += f", {size(self.memory_bytes)} for {count(self.used_workers)}"
        return f"{text}."


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{count(number)} rows"


def _anew() -> str:
    return f"To have that, allocate the target anew with {overwriting()}: what is done is lost."
