"""The header of a `.npy` file: check what it shall say, encode it up to the next page, read it.

The format is NumPy's (numpy.lib.format, versions 1 to 3). flowmap pads the header with
spaces so that the data begins on a page: legal, since the format asks only for a
multiple of 64.
"""

from __future__ import annotations

import ast
import io
import itertools
import math
import operator
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
import xxhash
from numpy.lib import format as npy_format

from flowmap.arguments import flag, wholes
from flowmap.dtypes import checked_dtype, descr_of, dtype_from_descr, refuse_division, split
from flowmap.errors import InvalidArgumentError, said, short
from flowmap.storage import CHUNK, PAGE
from flowmap.wording import option

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_MAX_BYTES: Final = 2**63 - 1  # off_t, and the intp that NumPy indexes with
_LONGEST_HEADER: Final = 2**33  # its length has four bytes
_MAX_DIMENSIONS: Final = 64  # NPY_MAXDIMS of NumPy 2
_NEAT: Final = 64  # numpy.lib.format.ARRAY_ALIGN: what the format asks of the data's offset
MAX_HEADER_SIZE: Final = 10_000
"""Characters of a header that `np.load` parses unless told otherwise."""

_VERSIONS: Final = {
    (1, 0): ("<H", "latin-1"),
    (2, 0): ("<I", "latin-1"),
    (3, 0): ("<I", "utf-8"),
}
"""How each version writes the length of the header, and its text."""

_LONG: Final = re.compile(r"(?<=[0-9a-fA-F])[ \f\t]*L\b")
"""What Python 2 wrote behind a whole number, wherever NumPy takes it for that."""


class Readable(Protocol):
    """What a `.npy` file can be read from."""

    def read(self, size: int = ..., /) -> bytes:
        """Return the next bytes."""

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Go on elsewhere."""

    def tell(self) -> int:
        """Return at which byte it stands."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a `.npy` file holds: shape, dtype and order, checked, and the bytes they take.

    Attributes:
        shape: Elements along each axis.
        dtype: Of one element; never a bare subarray, and of Python objects only where a header
            that was read says so.
        fortran_order: Whether the last axis is the slow one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @classmethod
    def of(cls, shape: object, dtype: DTypeLike | list[Any], fortran_order: object) -> Layout:
        """Check what a user asked for.

        Raises:
            WrongTypeError: `shape` is not made of whole numbers, `dtype` not a dtype.
            InvalidArgumentError: A negative or overflowing shape; a dtype that the format
                cannot hold.
        """
        checked, inner = checked_dtype(dtype)
        whole = _check_shape(shape) + inner  # as np.empty does with a subarray
        layout = cls(whole, checked, flag("fortran_order", fortran_order))
        layout.check_size()
        return layout

    @classmethod
    def recorded(cls, shape: object, descr: Any, fortran_order: object) -> Layout:
        """Return what was checked by `of` and written to JSON, as `shape` and `descr`.

        Raises:
            ValueError, TypeError: It is no such thing.
        """
        dtype = dtype_from_descr(descr)
        if dtype.hasobject or dtype.subdtype is not None:
            raise ValueError(f"no target has dtype {dtype}")
        layout = cls(_check_shape(shape), dtype, flag("fortran_order", fortran_order))
        layout.check_size()
        return layout

    def check_size(self) -> None:
        """Refuse more axes, or more bytes, than an array and its file can have.

        Raises:
            InvalidArgumentError: There are.
        """
        if len(self.shape) > _MAX_DIMENSIONS:
            raise InvalidArgumentError(
                f"The shape has {len(self.shape)} axes; NumPy allows {_MAX_DIMENSIONS}."
            )
        # As NumPy does, an empty array's other axes must be sensible too.
        nbytes = math.prod(n for n in self.shape if n) * max(self.dtype.itemsize, 1)
        room = _MAX_BYTES - nbytes
        if room < 0 or (room < _LONGEST_HEADER and room < len(self.header())):
            raise InvalidArgumentError(
                f"Shape {short(self.shape)} of {self.dtype} would take {short(nbytes)} bytes; "
                f"a file holds at most {_MAX_BYTES}."
            )

    def check_loadable(self) -> None:
        """Refuse a header that `np.load` would not read: a dtype with very many fields.

        Raises:
            InvalidArgumentError: It has more characters than `np.load` parses.
        """
        header = self.header()
        version = header[6], header[7]
        length_format, encoding = _VERSIONS[version]
        prefix = len(npy_format.magic(*version)) + struct.calcsize(length_format)
        payload = header[prefix:].rstrip()
        text = payload.decode(encoding)
        shortest = -(-(prefix + len(payload) + 1) // _NEAT) * _NEAT
        characters = shortest - prefix - (len(payload) - len(text))
        if characters > MAX_HEADER_SIZE:
            raise InvalidArgumentError(
                f"dtype {short(self.dtype)} makes a header of {characters} characters, and "
                f"numpy.load reads at most {MAX_HEADER_SIZE}. Use fewer fields, shorter names, "
                "one field with an axis in place of many, or several files."
            )

    @property
    def rows(self) -> int:
        """How many rows: the length of the slow axis; 1 for a 0-d array."""
        if not self.shape:
            return 1
        return self.shape[-1] if self.fortran_order else self.shape[0]

    @property
    def axis(self) -> Literal[0, -1]:
        """The slow axis, along which the rows lie: 0, or -1 in Fortran order."""
        return -1 if self.fortran_order else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        inner = self.shape[:-1] if self.fortran_order else self.shape[1:]
        return math.prod(inner) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the data, the header not counted."""
        return self.rows * self.row_bytes

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes between neighbours along each axis of the whole array."""
        fast_first = self.shape if self.fortran_order else self.shape[::-1]
        steps = tuple(
            itertools.accumulate(fast_first[:-1], operator.mul, initial=self.dtype.itemsize)
        )[: len(self.shape)]
        return steps if self.fortran_order else steps[::-1]

    def block_shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of `rows` consecutive rows: () for a 0-d array."""
        if not self.shape:
            return ()
        return (*self.shape[:-1], rows) if self.fortran_order else (rows, *self.shape[1:])

    @property
    def descr(self) -> Any:
        """The dtype as the format writes it."""
        return descr_of(self.dtype)

    def header(self) -> bytes:
        """Return the header, from the magic to the newline before the data.

        Its length is a multiple of the page. Where that padding alone would take the
        header over what `np.load` accepts, it is only the multiple of 64 that the format
        asks for.

        Source: numpy.lib.format, "Format Version 1.0" to "3.0".
        """
        fields = {"descr": self.descr, "fortran_order": self.fortran_order, "shape": self.shape}
        text = "{" + "".join(f"'{key}': {value!r}, " for key, value in fields.items()) + "}"
        try:
            version, payload = (1, 0), text.encode("latin-1")
        except UnicodeEncodeError:
            version, payload = (3, 0), text.encode()
        if version == (1, 0) and len(payload) > 0xFFFF - PAGE:
            version = (2, 0)
        head = npy_format.magic(*version)
        length_format = "<H" if version == (1, 0) else "<I"
        prefix = len(head) + struct.calcsize(length_format)
        unpadded = prefix + len(payload) + 1  # the newline
        total = -(-unpadded // PAGE) * PAGE
        # np.load counts characters, which are fewer than the bytes of version 3.
        spare = len(payload) - len(text)
        if total - prefix - spare > MAX_HEADER_SIZE >= unpadded - prefix - spare:
            total = -(-unpadded // _NEAT) * _NEAT
        length = struct.pack(length_format, total - prefix)
        return head + length + payload.ljust(total - prefix - 1) + b"\n"

    def as_array(self, data: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
        """View the bytes of `rows` rows, uint8, as an array of this kind."""
        order: Literal["F", "C"] = "F" if self.fortran_order else "C"
        return np.ndarray(self.block_shape(rows), self.dtype, data, order=order)


def read_header(file: Readable, most: int = MAX_HEADER_SIZE) -> Layout:
    """Read the header of a `.npy` file, and leave the file where the data begins.

    One of NumPy's public readers parses it, that of version 2. The versions differ in the bytes
    of the length and in the encoding only: a literal that is not ASCII is handed over as one
    that means the same, with escapes.

    Args:
        file: Open for reading, at the magic.
        most: How many characters the header may have: parsing more may not be safe.

    Returns:
        What the file holds; the dtype may be of Python objects.

    Raises:
        ValueError: It is no header, too long, or says what no array can be.
        OSError: The file cannot be read.
    """
    version = npy_format.read_magic(file)
    if version not in _VERSIONS:
        raise ValueError(f"version {version} of the format is not one of 1.0, 2.0 and 3.0")
    length_format, encoding = _VERSIONS[version]
    (length,) = struct.unpack(length_format, _taken(file, struct.calcsize(length_format)))
    # A character takes at most four bytes: what is far too long is not even read.
    text = _taken(file, length).decode(encoding) if length <= 4 * most else None
    if text is None or len(text) > most:
        raise ValueError(
            f"Header of {length} bytes is large, and parsing more than {most} characters may "
            "not be safe; if you trust the file, pass a larger max_header_size"
        )
    try:
        # NumPy looks for what Python 2 wrote in whatever is not Python 3, which takes time that
        # grows with the square of the length and more: only where nothing else is odd.
        literal = text.lstrip(" \t")
        old = version != (3, 0) and text.isascii()
        tree = ast.parse(_LONG.sub("", literal) if old else literal, mode="eval")
        refuse_division(ast.literal_eval(tree))  # of doubled keys only the last counts
        if not text.isascii():
            literal = ast.unparse(tree)  # no odd backslash before what becomes an escape
        payload = literal.encode("ascii", "backslashreplace")  # up to ten for a character
        source = io.BytesIO(struct.pack("<I", len(payload)) + payload)
        found = npy_format.read_array_header_2_0(source, max_header_size=10 * most)
    except (ValueError, Warning):
        raise
    except SyntaxError as error:
        raise ValueError(f"Cannot parse header: {short(text)}") from error
    except Exception as error:  # whatever parsing a damaged literal comes to
        raise ValueError(f"its header is not one that NumPy writes: {said(error)}") from error
    return _layout_of(*found)


def _layout_of(shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype[Any]) -> Layout:
    base, inner = split(dtype)
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"its header has shape {short(shape)}, which no array has")
    if inner and fortran_order:
        raise ValueError(f"its header has the subarray {dtype} in Fortran order")
    layout = Layout(shape + inner, base, fortran_order)
    layout.check_size()
    return layout


def _taken(file: Readable, nbytes: int) -> bytes:
    """Read so many bytes, in as many calls as it takes."""
    pieces, left = [], nbytes
    while left and (piece := file.read(min(left, CHUNK))):
        pieces.append(piece)
        left -= len(piece)
    if left:
        raise ValueError("it ends within its header")
    return b"".join(pieces)


def header_digest(header: bytes) -> str:
    """Return the digest that `job.json` keeps of the header: xxh3_128, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(header)


def _check_shape(shape: object) -> tuple[int, ...]:
    checked = wholes(option("shape"), shape)
    dimensions = checked if isinstance(checked, tuple) else (checked,)
    if any(n < 0 for n in dimensions):
        raise InvalidArgumentError(
            f"{option('shape')} is {short(dimensions)}; no axis can be negative."
        )
    return dimensions
