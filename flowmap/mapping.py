"""`open_memmap`: NumPy's, with windows along the first axis."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

import numpy as np
from numpy.lib import format as npy_format
from numpy.lib.format import open_memmap as numpy_open_memmap

from flowmap.errors import (
    InvalidArgumentError,
    OtherJobError,
    WrongTypeError,
    said,
    short,
    storage_error,
    told,
)
from flowmap.job import Sidecar
from flowmap.npy import MAX_HEADER_SIZE, Layout, read_header
from flowmap.storage import NotRegularError, open_existing
from flowmap.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike

    from flowmap.windows import MapMode

_MODES: Final[dict[Any, MapMode]] = {
    "r": "r",
    "readonly": "r",
    "r+": "r+",
    "readwrite": "r+",
    "c": "c",
    "copyonwrite": "c",
}
"""The modes of `numpy.memmap` for a file that is there."""


def open_memmap(
    filename: str | os.PathLike[str],
    mode: str = "r+",
    dtype: DTypeLike | None = None,
    shape: SupportsIndex | Sequence[SupportsIndex] | None = None,
    fortran_order: bool = False,
    version: tuple[int, int] | None = None,
    *,
    max_header_size: int = MAX_HEADER_SIZE,
    offset: SupportsIndex = 0,
) -> np.memmap[Any, Any]:
    """Map a `.npy` file, or a window of it: `numpy.lib.format.open_memmap` with `offset`.

    A window is a run of consecutive indices along the first axis, as `a[offset:stop]` would
    give it, in C and in Fortran order; in the latter it is a strided view. Several processes
    can each map a window and write to it at the same time: no window reaches into another or
    into the header, none makes the file longer, and `flush` writes the pages of its window
    only. Nothing is recorded of what was written: that is what `open_segment` is for.

    A store into a file with holes on a disk that is full ends the process (SIGBUS). "w+" makes
    such files, as NumPy's does; `allocate` reserves the space.

    Args:
        filename: Of the file; a link is followed.
        mode: "r" (read), "r+" (read and write) or "c" (copy on write: what is written never
            reaches the file) for a file that is there; "w+" makes one, in place of what is
            there.
        dtype: For "w+", of one element; None for float64. For a file that is there None, or
            the dtype that it has.
        shape: For "w+", of the array. For a file that is there, of the window: (n, ...) with
            the file's other axes; None for all that follows `offset`.
        fortran_order: For "w+", whether the last axis is the slow one; else ignored.
        version: For "w+", of the format, (1, 0) to (3, 0); None for the oldest that will do.
            Else ignored.
        max_header_size: Characters that the header may have.
        offset: The first index of the window, counted along the first axis in either order.

    Returns:
        The window. Its attribute `offset` is, as NumPy's, the byte at which it begins.

    Raises:
        InvalidArgumentError: There is no such window, or no such mode; the file has another
            dtype, holds Python objects, is no `.npy` file, or shorter than its header says; for
            "w+" an offset, no shape, a shape or dtype that no file can have.
        WrongTypeError: `filename` is no path, `offset` or `shape` not made of whole numbers.
        OtherJobError: "w+", and the file is the target of a job.
        StorageError: The file cannot be opened, mapped or made; as `NotFoundError` or
            `AccessDeniedError` where it is that.

    Source: numpy.lib.format; `offset` is Jon Olav Vik's (numpy-discussion, 2011-02-24).
    """
    path = _path_of(filename)
    if mode == "w+":
        layout = _checked_new(path, dtype, shape, fortran_order, version, offset)
        with told("cannot make the file", path):
            return numpy_open_memmap(
                filename, mode, layout.dtype, layout.shape, layout.fortran_order, version
            )
    asked: Any = mode
    known = _MODES.get(asked) if isinstance(asked, str) else None
    if known is None:
        raise InvalidArgumentError(
            f"mode is {short(mode)}; it takes 'r', 'r+' or 'c' for a file that is there, and "
            "'w+' to make one."
        )
    with opened_npy(path, max_header_size, write=known == "r+") as (file, layout):
        window = Window.asked(layout, file.tell(), offset, shape, path)
        _refuse_other_dtype(layout, dtype, path)
        with told("cannot map the file", path):
            return window.map(file.fileno(), known, _filename(filename))


@contextlib.contextmanager
def opened_npy(
    path: str | os.PathLike[str], most: int, *, write: bool = False
) -> Iterator[tuple[io.FileIO, Layout]]:
    """Open a `.npy` file that is whole and holds no Python objects, for a `with` block.

    Args:
        path: Of the file; a link is followed.
        most: How many characters the header may have.
        write: Whether the descriptor will be written through.

    Yields:
        The file, at the byte where the data begins, and what it holds.

    Raises:
        InvalidArgumentError: It is no `.npy` file, not whole, or holds Python objects.
        StorageError: It cannot be opened or read.
    """
    try:
        descriptor = open_existing(os.path.realpath(path), write=write)
    except NotRegularError as error:
        raise _not_regular(path) from error
    except OSError as error:
        raise storage_error(error, "cannot open the file", path) from error
    # Without a buffer, which would read on into the data.
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 -- it is no path
        with told("cannot read the header", path):
            try:
                layout = read_header(file, most)
            except ValueError as error:
                raise not_npy(path, error) from error
            size = os.fstat(descriptor).st_size
        refuse_objects(layout, path)
        if size < file.tell() + layout.nbytes:
            raise InvalidArgumentError(
                f"{path} is too short: its header tells of shape {short(layout.shape)} of "
                f"{layout.dtype}, {short(layout.nbytes)} bytes after the first {file.tell()}, "
                f"but the file has {size} bytes. It was cut short, or not written to the end; "
                "it is left as it is."
            )
        yield file, layout


def refuse_objects(layout: Layout, path: object) -> None:
    """Refuse an array of Python objects.

    Raises:
        InvalidArgumentError: It is one.
    """
    if layout.dtype.hasobject:
        raise InvalidArgumentError(
            f"{path} holds Python objects, which are pickled and have no place of their own "
            "in the file, so that no part of it can be mapped or read. numpy.load with "
            "allow_pickle=True reads the whole, if you trust it."
        )


def not_npy(path: object, error: Exception) -> InvalidArgumentError:
    """Return the error for a file whose header cannot be read."""
    why = str(error).rstrip(".")
    return InvalidArgumentError(
        f"{path} cannot be read as a .npy file: {why}. Name one that numpy.save or flowmap has "
        "written."
    )


def _not_regular(path: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{path} is no regular file; name a .npy file, not a folder, pipe or device."
    )


def _path_of(filename: Any) -> Path:
    if npy_format.isfileobj(filename):
        raise InvalidArgumentError(
            "filename is an open file; it takes a path, since a mapping opens the file itself."
        )
    if not isinstance(filename, str | bytes | os.PathLike):
        raise WrongTypeError(f"filename is {short(filename)}; it takes the path of a file.")
    path = Path(os.fsdecode(filename))
    if "\0" in str(path):
        raise InvalidArgumentError(f"filename is {short(filename)}, which names no file.")
    return path


def _filename(filename: Any) -> str | Path | None:
    """Return what `numpy.memmap` would give as the array's `filename`."""
    if isinstance(filename, os.PathLike):
        return Path(filename).resolve()
    return os.path.abspath(filename) if isinstance(filename, str) else None  # noqa: PTH100 -- a text


def _refuse_other_dtype(layout: Layout, dtype: DTypeLike | None, path: Path) -> None:
    if dtype is None:
        return
    try:
        asked = np.dtype(dtype)
    except TypeError as error:
        raise WrongTypeError(f"dtype is {short(dtype)}: {said(error)}") from error
    if asked != layout.dtype:
        raise InvalidArgumentError(
            f"dtype is {asked}, but {path} has {layout.dtype}; leave it out, and convert the "
            "values that you read."
        )


def _checked_new(
    path: Path, dtype: Any, shape: Any, fortran_order: Any, version: Any, offset: Any
) -> Layout:
    """Return what a new file shall hold, when all of it has been checked."""
    if isinstance(offset, bool) or offset != 0:
        raise InvalidArgumentError(
            f"offset is {short(offset)}, and mode 'w+' makes the whole file anew. Make it "
            "once, without an offset; then map windows of it with 'r+'."
        )
    if shape is None:
        raise InvalidArgumentError("shape is missing: mode 'w+' makes a file of that shape.")
    layout = Layout.of(shape, np.float64 if dtype is None else dtype, fortran_order)
    header = {"descr": layout.descr, "fortran_order": fortran_order, "shape": layout.shape}
    try:
        if version == (1, 0):
            npy_format.write_array_header_1_0(io.BytesIO(), header)
        elif version == (2, 0):
            npy_format.write_array_header_2_0(io.BytesIO(), header)
        elif version not in (None, (3, 0)):
            raise ValueError("there are (1, 0), (2, 0) and (3, 0)")  # noqa: TRY301 -- told below
    except ValueError as error:
        raise InvalidArgumentError(
            f"version {short(version)} of the format will not do: {error}. Leave it out for "
            "the oldest that will."
        ) from error
    if path.exists() and not path.is_file():
        raise _not_regular(path)
    if any(os.path.lexists(Sidecar.of(p).job) for p in (path, Path(os.path.realpath(path)))):
        raise OtherJobError(
            f"{path} is the target of a job, and mode 'w+' would throw its rows away. Map it "
            "with 'r+', or allocate it anew with flowmap.allocate(..., exist='overwrite').",
            path=str(path),
        )
    return layout
