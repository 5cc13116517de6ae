"""The contestant of the case `memory`: what a worker takes to fill a segment of some size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import flowmap
from benchmarks.clock import arguments, peak_bytes, say
from benchmarks.filling.with_flowmap import sqrt

if TYPE_CHECKING:
    from flowmap import Segment

MIB: Final = 1 << 20


def fill(segment: Segment) -> int:
    """Fill the segment in this worker; return the most memory that it has had."""
    flowmap.fill_segment(segment, sqrt)
    return peak_bytes()


def main() -> None:
    """Fill one segment of so many mebibytes, by blocks of so many."""
    asked = arguments(segment=1, block=1)
    rows = int(asked.segment * asked.scale * MIB) // 8
    target = flowmap.allocate(
        asked.folder / "array.npy", rows, "<f8", segments=1, block_rows=asked.block * MIB // 8
    )
    with flowmap.executor("processes", 1) as pool:
        start = pool.submit(peak_bytes).result()
        peak = pool.submit(fill, target.segments[0]).result()
    assert flowmap.validate(target).ok
    taken = (peak - start) / MIB
    say(mebibytes=taken, beyond=taken - 2 * asked.block)


if __name__ == "__main__":
    main()
