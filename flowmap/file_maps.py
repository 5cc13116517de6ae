"""Arrays that map a file, sent to other processes as a place in that file.

NumPy pickles such an array with all its elements, and each worker would hold a copy of them.
The workers see the file that the array maps, as they see the target.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from flowmap.errors import InvalidArgumentError, said
from flowmap.streams import fill_closed_streams

_LEAST: Final = 1 << 20
"""Bytes of an array that is worth it: reading the list of this process's maps takes a while."""


def by_file(value: Any) -> Any:
    """Return an argument with the arrays that map a file as places; pickling it pickles these.

    Args:
        value: An array, or a list, tuple or dict of arrays. Whatever else there is stays as it
            is.
    """
    if type(value) in (list, tuple):
        return type(value)(_array_by_file(each) for each in value)
    if type(value) is dict:
        return {key: _array_by_file(each) for key, each in value.items()}
    return _array_by_file(value)


def _array_by_file(value: Any) -> Any:
    if type(value) not in (np.ndarray, np.memmap) or value.nbytes < _LEAST:
        return value
    return _Place.of(value) or value


@dataclass(frozen=True, slots=True)
class _Place:
    """An array as a place in a file. Its pickle gives the array back.

    Attributes:
        path: Absolute path of the file.
        version: Size and time of change of the file.
        first: Position in the file of the array's first byte.
        length: Bytes from there to the array's last byte.
        array: The array.
    """

    path: str
    version: tuple[int, int]
    first: int
    length: int
    array: np.ndarray[Any, Any]

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> Self | None:
        """Return the place of an array; None if it can be written to, or maps no file."""
        low, high = np.lib.array_utils.byte_bounds(array)
        found = None if array.flags.writeable else _map_of(low, high)
        if found is None:
            return None
        path, first, inode = found
        try:
            status = os.stat(path)  # noqa: PTH116 -- as in `_open`
        except OSError:
            return None
        if status.st_ino != inode:  # the path leads to another file by now
            return None
        return cls(path, (status.st_size, status.st_mtime_ns), first, high - low, array)

    def __reduce__(self) -> tuple[Any, ...]:
        array = self.array
        start = array.__array_interface__["data"][0] - np.lib.array_utils.byte_bounds(array)[0]
        layout = (type(array), array.shape, array.dtype, start, array.strides)
        return _open, (self.path, self.version, self.first, self.length, layout)


def _map_of(low: int, high: int) -> tuple[str, int, int] | None:
    """Return path, position and inode of the file that a range of memory maps, read only.

    The kernel says so. The attributes of a `np.memmap` do not: a slice has those of the whole.
    """
    try:
        table = Path("/proc/self/maps").read_bytes()
    except OSError:  # not Linux
        return None
    for line in table.splitlines():
        fields = line.split(maxsplit=5)  # proc(5)
        start, end = (int(each, 16) for each in fields[0].split(b"-"))
        if start <= low and high <= end:
            inode = int(fields[4])
            if len(fields) < 6 or b"w" in fields[1] or not inode:  # noqa: PLR2004 -- the path
                return None
            path = os.fsdecode(fields[5].replace(rb"\012", b"\n"))
            return path, int(fields[2], 16) + low - start, inode
    return None


def _open(
    path: str, version: tuple[int, int], first: int, length: int, layout: tuple[Any, ...]
) -> np.ndarray[Any, Any]:
    """Map the place in the file again, read only.

    Raises:
        InvalidArgumentError: The file is not there, or is not what it was.
    """
    fill_closed_streams()
    cls, shape, dtype, start, strides = layout
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- a text, as the kernel gave it
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != version:
                raise InvalidArgumentError(_UNSEEN.format(path=path, fault="has changed"))
            window = np.memmap(file, np.uint8, "r", first, (length,))
    except OSError as error:
        fault = f"cannot be opened by this worker ({said(error)})"
        raise InvalidArgumentError(_UNSEEN.format(path=path, fault=fault)) from error
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, window, start, strides)
    return array.view(cls)


_UNSEEN: Final = (
    "An argument maps {path}, which {fault}. Put the file where every worker sees it, and do "
    "not change it; or pass a copy of the array, np.array(x)."
)
