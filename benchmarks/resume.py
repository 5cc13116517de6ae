"""The contestant of the case `resume`: running a job again of which everything is done."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import flowmap
from benchmarks.blocks import ROWS, nothing
from benchmarks.clock import arguments, forget_peak, peak_bytes, say, seconds

if TYPE_CHECKING:
    from pathlib import Path


def make(path: Path, segments: int) -> None:
    """Fill a job of so many segments, a page each, and validate it."""
    target = flowmap.allocate(
        path, segments * ROWS, "<f8", segments=[ROWS] * segments, durability="end"
    )
    flowmap.fill(target, nothing, executor="threads")
    flowmap.validate(target).raise_if_bad()


def main() -> None:
    """Make the job in another process, and run it again in this one."""
    asked = arguments(segments=10_000)
    path = asked.folder / "done.npy"
    segments = int(asked.segments * asked.scale)
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(path, segments))
    maker.start()
    maker.join()
    forget_peak()
    start = peak_bytes()

    def again() -> None:
        """Do what a script does that is run again, once it has imported flowmap."""
        target = flowmap.allocate(
            path, segments * ROWS, "<f8", segments=[ROWS] * segments, durability="end"
        )
        assert len(target.segments) == segments
        assert flowmap.fill(target, nothing) == []

    took = seconds(again)
    say(seconds=took, mebibytes=(peak_bytes() - start) / 2**20)


if __name__ == "__main__":
    main()
