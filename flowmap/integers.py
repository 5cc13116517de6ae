"""Whole numbers among the arguments: exact, and refused where they only look like numbers."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from flowmap.errors import WrongTypeError


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
            return int(operator.index(value))  # an IntEnum would be written as its name
        except TypeError:
            pass
    raise WrongTypeError(f"{name} is or holds {value!r}; it takes whole numbers.")


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
