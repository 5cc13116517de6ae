"""Masks of whole rows, as `numpy.ma` wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def with_mask(
    values: NDArray[Any],
    missing: Iterable[tuple[int, int]],
    axis: Literal[0, -1],
    *,
    copy: bool,
) -> np.ma.MaskedArray[Any, Any]:
    """Mask the rows that are missing.

    Args:
        values: Rows along `axis`, or a 0-d array, which is one row.
        missing: (start, stop) of each run of them.
        axis: The axis of the rows.
        copy: Whether the mask shall have elements of its own. Otherwise all elements of a row
            share what it says of the row, and it cannot be written to.

    Returns:
        A masked array of the values.
    """
    rows = values.shape[axis] if values.shape else 1
    mask: NDArray[Any] = np.zeros(rows, np.ma.make_mask_descr(values.dtype))
    for start, stop in missing:
        mask[start:stop] = True  # of a record, each field
    if not values.shape:
        mask = mask.reshape(())
    elif axis == 0:
        mask = mask.reshape(-1, *[1] * (values.ndim - 1))
    mask = np.broadcast_to(mask, values.shape)
    # keep_mask would make and fill another mask of a record.
    return np.ma.MaskedArray(values, mask.copy() if copy else mask, keep_mask=False)
