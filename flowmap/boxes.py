"""Boxes of an array in a file: elements at chosen indices along each axis, read and not mapped.

Some file systems have no shared mappings, FUSE with direct I/O and 9p for two.
"""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from flowmap.windows import Pieces, read_pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from flowmap.npy import Layout


def read_part(layout: Layout, data_offset: int, descriptor: int, index: Any) -> NDArray[Any]:
    """Read a part of the array in an open file.

    Of slices, numbers and lists of numbers only the box is read that they lie in; of any other
    index the whole array.

    Args:
        layout: Of the whole array.
        data_offset: The byte of the file at which the data begins.
        descriptor: Of the file, which must be long enough.
        index: As NumPy indexes the whole array.

    Returns:
        The part, in memory of its own.

    Raises:
        OSError: It cannot be read; `EndedError` where the file ends within it.
    """
    axes = layout.shape
    indices = index if isinstance(index, tuple) else (index,)
    boxed = [_boxed(each, length) for each, length in zip(indices, axes, strict=False)]
    known = [each for each in boxed if each is not None]
    if len(known) < len(indices):
        known = []
    chosen = [box for box, _ in known] + [range(length) for length in axes[len(known) :]]
    box = read_box(layout, data_offset, descriptor, chosen)
    if known:
        index = tuple(rest for _, rest in known)
        if all(isinstance(rest, slice) and rest == slice(None) for rest in index):
            return box
    # The dtype, since an index of a single element gives a scalar, of which it is guessed.
    return np.array(box[index], box.dtype)


def _boxed(index: Any, length: int) -> tuple[range, Any] | None:
    """Return the ascending indices to read along an axis, and how to index what was read.

    Returns:
        None where the index is not a slice, a number in bounds or a list of such numbers.
    """
    if isinstance(index, slice):
        chosen = range(length)[index]
        return (
            (chosen, slice(None)) if chosen.step > 0 else (chosen[::-1], slice(None, None, -1))
        )
    numbers = np.asarray(index)
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1 or not numbers.size:
        return None
    numbers = np.where(numbers < 0, numbers + length, numbers)
    first, last = int(numbers.min()), int(numbers.max())
    if not 0 <= first <= last < length:
        return None
    return range(first, last + 1), numbers - first if numbers.ndim else 0


def read_box(
    layout: Layout, data_offset: int, descriptor: int, chosen: Sequence[range]
) -> NDArray[Any]:
    """Read the elements at some indices along each axis.

    Args:
        layout: Of the whole array.
        data_offset: The byte of the file at which the data begins.
        descriptor: Of the file, which must be long enough.
        chosen: Along each axis, ascending and in bounds.

    Raises:
        OSError: As in `read_part`.
    """
    axes, strides = layout.shape, layout.strides
    shape = tuple(len(each) for each in chosen)
    order = list(range(len(axes)))  # from the slowest axis to the fastest
    if layout.fortran_order:
        order.reverse()
    first, length = data_offset, layout.dtype.itemsize
    # As many of the fastest axes as make one run of bytes.
    run_on = True
    while order and run_on and chosen[order[-1]].step == 1:
        axis = order.pop()
        first, length = first + chosen[axis].start * strides[axis], length * shape[axis]
        run_on = shape[axis] == axes[axis]
    # As many of those before as make runs at one distance.
    number, step, run_on = 1, length, True
    while order and (number == 1 or (run_on and chosen[order[-1]].step == 1)):
        axis = order.pop()
        first += chosen[axis].start * strides[axis]
        if number == 1:
            step = strides[axis] * chosen[axis].step
        number, run_on = number * shape[axis], chosen[axis] == range(axes[axis])
    data = np.empty((math.prod(shape[axis] for axis in order), number, length), np.uint8)
    if data.size:
        places = itertools.product(*(chosen[axis] for axis in order))
        for part, place in zip(data, places, strict=True):
            start = first + sum(map(operator.mul, place, (strides[axis] for axis in order)))
            read_pieces(descriptor, Pieces(start, length, number, step), part)
    return np.ndarray(shape, layout.dtype, data, order="F" if layout.fortran_order else "C")
