"""Reading finished segments once: digests of their bytes, and what is wrong with the values.

Without a check of the user's each segment is read, hashed and looked at in a thread of its own,
in chunks that stay in the processor's cache. A check may keep state, so it gets the blocks in
order, in the calling thread; other threads read the next blocks meanwhile.
"""

from __future__ import annotations

import errno
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import xxhash

from flowmap.blocks import block_buffer, is_in_use, new_buffer
from flowmap.checks import complaint_of, first_not_finite, is_finite
from flowmap.machine import available_cpus
from flowmap.segments import Block
from flowmap.starting import starting_threads
from flowmap.stopping import refuse_if_asked
from flowmap.storage import CHUNK, read_into

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from flowmap.checks import Check
    from flowmap.job import Job
    from flowmap.segments import Segment

_AHEAD_BYTES: Final = 64 * CHUNK
"""Memory for blocks that are read ahead, unless two blocks take more."""

_NO_THREADS: Final = "Validate elsewhere"


class Finding(NamedTuple):
    """What is found of one segment.

    Attributes:
        digest: Digest of its bytes, or why they cannot be read.
        complaint: What is wrong with its values, and in which rows; None if nothing is.
    """

    digest: str | OSError
    complaint: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """How to look at the segments of an open target.

    Attributes:
        job: The job.
        target: A descriptor of its target.
        check: The user's check, if any.
        finite: Whether NaNs and infinities are something to complain of.
    """

    job: Job
    target: int
    check: Check | None
    finite: bool

    def findings(self, segments: Sequence[Segment]) -> list[Finding]:
        """Read segments, each byte once, and return what is found of each.

        Raises:
            StorageError: There is no memory for a block.
            InvalidArgumentError: The system allows no more threads.
            StoppedError: The process was asked to stop.
        """
        with starting_threads(_NO_THREADS):
            if self.check is not None:
                return list(self._checked(self.check, segments))
            with ThreadPoolExecutor(available_cpus()) as threads:
                return list(threads.map(self._inspected, segments))

    def _inspected(self, segment: Segment) -> Finding:
        """Read a segment in small chunks of whole elements."""
        digest, complaint = xxhash.xxh3_128(), None
        first, last = self._byte(segment.start), self._byte(segment.stop)
        dtype, block_bytes = self.job.layout.dtype, self._bytes(self.job.block_rows)
        step = max(CHUNK // max(dtype.itemsize, 1), 1) * max(dtype.itemsize, 1)
        buffer = block_buffer(min(step, last - first), segment)
        for offset in range(first, last, step):
            data = buffer[: last - offset]
            try:
                self._read(data, offset)
            except OSError as error:
                return Finding(error, None)
            digest.update(data.data)
            if self.finite and complaint is None:
                elements = data.view(dtype)
                if not is_finite(elements):
                    byte = offset - first + first_not_finite(elements) * dtype.itemsize
                    start = segment.start + byte // block_bytes * self.job.block_rows
                    complaint = _not_finite(self._block(segment, start))
        return Finding(digest.hexdigest(), complaint)

    def _checked(self, check: Check, segments: Iterable[Segment]) -> Iterator[Finding]:
        """Give the blocks of each segment to the check in order, until it complains."""
        for _, blocks in groupby(self._read_ahead(segments), lambda read: read.segment.index):
            digest, complaint, failure = xxhash.xxh3_128(), None, None
            for read in blocks:
                failure = failure or read.failure
                digest.update(read.data.data)
                if failure is None and complaint is None:
                    complaint = self._complaint(check, read)
            yield Finding(failure or digest.hexdigest(), complaint)

    def _complaint(self, check: Check, read: _Read) -> str | None:
        """Say what is wrong with a block; no reference to its values is kept."""
        if not read.finite:
            return _not_finite(read.block)
        values = self.job.layout.as_array(read.data, len(read.block))
        values.flags.writeable = False
        complaint = complaint_of(check, values, read.block)
        return None if complaint is None else f"{complaint} {_rows(read.block)}"

    def _read_ahead(self, segments: Iterable[Segment]) -> Iterator[_Read]:
        """Yield the blocks of segments in order, while the next ones are read.

        What is yielded is used again for a later block, once the caller asks for the next one.
        """
        longest = self._bytes(min(self.job.block_rows, self.job.layout.rows))
        ahead = max(2, min(available_cpus() + 1, _AHEAD_BYTES // max(longest, 1)))
        waiting: deque[Future[_Read]] = deque()
        with ThreadPoolExecutor(ahead - 1) as threads:
            for segment in segments:
                for start in range(segment.start, segment.stop, self.job.block_rows):
                    if len(waiting) < ahead:
                        read = _Read()
                    else:
                        read = waiting.popleft().result()
                        yield read
                    read.segment, read.block = segment, self._block(segment, start)
                    # A check may have kept the values of an earlier block.
                    if read.buffer is None or is_in_use(read.buffer):
                        read.buffer = new_buffer(longest, segment)
                    waiting.append(threads.submit(self._fill, read))
            while waiting:
                yield waiting.popleft().result()

    def _fill(self, read: _Read) -> _Read:
        """Read a block, and see whether its values are finite."""
        read.nbytes, read.finite, read.failure = self._bytes(len(read.block)), True, None
        try:
            self._read(read.data, self._byte(read.block.start))
        except OSError as error:
            read.failure = error
        else:
            if self.finite:
                read.finite = is_finite(self.job.layout.as_array(read.data, len(read.block)))
        return read

    def _read(self, data: NDArray[np.uint8], offset: int) -> None:
        refuse_if_asked()
        if read_into(self.target, data, offset) < len(data):
            raise OSError(errno.EIO, "the file ended")

    def _block(self, segment: Segment, start: int) -> Block:
        stop = min(start + self.job.block_rows, segment.stop)
        return Block(start, stop, self.job.layout.axis)

    def _bytes(self, rows: int) -> int:
        return rows * self.job.layout.row_bytes

    def _byte(self, row: int) -> int:
        """Return the byte of the file where a row begins."""
        return self.job.data_offset + self._bytes(row)


class _Read:
    """A block that was read, in memory that is used again for another."""

    segment: Segment
    block: Block
    nbytes: int
    finite: bool
    failure: OSError | None
    buffer: NDArray[np.uint8] | None = None

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes of the block."""
        assert self.buffer is not None
        return self.buffer[: self.nbytes]


def _not_finite(block: Block) -> str:
    return f"holds NaN or infinity {_rows(block)}"


def _rows(block: Block) -> str:
    return f"in rows {block.start} to {block.stop}"
