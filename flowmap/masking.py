"""Masks of whole rows, as `numpy.ma` wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def with_mask(
    values: NDArray[Any], done: NDArray[np.bool], axis: Literal[0, -1], *, copy: bool
) -> np.ma.MaskedArray[Any, Any]:
    """Mask the rows that are not done.

    Args:
        values: Rows along `axis`, or a 0-d array, which is one row.
        done: Shape (rows,).
        axis: The axis of the rows.
        copy: Whether to make an array of its own, zero where it is masked; nothing but the rows
            that are done is read. Otherwise the mask cannot be written to: all elements of a
            row share what it says of the row.

    Returns:
        An array of the shape and dtype of `values`.
    """
    mask: NDArray[Any] = np.zeros(len(done), np.ma.make_mask_descr(values.dtype))
    mask[~done] = True  # of a record, each field
    if not values.shape:
        mask = mask.reshape(())
    elif axis == 0:
        mask = mask.reshape(-1, *[1] * (values.ndim - 1))
    mask = np.broadcast_to(mask, values.shape)
    if copy:
        values, mask = _copied(values, done, axis), mask.copy()
    # keep_mask would make and fill another mask of a record.
    return np.ma.MaskedArray(values, mask, keep_mask=False)


def _copied(values: NDArray[Any], done: NDArray[np.bool], axis: Literal[0, -1]) -> NDArray[Any]:
    copied = np.zeros_like(values, subok=False)
    if not values.shape:
        if done[0]:
            copied[()] = values
        return copied
    to, source = np.moveaxis(copied, axis, 0), np.moveaxis(values, axis, 0)
    # Where a run of rows that are done begins, and where it ends.
    edges = np.flatnonzero(np.diff(done, prepend=False, append=False))
    for start, stop in edges.reshape(-1, 2):
        to[start:stop] = source[start:stop]
    return copied
