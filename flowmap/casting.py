"""Casting values to the dtype of a target: what would be lost silently is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowmap.errors import InvalidArgumentError, WrongTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Casting = Literal["no", "equiv", "safe", "same_kind", "unsafe"]


def converted(
    array: NDArray[Any], dtype: np.dtype[Any], casting: Casting, where: str, *, sized: bool
) -> NDArray[Any]:
    """Cast values by NumPy's rule, and refuse what that would lose silently.

    Args:
        array: The values, of any shape.
        dtype: What to cast them to.
        casting: Which casts are allowed, as in `numpy.can_cast`. "unsafe" refuses nothing.
        where: What the values are of, for the messages.
        sized: Whether the values had a dtype of their own. Python's numbers have no size:
            whether they fit is compared.

    Returns:
        The values in `dtype`, or as they were where any of their dtype fit into it.

    Raises:
        WrongTypeError: The rule does not allow the cast.
        InvalidArgumentError: There is no such rule; or a text would be cut, a number overflow
            or a whole number wrap.
    """
    try:
        castable = np.can_cast(array.dtype, dtype, casting)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"casting is {casting!r}: {error}") from error
    if not castable and not sized and casting == "same_kind":
        castable = array.dtype.kind in "iu" and dtype.kind in "iu"
    alike = _same_names(array.dtype, dtype)
    if not castable or not alike:
        unsafe = alike and casting != "unsafe" and np.can_cast(array.dtype, dtype, "unsafe")
        raise WrongTypeError(
            f"{where}: values of dtype {array.dtype} cannot be cast to {dtype} by the rule "
            f"{casting!r}. "
            + ("Convert them, or pass casting='unsafe'." if unsafe else "Convert them first.")
        )
    if np.can_cast(array.dtype, dtype, "safe"):
        return array
    return _cast(array, dtype, where, strict=casting != "unsafe")


def _cast(
    array: NDArray[Any], dtype: np.dtype[Any], where: str, *, strict: bool
) -> NDArray[Any]:
    """Cast what may lose something; where `strict`, refuse what NumPy would lose silently."""
    try:
        with np.errstate(over="raise" if strict else "ignore", invalid="ignore"):
            cast = array.astype(dtype, casting="unsafe")
    except (ValueError, TypeError, OverflowError, FloatingPointError) as error:
        raise InvalidArgumentError(
            f"{where}: values cannot be cast to {dtype}: {error}"
        ) from error
    if strict and _is_lost(array, cast):
        raise InvalidArgumentError(
            f"{where}: values of dtype {array.dtype} hold some that {dtype} has no room for: "
            "numbers would wrap, texts be cut. Allocate a larger dtype, or pass "
            "casting='unsafe' to let them."
        )
    return cast


def _is_lost(array: NDArray[Any], cast: NDArray[Any]) -> bool:
    """Say whether a cast wrapped a whole number or cut a text, in whatever field."""
    if cast.dtype.names is not None:
        return any(_is_lost(array[name], cast[name]) for name in cast.dtype.names)
    if cast.dtype.kind in "SU":
        return not bool((cast.astype(array.dtype) == array).all())
    whole = cast.dtype.kind in "iu" and array.dtype.kind in "iu"
    return whole and not bool((cast == array).all())


def _same_names(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Say whether fields have the same names in the same order: NumPy casts them by order."""
    one, other = one.base, other.base
    if one.names is None or other.names is None:
        return one.names == other.names
    return one.names == other.names and all(
        _same_names(one[name], other[name]) for name in one.names
    )


def fitted(values: NDArray[Any], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Cast numbers that were computed, and refuse those that the dtype cannot hold.

    Floats are rounded to the precision of `dtype`, as everywhere in NumPy.

    Args:
        values: Whole or floating-point numbers, of any shape.
        dtype: Of numbers, or bool, which holds 0 and 1.
        what: What computed them, for the message.

    Raises:
        InvalidArgumentError: One is too large for `dtype`, or is a fraction, NaN or infinite
            where whole numbers are wanted.
    """
    with np.errstate(all="ignore"):
        cast = values.astype(dtype, casting="unsafe")
        if dtype.kind in "biu":
            least, most = bounds(dtype)
            # An upper bound that a float can hold, as 2**63 - 1 is not.
            fits = (
                (values >= least) & (values < most + 1) & (cast.astype(values.dtype) == values)
            )
        else:
            fits = np.isfinite(cast) | ~np.isfinite(values)
    if not fits.all():
        culprit = values[~fits].flat[0].item()
        raise InvalidArgumentError(
            f"{what} gives {culprit!r}, which {dtype} cannot hold. Choose other arguments, or "
            "allocate a dtype that holds it, such as '<f8'."
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
