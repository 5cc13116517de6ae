"""The blocks of a segment, and the memory that one of them takes."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from flowmap.errors import StorageError
from flowmap.segments import Block, Segment
from flowmap.storage import buffer_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from flowmap.job import Job


def block_buffer(nbytes: int, segment: Segment) -> NDArray[np.uint8]:
    """Return zeroed memory for one block: shape (nbytes,), uint8.

    Raises:
        StorageError: There is not so much memory.
    """
    try:
        return buffer_of(nbytes)
    except (OSError, MemoryError) as error:
        message = (
            f"{segment.name}: there is no memory for a block of {nbytes} bytes; allocate the "
            "target with fewer block_rows, or use fewer workers"
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
