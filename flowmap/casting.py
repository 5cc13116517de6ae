"""Casting values to the dtype of a target: a cast that would change a value is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from flowmap.dtypes import split
from flowmap.errors import InvalidArgumentError, WrongTypeError, short

if TYPE_CHECKING:
    from numpy.typing import NDArray

Casting = Literal["no", "equiv", "safe", "same_kind", "unsafe"]

_PIECE: Final = 1 << 16
"""Elements that are cast at once to look at the result: what they take stays in the cache."""

_ROUNDING: Final = 2.0**-50
"""The error of a few operations in double precision, relative to the numbers that go in."""


def check_cast(
    array: NDArray[Any], dtype: np.dtype[Any], casting: Casting, where: str, *, sized: bool
) -> None:
    """Refuse values that a cast would change.

    NumPy's rule decides which dtypes can be cast. Then every value must be the same after the
    cast; floats may be rounded, but not to zero or infinity. Where the dtypes alone say so, no
    value is looked at.

    Args:
        array: The values, of any shape.
        dtype: What they will be cast to.
        casting: Which casts are allowed, as in `numpy.can_cast`. "unsafe" allows any change.
        where: What the values belong to, for the messages.
        sized: Whether the values had a dtype of their own. Python's whole numbers have no size:
            only their values count.

    Raises:
        WrongTypeError: The rule does not allow the cast.
        InvalidArgumentError: There is no such rule; or a value would change, or has no meaning
            in the dtype.
    """
    strict = casting != "unsafe"
    try:
        castable = np.can_cast(array.dtype, dtype, casting)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"casting is {casting!r}: {error}") from error
    if not castable and not sized and casting == "same_kind":
        castable = array.dtype.kind in "iu" and dtype.kind in "iu"
    alike = _alike(array.dtype, dtype, strict=strict)
    if not castable or not alike:
        advice = "Convert the values first, or allocate a dtype of their kind."
        if alike and np.can_cast(array.dtype, dtype, "same_kind"):
            advice = "Convert the values first, or pass casting='same_kind'."
        raise WrongTypeError(
            f"{where}: values of dtype {array.dtype} cannot be cast to {dtype} by the rule "
            f"{casting!r}. {advice}"
        )
    _check_leaves(array, dtype, where, strict=strict)


def store(out: NDArray[Any], values: NDArray[Any]) -> None:
    """Cast values, which were checked, into an array of the same shape."""
    with np.errstate(all="ignore"):
        np.copyto(out, values, casting="unsafe")


def _alike(one: np.dtype[Any], other: np.dtype[Any], *, strict: bool) -> bool:
    """Say whether fields have the same names in the same order: NumPy casts them by order.

    Args:
        one: A dtype.
        other: The other dtype.
        strict: Whether subarrays must have the same shape: NumPy repeats or drops elements.
    """
    (one, axes), (other, other_axes) = split(one), split(other)
    if strict and axes != other_axes:
        return False
    if one.names is None or other.names is None:
        return one.names == other.names
    return one.names == other.names and all(
        _alike(one[name], other[name], strict=strict) for name in one.names
    )


def _check_leaves(
    array: NDArray[Any], dtype: np.dtype[Any], where: str, *, strict: bool
) -> None:
    """Cast each field on trial, piece by piece, and compare."""
    if dtype.names is not None:
        for name in dtype.names:
            inner, _ = split(dtype[name])
            _check_leaves(array[name], inner, f"{where}, field {name!r}", strict=strict)
        return
    if _holds_all_of(dtype, array.dtype):
        return
    flags: Any = ["external_loop", "buffered", "zerosize_ok", "refs_ok"]
    pieces: Any = np.nditer(array, flags, buffersize=_PIECE)
    try:
        for given in pieces:
            _check_piece(given, dtype, where, strict=strict)
    except InvalidArgumentError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{where}: values of dtype {array.dtype} cannot be cast to {dtype}: {error}"
        ) from error


def _check_piece(
    given: NDArray[Any], dtype: np.dtype[Any], where: str, *, strict: bool
) -> None:
    if given.dtype.kind in "iu" and dtype.kind in "fc" and given.size:
        most = 2 ** (np.finfo(dtype).nmant + 1)  # up to here a float holds each whole number
        if -most <= given.min() and given.max() <= most:
            return
    try:
        # A float that gets infinite, or zero, says so by itself.
        how: Literal["raise", "ignore"] = "raise" if strict else "ignore"
        with np.errstate(over=how, under=how, invalid="ignore"):
            cast = given.astype(dtype, casting="unsafe")
        if not strict or (given.dtype.kind in "fc" and dtype.kind in "fc"):
            return
    except FloatingPointError:
        pass
    with np.errstate(all="ignore"):
        cast = given.astype(dtype, casting="unsafe")
        changed = _changed(given, cast)
    if changed.any():
        first = int(np.argmax(changed))
        raise no_room(where, dtype, _shown(given[first]), _shown(cast[first]))


def no_room(
    where: str, dtype: np.dtype[Any], value: str, cast: str | None = None
) -> InvalidArgumentError:
    """Return the error for a value that a dtype cannot hold, and what would become of it."""
    change = "" if cast is None else f": it would become {cast}"
    return InvalidArgumentError(
        f"{where}: the values contain {value}, which {dtype} cannot hold{change}. Allocate a "
        "dtype that holds the values, or convert them first."
    )


def _holds_all_of(dtype: np.dtype[Any], given: np.dtype[Any]) -> bool:
    """Say whether a dtype, without fields, holds every value of another; floats rounded or not.

    `numpy.can_cast` calls more casts safe than are: of dates, and of whole numbers to floats.
    """
    if given.kind == "T":  # NumPy's texts without a length, which have no byte order either
        return False
    if given.newbyteorder("=") == dtype.newbyteorder("="):
        return True
    if dtype.kind == "V" or given.kind + dtype.kind in ("SS", "UU"):
        return given.itemsize <= dtype.itemsize
    if given.kind not in "biufc" or dtype.kind not in "biufc":
        return False
    if given.kind in "iu" and dtype.kind in "fc":
        return 8 * given.itemsize <= np.finfo(dtype).nmant + 1
    return np.can_cast(given, dtype, "safe")


def _changed(given: NDArray[Any], cast: NDArray[Any]) -> Any:
    """Return which values a cast changed: shape as `given`. Floats may be rounded."""
    match given.dtype.kind, cast.dtype.kind:
        case _, "V":  # raw bytes have no end that could be left out
            changed: Any = np.ones(given.shape, bool)
        case (("i" | "u"), ("f" | "c")):
            changed = _rounded(given, cast.real)
        case (("f" | "c"), ("f" | "c")):
            changed = _left_range(given.real, cast.real) | _left_range(given.imag, cast.imag)
        case (("i" | "u"), "m"):
            least, most = bounds(cast.dtype)
            changed = (given < least) | (given > most)
        case (("m" | "M"), _):
            neither = np.isnat(given) & np.isnat(cast)
            changed = (cast.astype(given.dtype) != given) & ~neither
        case "T", _:
            changed = cast.astype(given.dtype) != given
        case _, ("S" | "U"):
            changed = cast != given.astype(cast.dtype.kind)
        case _:
            changed = cast != given
    return changed


def _left_range(given: NDArray[Any], cast: NDArray[Any]) -> Any:
    """Return which floats became infinite or zero."""
    return (np.isinf(cast) & np.isfinite(given)) | ((cast == 0) & (given != 0))


def _rounded(given: NDArray[Any], cast: NDArray[Any]) -> Any:
    """Return which whole numbers are others as floats."""
    wide = cast.astype("f8") if cast.itemsize < np.dtype("f8").itemsize else cast
    least, most = bounds(given.dtype)
    # An upper bound that a float can hold, as 2**63 - 1 is not.
    within = (wide >= least) & (wide < most + 1)
    return ~within | (wide.astype(given.dtype) != given)


def _shown(value: Any) -> str:
    if not isinstance(value, np.generic):
        return short(value)
    return str(value) if value.dtype.kind in "mM" else short(value.item())


def fitted(
    values: NDArray[Any], dtype: np.dtype[Any], what: str, scale: float = math.inf
) -> NDArray[Any]:
    """Cast numbers that were computed, and refuse those that the dtype cannot hold.

    Floats are rounded to the precision of `dtype`, as everywhere in NumPy; whole numbers are
    not.

    Args:
        values: Whole or floating-point numbers, of any shape; or Python's whole numbers.
        dtype: Of numbers, or bool, which holds 0 and 1.
        what: What computed them, for the message.
        scale: How large the numbers are that they were computed from. A float may become zero
            only where its rounding error is as large as itself.

    Raises:
        InvalidArgumentError: One is too large for `dtype`, too small, or a whole number that it
            would round; or is a fraction, NaN or infinite where whole numbers are wanted.
    """
    with np.errstate(all="ignore"):
        cast = values.astype(dtype, casting="unsafe")
        if dtype.kind in "biu":
            least, most = bounds(dtype)
            # An upper bound that a float can hold, as 2**63 - 1 is not.
            fits = (
                (values >= least) & (values < most + 1) & (cast.astype(values.dtype) == values)
            )
        elif values.dtype.kind == "O":
            fits = cast.astype(object) == values
        elif values.dtype.kind in "iu":
            fits = ~_rounded(values, cast.real)
        else:
            noise = _ROUNDING * scale
            fits = np.isfinite(cast) | ~np.isfinite(values)
            for cast_part, part in ((cast.real, values.real), (cast.imag, values.imag)):
                fits &= (cast_part != 0) | (np.abs(part) <= noise)
    if not fits.all():
        culprit = values[~fits].flat[0]
        raise InvalidArgumentError(
            f"{what} gives {_shown(culprit)}, which {dtype} cannot hold. Choose other "
            "arguments, or allocate a dtype that holds it."
        )
    return cast


def bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the least and the largest of the whole numbers that a dtype holds.

    Args:
        dtype: Of whole numbers or bool; or of times, which count units and keep the least
            for NaT.
    """
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind in "mM":
        return 1 - 2**63, 2**63 - 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)
