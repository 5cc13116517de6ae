"""A contestant of the case `steps`: block after block, in this process, up to some step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

import flowmap
from benchmarks.clock import arguments, say, seconds
from benchmarks.filling import work
from benchmarks.filling.with_flowmap import sqrt
from benchmarks.filling.work import BLOCK

if TYPE_CHECKING:
    from pathlib import Path

STEPS: Final = "fill", "write", "hash", "clear"
"""What the bare loop does to each block: as far as the step that is asked for."""


def bare(path: Path, blocks: int, last: str) -> float:
    """Return how long the steps take for all blocks of a file that is reserved."""
    steps = STEPS[: STEPS.index(last) + 1]
    out, digest = np.zeros(BLOCK), xxhash.xxh3_128()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, blocks * out.nbytes)

    def go() -> None:
        for number in range(blocks):
            if "clear" in steps:
                out.fill(0)
            work.sqrt(out, number * BLOCK)
            if "write" in steps:
                os.pwrite(descriptor, out.data, number * out.nbytes)
            if "hash" in steps:
                digest.update(out.data)

    return seconds(go)


def with_flowmap(path: Path, blocks: int, segments: int) -> float:
    """Return how long flowmap takes for all segments of a target that is allocated."""
    target = flowmap.allocate(
        path,
        blocks * BLOCK,
        "<f8",
        segments=segments,
        block_rows=BLOCK,
        durability="end",
    )

    def go() -> None:
        for segment in target.segments:
            flowmap.fill_segment(segment, sqrt)

    took = seconds(go)
    assert set(target.status()["state"]) == {"written"}
    return took


def main() -> None:
    """Play the contestant that the command line names."""
    asked = arguments(segments=1)
    blocks = max(64, int(1024 * asked.scale))
    small, path = asked.folder / "small.npy", asked.folder / "big.npy"
    if asked.contestant == "flowmap":
        with_flowmap(small, 64, 64)
        took = with_flowmap(path, blocks, asked.segments)
    else:
        bare(small, 64, asked.contestant)
        took = bare(path, blocks, asked.contestant)
    say(seconds=took, each=took / blocks * 1e6, blocks=blocks)


if __name__ == "__main__":
    main()
