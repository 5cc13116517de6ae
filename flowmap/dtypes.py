"""Dtypes that a `.npy` file can hold: checked, and as the header and JSON write them."""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.lib import format as npy_format

from flowmap.errors import InvalidArgumentError, WrongTypeError, said, short
from flowmap.wording import option

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_NO_DTYPE: Final = (
    *(TypeError, ValueError, SyntaxError, KeyError, AttributeError),
    *(IndexError, OverflowError, RecursionError, MemoryError),
)
"""What `np.dtype` raises for what is none."""

_DIVIDED: Final = re.compile(
    r"[<>=|]?(?:[mM]8|datetime64|timedelta64)\[[^/]*/(?![1-9]\d{0,8}\])"
)
"""A unit of time divided by anything but a plain number from 1 to 999,999,999."""


def refuse_division(given: object) -> None:
    """Refuse texts that name a unit of time divided by zero, which NumPy does divide (SIGFPE).

    Args:
        given: What `np.dtype` is to be given.

    Raises:
        ValueError: It is or has such a text.
    """
    if isinstance(given, bytes):
        given = given.decode("latin-1")
    if isinstance(given, str):
        if _DIVIDED.match(given):
            raise ValueError(
                f"{short(given)} divides a unit of time by zero, or by no plain number; "
                "write the unit that comes of it, as in '<M8[500ms]'"
            )
    elif isinstance(given, dict):
        for each in (*given, *given.values()):  # NumPy may take the keys for fields
            refuse_division(each)
    elif isinstance(given, list | tuple | set):
        for each in given:
            refuse_division(each)


def descr_of(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as the format writes it."""
    # Without metadata, which no file keeps and of which NumPy would warn.
    return npy_format.dtype_to_descr(npy_format.drop_metadata(dtype))


def as_dtype(dtype: DTypeLike | list[Any]) -> np.dtype[Any]:
    """Return what a user gave for a dtype, lists in place of tuples included, as one.

    Raises:
        WrongTypeError, InvalidArgumentError: It is none.
    """
    if dtype is None:  # np.dtype(None) is float64: a default nobody asked for
        raise WrongTypeError("dtype is None; name one, such as '<f8'.")
    try:
        refuse_division(dtype)
        asked: np.dtype[Any] = np.dtype(_as_descr(dtype))
    except _NO_DTYPE as error:
        kind = WrongTypeError if isinstance(error, TypeError) else InvalidArgumentError
        raise kind(
            f"{option('dtype')} is {short(dtype)}, which NumPy does not take: {said(error)}"
        ) from error
    return asked


def checked_dtype(dtype: DTypeLike | list[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the dtype of one element, and the axes that a bare subarray adds.

    Raises:
        WrongTypeError: It is no dtype.
        InvalidArgumentError: The format cannot hold it.
    """
    checked = as_dtype(dtype)
    if checked.hasobject:
        raise InvalidArgumentError(
            f"dtype {checked} holds Python objects, which have no place of their own in a "
            "file; use numbers, fixed-length strings such as 'U20', or a structured dtype."
        )
    unsized = _unsized(checked)
    if unsized is not None:
        raise InvalidArgumentError(
            f"dtype {checked} holds texts or bytes of no length, into which nothing fits; say "
            f"how long, such as '{unsized}20'."
        )
    base, inner = split(checked)
    plain = _read_back(base)
    if plain is None:
        raise InvalidArgumentError(
            f"dtype {checked} cannot be written in a .npy header: reading it back gives "
            "another dtype. Use fields in order of their offsets, without overlap, with names "
            "and titles that are texts, and NumPy's own types."
        )
    return plain, inner


def split(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return what a dtype, which may be a subarray of subarrays, is made of; and its axes."""
    inner: tuple[int, ...] = ()
    while dtype.subdtype is not None:
        dtype, axes = dtype.subdtype
        inner += axes
    return dtype, inner


def _unsized(dtype: np.dtype[Any]) -> str | None:
    """Return the kind of a text or bytes without a length, if there is one in the dtype."""
    base, _ = split(dtype)
    if base.names is None:
        return None if base.itemsize else base.kind
    kinds = (_unsized(base[name]) for name in base.names)
    return next((kind for kind in kinds if kind is not None), None)


def _read_back(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return a dtype as `job.json` and the header give it back; None where that is another.

    It may have been given names that are `np.str_`, which NumPy keeps and would write as
    such, so that `np.load` fails: JSON makes plain texts of them.
    """
    try:
        plain = dtype_from_descr(json.loads(json.dumps(descr_of(dtype))))
        from_header = npy_format.descr_to_dtype(ast.literal_eval(repr(descr_of(plain))))
    except (TypeError, ValueError, SyntaxError, RecursionError):
        return None
    return plain if from_header == dtype == plain else None


def _as_descr(dtype: Any) -> Any:
    """Turn the lists that JSON makes of tuples into what `np.dtype` wants."""
    if not isinstance(dtype, list):
        return dtype
    if len(dtype) == 2 and _is_shape(dtype[1]):  # noqa: PLR2004 -- a subarray: dtype, shape
        return _as_descr(dtype[0]), tuple(dtype[1])
    return [
        (_field_name(field[0]), _as_descr(field[1]), *map(_as_inner_shape, field[2:]))
        if isinstance(field, list | tuple) and len(field) >= 2  # noqa: PLR2004 -- name, dtype
        else field
        for field in dtype
    ]


def _field_name(name: Any) -> Any:
    return tuple(name) if isinstance(name, list) else name


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(n) is int for n in value)


def _as_inner_shape(shape: Any) -> Any:
    return tuple(shape) if isinstance(shape, list) else shape


def dtype_from_descr(descr: Any) -> np.dtype[Any]:
    """Return the dtype of a `Layout.descr` that went through JSON.

    Raises:
        ValueError: It is no such thing.
    """
    try:
        refuse_division(descr)
        dtype: np.dtype[Any] = npy_format.descr_to_dtype(_as_descr(descr))
    except Exception as error:  # whatever NumPy comes to with what is none
        raise ValueError(f"{short(descr)} is no dtype: {said(error)}") from error
    return dtype
