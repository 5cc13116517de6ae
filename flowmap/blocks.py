"""The blocks of a segment, and the memory that one of them takes."""

from __future__ import annotations

import errno
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from flowmap.errors import StorageError
from flowmap.segments import Block, Segment
from flowmap.storage import CHUNK, buffer_of
from flowmap.wording import option

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from flowmap.job import Job


_LONGEST_KEPT: Final = 16 * CHUNK
"""Bytes that a thread keeps at most between two segments."""


class _Kept(threading.local):
    """What a thread had for the segment before, if anything."""

    buffer: NDArray[np.uint8] | None = None


_KEPT: Final = _Kept()


def block_buffer(nbytes: int, segment: Segment) -> NDArray[np.uint8]:
    """Return memory for one block, whatever was in it: shape (nbytes,), uint8.

    A thread gets what it had for the segment before, if nobody else has it any more: to touch
    the pages of new memory takes as long as a cheap filler does (measured).

    Raises:
        StorageError: There is not so much memory.
    """
    buffer = _KEPT.buffer
    if buffer is None or len(buffer) < nbytes or is_in_use(buffer):
        buffer = new_buffer(nbytes, segment)
        if nbytes <= _LONGEST_KEPT:
            _KEPT.buffer = buffer
    return buffer[:nbytes]


def is_in_use(buffer: NDArray[np.uint8]) -> bool:
    """Return whether a filler kept its block, or is calling from within: views share a base."""
    return sys.getrefcount(buffer.base) > 2  # noqa: PLR2004 -- of the buffer and of this call


def new_buffer(nbytes: int, segment: Segment) -> NDArray[np.uint8]:
    """Return zeroed memory: shape (nbytes,), uint8.

    Raises:
        StorageError: There is not so much memory.
    """
    try:
        return buffer_of(nbytes)
    except (OSError, MemoryError) as error:
        message = (
            f"{segment.name}: there is no memory for a block of {nbytes} bytes; allocate the "
            f"target with fewer {option('block_rows')}, or use fewer workers"
        )
        raise StorageError(errno.ENOMEM, message) from error


def blocks_of(
    job: Job, segment: Segment, first: int
) -> Iterator[tuple[Block, NDArray[Any], NDArray[np.uint8]]]:
    """Yield each block from row `first` on, its zeroed array and the bytes under it."""
    layout = job.layout
    row_bytes = layout.row_bytes
    buffer = block_buffer(min(job.block_rows, segment.rows) * row_bytes, segment)
    for start in range(first, segment.stop, job.block_rows):
        block = Block(start, min(start + job.block_rows, segment.stop), layout.axis)
        data = buffer[: len(block) * row_bytes]
        data.fill(0)
        yield block, layout.as_array(data, len(block)), data
