"""Arithmetic of `arange` and `linspace`: some rows, exact or as NumPy has them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from flowmap.arguments import whole
from flowmap.casting import bounds, fitted
from flowmap.errors import InvalidArgumentError, WrongTypeError, said, short
from flowmap.values import element, whole_parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from flowmap.segments import Block


def progression(
    dtype: np.dtype[Any], start: float | str, step: float, block: Block
) -> NDArray[Any]:
    """Return start + step * row of each row, in a dtype of numbers, times or bool.

    Returns:
        Shape (rows,).

    Raises:
        InvalidArgumentError: Some row's value does not fit the dtype.
        WrongTypeError: `start` or `step` is no number.
    """
    if dtype.kind in "biumM":
        return _whole_progression(dtype, start, step, block)
    first, by = _number("start", start, dtype), _number("step", step, dtype)
    numbers: NDArray[Any] = np.arange(block.start, block.stop)
    whole = isinstance(first, int) and isinstance(by, int)
    with _overflow_told("arange"):
        scale = float(abs(first) + abs(by) * block.stop)
        if whole and scale >= 2.0**62:  # nearly more than an int64 holds
            numbers = numbers.astype(object)
        elif not whole:
            _check_exact("arange", first, by)
        return fitted(first + by * numbers, dtype, "arange", scale)


def interval(
    start: float, stop: float, num: int, block: Block, *, endpoint: bool
) -> NDArray[np.float64]:
    """Return rows of `numpy.linspace(start, stop, num, endpoint=endpoint)`, bit for bit.

    Source: `numpy.linspace`, whose operations these are, in their order.

    Returns:
        Shape (rows,).

    Raises:
        InvalidArgumentError: There are fewer than the rows; or the ends are not finite, or
            too far apart.
        WrongTypeError: An argument is no number.
    """
    num = whole("num", num)
    if num < block.stop:
        raise InvalidArgumentError(
            f"num is {num}, and the target has {block.stop} rows or more. Pass its number of "
            "rows, or more."
        )
    with _overflow_told("linspace"):
        ends = [_number(*pair, np.dtype("f8")) for pair in (("start", start), ("stop", stop))]
        first, last = map(np.float64, ends)
        _check_exact("linspace", *ends)
        if not np.isfinite([first, last]).all():
            raise InvalidArgumentError(
                f"start is {start!r} and stop {stop!r}; linspace takes finite numbers."
            )
        delta, pieces = last - first, num - 1 if endpoint else num
        values = np.arange(block.start, block.stop, dtype="f8")
        if pieces == 0:
            values *= delta
        elif delta / pieces == 0:
            values = values / pieces * delta
        else:
            values *= delta / pieces
        values += first
    if endpoint and block.stop == num > 1:
        values[-1] = last
    return values


@contextlib.contextmanager
def _overflow_told(filler: str) -> Iterator[None]:
    """Compute with floats; say so where one grows beyond what a float holds."""
    try:
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            yield
    except (FloatingPointError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{filler} gives numbers beyond what a float holds ({said(error)}). Choose other "
            "arguments."
        ) from error


def _check_exact(filler: str, *numbers: Any) -> None:
    """Refuse whole numbers that computing with floats would round."""
    for number in numbers:
        if isinstance(number, int) and int(float(number)) != number:
            raise InvalidArgumentError(
                f"{filler} computes with floats, which would round {short(number)}. Pass a "
                f"float, such as {float(number)!r}."
            )


def _number(name: str, value: Any, dtype: np.dtype[Any]) -> Any:
    """Return an argument that must be a number, complex only where the dtype is."""
    kinds: tuple[type, ...] = (int, float, np.integer, np.floating)
    if dtype.kind == "c":
        kinds += (complex, np.complexfloating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise WrongTypeError(f"{name} is {short(value)}; for {dtype} it takes a number.")
    return int(value) if isinstance(value, np.integer) else value


def _whole_progression(
    dtype: np.dtype[Any], start: float | str, step: float, block: Block
) -> NDArray[Any]:
    by = whole_parameter("step", step)
    if dtype.kind == "M" and isinstance(start, str):
        first = int(element(start, dtype, "start").astype("i8"))
    else:
        first = whole_parameter("start", start)
    least, most = bounds(dtype)
    for row in (block.start, block.stop - 1):
        if not least <= first + by * row <= most:
            raise InvalidArgumentError(
                f"arange gives row {row} the value {first + by * row}, and {dtype} holds "
                f"{least} to {most}. Choose another start or step, or allocate a larger dtype."
            )
    # Modulo 2**64: no row's value lies beyond it.
    origin = np.uint64((first + by * block.start) % 2**64)
    values = np.arange(len(block), dtype="u8") * np.uint64(by % 2**64) + origin
    return values.view("u8" if dtype.kind == "u" else "i8").astype(dtype)
