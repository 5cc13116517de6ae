"""A contestant of the cases of sizes: flowmap, by rows, blocks and segments of some size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import flowmap
from benchmarks.clock import arguments, say, seconds
from benchmarks.filling.work import WORKERS

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.job import Durability

GIB: Final = 1 << 30
ROWS: Final[dict[str, tuple[np.dtype[Any], tuple[int, ...]]]] = {
    "neat": (np.dtype("<f8"), ()),
    "struct": (np.dtype([("t", "<f8"), ("v", "<f4", (3,)), ("n", "<i4")]), ()),
    "odd": (np.dtype("u1"), (4099,)),
    "wide": (np.dtype("<f8"), (1 << 20,)),
}
"""The dtype and the shape of one row."""


@flowmap.filler
def ones(out: NDArray[Any], _block: flowmap.Block) -> None:
    """Set every byte to one, whatever the dtype: the cheapest that is not nothing."""
    out.view(np.uint8).fill(1)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is allocated, and where it is filled."""

    dtype: np.dtype[Any]
    row: tuple[int, ...]
    block_rows: int | None
    segments: int | list[int] | None
    durability: Durability
    pool: Executor

    def fill(self, path: Path, rows: int) -> flowmap.Target:
        """Allocate and fill; validate as well where only that puts the bytes on the disk."""
        target = flowmap.allocate(
            path,
            (rows, *self.row),
            self.dtype,
            segments=self.segments,
            block_rows=self.block_rows,
            durability=self.durability,
        )
        flowmap.fill(target, ones, executor=self.pool)
        if self.durability == "end":
            flowmap.validate(target).raise_if_bad()
        return target


def unequal(rows: int, count: int) -> list[int]:
    """Return lengths of so many segments, no two neighbours of which are equal."""
    lengths = [rows // count + (1 if index % 2 else -1) for index in range(count - 1)]
    return [*lengths, rows - sum(lengths)]


def main() -> None:
    """Fill a gibibyte of such rows."""
    asked = arguments(gib=1.0, kib=0, segments=0, unequal=False, end=False)
    dtype, row = ROWS[asked.contestant]
    row_bytes = dtype.itemsize * int(np.prod(row))
    rows = int(asked.gib * asked.scale * GIB) // row_bytes
    with flowmap.executor("processes", WORKERS) as pool:
        shape = Shape(
            dtype,
            row,
            asked.kib * 1024 // row_bytes or None,
            unequal(rows, asked.segments) if asked.unequal else asked.segments or None,
            "end" if asked.end else "segment",
            pool,
        )
        replace(shape, segments=None).fill(asked.folder / "small.npy", 16)
        path = asked.folder / "big.npy"
        took = seconds(lambda: shape.fill(path, rows))
    data = np.memmap(path, np.uint8, "r")[-rows * row_bytes :]
    for first in range(0, len(data), 1 << 24):
        assert data[first : first + (1 << 24)].min() == 1, "not filled"
    say(seconds=took, rate=rows * row_bytes / GIB / took)


if __name__ == "__main__":
    main()
