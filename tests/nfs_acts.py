"""What processes do on the hosts of `nfs_hosts`, called by name from `nfs_plays`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from nfs_hosts import pause

import flowmap
import flowmap.lease
from flowmap.kernel import _LIBC
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

SEGMENTS: Final = 4
BLOCKS: Final = 4  # of a segment
BLOCK_ROWS: Final = PAGE // 8
SEGMENT_ROWS: Final = BLOCKS * BLOCK_ROWS
ROWS: Final = SEGMENTS * SEGMENT_ROWS

_CHANGES: Final = (
    *("open", "pwrite", "fdatasync", "fsync", "ftruncate", "mkdir", "rmdir"),
    *("rename", "replace", "unlink", "link", "chmod", "fchmod", "setxattr"),
)
"""The calls by which flowmap changes a disk, and that by which it opens a file."""

_pauses: set[int] = set()
_fails: set[int] = set()


@flowmap.filler
def numbers(out: NDArray[Any], block: flowmap.Block) -> None:
    """Number the rows from 1 on; pause or fail before the rows that `at` was told."""
    if block.start in _pauses:
        pause(f"row {block.start}")
    if block.start in _fails:
        raise RuntimeError("this block fails")
    rows = out if out.dtype.names is None else out["n"]
    rows[...] = truth(block.start, block.stop)


def truth(start: int, stop: int) -> NDArray[Any]:
    """Return what `numbers` fills into some rows."""
    return np.arange(start + 1, stop + 1)


def at(pauses: Iterable[int] = (), fails: Iterable[int] = ()) -> None:
    """Let `numbers` pause, or fail, before these rows in this process."""
    _pauses.clear()
    _pauses.update(pauses)
    _fails.clear()
    _fails.update(fails)


def allocate(path: Path, **changes: Any) -> str:
    """Allocate the job of the plays, or one that differs; return its id."""
    job: dict[str, Any] = {
        "shape": ROWS,
        "dtype": "<i8",
        "segments": (SEGMENT_ROWS,) * SEGMENTS,
        "block_rows": BLOCK_ROWS,
    }
    return flowmap.allocate(path, **(job | changes)).id


def fill(path: Path, *indices: int) -> None:
    """Fill some segments, or all that are pending."""
    target = flowmap.open_target(path)
    for segment in [target.segments[i] for i in indices] or target.pending():
        flowmap.fill_segment(segment, numbers)


def write(path: Path, *indices: int) -> None:
    """Write to some segments, or all that are pending, what `numbers` fills."""
    target = flowmap.open_target(path)
    for segment in [target.segments[i] for i in indices] or target.pending():
        flowmap.write_segment(segment, truth(segment.start, segment.stop))


def store(path: Path, *indices: int) -> None:
    """Store it through mappings."""
    target = flowmap.open_target(path)
    for segment in [target.segments[i] for i in indices] or target.pending():
        with flowmap.open_segment(segment) as out:
            out[...] = truth(segment.start, segment.stop)


def run(path: Path, name: str) -> int:
    """Fill a job as a run, which leases it; return how many segments it filled."""
    return len(flowmap.fill(path, numbers, executor="threads", workers=1, name=name))


def validate(path: Path) -> list[str]:
    """Validate a job, which seals it; return what is wrong."""
    report = flowmap.validate(path)
    return [] if report.ok and report.sealed else [str(report), *report.problems]


def make(path: Path, **changes: Any) -> str:
    """Make a whole job: allocated, filled and sealed; return its id."""
    job = allocate(path, **changes)
    fill(path)
    problems = validate(path)
    assert not problems, problems
    return job


def save(path: Path) -> None:
    """Save an array that flowmap knows nothing of."""
    with path.open("wb") as file:
        np.save(file, truth(0, ROWS))


def is_absent(path: Path) -> bool:
    """Look for a target, and say whether there is none."""
    try:
        flowmap.open_target(path)
    except FileNotFoundError:
        return not Sidecar.of(path).folder.exists()
    return False


def look_for_lease(path: Path) -> None:
    """Look for the lease of a job."""
    flowmap.lease.holder(flowmap.open_target(path).job)


def bounds(path: Path, **job: Any) -> list[int]:
    """Allocate a job; return the bytes of the file at which one segment ends and one begins."""
    target = flowmap.allocate(path, **job)
    data = target.job.data_offset
    return [data + s.start * target.dtype.itemsize for s in target.segments[1:]]


def standing(path: Path) -> tuple[int, str]:
    """Return how many attempts there were at the first segment, and its state."""
    record = flowmap.open_target(path).status()[0]
    return int(record["attempt"]), str(record["state"])


def hold_ledger(path: Path, *, to_write: bool) -> None:
    """Pause with the ledger of a job open."""
    with flowmap.open_target(path).job.ledger(write=to_write):
        pause("with the ledger open")


def clean(path: Path) -> list[str]:
    """Clean a job; return the folders that are said to be removed."""
    from flowmap.cleaning import clean as remove_records  # noqa: PLC0415 -- the others are public

    return [str(folder) for folder in remove_records(path)]


def shorten_leases() -> None:
    """Let leases hold for seconds in this process."""
    flowmap.lease.REFRESH, flowmap.lease.TERM = 1.0, 15.0  # type: ignore[misc]


def set_clock(ahead: float) -> None:
    """Let the clock of this process be ahead by so many seconds."""
    real = time.time
    time.time = lambda: real() + ahead


def sync(folder: Path) -> None:
    """Let this host write what it has cached of a mount."""
    descriptor = os.open(folder, os.O_RDONLY)
    _LIBC.syncfs(descriptor)
    os.close(descriptor)


def lies(path: Path) -> list[str]:
    """Read a job in each way there is; return where rows that count as done are wrong."""
    wrong = []
    target = flowmap.open_target(path)
    expected = truth(0, len(target.asarray()))
    status = target.status()
    done = np.zeros(len(expected), bool)
    for record in status[status["state"] == "done"]:
        done[record["start"] : record["stop"]] = True
    if not np.array_equal(target.asarray()[done], expected[done]):
        wrong.append("asarray() has wrong rows in segments that are done")
    for how, array in (
        ("masked()", target.masked()),
        ("load(masked=True)", flowmap.load(path, masked=True)),
    ):
        shown = ~np.ma.getmaskarray(array)
        if not np.array_equal(array.data[shown], expected[shown]):
            wrong.append(f"{how} shows wrong rows")
        if (done & ~shown).any():
            wrong.append(f"{how} masks rows that are done")
    return wrong


def stepped(step: int | None, do: Callable[..., Any], *given: Any, of: tuple[str, ...]) -> int:
    """Do something, and pause before one of its calls.

    Args:
        step: Before which, from 0; None for none.
        do: What.
        given: What it is given.
        of: The names of the calls that count, in `os`.

    Returns:
        How many of them there were.
    """
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*of_it: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == step:
                pause(f"call {step}")
            return real(*of_it, **named)

        return call

    for name in of:
        setattr(os, name, counted(getattr(os, name)))
    do(*given)
    return count


def at_a_write(step: int | None, do: Callable[..., Any], *given: Any) -> int:
    """Do something, and pause before one of its writes; return how many there were."""
    return stepped(step, do, *given, of=("pwrite",))


def at_a_change(step: int | None, do: Callable[..., Any], *given: Any) -> int:
    """Do something, and pause before one of its changes of the disk; return how many."""
    return stepped(step, do, *given, of=_CHANGES)
