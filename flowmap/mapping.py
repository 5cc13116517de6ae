"""`open_memmap`: NumPy's, with windows along the first axis."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.lib.format import open_memmap as numpy_open_memmap

from flowmap.arguments import whole
from flowmap.dtypes import as_dtype
from flowmap.errors import (
    InvalidArgumentError,
    OtherJobError,
    short,
    storage_error,
    told,
)
from flowmap.filenames import check_filename
from flowmap.npy import MAX_HEADER_SIZE, Layout, read_header
from flowmap.sidecar import Sidecar, check_outside_records
from flowmap.storage import NotRegularError, open_existing
from flowmap.streams import fill_closed_streams
from flowmap.windows import Window

if TYPE_CHECKING:
    import io
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
        InvalidArgumentError: There is no such window, or no such mode; `filename` is one that
            flowmap does not take, such as "~/a.npy"; the file has another dtype, holds Python
            objects, is no `.npy` file, or shorter than its header says; for "w+" an offset, no
            shape, a shape or dtype that no file can have; for "r+" and "w+" a path among the
            records of a job.
        WrongTypeError: `filename` is not a path, or a path in bytes; `offset` or `shape` not
            made of whole numbers.
        OtherJobError: "w+", and the file is the target of a job.
        StorageError: The file cannot be opened, mapped or made; as `NotFoundError` or
            `AccessDeniedError` where it is that.

    Source: numpy.lib.format; `offset` is Jon Olav Vik's (numpy-discussion, 2011-02-24).
    """
    path, most = path_of(filename), whole("max_header_size", max_header_size)
    if mode == "w+":
        return _made(filename, path, dtype, shape, fortran_order, version, offset)
    asked: Any = mode
    known = _MODES.get(asked) if isinstance(asked, str) else None
    if known is None:
        raise InvalidArgumentError(
            f"mode is {short(mode)}; it takes 'r', 'r+' or 'c' for a file that is there, and "
            "'w+' to make one."
        )
    if known == "r+":
        _check_outside_records(path)
    with opened_npy(path, most, write=known == "r+") as (file, layout):
        window = Window.asked(layout, file.tell(), offset, shape, path)
        _refuse_other_dtype(layout, dtype, path)
        with told("cannot map the file", path):
            return window.map(file.fileno(), known, _filename(filename))


@contextlib.contextmanager
def opened_file(path: str, *, write: bool = False, follow: bool = True) -> Iterator[io.FileIO]:
    """Open a regular file for reading, for a `with` block.

    Args:
        path: Of the file.
        write: Whether the descriptor will be written through.
        follow: Whether a link is followed.

    Yields:
        The file, without a buffer, at its beginning.

    Raises:
        InvalidArgumentError: It is no regular file.
        StorageError: It cannot be opened.
    """
    try:
        descriptor = open_existing(path, write=write, follow=follow)
    except NotRegularError as error:
        raise not_regular(path) from error
    except OSError as error:
        doing = "cannot open the file"
        if write and isinstance(error, PermissionError):
            doing += " for writing; a validated target is read-only: reset() what is to change"
        raise storage_error(error, doing, path) from error
    # Without a buffer, which would read on.
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 -- it is no path
        yield file


@contextlib.contextmanager
def opened_npy(
    path: str, most: int, *, write: bool = False, follow: bool = True
) -> Iterator[tuple[io.FileIO, Layout]]:
    """Open a `.npy` file that is whole and holds no Python objects, for a `with` block.

    Args:
        path: Of the file.
        most: How many characters the header may have.
        write: Whether the descriptor will be written through.
        follow: Whether a link is followed.

    Yields:
        The file, at the byte where the data begins, and what it holds.

    Raises:
        InvalidArgumentError: It is no `.npy` file, not whole, or holds Python objects.
        StorageError: It cannot be opened or read.
    """
    with opened_file(path, write=write, follow=follow) as file:
        with told("cannot read the header; look at the disk", path):
            try:
                layout = read_header(file, most)
            except ValueError as error:
                raise not_npy(path, error) from error
            size = os.fstat(file.fileno()).st_size
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


def not_regular(path: object) -> InvalidArgumentError:
    """Return the error for a folder, a pipe or a device in the place of a file."""
    return InvalidArgumentError(
        f"{path} is no regular file; name a .npy file, not a folder, pipe or device."
    )


def path_of(filename: Any) -> str:
    """Return the path that a user gave, as it is.

    Raises:
        InvalidArgumentError: It is an open file.
        WrongTypeError, InvalidArgumentError: As in `check_filename`.
    """
    if npy_format.isfileobj(filename):
        raise InvalidArgumentError(
            "filename is an open file; it takes a path, since a mapping opens the file itself."
        )
    return check_filename(filename, "filename")


def _filename(filename: str | os.PathLike[str]) -> str | Path:
    """Return what `numpy.memmap` would give as the array's `filename`."""
    if isinstance(filename, os.PathLike):
        return Path(filename).resolve()
    return os.path.abspath(filename)  # noqa: PTH100 -- a text


def _refuse_other_dtype(layout: Layout, dtype: DTypeLike | None, path: str) -> None:
    asked = layout.dtype if dtype is None else as_dtype(dtype)
    if asked != layout.dtype:
        raise InvalidArgumentError(
            f"dtype is {asked}, but {path} has {layout.dtype}; leave it out, and convert the "
            "values that you read."
        )


def _made(
    filename: Any,
    path: str,
    dtype: Any,
    shape: Any,
    fortran_order: Any,
    version: Any,
    offset: Any,
) -> np.memmap[Any, Any]:
    """Make a file by NumPy's function, when all has been checked and tried out."""
    if whole("offset", offset) != 0:
        raise InvalidArgumentError(
            f"offset is {short(offset)}, and mode 'w+' makes the whole file anew. Make it "
            "once, without an offset; then map windows of it with 'r+'."
        )
    if shape is None:
        raise InvalidArgumentError("shape is missing: mode 'w+' makes a file of that shape.")
    asked = np.dtype(np.float64) if dtype is None else as_dtype(dtype)
    layout = Layout.of(shape, asked, fortran_order)
    if version not in (None, (1, 0), (2, 0), (3, 0)):
        raise InvalidArgumentError(
            f"version is {short(version)}; it takes (1, 0), (2, 0) or (3, 0), or None for the "
            "oldest that will do."
        )
    _refuse_target(path)
    with told("cannot make the file", path):
        version = _tried(path, layout, version)
        fill_closed_streams()
        array = numpy_open_memmap(
            path, "w+", layout.dtype, layout.shape, layout.fortran_order, version
        )
    if asked.subdtype is None:  # a header keeps neither np.record nor alignment
        array = cast("np.memmap[Any, Any]", array.view(asked))
    vars(array).update(filename=_filename(filename))
    return array


def _check_outside_records(path: str) -> None:
    """Refuse to write to a file among the records of a job, also through a link."""
    with told("cannot look at the file", path):
        check_outside_records(Path(os.path.realpath(path)), "filename")


def _refuse_target(path: str) -> None:
    """Refuse to throw away the target of a job or a record, or to write to a pipe or device."""
    _check_outside_records(path)
    with told("cannot look at the file", path):
        if Path(path).exists() and not Path(path).is_file():
            raise not_regular(path)
    if any(os.path.lexists(Sidecar.of(Path(p)).job) for p in (path, os.path.realpath(path))):
        raise OtherJobError(
            f"{path} is the target of a job, and mode 'w+' would throw its rows away. Map it "
            "with 'r+', or allocate it anew with flowmap.allocate(..., exist='overwrite').",
            path=path,
        )


def _tried(path: str, layout: Layout, version: Any) -> Any:
    """Make the same file under a private name, and remove it; return the version of the format.

    NumPy throws away what is there before it finds that the header, the size or the mapping
    cannot be.
    """
    folder = Path(path).parent
    fill_closed_streams()
    try:
        private = tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".npy")  # noqa: SIM115 -- only the making may fail so
    except PermissionError:  # a file that may be written, in a folder that may not
        return version
    what = layout.dtype, layout.shape, layout.fortran_order, version
    with private:
        try:
            numpy_open_memmap(private.name, "w+", *what)
        except ValueError as error:
            raise InvalidArgumentError(
                f"version {short(version)} of the format will not do: {error}. Leave it out "
                "for the oldest that will."
            ) from error
        private.seek(len(npy_format.MAGIC_PREFIX))
        return tuple(private.read(2))
