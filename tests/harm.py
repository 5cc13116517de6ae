"""What the tests of damage share: small jobs, files harmed, and what is believed after it."""

from __future__ import annotations

import contextlib
import json
import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from support import damage, rows, states

import flowmap
from flowmap.claims import Claim
from flowmap.errors import FlowmapError
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.segments import Block
    from flowmap.target import Target

ADVICE = "exist='overwrite'"
"""What the message of every damage that flowmap cannot repair ends with."""

COMPUTED: list[int] = []
"""The rows that `traced` has computed."""


@flowmap.filler
def traced(out: NDArray[Any], block: Block) -> None:
    """Fill like `support.ramp`, and note which rows."""
    COMPUTED.extend(range(block.start, block.stop))
    out[...] = rows(block)


def small_job(folder: Path, segments: int = 4, **options: Any) -> Target:
    """Return a target of ten rows a segment, all of it done."""
    target = flowmap.allocate(
        folder / "a.npy", 10 * segments, "<f8", segments=segments, block_rows=3, **options
    )
    for segment in target.segments:
        flowmap.fill_segment(segment, traced)
    return target


class CutShortError(Exception):
    """Why a block ends early."""


def weathered_job(folder: Path) -> Target:
    """Return a target whose records are of every kind: many attempts, and all states."""
    target = small_job(folder, 8)
    segments = target.segments
    damage(target, 1)
    flowmap.validate(target)
    flowmap.reset(target, 2)
    for _ in range(10):  # until every slot of the page is used
        flowmap.reset(target, 3)
        flowmap.fill_segment(segments[3], traced)
    with target.job.ledger(write=True) as ledger:  # killed while it was replaced
        record = ledger.read(4, segments[4].start, segments[4].stop)
        Claim(ledger, record, record.work, state="running", rows_done=0, digest="")
    damage(target, 4)
    with (
        contextlib.suppress(CutShortError),
        flowmap.open_segment(segments[5], replace=True) as out,
    ):
        out[...] = 1
        raise CutShortError
    flowmap.reset(target, [6, 7])
    with target.job.ledger(write=True) as ledger:
        os.pwrite(ledger._descriptor, bytes(PAGE), ledger._offset + 7 * PAGE)  # never begun

    def half(out: NDArray[Any], block: Block) -> None:
        if block.start > segments[6].start:
            raise CutShortError
        traced(out, block)

    with contextlib.suppress(FlowmapError):
        flowmap.fill_segment(segments[6], half)
    expected = ["done", "damaged", "pending", "done", "running", "failed", "failed", "pending"]
    assert states(target) == expected
    return target


def some(numbers: Iterable[int], most: int | None, always: Iterable[int] = ()) -> list[int]:
    """Return all the numbers, or a sample of so many, the same at each run, besides some."""
    every = list(numbers)
    if most is None or most >= len(every):
        return every
    return sorted({*random.Random(0).sample(every, most), *always})


def telling_bits(file: Path) -> list[int]:
    """Return the bits of a JSON file whose flip changes what it says.

    The last digit of a time may not: another that is nearest to the same number.
    """
    text = bytearray(file.read_bytes())
    document, found = json.loads(text), []
    for bit in range(len(text) * 8):
        text[bit // 8] ^= 1 << bit % 8
        try:
            same = json.loads(text) == document
        except ValueError:
            same = False
        text[bit // 8] ^= 1 << bit % 8
        if not same:
            found.append(bit)
    return found


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Flip one bit of a file for a block."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        (byte,) = os.pread(descriptor, 1, bit // 8)
        os.pwrite(descriptor, bytes([byte ^ 1 << bit % 8]), bit // 8)
        yield
        os.pwrite(descriptor, bytes([byte]), bit // 8)
    finally:
        os.close(descriptor)


def refused(
    call: Callable[[], object], *kinds: type[BaseException], advice: str = ADVICE
) -> str:
    """Say how a call fails to refuse, with an error of these kinds that gives advice; or ""."""
    try:
        call()
    except kinds as error:
        return "" if advice in str(error) else f"says only: {error}"
    except BaseException as error:  # noqa: BLE001 -- it is what is looked for
        return f"raises {type(error).__name__}: {error}"
    return "is not refused"


def pages(target: Target) -> NDArray[np.uint8]:
    """Return the ledger as it is now: a row of bytes for each segment."""
    ledger = np.fromfile(Sidecar.of(target.path).ledger, np.uint8)
    return ledger[-len(target.segments) * PAGE :].reshape(-1, PAGE)


def untrue(target: Target) -> list[int]:
    """Return the segments that the ledger calls done although the file holds other bytes."""
    status, content = target.status(), target.path.read_bytes()
    row, first = target.job.layout.row_bytes, target.job.data_offset
    return [
        segment.index
        for segment in target.segments
        if status["state"][segment.index] == "done"
        and status["digest"][segment.index]
        != xxhash.xxh3_128_hexdigest(
            content[first + segment.start * row : first + segment.stop * row]
        )
    ]


def stamps(target: Target) -> dict[str, tuple[int, ...]]:
    """Return what tells of any change of the target's files: inode, size, times."""
    files = [target.path, *Sidecar.of(target.path).folder.iterdir()]
    found = {file.name: file.stat() for file in files}
    return {
        name: (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for name, stat in found.items()
    }
