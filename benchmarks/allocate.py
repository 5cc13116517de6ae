"""The contestant of the case `allocate`: making a big file, without reserving its space."""

from __future__ import annotations

from typing import Final

import flowmap
from benchmarks.clock import arguments, forget_peak, peak_bytes, say, seconds

GIB: Final = 1 << 30


def main() -> None:
    """Allocate so many gibibytes, in so many segments, by default as flowmap chooses."""
    asked = arguments(gib=1, segments=0)
    rows = int(asked.gib * asked.scale * GIB) // 8
    flowmap.allocate(asked.folder / "small.npy", 1000, "<f8", reserve=False)
    forget_peak()
    start = peak_bytes()
    path = asked.folder / "big.npy"
    segments = asked.segments or None
    took = seconds(
        lambda: flowmap.allocate(path, rows, "<f8", segments=segments, reserve=False)
    )
    peak = peak_bytes() - start
    assert 0 < path.stat().st_size - 8 * rows <= 4096
    say(milliseconds=took * 1e3, mebibytes=peak / 2**20)


if __name__ == "__main__":
    main()
