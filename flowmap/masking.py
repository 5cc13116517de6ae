"""Targets as masked arrays: the rows that are not done are masked, as `numpy.ma` wants it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from flowmap.errors import told
from flowmap.job import opened_again
from flowmap.kernel import forget_cached
from flowmap.machine import is_on_network
from flowmap.storage import read_into

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from flowmap.job import Job


def masked_window(
    job: Job,
    status: Callable[[], NDArray[Any]],
    mode: Literal["r"] | None,
    offset: SupportsIndex = 0,
    shape: SupportsIndex | Sequence[SupportsIndex] | None = None,
) -> np.ma.MaskedArray[Any, Any]:
    """Return a window of a target, with the rows masked that are not done yet.

    Args:
        job: Of the target.
        status: Reads the ledger, as `Target.status`.
        mode: "r" to map it; None to read the rows that are done into memory.
        offset: The first index along the first axis.
        shape: Of the window, or None for all that follows.

    Raises:
        InvalidArgumentError, WrongTypeError: There is no such window.
        OtherJobError, NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in
            `Target.masked`.
    """
    window = job.window(offset, shape)
    first, last = (window.start, window.stop) if window.of_rows else (0, job.layout.rows)
    # The ledger before the file: on NFS what is read then is no older than what it says.
    before = status()
    done = before["state"] == "done"
    with opened_again(job.path, job.id) as (_, descriptor):
        if is_on_network(job.path):
            forget_cached(descriptor)
        if mode == "r":
            values: NDArray[Any] = job.map(descriptor, mode, window).view(np.ndarray)
        else:
            with told("cannot read the rows that are done; look at the disk", job.path):
                runs = _runs(before[done], first, last)
                values = window.read(functools.partial(read_into, descriptor), runs)
    if mode is None:  # a segment that was claimed meanwhile may be half read before, half after
        done &= before == status()
    missing = [
        (start - first, stop - first) for start, stop in _runs(before[~done], first, last)
    ]
    return _with_mask(values, missing, job.layout.axis, copy=mode is None)


def _runs(status: NDArray[Any], first: int, last: int) -> list[tuple[int, int]]:
    """Return (start, stop) of the rows of some segments that lie between two rows."""
    bounds = status[["start", "stop"]].tolist()
    clipped = ((max(start, first), min(stop, last)) for start, stop in bounds)
    return [(start, stop) for start, stop in clipped if start < stop]


def _with_mask(
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
