"""Vik's use case of 2011: one big record array on disk, many processes that each map a part.

The table is the exact period of a pendulum by its amplitude: T = 2 pi sqrt(L / g) / M, where M
is the arithmetic-geometric mean of 1 and cos(amplitude / 2) (Gauss; see C. Carvalhaes and P.
Suppes, Am. J. Phys. 76 (2008) 1150-1154). Each process computes some rows, in the file itself.

Twice: by `open_memmap(..., offset=)` alone, which records nothing; and by `open_segment`, after
which it is known what is done, so that the script goes on after a crash, and the result is
proved. Both give the same rows.

`python flows/mapped_segments.py` runs both into `results/`.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import flowmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

ROW = np.dtype([("amplitude", "<f8"), ("period", "<f8"), ("means", "<f8", (6,))])
"""Amplitude in radians, period in seconds, and the means from step to step."""

LENGTH = 1.0  # m
GRAVITY = 9.80665  # m/s2, the standard acceleration (CGPM 1901)
RESULTS = Path("results")

# Not fork, which copies a process while its threads may hold locks.
PROCESSES = multiprocessing.get_context("spawn")


def compute(out: NDArray[Any], start: int, rows: int) -> None:
    """Fill rows of the table.

    Args:
        out: Shape (n,), dtype ROW: the rows from `start` on.
        start: The first one's number.
        rows: How many the whole table has: amplitudes from 0 to just below pi.
    """
    out["amplitude"] = np.pi * np.arange(start, start + len(out)) / rows
    high, low = np.ones(len(out)), np.cos(out["amplitude"] / 2)
    for step in range(out["means"].shape[1]):
        high, low = (high + low) / 2, np.sqrt(high * low)
        out["means"][:, step] = high
    out["period"] = 2 * np.pi * np.sqrt(LENGTH / GRAVITY) / high


def map_window(path: Path, start: int, stop: int, rows: int) -> None:
    """Fill a window of the file: what each process of the first way does."""
    window = flowmap.open_memmap(path, "r+", offset=start, shape=(stop - start,))
    compute(window, start, rows)
    window.flush()


def map_segment(segment: flowmap.Segment, rows: int) -> None:
    """Fill a segment of the target: what each process of the second way does."""
    with flowmap.open_segment(segment) as out:
        compute(out, segment.start, rows)


def in_processes(function: Callable[..., None], calls: Iterable[tuple[Any, ...]]) -> None:
    """Call a function in a process for each tuple of arguments, and wait for all."""
    processes = [PROCESSES.Process(target=function, args=arguments) for arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(processes)} processes failed: run it again")


def by_windows(path: Path, rows: int, processes: int) -> None:
    """Make the file, then let each process map its window of it."""
    flowmap.open_memmap(path, "w+", ROW, (rows,))
    edges = [rows * number // processes for number in range(processes + 1)]
    windows = itertools.pairwise(edges)
    in_processes(map_window, ((path, start, stop, rows) for start, stop in windows))


def by_segments(path: Path, rows: int, processes: int) -> flowmap.ValidationReport:
    """Allocate the target, let each process open a segment that is not done, and prove it."""
    target = flowmap.allocate(path, rows, ROW, segments=processes)
    pending = target.pending()
    print(f"{len(pending)} of {len(target.segments)} segments to fill in {path}")
    in_processes(map_segment, ((segment, rows) for segment in pending))
    report = flowmap.validate(target)
    report.raise_if_bad()
    return report


def main() -> None:
    """Run both ways from the command line, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    if not 1 <= options.processes <= options.rows:
        parser.error("--processes takes 1 or more, and each needs a row")
    options.folder.mkdir(parents=True, exist_ok=True)
    plain, proved = options.folder / "pendulum_windows.npy", options.folder / "pendulum.npy"
    try:
        by_windows(plain, options.rows, options.processes)
        print(by_segments(proved, options.rows, options.processes))
    except flowmap.FlowmapError as error:  # other --rows than last time, for one
        raise SystemExit(str(error)) from error
    same = np.array_equal(np.load(plain, mmap_mode="r"), np.load(proved, mmap_mode="r"))
    print(f"{plain} {'has the same rows' if same else 'DIFFERS'}")


if __name__ == "__main__":
    main()
