"""A small job at which processes compete, brought back to its beginning for each case."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from support import damage

import flowmap
import flowmap.lease
from flowmap.errors import FlowmapError
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.records import SegmentRecord

ROWS: Final = 36
SEGMENTS: Final = 3
BLOCK: Final = 4
MIDDLE: Final = 1

_who = 0  # who computes in this process; it shows in the values


def values(who: int) -> NDArray[np.float64]:
    """Return the rows as one of the processes computes them."""
    return np.sqrt(np.arange(ROWS)) + who


@flowmap.filler
def computed(out: NDArray[Any], block: flowmap.Block) -> None:
    """Fill what depends on who computes it, which a filler should not."""
    out[...] = values(_who)[block.start : block.stop]


@dataclass(frozen=True, slots=True)
class Scene:
    """How a job begins, and how it is filled.

    Attributes:
        way: "fill", "write" or "map".
        start: The state of the middle segment: "fresh", "half", "done", or "damaged", which
            is done and has a flipped bit; or "none", where the others are not filled either.
        durability: Of the job.
    """

    way: str
    start: str
    durability: Any

    def __str__(self) -> str:
        return f"{self.way}-{self.start}-{self.durability}"


class Stage:
    """A job that is brought back to its beginning for each case; its methods are the acts.

    Args:
        folder: Where.
        scene: Its beginning.
        differ: Whether each process computes other values.
    """

    def __init__(self, folder: Path, scene: Scene, *, differ: bool = True) -> None:
        self.scene = scene
        self.differ = differ
        self.path = folder / "a.npy"
        self.become(1)
        self.target = self._allocate()
        for index in () if scene.start == "none" else (0, 2):
            self._attempt(index)
        if scene.start == "half":
            self._half()
        elif scene.start in ("done", "damaged"):
            self._attempt(MIDDLE)
        if scene.start == "damaged":
            damage(self.target, MIDDLE)
        files = [self.path, *Sidecar.of(self.path).folder.iterdir()]
        self._files = {file: file.read_bytes() for file in files}

    def become(self, who: int) -> None:
        """Compute as one of the processes from now on."""
        global _who  # noqa: PLW0603 -- what a filler may not be told as an argument
        _who = who * self.differ

    def restore(self) -> None:
        """Begin again."""
        for file in Sidecar.of(self.path).folder.iterdir():
            if file not in self._files:
                file.unlink()
        for file, content in self._files.items():
            file.unlink(missing_ok=True)  # its extended attributes, too
            file.write_bytes(content)

    def _allocate(self) -> flowmap.Target:
        return flowmap.allocate(
            self.path,
            ROWS,
            "<f8",
            segments=SEGMENTS,
            block_rows=BLOCK,
            checkpoint_seconds=0 if self.scene.start == "half" else 30,
            durability=self.scene.durability,
            exist="overwrite",
        )

    def _half(self) -> None:
        """Let an attempt fail after the first of its blocks."""
        segment = self.target.segments[MIDDLE]
        if self.scene.way == "map":
            with contextlib.suppress(ZeroDivisionError), flowmap.open_segment(segment) as out:
                out[:BLOCK] = values(_who)[:BLOCK]
                raise ZeroDivisionError

        @functools.wraps(computed)  # of the same name and source
        def failing(out: NDArray[Any], block: flowmap.Block) -> None:
            if block.start > segment.start:
                raise ZeroDivisionError
            computed(out, block)

        with contextlib.suppress(FlowmapError):
            flowmap.fill_segment(segment, failing)

    def _attempt(self, index: int, step: Callable[[], None] = lambda: None) -> str:
        segment = self.target.segments[index]
        replace = self.scene.start in ("done", "damaged")
        mine = values(_who)[segment.start : segment.stop]
        if self.scene.way == "fill":
            return flowmap.fill_segment(segment, computed).state
        if self.scene.way == "write":
            return flowmap.write_segment(segment, mine, replace=replace).state
        with flowmap.open_segment(segment, replace=replace) as out:
            for row in (0, BLOCK):
                step()
                out[row:] = mine[row:]
            step()
        return "done"

    def attempt(self, step: Callable[[], None] = lambda: None) -> str:
        """Fill the middle segment in the scene's way."""
        return self._attempt(MIDDLE, step)

    def reset(self, _: object) -> str:
        """Make the middle segment pending again."""
        flowmap.reset(self.path, MIDDLE)
        return "reset"

    def validate(self, _: object) -> str:
        """Validate the target."""
        return "ok" if flowmap.validate(self.path).ok else "bad"

    def attempt_and_validate(self, _: object) -> str:
        """Fill the middle segment, and validate."""
        return f"{self.attempt()}, {self.validate(_)}"

    def eight_attempts(self, _: object) -> str:
        """Reset and fill the middle segment by turns, until attempts share slots again."""
        for _ in range(4):
            self.reset(_)
            outcome = self.attempt()
        return outcome

    def run(self, _: object) -> str:
        """Fill the whole job, by a run that takes any lease for void."""
        vars(flowmap.lease).update(TERM=0.0, LOOKS=0, is_alive=lambda *_: None)
        flowmap.fill(self.path, computed, executor="threads", workers=1)
        return "done"

    def overwrite(self, _: object) -> str:
        """Allocate another job in the place of this one."""
        self.target = self._allocate()
        return "overwritten"

    def renew(self, _: object) -> str:
        """Do so, fill it and validate."""
        self.overwrite(_)
        for index in range(SEGMENTS):
            self._attempt(index)
        return self.validate(_)

    def records(self) -> list[SegmentRecord]:
        """Return what the ledger says of each segment."""
        with self.target.job.ledger() as ledger:
            return [ledger.read(s.index, s.start, s.stop) for s in self.target.segments]

    def record(self) -> SegmentRecord:
        """Return what it says of the middle one."""
        return self.records()[MIDDLE]

    def rows(self) -> NDArray[np.float64]:
        """Return the rows as they are on disk."""
        return np.fromfile(self.path, "<f8", ROWS, offset=self.target.job.data_offset)

    def strangers(self) -> Iterator[str]:
        """Yield which blocks, or segments where they are written at once, nobody computed."""
        rows = self.rows()
        length = BLOCK if self.scene.way == "fill" else ROWS // SEGMENTS
        for start in range(0, ROWS, length):
            part = slice(start, start + length)
            if not any((rows[part] == values(who)[part]).all() for who in range(5)):
                yield f"rows {start} to {start + length} are nobody's: {rows[part]}"
