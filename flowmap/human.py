"""Durations, sizes and counts, written as people read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIZES: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_KIB: Final = 1024
_PARTS: Final = (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3))
_STEP: Final = 1000
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY_MINUTES: Final = 24 * 60
_THREE_DIGITS: Final = 100


def seconds(value: float) -> str:
    """Return a duration: "340 ms", "12.3 s", "2 min 40 s", "3 h 5 min", "12 d 4 h".

    Args:
        value: In seconds. What is infinite or not a number is "unknown".
    """
    if not math.isfinite(value):
        return "unknown"
    if value < 0:
        return f"-{seconds(-value)}"
    if round(value, 1) < _MINUTE:
        return _short(value)
    whole = round(value)
    if whole < _HOUR:
        return _two(*divmod(whole, _MINUTE), "min", "s")
    minutes = round(value / _MINUTE)
    if minutes < _DAY_MINUTES:
        return _two(*divmod(minutes, 60), "h", "min")
    return _two(*divmod(round(value / _HOUR), 24), "d", "h")


def size(nbytes: int) -> str:
    """Return a number of bytes in binary units: "512 B", "1.2 GiB", "180 MiB".

    Args:
        nbytes: The number.
    """
    if nbytes < 0:
        return f"-{size(-nbytes)}"
    if nbytes < _KIB:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in _SIZES:
        value /= _KIB
        if round(value) < _KIB:  # as it will be shown: 1023.6 KiB are 1.0 MiB
            return f"{_digits(value)} {unit}"
    return f"{_digits(value / _KIB)} EiB"


def count(number: int) -> str:
    """Return a number with its thousands set apart: "1,000,000".

    Args:
        number: The number.
    """
    return f"{number:,}"


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Return ascending whole numbers as ranges: "0-15, 18, 20-21".

    Args:
        numbers: The numbers.
        most: How many ranges are written; an ellipsis stands for others.
    """
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in found]
    return ", ".join([*texts[:most], *(["..."] if len(texts) > most else [])])


def _short(value: float) -> str:
    """Return less than a minute, in the largest unit of which it is one or more."""
    if not value:
        return "0 s"
    for unit, length in _PARTS:
        if round(value / length) < _STEP:
            return f"{_digits(value / length)} {unit}"
    return f"{_digits(value)} s"


def _two(large: int, small: int, large_unit: str, small_unit: str) -> str:
    """Return two units of a duration; the small one only where there is any of it."""
    text = f"{large:,} {large_unit}"
    return f"{text} {small} {small_unit}" if small else text


def _digits(value: float) -> str:
    """Return three digits or so: with a decimal below 100, else without."""
    return f"{value:.1f}" if round(value, 1) < _THREE_DIGITS else f"{value:.0f}"
