"""Windows of a `.npy` file: which bytes they are, mapping them, reading them.

A window is a run of consecutive indices along the first or the last axis. Along the slow axis
its bytes are one piece of the file; along the fast one there is a piece for each element of
the other axes.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import weakref
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import numpy as np

from flowmap.arguments import whole, wholes
from flowmap.errors import InvalidArgumentError, short
from flowmap.kernel import write_back
from flowmap.storage import CHUNK, EndedError, read_into
from flowmap.streams import fill_closed_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from flowmap.npy import Layout

MapMode = Literal["r", "r+", "c"]
_ACCESS: Final = {"r": mmap.ACCESS_READ, "r+": mmap.ACCESS_WRITE, "c": mmap.ACCESS_COPY}


class Pieces(NamedTuple):
    """Where the bytes of a window lie: pieces of one length at one distance.

    Attributes:
        first: The byte at which the first begins.
        length: Bytes of each.
        number: How many there are.
        step: Bytes from the beginning of one to that of the next.
    """

    first: int
    length: int
    number: int
    step: int

    @property
    def span(self) -> int:
        """Bytes from the beginning of the first to the end of the last; 0 without any bytes."""
        return (self.number - 1) * self.step + self.length if self.length and self.number else 0

    @property
    def close(self) -> bool:
        """Whether no page lies between two of them: every page of the span is needed."""
        return self.step - self.length < mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive indices along the first or the last axis of the array in a `.npy` file.

    Attributes:
        layout: Of the whole array.
        data_offset: The byte of the file at which the data begins.
        start: The first index.
        stop: The index after the last.
        axis: Which axis they are counted along; a 0-d array is its own only window, 0 to 1.
    """

    layout: Layout
    data_offset: int
    start: int
    stop: int
    axis: Literal[0, -1] = 0

    @classmethod
    def asked(
        cls, layout: Layout, data_offset: int, offset: Any, shape: Any, where: object
    ) -> Self:
        """Return the window that a user asks for by `offset` and `shape`.

        Args:
            layout: Of the whole array.
            data_offset: The byte of the file at which the data begins.
            offset: The first index along the first axis.
            shape: Of the window; None for all that follows `offset`.
            where: The name of the file, for messages.

        Raises:
            WrongTypeError: They are not whole numbers.
            InvalidArgumentError: The array has no such window.
        """
        first = whole("offset", offset)
        asked = None if shape is None else wholes("shape", shape)
        dimensions = (asked,) if isinstance(asked, int) else asked
        if not layout.shape:
            if first or dimensions:
                raise InvalidArgumentError(
                    f"offset {short(first)} and shape {short(dimensions)} are asked of "
                    f"{where}, whose shape is (): no axis to count along. Leave them out."
                )
            return cls(layout, data_offset, 0, 1)
        length, *rest = layout.shape
        if not 0 <= first <= length:
            raise InvalidArgumentError(
                f"offset is {short(first)}, but {where} has shape {layout.shape}: it counts "
                f"indices along the first axis, and can be 0 to {length}."
            )
        if dimensions is None:
            return cls(layout, data_offset, first, length)
        count = dimensions[0] if dimensions else -1
        if count < 0 or list(dimensions[1:]) != rest:
            wanted = ", ".join(map(str, ["n", *rest])) if rest else "n,"
            raise InvalidArgumentError(
                f"shape is {short(dimensions)}, but {where} has shape {layout.shape}; a window "
                f"of it has shape ({wanted}), n being 0 or more."
            )
        if first + count > length:
            raise InvalidArgumentError(
                f"A window of {short(count)} from offset {first} on would end at "
                f"{short(first + count)}, but the first axis of {where} has {length}."
            )
        return cls(layout, data_offset, first, first + count)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        axes, count = self.layout.shape, self.stop - self.start
        if not axes:
            return ()
        return (count, *axes[1:]) if self.axis == 0 else (*axes[:-1], count)

    @property
    def of_rows(self) -> bool:
        """Whether it is counted along the slow axis, in rows."""
        return len(self.layout.shape) <= 1 or self.axis == self.layout.axis

    @property
    def contiguous(self) -> bool:
        """Whether its bytes are one piece of the file."""
        return self.of_rows or self.stop - self.start == self.layout.shape[self.axis]

    @property
    def order(self) -> Literal["C", "F"]:
        """The memory order of the array."""
        return "F" if self.layout.fortran_order else "C"

    def pieces(self) -> Pieces:
        """Return where its bytes lie."""
        axes = self.layout.shape
        length, number = axes[self.axis] if axes else 1, 1
        if not self.contiguous:
            number = math.prod(axes[1:] if self.axis == 0 else axes[:-1])
        step = self.layout.nbytes // (number or 1)
        unit = step // (length or 1)  # bytes of one index within a piece
        nbytes = (self.stop - self.start) * unit
        return Pieces(self.data_offset + self.start * unit, nbytes, number, step)

    def read(
        self,
        read_at: Callable[[NDArray[np.uint8], int], int],
        runs: Iterable[tuple[int, int]] | None = None,
    ) -> NDArray[Any]:
        """Read its bytes, and no others.

        Args:
            read_at: Fills a buffer, shape (nbytes,), from a byte of the file on; returns how
                many bytes there were.
            runs: (start, stop) of the rows to read, all within the window; None for all that
                it has.

        Returns:
            An array of its own, in the order of the file; zero where nothing was read.

        Raises:
            EndedError: The file ends within the window.
        """
        pieces = self.pieces()
        make = np.empty if runs is None else np.zeros
        data = make((pieces.number, pieces.length), np.uint8)
        for part, offset in self._parts(data, runs) if pieces.span else ():
            if read_at(part, offset) < len(part):
                raise EndedError(errno.EIO, "the file ends within the window")
        return np.ndarray(self.shape, self.layout.dtype, data.data, order=self.order)

    def _parts(
        self, data: NDArray[np.uint8], runs: Iterable[tuple[int, int]] | None
    ) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """Yield what is to be read, and from which byte of the file on."""
        pieces, numbers = self.pieces(), iter(range(len(data)))
        if runs is not None and self.contiguous:
            first, row_bytes = self.start if self.of_rows else 0, self.layout.row_bytes
            for start, stop in runs:
                begin, end = (start - first) * row_bytes, (stop - first) * row_bytes
                yield data[0, begin:end], pieces.first + begin
            return
        if runs is not None:  # rows are along the other end of the axes: so many pieces each
            each = len(data) // self.layout.rows
            numbers = chain.from_iterable(range(a * each, b * each) for a, b in runs)
        yield from ((data[n], pieces.first + n * pieces.step) for n in numbers)

    def read_file(self, descriptor: int) -> NDArray[Any]:
        """Read its bytes of an open file that is long enough.

        Returns:
            As `read`.

        Raises:
            OSError: They cannot be read; `EndedError` where the file ends within them.
        """
        pieces = self.pieces()
        data = np.empty((pieces.number, pieces.length), np.uint8)
        if pieces.span:
            read_pieces(descriptor, pieces, data)
        return np.ndarray(self.shape, self.layout.dtype, data.data, order=self.order)

    def map(self, descriptor: int, mode: MapMode, filename: Any = None) -> np.memmap[Any, Any]:
        """Map its bytes: whole pages of the file, but no array element outside of it.

        The file must be long enough, and is never made longer.

        Args:
            descriptor: Of the file, open for writing where `mode` is "r+"; it may be closed
                afterwards.
            mode: "r", "r+", or "c" for a copy on write that never reaches the file.
            filename: What the array shall give as its own.

        Returns:
            The mapped array: a view of the file, strided where the window is not contiguous.

        Raises:
            OSError: It cannot be mapped.
            InvalidArgumentError: The file is not long enough any more.
        """
        pieces = self.pieces()
        before, access = pieces.first % mmap.ALLOCATIONGRANULARITY, _ACCESS[mode]
        begin, span = pieces.first - before, pieces.span
        fill_closed_streams()  # mmap duplicates the descriptor by itself
        try:
            if span:
                mapping = _Mapping(descriptor, before + span, access=access, offset=begin)
            else:  # nothing of the file is to be mapped, and no bytes would mean all of it
                before, mapping = 0, _Mapping(-1, 1, access=access)
        except ValueError as error:
            raise InvalidArgumentError(
                f"{filename} became shorter while it was being mapped. Let whoever writes it "
                "finish, and try again."
            ) from error
        mapping.pieces = pieces._replace(first=before)
        if mode == "r+" and span and pieces.number > 1 and not pieces.close:
            mapping.keep(descriptor, begin)
        strides = None if self.contiguous or not span else self.layout.strides
        array: np.memmap[Any, Any] = np.ndarray.__new__(
            np.memmap, self.shape, self.layout.dtype, mapping, before, strides, self.order
        )
        # What np.memmap.__new__ would set: it cannot map strides, and makes a file longer that
        # is too short.
        vars(array).update(_mmap=mapping, filename=filename, offset=pieces.first, mode=mode)
        return array


def read_pieces(descriptor: int, pieces: Pieces, data: NDArray[np.uint8]) -> None:
    """Read pieces of an open file; where they lie close, what is between them as well.

    Args:
        descriptor: Of the file.
        pieces: Where they lie.
        data: Takes them: shape (number, length).

    Raises:
        OSError: They cannot be read; `EndedError` where the file ends within them.
    """
    # A call for each would take longer than to read the bytes between them.
    together = max(1, CHUNK // pieces.step) if pieces.close and pieces.number > 1 else 1
    buffer = np.empty(together * pieces.step if together > 1 else 0, np.uint8)
    for number in range(0, pieces.number, together):
        part, offset = data[number : number + together], pieces.first + number * pieces.step
        read = part[0]
        if together > 1:
            read = buffer[: (len(part) - 1) * pieces.step + pieces.length]
        if read_into(descriptor, read, offset) < len(read):
            raise EndedError(errno.EIO, "the file ends within the window")
        if together > 1:
            part[:] = buffer.reshape(together, -1)[: len(part), : pieces.length]


class _Mapping(mmap.mmap):
    """A mapping that writes to disk the pages of its window, and not those between.

    Attributes:
        pieces: Of the window, counted from the beginning of the mapping.
        source: The file's descriptor, and the byte at which the mapping begins; None where
            the window is one piece.
        flusher: What to do instead where somebody else sees to the disk; None for nobody.
    """

    pieces: Pieces
    source: tuple[int, int] | None = None
    flusher: Callable[[], object] | None = None

    def keep(self, descriptor: int, begin: int) -> None:
        """Keep the file open for as long as the mapping lives, to write many pieces at once."""
        fill_closed_streams()
        kept = os.dup(descriptor)
        weakref.finalize(self, os.close, kept)
        self.source = kept, begin

    def flush(self, *span: int) -> None:
        """Return only when the window is on the disk, or the span of bytes that is given."""
        if self.flusher is None:
            self.sync(*span)
        else:
            self.flusher()

    def sync(self, *span: int) -> None:
        """Do so in any case."""
        if span or self.source is None:
            for each in [span] if span else self._spans():
                super().flush(*each)
            return
        descriptor, begin = self.source
        offset = nbytes = 0
        for offset, nbytes in self._spans():
            if not write_back(descriptor, begin + offset, nbytes):
                super().flush(offset, nbytes)
        # One sync makes all durable; one a piece would empty the disk's own cache each time.
        super().flush(offset, nbytes)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, bytes) of the pages to write: one span where no page is between."""
        first, length, number, step = self.pieces
        if not self.pieces.span:
            return
        if self.pieces.close:
            number, length = 1, self.pieces.span
        for start in range(first, first + number * step, step):
            begin = start - start % mmap.PAGESIZE
            yield begin, start - begin + length
