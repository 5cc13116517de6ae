"""A contestant of the cases of filling: warms up on a small array, then fills a big one."""

from __future__ import annotations

import importlib
from typing import Any, Final

from benchmarks.clock import arguments, say, seconds
from benchmarks.filling.work import BLOCK, Work, check

GIB: Final = 1 << 30
CONTESTANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "flowmap": ("with_flowmap", {}),
    "flowmap-threads": ("with_flowmap", {"executor": "threads"}),
    "pwrite": ("pwrite", {}),
    "pwrite-early": ("pwrite", {"early": True}),
    "pwrite-hashed": ("pwrite", {"hashed": True}),
    "memmap": ("memmap", {}),
    "memmap-flush": ("memmap", {"flush": True}),
    "dask": ("with_dask", {}),
    "joblib": ("with_joblib", {}),
    "zarr": ("with_zarr", {}),
    "tensorstore": ("with_tensorstore", {}),
    "gather": ("gather", {}),
}
"""The module of each contestant, and what its `ready` is given."""


def main() -> None:
    """Play the contestant that the command line names."""
    asked = arguments(filler="sqrt", durable=False, gib=2.0)
    name, options = CONTESTANTS[asked.contestant]
    module = importlib.import_module(f"benchmarks.filling.{name}")
    big, small = asked.folder / "big", asked.folder / "small"
    big.mkdir()
    small.mkdir()
    nbytes = int(asked.gib * asked.scale * GIB)
    work = Work(big, nbytes // 8, asked.filler, asked.durable)
    with module.ready(**options) as fill:
        fill(Work(small, 16 * BLOCK, asked.filler, asked.durable))
        took = seconds(lambda: fill(work))
    check(work, module.opened(work))
    say(seconds=took, rate=work.rows * 8 / GIB / took)


if __name__ == "__main__":
    main()
