"""`load`: NumPy's, with windows along the first axis, and with what is not done yet masked."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, Literal, SupportsIndex

import numpy as np
from numpy import load as numpy_load
from numpy.lib import format as npy_format

from flowmap.arguments import flag, whole
from flowmap.errors import InvalidArgumentError, WrongTypeError, short, told
from flowmap.mapping import (
    not_npy,
    not_regular,
    open_memmap,
    opened_file,
    opened_npy,
    path_of,
    refuse_objects,
)
from flowmap.masking import masked_window
from flowmap.npy import MAX_HEADER_SIZE, read_header
from flowmap.storage import CHUNK, EndedError
from flowmap.streams import fill_closed_streams
from flowmap.target import open_target
from flowmap.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from flowmap.npy import Readable

_ANY_SIZE: Final = 2**64  # what NumPy takes where pickles are allowed: the file is trusted
_ENCODINGS: Final = ("ASCII", "latin1", "bytes")


def load(
    file: str | os.PathLike[str] | Readable,
    mmap_mode: Literal["r", "r+", "c"] | None = None,
    allow_pickle: bool = False,
    fix_imports: bool = True,
    encoding: Literal["ASCII", "latin1", "bytes"] = "ASCII",
    *,
    max_header_size: int = MAX_HEADER_SIZE,
    offset: SupportsIndex = 0,
    shape: SupportsIndex | Sequence[SupportsIndex] | None = None,
    masked: bool = False,
) -> Any:
    """Load a `.npy` file, or a window of it; anything else as `numpy.load` does.

    Args:
        file: A path, or a file object that can seek and read: a window is then read from where
            it stands, and it is left after the array, so that the next one can be loaded.
        mmap_mode: Map the file or window as `open_memmap` does, in this mode, and read
            nothing. "w+", which would throw away what is to be loaded, is refused.
        allow_pickle: Whether what is pickled may be loaded, which may run any code.
        fix_imports: Of pickles made by Python 2, as in `numpy.load`.
        encoding: Likewise.
        max_header_size: Characters that the header may have; no limit with `allow_pickle`.
        offset: The first index to load, counted along the first axis in either order.
        shape: Of the window, (n, ...) with the file's other axes; None for all that follows
            `offset`. Only the window's bytes are read; of a path in Fortran order also what is
            between them, where that is less than a page.
        masked: Whether the file is a target that is being filled, whose rows that are not done
            yet shall be masked; see `Target.masked`. With `mmap_mode` None the rows that are
            done are read into memory; "r" maps the file.

    Returns:
        An array; a `numpy.memmap` with `mmap_mode`; a `numpy.ma.MaskedArray` with `masked`; or
        whatever `numpy.load` returns for a file that is no `.npy` file.

    Raises:
        InvalidArgumentError: There is no such window, or what is there has none: another kind
            of file, or one of Python objects; or it is shorter than its header says.
        WrongTypeError: `offset` or `shape` are not made of whole numbers.
        NotFoundError, ForeignFileError, OtherJobError, DamagedJobError: With `masked`, as in
            `open_target`.
        StorageError: The file cannot be read.
        OSError, ValueError, TypeError, EOFError, UnpicklingError: As in `numpy.load`, for what
            is neither a window nor mapped.

    Source: numpy.load; `offset` is Jon Olav Vik's (numpy-discussion, 2011-02-24).
    """
    if encoding not in _ENCODINGS:
        raise InvalidArgumentError(
            f"encoding is {short(encoding)}; it takes one of {', '.join(_ENCODINGS)}."
        )
    if flag("masked", masked):
        return _load_masked(file, mmap_mode, offset, shape)
    windowed = whole("offset", offset) != 0 or shape is not None
    if windowed or mmap_mode:
        magic = _magic(file)
        if magic == npy_format.MAGIC_PREFIX:
            most = _ANY_SIZE if allow_pickle else max_header_size
            return _load_window(file, mmap_mode, most, offset, shape)
        if windowed and magic:
            raise InvalidArgumentError(
                f"{_name(file)} is no .npy file: offset and shape choose a window of an array. "
                "Load it without them, and slice what comes."
            )
    if not hasattr(file, "read") and os.path.isdir(path := path_of(file)):  # noqa: PTH112
        raise not_regular(path)
    fill_closed_streams()
    return numpy_load(
        file,
        mmap_mode,
        allow_pickle,
        fix_imports,
        encoding,
        max_header_size=max_header_size,
    )


def _magic(file: Any) -> bytes:
    """Return the first bytes of a file, and leave a file object where it stands."""
    if hasattr(file, "read"):
        found: bytes = file.read(len(npy_format.MAGIC_PREFIX))
        file.seek(-len(found), os.SEEK_CUR)
        return found
    path = path_of(file)
    with opened_file(path) as opened, told("cannot read the file; look at the disk", path):
        return opened.read(len(npy_format.MAGIC_PREFIX))


def _name(file: Any) -> str:
    """Return what to call a file in a message."""
    return os.fspath(file) if isinstance(file, str | os.PathLike) else short(file)


def _load_window(file: Any, mode: Any, most: Any, offset: Any, shape: Any) -> NDArray[Any]:
    """Map or read a window, or the whole, of what is a `.npy` file by its first bytes."""
    if mode == "w+":
        raise InvalidArgumentError(
            "mmap_mode is 'w+', which would throw away what the file holds. Load it with 'r', "
            "'r+' or 'c'; flowmap.open_memmap makes files."
        )
    if mode:
        return open_memmap(file, mode, shape=shape, max_header_size=most, offset=offset)
    most = whole("max_header_size", most)
    if hasattr(file, "read"):
        return _read_object(file, most, offset, shape)
    path = path_of(file)
    with opened_npy(path, most) as (opened, layout):
        window = Window.asked(layout, opened.tell(), offset, shape, path)
        with told("cannot read the file; look at the disk", path), _ending_told(path):
            return window.read_file(opened.fileno())


def _read_object(file: Any, most: int, offset: Any, shape: Any) -> NDArray[Any]:
    """Read a window of the array at which a file object stands; leave it after the array."""
    name = _name(file)
    try:
        layout = read_header(file, most)
    except ValueError as error:
        raise not_npy(name, error) from error
    refuse_objects(layout, name)
    begin = file.tell()
    window = Window.asked(layout, begin, offset, shape, name)

    def read_at(buffer: NDArray[np.uint8], where: int) -> int:
        file.seek(where)
        filled = 0
        while filled < len(buffer) and (data := file.read(min(len(buffer) - filled, CHUNK))):
            buffer[filled : filled + len(data)] = np.frombuffer(data, np.uint8)
            filled += len(data)
        return filled

    with told("cannot read the window", name), _ending_told(name):
        values = window.read(read_at)
    file.seek(begin + layout.nbytes)
    return values


@contextlib.contextmanager
def _ending_told(file: object) -> Iterator[None]:
    """Say that a file ends within a window."""
    try:
        yield
    except EndedError as error:
        raise InvalidArgumentError(
            f"{file} is too short: it ends within the window. It was cut short, or not written "
            "to the end."
        ) from error


def _load_masked(file: Any, mmap_mode: Any, offset: Any, shape: Any) -> Any:
    if hasattr(file, "read"):
        raise WrongTypeError(
            "file is an open file; with masked=True it takes the path of a target, beside "
            "which lie the records of what is done."
        )
    if mmap_mode not in (None, "r"):
        raise InvalidArgumentError(
            f"mmap_mode is {short(mmap_mode)}; with masked=True it takes 'r', or None to read "
            "the rows that are done. To write, fill or write segments."
        )
    target = open_target(file)
    return masked_window(target.job, target.status, mmap_mode, offset, shape)
