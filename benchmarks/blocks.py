"""A contestant of the case `blocks`: many small blocks one after the other, in this process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import flowmap
from benchmarks.clock import arguments, say, seconds

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.job import Durability

ROWS: Final = 512
"""Of float64 in a block: 4 KiB."""
SEGMENTS: Final = 100


@flowmap.filler
def nothing(_out: Any, _block: flowmap.Block) -> None:
    """Leave the block as it comes."""


def fill(path: Path, blocks: int, durability: Durability) -> float:
    """Return how long flowmap takes for all segments of a target that is allocated."""
    target = flowmap.allocate(
        path,
        blocks * ROWS,
        "<f8",
        segments=[blocks // SEGMENTS * ROWS] * SEGMENTS,
        block_rows=ROWS,
        durability=durability,
    )

    def work() -> None:
        for segment in target.segments:
            flowmap.fill_segment(segment, nothing)

    took = seconds(work)
    states = set(target.status()["state"])
    assert states == {"written" if durability == "end" else "done"}, states
    return took


def write(path: Path, blocks: int, *, sync: bool) -> float:
    """Return how long it takes to write the same blocks by `pwrite` alone."""
    nbytes = blocks * ROWS * 8
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, nbytes)
    buffer = np.zeros(ROWS)

    def work() -> None:
        for number in range(blocks):
            os.pwrite(descriptor, buffer.data, number * buffer.nbytes)
            if sync and (number + 1) % (blocks // SEGMENTS) == 0:
                os.fdatasync(descriptor)

    return seconds(work)


def main() -> None:
    """Play the contestant that the command line names."""
    asked = arguments(sync=False)
    blocks = max(1, int(100 * asked.scale)) * SEGMENTS
    path = asked.folder / "blocks.npy"
    if asked.contestant == "flowmap":
        fill(asked.folder / "small.npy", SEGMENTS, "end")
        took = fill(path, blocks, "segment" if asked.sync else "end")
    else:
        took = write(path, blocks, sync=asked.sync)
    say(seconds=took, each=took / blocks * 1e6, blocks=blocks)


if __name__ == "__main__":
    main()
