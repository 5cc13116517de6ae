"""The filler `copy`: rows of `.npy` files that are there already."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowmap.casting import check_cast, store
from flowmap.errors import (
    FlowmapError,
    ForeignFileError,
    InvalidArgumentError,
    StorageError,
    WrongTypeError,
    short,
    storage_error,
)
from flowmap.fillers import filler
from flowmap.mapping import opened_npy
from flowmap.npy import MAX_HEADER_SIZE
from flowmap.root import rooted
from flowmap.storage import EndedError, opened, read_into
from flowmap.target import open_target
from flowmap.values import by_rows, row_axis
from flowmap.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.casting import Casting
    from flowmap.npy import Layout
    from flowmap.segments import Block


@filler
def copy(
    out: NDArray[Any],
    block: Block,
    *,
    source: str | list[str],
    casting: Casting = "same_kind",
) -> None:
    """Fill with the rows of one `.npy` file, or of several, one after the other.

    Each file is opened when rows of it are wanted, and no more of it is read than they are;
    it may have the other memory order. Nothing is unpickled. Files must not change meanwhile.

    Args:
        out: Shape (rows, ...), of any dtype.
        block: The rows.
        source: The path of a file, or paths in the order of their rows: indices along the slow
            axis of the target. Relative to `FLOWMAP_ROOT`, beyond which none may lead, or else
            to the working directory. Rows beyond those of the target are left out.
        casting: Which casts to the target's dtype are allowed, as in `numpy.can_cast`. A value
            that a cast would change is refused: only floats may be rounded. "unsafe" allows any
            change.

    Raises:
        InvalidArgumentError: There are fewer rows than the target has; or rows of another
            shape; the target's dtype cannot hold a value; a file is no `.npy` file, holds
            Python objects, is cut short, lies beyond `FLOWMAP_ROOT`, or is a target that is
            not done.
        WrongTypeError: `source` holds something else than paths; or the values cannot be cast
            so.
        StorageError: A file is not there, cannot be read, or was changed meanwhile.
        DamagedJobError: A file is a target that is damaged.
    """
    if not isinstance(source, list | tuple):
        source = [source]
    rows, axis = by_rows(out, block), row_axis(out, block) if out.ndim else 0
    first = 0  # of the file, counted in all of them
    for path in source:
        file = _look(path)
        file.refuse_other_shape(out.shape, axis)
        stop = first + file.rows(axis)
        begin, end = max(first, block.start), min(stop, block.stop)
        if begin < end:
            values = file.read(axis, begin - first, end - first)
            check_cast(values, out.dtype, casting, str(file.path), sized=True)
            part = rows[begin - block.start : end - block.start]
            store(part, np.moveaxis(values, axis, 0) if out.ndim else values)
        first = stop
        if first >= block.stop:
            return
    raise InvalidArgumentError(
        f"source has {first} rows in {len(source)} files, the last of them "
        f"{short(source[-1]) if source else 'none'}, and the target has {block.stop} or more. "
        "Add the files that are missing, or allocate fewer rows."
    )


_Stamp = tuple[int, int, int, int]  # what changes when another file is put in a file's place


@dataclass(frozen=True, slots=True)
class _File:
    """The header of a `.npy` file.

    Attributes:
        path: Path of the file, links resolved.
        stamp: Of the file when its header was read.
        layout: What it holds.
        offset: The byte at which the data begins.
    """

    path: Path
    stamp: _Stamp
    layout: Layout
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self.layout.shape

    def rows(self, axis: int) -> int:
        """Return how many rows it has; 1 if it is a 0-d array."""
        return self.shape[axis] if self.shape else 1

    def refuse_other_shape(self, wanted: tuple[int, ...], axis: int) -> None:
        """Refuse rows of another shape than those of a block.

        Raises:
            InvalidArgumentError: They are.
        """
        if _without(self.shape, axis) != _without(wanted, axis):
            raise InvalidArgumentError(
                f"{self.path} has shape {self.shape}, with its rows along axis {axis}; they do "
                f"not fit a target whose blocks have shape {wanted}. Choose another file, or "
                "allocate another shape."
            )

    def read(self, axis: Literal[0, -1], start: int, stop: int) -> NDArray[Any]:
        """Read some of the rows.

        Where they lie along the fast axis of the file, they are read in as many pieces as
        there are elements in a row.

        Returns:
            Shape (..., stop - start, ...), the rows along `axis`; in the file's order.
        """
        window = Window(self.layout, self.offset, start, stop, axis)
        with self._opened() as descriptor:
            try:
                return window.read(functools.partial(read_into, descriptor))
            except EndedError as error:
                raise _changed(self.path) from error

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            # First: what is found beside it then vouches for this file, or for a later one.
            with opened(self.path) as descriptor:
                if _stamp(os.fstat(descriptor)) != self.stamp:
                    raise _changed(self.path)
                _refuse_unfinished(self.path)
                yield descriptor
        except FlowmapError:
            raise
        except OSError as error:
            raise storage_error(error, "cannot read the source", self.path) from error


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...] | None:
    """Return the shape of one row; None for that of a 0-d array, which fits no other."""
    if not shape:
        return None
    return shape[1:] if axis == 0 else shape[:-1]


def _look(path: Any) -> _File:
    """Return the header of a file, read once as long as the file is the same."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise WrongTypeError(f"source is {short(path)}; it takes the name of a .npy file.")
    where = rooted(path, follow=True)
    try:
        found = where.stat()
    except OSError as error:
        raise storage_error(error, "cannot find the source", where) from error
    except ValueError as error:
        raise InvalidArgumentError(f"source is {short(path)}, which names no file.") from error
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgumentError(f"{where} is no regular file; name a .npy file.")
    return _read_header(where, _stamp(found))


@functools.lru_cache(maxsize=1 << 16)
def _read_header(path: Path, stamp: _Stamp) -> _File:
    with opened_npy(str(path), MAX_HEADER_SIZE, follow=False) as (file, layout):
        return _File(path, stamp, layout, file.tell())


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _changed(path: Path) -> StorageError:
    message = "was changed or replaced while it was copied; let it rest, and run again"
    return StorageError(errno.EBUSY, message, str(path))


def _refuse_unfinished(path: Path) -> None:
    """Refuse a target that still has rows that nobody wrote, itself for one."""
    try:
        target = open_target(path)
    except ForeignFileError:  # any other .npy file
        return
    left = len(target.pending())
    if left:
        raise InvalidArgumentError(
            f"{path} is a target of which {left} of {len(target.segments)} segments are not "
            "done. Fill and validate it first; a target cannot be copied into itself."
        )
