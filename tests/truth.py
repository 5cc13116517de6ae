"""What the ledger says of a target that `ramp` fills, held against the disk."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from support import data_bytes, rows

import flowmap
from flowmap.job import read_job
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from flowmap.records import SegmentRecord
    from flowmap.segments import Block


def note(log: str | os.PathLike[str], first: int) -> None:
    """Note that rows from `first` on were computed, in one call that is not traced."""
    Path(log, secrets.token_hex(8)).symlink_to(str(first))


@flowmap.filler(volatile=("log",))
def noted(out: NDArray[Any], block: Block, *, log: str) -> None:
    """Fill like `ramp`, and note each block in a folder."""
    note(log, block.start)
    out[...] = rows(block)


def computed(log: Path) -> list[int]:
    """Return the first row of each block that was noted, and forget them."""
    links = list(log.iterdir())
    numbers = sorted(int(link.readlink().name) for link in links)
    for link in links:
        link.unlink()
    return numbers


def oracle(path: Path) -> NDArray[Any]:
    """Return what the target of a job shall hold."""
    values: NDArray[Any] = np.sqrt(np.arange(read_job(path).layout.rows, dtype=float))
    return values


def records(path: Path) -> list[SegmentRecord]:
    """Return what the ledger says of each segment."""
    job = read_job(path)
    with job.ledger() as ledger:
        return [ledger.read(s.index, s.start, s.stop) for s in job.segments()]


def lies(
    path: Path, unsynced: list[tuple[int, int]] | None = None, spoilt: int | None = None
) -> list[str]:
    """Name whatever the ledger calls done, or durable, that is not so.

    Args:
        path: Of the target.
        unsynced: The bytes of the file, as (first, last), of which no sync is known.
        spoilt: A segment that was damaged on purpose.
    """
    found, known = [], records(path)
    offset = read_job(path).data_offset
    right = np.frombuffer(data_bytes(path, offset)) == oracle(path)
    for record in known:
        first = offset + 8 * record.start
        last = first + 8 * record.rows_durable
        if record.state == "done" and record.rows_durable < record.stop - record.start:
            found.append(f"segment {record.index} is done and not durable")
        if (
            record.index != spoilt
            and not right[record.start : record.start + record.rows_durable].all()
        ):
            found.append(f"segment {record.index} is not what the ledger vouches for")
        if any(max(begin, first) < min(end, last) for begin, end in unsynced or ()):
            found.append(f"segment {record.index} is called durable and was not synced")
    if Sidecar.of(path).seal.exists() and {record.state for record in known} != {"done"}:
        found.append("there is a seal on what is not done")
    return found


def missing(path: Path, *, mapped: bool = False) -> list[int]:
    """Return the first row of each block that is to be computed, as the ledger is now.

    Args:
        path: Of the target.
        mapped: Whether segments are done as a whole, by `open_segment`.
    """
    job, left = read_job(path), list[int]()
    right = np.frombuffer(data_bytes(path, job.data_offset)) == oracle(path)
    for record in records(path):
        if record.state in ("done", "written"):
            continue
        kept = record.rows_done
        if record.state == "damaged" and not right[record.start : record.stop].all():
            kept = 0
        step = job.layout.rows if mapped else job.block_rows
        left += range(record.start + (0 if mapped else kept), record.stop, step)
    return left


def not_completed(path: Path, before: list[SegmentRecord]) -> list[str]:
    """Name what is not as it shall be after a last run of a job.

    Args:
        path: Of the target.
        before: What the ledger said before that run.
    """
    found = [
        f"segment {was.index} was done again"
        for was, now in zip(before, records(path), strict=True)
        if was.state == "done" and (now.attempt, now.digest) != (was.attempt, was.digest)
    ]
    report = flowmap.validate(path)
    found += [*report.problems, *report.notes, *([] if report.sealed else ["no seal"])]
    if data_bytes(path, read_job(path).data_offset) != oracle(path).tobytes():
        found.append("not the bytes of the oracle")
    return found
