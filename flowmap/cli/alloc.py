"""`flowmap alloc`."""

from flowmap import sentinels
from flowmap.alloc import allocate_or_attach
from flowmap.cli.advice import how_to_fill
from flowmap.cli.exits import Exit
from flowmap.cli.output import say, say_json
from flowmap.cli.parameters import (
    Arguments,
    AsJson,
    DType,
    FillerName,
    Flag,
    Seconds,
    Segments,
    SentinelPath,
    Shape,
    Size,
    TargetPath,
    WholeNumber,
)
from flowmap.cli.picture import described
from flowmap.job import Durability
from flowmap.storage import PAGE
from flowmap.summary import Summary
from flowmap.wanted import Exist


def alloc(
    path: TargetPath,
    /,
    *,
    shape: Shape,
    dtype: DType = "<f8",
    fortran_order: Flag = False,
    segments: Segments = None,
    block_rows: WholeNumber | None = None,
    exist: Exist = "resume",
    reserve: bool = True,
    align: Size = PAGE,
    durability: Durability = "segment",
    checkpoint_seconds: Seconds = 30,
    filler: FillerName = None,
    arguments: Arguments = None,
    sentinel: SentinelPath = None,
    as_json: AsJson = False,
) -> Exit:
    """Allocate an array: one .npy file of its final size, and the records beside it.

    Everything is checked before the disk is touched. With a filler the job is pinned to it, so
    that `flowmap fill` need not be told, and refuses any other.

    Args:
        path: Of the .npy file. Its folder must exist.
        fortran_order: Whether the last axis is the slow one, whose indices are the rows.
        block_rows: Rows that a filler computes at once; about a mebibyte if left out. Give 1
            where a row takes minutes.
        exist: If the file exists already: attach to the same job, report an error, replace, or
            renew: attach to the same job and replace any other.
        reserve: Whether to reserve the disk space now, so that it cannot run out later.
        align: Bytes that the boundaries of segments are rounded to.
        durability: When data is safe from a power cut: each segment as it is done, or all at
            the end, when the array is validated.
        checkpoint_seconds: Seconds between syncs within a segment.
    """
    place = None if sentinel is None else sentinels.place_of(sentinel, path)
    target, new = allocate_or_attach(
        path,
        shape,
        dtype,
        fortran_order=fortran_order,
        segments=segments,
        block_rows=block_rows,
        exist=exist,
        reserve=reserve,
        align=align,
        durability=durability,
        checkpoint_seconds=checkpoint_seconds,
        filler=filler,
        arguments=arguments,
    )
    if place is not None:
        sentinels.write(place, target)
    summary = Summary.of(target)
    if as_json:
        say_json(summary.document() | {"new": new})
        return Exit.DONE
    done = summary.counts["done"]
    attached = f"Attached, {done} of {summary.segments} segments are done"
    say(f"{'Allocated' if new else attached}: {described(summary)}")
    if not summary.is_filled:
        say(f"Next: {how_to_fill(path, target)}")
    return Exit.DONE
