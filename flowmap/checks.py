"""Looking at the values themselves: the user's own check, and finiteness."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from flowmap.errors import WrongTypeError, said, short

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flowmap.segments import Block

Check = Callable[["NDArray[Any]", "Block"], object]
"""Called as `check(values, block)`; returns None or True where all is well."""


def is_finite(values: NDArray[Any]) -> bool:
    """Return whether no number among the values, in whatever field, is NaN or infinite."""
    if values.dtype.names is not None:
        return all(is_finite(values[name]) for name in values.dtype.names)
    return values.dtype.kind not in "fcmM" or bool(np.isfinite(values).all())


def first_not_finite(values: NDArray[Any]) -> int:
    """Return the index of the first NaN or infinity in values of one axis that hold one."""
    first, last = 0, len(values)
    while last - first > 1:
        middle = (first + last) // 2
        if is_finite(values[first:middle]):
            first = middle
        else:
            last = middle
    return first


def complaint_of(check: Check, values: NDArray[Any], block: Block) -> str | None:
    """Say how the values fail the user's check; None if they pass."""
    try:
        verdict = check(values, block)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- what a check raises is its verdict
        return f"fails the check ({said(error)})"
    if verdict is None or isinstance(verdict, bool | np.bool_):
        return "fails the check" if verdict is not None and not verdict else None
    return f"fails the check, which returned {short(verdict)} and not True, False or None"


def refuse_odd_check(check: Check | None) -> None:
    """Refuse what is no check, before anything is read.

    Raises:
        WrongTypeError: It cannot be called with values and block.
    """
    if check is None:
        return
    if not callable(check):
        raise WrongTypeError(f"check is {short(check)}; it takes a function (values, block).")
    try:
        inspect.signature(check).bind(None, None)
    except TypeError as error:
        raise WrongTypeError(
            f"check cannot be called as check(values, block): {error}."
        ) from error
    except ValueError:  # a builtin that tells nothing of itself
        return
