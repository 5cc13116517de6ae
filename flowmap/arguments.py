"""Arguments that must be whole numbers, seconds, true or false, or one of some texts."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from flowmap.errors import InvalidArgumentError, WrongTypeError, short


def whole(name: str, value: Any) -> int:
    """Return an argument that must be a whole number, as a plain `int`.

    True and False are refused, as NumPy's own are: nobody means 1 or 0 by them.

    Args:
        name: Of the argument, for the message.
        value: What was given.

    Raises:
        WrongTypeError: It is no whole number.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # exactly an int, also of an IntEnum
        except TypeError:
            pass
    raise WrongTypeError(f"{name}: {short(value)} is no whole number; give an int.")


def wholes(name: str, value: Any) -> int | tuple[int, ...]:
    """Return an argument that must be a whole number, or a sequence of them.

    Args:
        name: Of the argument, for the message.
        value: What was given. A set is refused, having no order, and so is what can be
            read only once.

    Raises:
        WrongTypeError: It is neither.
    """
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if not sized or isinstance(value, str | bytes | Mapping) or not getattr(value, "ndim", 1):
        return whole(name, value)
    return tuple(whole(name, each) for each in value)


def flag(name: str, value: Any) -> bool:
    """Return an argument that must be True or False.

    Args:
        name: Of the argument, for the message.
        value: What was given.

    Raises:
        WrongTypeError: It is neither.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise WrongTypeError(f"{name} is {short(value)}; it takes True or False.")


def seconds(name: str, value: Any) -> float:
    """Return an argument that must be a number of seconds, 0 or more.

    Args:
        name: Of the argument, for the message.
        value: What was given.

    Raises:
        WrongTypeError: It is no number.
        InvalidArgumentError: It is negative, infinite or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise WrongTypeError(f"{name} is {short(value)}; it takes seconds.")
    try:
        checked = float(value)
    except OverflowError:
        checked = math.inf
    if not 0 <= checked < math.inf:
        raise InvalidArgumentError(f"{name} is {short(value)}; it takes 0 seconds or more.")
    return checked


def check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a text that is not one of some.

    Raises:
        InvalidArgumentError: It is none of them.
    """
    if not isinstance(value, str) or value not in allowed:
        raise InvalidArgumentError(
            f"{name} is {short(value)}; it takes one of {', '.join(allowed)}."
        )
