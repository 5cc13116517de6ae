"""Values at hand: arrays, and lists of Python's own objects, which NumPy may change silently.

`numpy.asarray` drops masks, rounds whole numbers that stand beside others, cuts texts at a zero
byte, and casts the tuples of a record by no rule at all. So a list is taken apart, down to
elements that are alike, and each is checked as an array is.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flowmap.casting import bounds, check_cast, no_room, store
from flowmap.dtypes import split
from flowmap.errors import InvalidArgumentError, WrongTypeError, short

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flowmap.casting import Casting

_ARRAYS: Final = ("__array__", "__array_interface__", "__array_struct__")
_TIMES: Final = {dt.datetime: "M8", dt.date: "M8", dt.timedelta: "m8"}


def checked_array(
    values: Any, dtype: np.dtype[Any], shape: tuple[int, ...], casting: Casting, where: str
) -> NDArray[Any]:
    """Return values as an array that `casting.store` casts without changing any of them.

    Args:
        values: An array, or what becomes one: nested lists, with a tuple for each record.
        dtype: What they will be cast to.
        shape: What they must have.
        casting: Which casts are allowed, as in `numpy.can_cast`.
        where: What the values belong to, for the messages.

    Returns:
        Array of that shape, of its own dtype or already of `dtype`.

    Raises:
        WrongTypeError: Values are masked, or the rule does not allow the cast.
        InvalidArgumentError: The shape differs; or a value would change.
    """
    if not _is_array(type(values)):
        return _from_lists(values, dtype, shape, casting, where)
    array = _computed(values, where)
    if array.shape != shape:
        raise _other_shape(where, shape, array.shape)
    check_cast(array, dtype, casting, where, sized=hasattr(values, "dtype"))
    return array


def _is_array(kind: type) -> bool:
    """Say whether NumPy takes such an object for an array as it is."""
    buffers = (bytearray, memoryview)
    return issubclass(kind, buffers) or any(hasattr(kind, name) for name in _ARRAYS)


def _is_nested(kind: type) -> bool:
    return (
        issubclass(kind, Sequence) and not issubclass(kind, str | bytes) and not _is_array(kind)
    )


def _computed(values: Any, where: str) -> NDArray[Any]:
    """Return an array without a mask."""
    if hasattr(values, "__dask_graph__"):  # what its own __array__ returns has lost the mask
        values = values.compute()
    array = _made(values, where)
    if isinstance(array, np.ma.MaskedArray):
        raise WrongTypeError(
            f"{where}: values are masked, and a .npy file has no mask. Pass values.filled(...)."
        )
    return np.asarray(array)


def _made(values: Any, where: str, dtype: str | None = None) -> NDArray[Any]:
    try:
        return np.asanyarray(values, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgumentError(f"{where}: values do not make an array: {error}") from error


def _other_shape(
    where: str, shape: tuple[int, ...], found: tuple[int, ...] | None = None
) -> InvalidArgumentError:
    has = "do not have" if found is None else f"have shape {found}, not"
    return InvalidArgumentError(
        f"{where}: the values {has} the shape {shape}. Pass exactly the rows that are to be "
        "written."
    )


def _from_lists(
    values: Any, dtype: np.dtype[Any], shape: tuple[int, ...], casting: Casting, where: str
) -> NDArray[Any]:
    """Go down the nested lists, and check the elements of each level's lists together."""
    flat, kinds, left = [values], {type(values)}, list(shape)
    while left and flat and all(map(_is_nested, kinds)):
        length = left.pop(0)
        if any(len(part) != length for part in flat):
            raise _other_shape(where, shape)
        flat = list(chain.from_iterable(flat))
        kinds = set(map(type, flat))
    if not flat:
        return np.empty(shape, dtype)
    parts = _elements(flat, kinds, dtype, tuple(left), casting, where)
    if parts.shape != (len(flat), *left):
        raise _other_shape(where, shape)
    return parts.reshape(shape)


def _elements(
    flat: list[Any],
    kinds: set[type],
    dtype: np.dtype[Any],
    inner: tuple[int, ...],
    casting: Casting,
    where: str,
) -> NDArray[Any]:
    """Return an array of elements, each of shape `inner`: shape (elements, *inner)."""
    if dtype.names is not None and not inner and all(issubclass(k, tuple) for k in kinds):
        return _records(flat, dtype, casting, where)
    if any(map(_is_array, kinds)):
        if len(kinds) > 1 or not _are_of_one_dtype(flat):
            result = np.zeros((len(flat), *inner), dtype)
            for i, part in enumerate(flat):
                store(result[i, ...], checked_array(part, dtype, inner, casting, where))
            return result
        array = _computed(flat, where)
    else:
        array = _of_objects(flat, kinds, dtype, where, strict=casting != "unsafe")
    if array.shape == (len(flat), *inner):
        check_cast(array, dtype, casting, where, sized=_is_array(type(flat[0])))
    return array


def _are_of_one_dtype(flat: list[Any]) -> bool:
    """Say whether these are NumPy's own arrays or scalars, without masks, of one dtype."""
    own = isinstance(flat[0], np.ndarray | np.generic)
    return (
        own
        and not isinstance(flat[0], np.ma.MaskedArray)
        and all(part.dtype == flat[0].dtype for part in flat)
    )


def _records(
    flat: list[tuple[Any, ...]], dtype: np.dtype[Any], casting: Casting, where: str
) -> NDArray[Any]:
    """Check the values of each field together."""
    names = dtype.names or ()
    for row in flat:
        if len(row) != len(names):
            raise InvalidArgumentError(
                f"{where}: {short(row)} has {len(row)} values; a record has the {len(names)} "
                f"fields {short(list(names))}. Pass a value for each."
            )
    result = np.zeros(len(flat), dtype)
    for i, name in enumerate(names):
        base, axes = split(dtype[name])
        place, shape = f"{where}, field {name!r}", (len(flat), *axes)
        column = [row[i] for row in flat]
        store(result[name], checked_array(column, base, shape, casting, place))
    return result


def _of_objects(
    flat: list[Any], kinds: set[type], dtype: np.dtype[Any], where: str, *, strict: bool
) -> NDArray[Any]:
    """Return the array that NumPy makes of Python's objects; refuse one of other values."""
    array = _made(flat, where)
    if array.shape != (len(flat),) or array.dtype.kind in "biu" or kinds == {float}:
        return array
    if all(issubclass(kind, int) for kind in kinds):
        array = _of_large_numbers(flat, dtype, where)
    elif len(kinds) == 1 and array.dtype.kind == "O":
        array = _of_times(flat, array, where)
    if strict and array.dtype.kind != "O":
        _compare(flat, array, dtype, where)
    return array


def _of_large_numbers(flat: list[int], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Return whole numbers, some of them 2**63 or more, in a dtype of NumPy's."""
    for holder in ["u8"] if dtype.kind in "ium" else ["u8", "f8"]:
        with contextlib.suppress(OverflowError):
            return np.array(flat, holder)
    least, most = bounds(dtype) if dtype.kind in "ium" else (0, 0)
    culprit = next(number for number in flat if not least <= number <= most)
    raise no_room(where, dtype, short(culprit))


def _compare(flat: list[Any], array: NDArray[Any], dtype: np.dtype[Any], where: str) -> None:
    """Refuse an array of other values than were given: whole numbers are not rounded."""
    made = stored = array.tolist()
    if array.dtype.kind + dtype.kind in ("ff", "fc", "cc"):
        with np.errstate(all="ignore"):
            stored = array.astype(dtype, casting="unsafe").tolist()
    for given, *taken in zip(flat, made, stored, strict=True):
        found = taken[isinstance(given, int)]
        if given != found and given == given:  # noqa: PLR0124 -- NaN
            raise no_room(where, dtype, short(given), short(found))


def _of_times(flat: list[Any], array: NDArray[Any], where: str) -> NDArray[Any]:
    """Return dates, times and durations as NumPy's; anything else as it is."""
    dtype = _TIMES.get(type(flat[0]))
    if dtype is None:
        return array
    if any(getattr(value, "tzinfo", None) is not None for value in flat):
        raise InvalidArgumentError(
            f"{where}: the values contain times with a time zone, which NumPy has not. "
            "Convert them to UTC and pass them without: t.astimezone(UTC).replace(tzinfo=None)."
        )
    return _made(flat, where, dtype)
