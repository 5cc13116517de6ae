"""The filler `copy`: rows of `.npy` files that are there already."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowmap.casting import check_cast, store
from flowmap.errors import (
    FlowmapError,
    ForeignFileError,
    InvalidArgumentError,
    StorageError,
    short,
    storage_error,
)
from flowmap.filenames import check_filename
from flowmap.mapping import opened_npy
from flowmap.marks import filler
from flowmap.npy import MAX_HEADER_SIZE
from flowmap.root import LIMITS, Limits, rooted
from flowmap.sidecar import Sidecar
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
    it may have the other memory order. Nothing is unpickled. Files must not change during a
    run: one that was replaced is refused.

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
            Python objects, is cut short, lies beyond `FLOWMAP_ROOT`, or is a target whose rows
            are not done.
        WrongTypeError: `source` holds something else than paths; or the values cannot be cast
            so.
        StorageError: A file is not there, cannot be read, or was changed meanwhile.
        DamagedJobError: A file is a target that is damaged.
    """
    rows, axis = by_rows(out, block), row_axis(out, block) if out.ndim else 0
    for first, file in _sources(source).holding(block, out.shape, axis):
        begin, end = max(first, block.start), min(first + file.rows(axis), block.stop)
        values = file.read(axis, begin - first, end - first)
        check_cast(values, out.dtype, casting, str(file.path), sized=True)
        part = rows[begin - block.start : end - block.start]
        store(part, np.moveaxis(values, axis, 0) if out.ndim else values)


class _Sources:
    """The files of an argument `source`: which of their rows is which row of the target.

    Files are looked at in their order, as far as rows are wanted, and each once: the rows of a
    block are in one file or two, and the files before need no second look. Where two threads
    look at one file, the first look counts for both: no lock, which a fork could leave locked.

    Args:
        source: The argument.
    """

    def __init__(self, source: str | list[str]) -> None:
        self._paths = source if isinstance(source, list | tuple) else [source]
        self._files: dict[int, _File] = {}
        self._firsts = {0: 0}  # the rows in the files before each

    def holding(
        self, block: Block, shape: tuple[int, ...], axis: Literal[0, -1]
    ) -> Iterator[tuple[int, _File]]:
        """Yield each file with rows of a block, after the number of rows before the file.

        Args:
            block: The rows.
            shape: Shape of the block.
            axis: The axis of the files along which the rows are.

        Raises:
            InvalidArgumentError: The files have fewer rows, or rows of another shape.
        """
        known, roots = len(self._firsts) - 1, Limits.current().roots
        while self._firsts[known] < block.stop and known < len(self._paths):
            file = self._files.setdefault(known, _look(self._paths[known], roots))
            file.check_shape(shape, axis)
            self._firsts[known + 1] = self._firsts[known] + file.rows(axis)
            known += 1
        rows = self._firsts[known]
        if rows < block.stop:
            last = short(self._paths[-1]) if self._paths else "none"
            raise InvalidArgumentError(
                f"source has {rows} rows in {len(self._paths)} files, the last of them {last}, "
                f"and the target has {block.stop} or more. Add the files that are missing, or "
                "allocate fewer rows."
            )
        numbers, first_of = range(known + 1), self._firsts.__getitem__
        begin = bisect_right(numbers, block.start, key=first_of) - 1
        end = bisect_left(numbers, block.stop, key=first_of)
        for number in range(begin, end):
            if self._files[number].rows(axis):
                yield self._firsts[number], self._files[number]


class _Same:
    """An object as a key: equal to itself only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def _sources(source: str | list[str]) -> _Sources:
    """Return the files of a run, each looked at once in this process.

    What was found belongs to the run: the next may find other files at the same paths. Each
    `Work` has a `Limits` of its own, which is set while its filler runs, and tells them apart.
    """
    run = LIMITS.get(None)
    return _Sources(source) if run is None else _sources_of(_Same(run), _Same(source))


@functools.lru_cache(maxsize=16)
def _sources_of(_run: _Same, source: _Same) -> _Sources:
    return _Sources(source.value)


_Stamp = tuple[int, int, int, int]  # what changes when another file is put in a file's place


@dataclass(frozen=True, slots=True)
class _File:
    """The header of a `.npy` file.

    Attributes:
        name: Name of the file, as it was given.
        path: Path of the file when its header was read, links resolved; for messages.
        stamp: Of the file when its header was read.
        layout: What it holds.
        offset: The byte at which the data begins.
    """

    name: str
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

    def check_shape(self, wanted: tuple[int, ...], axis: int) -> None:
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
        with self._opened(window) as descriptor:
            try:
                return window.read(functools.partial(read_into, descriptor))
            except EndedError as error:
                raise _changed(self.path) from error

    @contextlib.contextmanager
    def _opened(self, window: Window) -> Iterator[int]:
        path = rooted(self.name, follow=True)  # where the folders lead by now
        try:
            # First: what is found beside it then vouches for this file, or for a later one.
            with opened(path) as descriptor:
                if _stamp(os.fstat(descriptor)) != self.stamp:
                    raise _changed(path)
                _check_finished(path, window)
                yield descriptor
        except FlowmapError:
            raise
        except OSError as error:
            raise storage_error(error, "cannot read the source", path) from error


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...] | None:
    """Return the shape of one row; None for that of a 0-d array, which fits no other."""
    if not shape:
        return None
    return shape[1:] if axis == 0 else shape[:-1]


def _look(path: Any, roots: tuple[str, ...]) -> _File:
    """Return the header of a file, read once as long as the file is the same.

    Args:
        path: The path, as it was given.
        roots: The folders that the file must be in.
    """
    name, stamp = check_filename(path, "source"), None
    with contextlib.suppress(OSError):  # which the other look tells in full
        stamp = _stamp(os.stat(os.path.join(*roots[:1], name)))  # noqa: PTH116, PTH118 -- fast
    return _read_header(name, roots, stamp)


@functools.lru_cache(maxsize=1 << 16)
def _read_header(name: str, _roots: tuple[str, ...], stamp: _Stamp | None) -> _File:
    """Read the header of a file that has a stamp, and may be read within some folders."""
    path = rooted(name, follow=True)
    try:
        found = path.stat()
    except OSError as error:
        raise storage_error(error, "cannot find the source", path) from error
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgumentError(f"{path} is no regular file; name a .npy file.")
    if _stamp(found) != stamp:
        raise _changed(path)
    with opened_npy(str(path), MAX_HEADER_SIZE, follow=False) as (file, layout):
        return _File(name, path, stamp, layout, file.tell())


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _changed(path: Path) -> StorageError:
    message = "was changed or replaced while it was copied; let it rest, and run again"
    return StorageError(errno.EBUSY, message, str(path))


def _check_finished(path: Path, window: Window) -> None:
    """Refuse rows of a target that nobody has written, itself for one."""
    records = Sidecar.of(path)
    records.look_afresh()
    if not os.path.lexists(records.folder):  # it is made before the target
        return
    try:
        target = open_target(path)
    except ForeignFileError:  # any other .npy file
        return
    job = target.job
    first, last = (window.start, window.stop) if window.of_rows else (0, job.plan.rows)
    with job.ledger() as ledger:
        done = all(
            ledger.read(index, *job.plan.bounds_of(index)).state == "done"
            for index in job.plan.holding(first, last)
        )
    if not done:
        raise InvalidArgumentError(
            f"{path} is a target of which {len(target.pending())} of {len(target.segments)} "
            f"segments are not done, and rows {first} to {last} are in some of them. Fill and "
            "validate it first; a target cannot be copied into itself."
        )
