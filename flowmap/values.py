"""Values for the fillers that come along: rows and fields of a block, and JSON as elements."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from flowmap.casting import bounds
from flowmap.errors import InvalidArgumentError, WrongTypeError, cut, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from flowmap.segments import Block

ON_NULL: Final = (
    "JSON has no NaN and no infinity, and Prefect stores null in their place: write the text "
    "'nan', 'inf' or '-inf'."
)


def by_rows(out: NDArray[Any], block: Block) -> NDArray[Any]:
    """View what a filler is to fill with the rows along the first axis, in either order.

    Args:
        out: Shape (rows, ...) in C order, (..., rows) in Fortran order, () for a 0-d target.
        block: The rows.

    Returns:
        A view of shape (rows, ...).
    """
    return np.moveaxis(out, row_axis(out, block), 0) if out.ndim else out[np.newaxis]


def row_axis(out: NDArray[Any], block: Block) -> Literal[0, -1]:
    """Return the axis along which the rows lie, 0 or -1; arguments as in `by_rows`.

    What the block does not say is told from the memory order, which for a single element
    is a guess.
    """
    if block.axis is not None:
        return block.axis
    return 0 if out.flags.c_contiguous and len(out) == len(block) else -1


def leaves(view: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield a view of each field that has no fields of its own, in order; or the view itself.

    The axes of a field's subarray come last.
    """
    if view.dtype.names is None:
        yield view
        return
    for name in view.dtype.names:
        yield from leaves(view[name])


def number_leaves(view: NDArray[Any], kinds: str, filler: str) -> Iterator[NDArray[Any]]:
    """Yield what `leaves` does, and refuse a field of another kind than the filler fills.

    Args:
        view: What is to be filled.
        kinds: The kinds that `numpy.dtype.kind` may have.
        filler: Its name, for the message.

    Raises:
        WrongTypeError: A field holds texts, for one.
    """
    part = "" if view.dtype.names is None else f", which is part of {view.dtype}"
    for leaf in leaves(view):
        if leaf.dtype.kind not in kinds:
            raise WrongTypeError(
                f"{filler} cannot fill {leaf.dtype}{part}. Use 'constant' or 'copy', or a "
                "filler of your own."
            )
        yield leaf


def put(leaf: NDArray[Any], values: NDArray[Any]) -> None:
    """Give each row its value.

    Args:
        leaf: Shape (rows, ...).
        values: Shape (rows,).
    """
    leaf[...] = values.reshape(-1, *[1] * (leaf.ndim - 1))


def spread(view: NDArray[Any], inner: tuple[int, ...], value: object, name: str) -> None:
    """Give every element of a view the same value, or every row the same values.

    Args:
        view: Shape (..., *inner).
        inner: The axes over which a list broadcasts.
        value: JSON values: an atom; lists of them; for a record the values of the fields, in
            a list or by name, or an atom for all.
        name: Of the argument, for the messages.

    Raises:
        InvalidArgumentError: It does not fit the dtype or the shape.
        WrongTypeError: It is of a kind that the dtype does not take.
    """
    names = view.dtype.names
    if names is not None:
        for field, part in _parts(value, names, name).items():
            # Not the shape of its dtype, which may have a subarray of its own.
            part_of = view[field]
            spread(part_of, part_of.shape[view.ndim :], part, f"{name}[{field!r}]")
        return
    array = _elements(value, view.dtype, name)
    try:
        fits = np.broadcast_shapes(array.shape, inner) == inner
    except ValueError:
        fits = False
    if not fits:
        raise InvalidArgumentError(
            f"{name} has shape {array.shape}, which does not broadcast over the shape {inner} "
            "that it fills. Pass one value, or a list of that shape."
        )
    view[...] = array


def _parts(value: object, names: tuple[str, ...], name: str) -> dict[str, object]:
    """Return what each field of a record gets."""
    if isinstance(value, dict):
        if value.keys() != set(names):
            raise InvalidArgumentError(
                f"{name} has the keys {short(list(value))}; the record has the fields "
                f"{short(list(names))}. Give each field its value."
            )
        return value
    if not isinstance(value, list | tuple):
        return dict.fromkeys(names, value)
    if len(value) != len(names):
        raise InvalidArgumentError(
            f"{name} has {len(value)} values; the record has {len(names)} fields, "
            f"{short(list(names))}. Give each field its value, in order or by name."
        )
    return dict(zip(names, value, strict=True))


def _elements(value: object, dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Return an atom as a 0-d array, nested lists as an array of as many axes."""
    if not isinstance(value, list | tuple):
        return element(value, dtype, name)
    parts = [_elements(part, dtype, f"{name}[{i}]") for i, part in enumerate(value)]
    if len({part.shape for part in parts}) > 1:
        raise InvalidArgumentError(f"{name} holds lists of unequal lengths; make them equal.")
    return np.stack(parts) if parts else np.empty(0, dtype)


def element(value: object, dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Return a JSON value as one element of a dtype: exactly, or rounded as floats are.

    Args:
        value: A number; true or false; a text: "2026-01-01" for times, "nan" or "-inf" for
            floats, "1+2j" for complex numbers, "18446744073709551615" for whole numbers that
            JSON would round.
        dtype: Without fields.
        name: Of the argument, for the messages.

    Returns:
        Shape (), of that dtype.

    Raises:
        InvalidArgumentError: The dtype cannot hold it.
        WrongTypeError: It is of a kind that the dtype does not take.
    """
    convert = _CONVERTERS.get(dtype.kind)
    if convert is None:
        raise WrongTypeError(
            f"{name} is {short(value)}, and no JSON value stands for raw bytes, {dtype}. Use "
            "'copy', or a filler of your own."
        )
    try:
        with np.errstate(all="ignore"):
            return convert(value, dtype)
    except TypeError as error:
        advice = f" {ON_NULL}" if value is None else ""
        raise WrongTypeError(
            f"{name} is {short(value)}, which {dtype} does not take: {cut(str(error))}.{advice}"
        ) from error
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"{name} is {short(value)}, which {dtype} cannot hold: {cut(str(error))}. Choose "
            "another value, or allocate a dtype that holds it."
        ) from error


def whole_number(value: object) -> int:
    """Return a whole number that JSON may have made a float or a text.

    Raises:
        ValueError: It is none.
        TypeError: It is no number at all.
    """
    if isinstance(value, str):
        return int(value)
    if isinstance(value, float | np.floating):
        if not value.is_integer():
            raise ValueError("it is no whole number")
        return int(value)
    return operator.index(value)  # type: ignore[arg-type]  # whose TypeError says it


def whole_parameter(name: str, value: object) -> int:
    """Return an argument that must be a whole number; 3.0 and "3" are some.

    Raises:
        InvalidArgumentError: It is a fraction.
        WrongTypeError: It is no number.
    """
    advice = f"{name} is {short(value)}; a dtype of whole numbers takes a whole one"
    if isinstance(value, bool | np.bool_):
        raise WrongTypeError(f"{advice}.")
    try:
        return whole_number(value)
    except TypeError as error:
        raise WrongTypeError(f"{advice}.") from error
    except ValueError as error:
        raise InvalidArgumentError(f"{advice}. Allocate '<f8' for fractions.") from error


def _whole(value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    number = whole_number(value)
    least, most = bounds(dtype)
    if not least <= number <= most:
        raise ValueError(f"it takes {least} to {most}")
    return np.array(number, "u8" if dtype.kind == "u" else "i8").astype(dtype)


def _floating(value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    given = _parsed(value, float) if isinstance(value, str) else value
    if not isinstance(given, int | float | np.integer | np.floating | np.bool_):
        raise TypeError("it is no real number")
    return _rounded(given, dtype)


def _parsed(text: str, kind: Callable[[str], Any]) -> Any:
    if re.fullmatch(r"\s*[+-]?\d+\s*", text):  # a whole number is never rounded
        return int(text)
    number = kind(text)
    if np.isinf(number) and "inf" not in text.lower():
        raise OverflowError("it is too large")
    if number == 0 and re.match(r"[^e]*[1-9]", text.lower()):
        raise OverflowError("it is too small, and would be 0")
    return number


def _rounded(given: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    result = np.array(given).astype(dtype)  # of a long int an array of objects, which raises
    if np.isinf(result) and (isinstance(given, int) or not np.isinf(given)):
        raise OverflowError("it is too large")
    if given != 0 and result == 0:
        raise OverflowError("it is too small, and would be 0")
    if isinstance(given, int | np.integer) and int(result) != given:
        raise OverflowError(f"it would be rounded, to {int(result)}")
    return result


def _complex(value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(value, str):
        value = _parsed(value, complex)
    if not isinstance(value, int | float | complex | np.number | np.bool_):
        raise TypeError("it is no number")
    result = np.zeros((), dtype)
    for part in ("real", "imag"):
        field = getattr(result, part)
        field[...] = _rounded(getattr(value, part), field.dtype)
    return result


def _time(value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not isinstance(value, str):
        return _whole(value, dtype)
    if value == "NaT":
        return np.array("NaT", dtype)
    if dtype.kind == "m":
        raise TypeError("it takes a whole number of its unit, or 'NaT'")
    day, _, time = value.partition("T")
    if not day.lstrip("+-")[:1].isdigit() or set("Z+-") & set(time):
        raise ValueError("it takes a text such as '2026-01-31T23:59:59', in UTC")
    exact = np.array(np.datetime64(value))
    result = exact.astype(dtype)
    if result.astype(exact.dtype) != exact:
        raise ValueError("it lies beyond the range of the unit, or between two of its steps")
    return result


def _text(value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not isinstance(value, str):
        raise TypeError("it takes a text")
    result = np.array(value, dtype)
    there = result.item()
    if (there if isinstance(there, str) else there.decode("ascii")) != value:
        length = dtype.itemsize // (4 if dtype.kind == "U" else 1)
        raise ValueError(f"it would be cut, to {length} characters or at a zero byte")
    return result


_CONVERTERS: Final[dict[str, Callable[[object, np.dtype[Any]], NDArray[Any]]]] = {
    **dict.fromkeys("biu", _whole),
    "f": _floating,
    "c": _complex,
    **dict.fromkeys("mM", _time),
    **dict.fromkeys("SU", _text),
}
