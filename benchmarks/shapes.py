"""A contestant of the cases of rows and blocks: flowmap, by rows and blocks of some size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

import flowmap
from benchmarks.clock import arguments, say, seconds
from benchmarks.filling.work import WORKERS

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def main() -> None:
    """Fill a gibibyte of such rows."""
    asked = arguments(gib=1.0, kib=0)
    dtype, row = ROWS[asked.contestant]
    row_bytes = dtype.itemsize * int(np.prod(row))
    rows = int(asked.gib * asked.scale * GIB) // row_bytes
    block_rows = asked.kib * 1024 // row_bytes or None
    with flowmap.executor("processes", WORKERS) as pool:
        fill(asked.folder / "small.npy", (16, *row), dtype, None, pool)
        target = None

        def work() -> None:
            nonlocal target
            target = fill(asked.folder / "big.npy", (rows, *row), dtype, block_rows, pool)

        took = seconds(work)
    assert target is not None
    data = np.memmap(target.path, np.uint8, "r")[-rows * row_bytes :]
    for first in range(0, len(data), 1 << 24):
        assert data[first : first + (1 << 24)].min() == 1, "not filled"
    say(seconds=took, rate=rows * row_bytes / GIB / took)


def fill(
    path: Any, shape: tuple[int, ...], dtype: Any, block_rows: int | None, pool: Any
) -> flowmap.Target:
    """Allocate and fill."""
    target = flowmap.allocate(path, shape, dtype, block_rows=block_rows)
    flowmap.fill(target, ones, executor=pool)
    return target


if __name__ == "__main__":
    main()
