"""Fillers: the user's functions, looked up by name; and those that come along."""

from __future__ import annotations

import functools
import importlib
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

from flowmap.arguments import flag
from flowmap.callables import open_partial
from flowmap.casting import fitted
from flowmap.errors import FillerNotFoundError, said, short
from flowmap.importing import importing, place_in_module
from flowmap.marks import filler, is_marked
from flowmap.philox import Law, fill_random
from flowmap.sequences import interval, progression
from flowmap.values import by_rows, number_leaves, put, spread

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from flowmap.philox import Distribution
    from flowmap.segments import Block

    Filler = Callable[..., None]

_GROUP: Final = "flowmap.fillers"  # of entry points


def published() -> dict[str, str]:
    """Return the fillers that installed distributions publish under short names.

    They do so by entry points of the group `flowmap.fillers`, in their `pyproject.toml`:

        [project.entry-points."flowmap.fillers"]
        orbit = "my_package.orbits:orbit"

    Returns:
        "module:function" by name.

    Raises:
        FillerNotFoundError: Two distributions publish one name.
    """
    return {name: _only(name, points) for name, points in sorted(_entry_points().items())}


def _entry_points() -> dict[str, list[metadata.EntryPoint]]:
    """Return the entry points of each published name; one, unless distributions clash."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=_GROUP):
        others = found.setdefault(point.name, [])
        # An earlier flowmap may be installed beside this one, under its earlier name.
        if point.value not in (other.value for other in others):
            others.append(point)
    return found


def _only(name: str, points: list[metadata.EntryPoint]) -> str:
    if len(points) > 1:
        told = " and ".join(f"{_distribution(point)} ({point.value})" for point in points)
        raise FillerNotFoundError(
            f"{name!r} is published as a filler by {told}. Write the one you mean as "
            "'package.module:function', or uninstall the other."
        )
    return points[0].value


def _distribution(point: metadata.EntryPoint) -> str:
    return "an unknown distribution" if point.dist is None else point.dist.name


def find_filler(name: str) -> Filler:
    """Look up a filler by its name, importing its module.

    Args:
        name: "package.module:function", or a name that a distribution publishes: "arange".

    Raises:
        FillerNotFoundError: There is none, or it is not marked with `@filler`; its module
            allocates or fills while it is imported; or two distributions publish the name.
    """
    module_name, colon, function_name = (name if ":" in name else _named(name)).partition(":")
    if not (colon and module_name and function_name):
        raise FillerNotFoundError(
            f"{name!r} names no filler; write it as 'package.module:function'."
        )
    try:
        with importing():
            module = importlib.import_module(module_name)
        found = functools.reduce(_attribute, function_name.split("."), module)
    except FillerNotFoundError:  # its module tries to fill, or names another that is missing
        raise
    except (Exception, SystemExit) as error:  # whatever its module raises when imported
        raise _not_found(name, error) from error
    if not is_marked(open_partial(found)[0]):
        raise FillerNotFoundError(
            f"{name!r} is there but not marked; put @flowmap.filler above its definition."
        )
    return cast("Filler", found)


def _not_found(name: str, error: BaseException) -> FillerNotFoundError:
    """Return the error of a filler whose module is missing, or fails, or has no such name."""
    what = f"The filler {short(name)} cannot be found: {said(error)}"
    place = place_in_module(error)
    if isinstance(error, ModuleNotFoundError):
        where = "" if place is None else f" ({place})"
        return FillerNotFoundError(
            f"{what}{where}. Is its module installed, or its folder on PYTHONPATH, where the "
            "job runs?"
        )
    if place is None:
        return FillerNotFoundError(f"{what}. Correct the name, or its module.")
    return FillerNotFoundError(
        f"The filler {short(name)} cannot be imported: {said(error)}. Correct {place}."
    )


def _attribute(found: Any, name: str) -> Any:
    """Return an attribute, but no module, which may be one that was not allowed."""
    value = getattr(found, name)
    if not isinstance(value, ModuleType):
        return value
    raise ImportError(f"{name} is a module; name the filler by the module it is in")


def _named(name: str) -> str:
    points = _entry_points()
    if name not in points:
        raise FillerNotFoundError(
            f"{short(name)} names no filler: published are {', '.join(sorted(points))}. Write "
            "another as 'package.module:function'."
        )
    return _only(name, points[name])


@filler
def constant(out: NDArray[Any], block: Block, *, value: object = 0) -> None:
    """Fill every element with one value, or every row with the same values.

    Args:
        out: Shape (rows, ...), of any dtype but raw bytes.
        block: The rows.
        value: A number; true or false; a text: of a text dtype; "2026-01-31" for times, in UTC;
            "nan" or "inf" for floats; "1+2j" for complex numbers. Times also take whole
            numbers of their unit. A list, of lists where there are more axes, broadcasts over
            the shape of one row. For a record the values of its fields, in a list or by name,
            or one value for all of them.

    Raises:
        InvalidArgumentError: The dtype cannot hold the value: a number would wrap or lose a
            fraction, a text be cut; or a list has another shape. Floats are rounded.
        WrongTypeError: The value is of another kind than the dtype.
    """
    rows = by_rows(out, block)
    spread(rows, rows.shape[1:], value, "value")


@filler
def arange(out: NDArray[Any], block: Block, *, start: float | str = 0, step: float = 1) -> None:
    """Fill each row with start + step * its number, as `numpy.arange` counts.

    Exactly for whole numbers and times, in double precision for floats. Floats are rounded to
    the dtype; whole numbers are not.

    Args:
        out: Shape (rows, ...), of numbers, times or bool, or of records of such.
        block: The rows.
        start: The value of row 0; for times a text, "2026-01-31", or a number of units.
        step: From one row to the next; for times a number of units.

    Raises:
        InvalidArgumentError: A row's value does not fit the dtype: too large, or a fraction.
        WrongTypeError: `start` or `step` is no number, or the dtype holds none.
    """
    for leaf in number_leaves(by_rows(out, block), "biumMfc", "arange"):
        put(leaf, progression(leaf.dtype, start, step, block))


@filler
def linspace(
    out: NDArray[Any],
    block: Block,
    *,
    start: float = 0,
    stop: float = 1,
    num: int,
    endpoint: bool = True,
) -> None:
    """Fill row i with what `numpy.linspace(start, stop, num, endpoint=endpoint)[i]` is.

    Bit for bit, then rounded to the dtype.

    Args:
        out: Shape (rows, ...), of numbers, or of records of such.
        block: The rows.
        start: The value of row 0.
        stop: The value of row num - 1; without `endpoint`, of the row after it.
        num: How many values the interval is divided into: as many as there are rows, or more.
        endpoint: Whether `stop` is the last of them.

    Raises:
        InvalidArgumentError: There are more rows than `num`; or a row's value does not fit the
            dtype: too large, or a fraction.
        WrongTypeError: An argument is of the wrong type, or the dtype holds no numbers.
    """
    values = interval(start, stop, num, block, endpoint=flag("endpoint", endpoint))
    for leaf in number_leaves(by_rows(out, block), "biufc", "linspace"):
        put(leaf, fitted(values, leaf.dtype, "linspace", max(abs(start), abs(stop))))


@filler
def random(
    out: NDArray[Any],
    block: Block,
    *,
    seed: int | str = 0,
    distribution: Distribution = "uniform",
    low: float | None = None,
    high: float | None = None,
    mean: float | None = None,
    std: float | None = None,
) -> None:
    """Fill with random numbers that depend on the seed and their place in the target only.

    Element e draws words e * k to e * k + k - 1 of `numpy.random.Philox(key=seed)`, k being 1
    for a uniform number, 2 for a normal number and for any complex one. Elements are counted
    row by row, and in C order within a row: e = row * (elements of a row) + place in the row,
    in either order of the target. A record draws for its fields in order, for those of a
    nested record in its place, for those of a subarray in C order. So a one-dimensional "<f8"
    target gets what `numpy.random.Generator(numpy.random.Philox(key=seed)).random(n)` returns.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11, 2011,
    doi:10.1145/2063384.2063405. Normal numbers are made by the method of Box and Muller
    (1958), doi:10.1214/aoms/1177706645: the only ones whose last bit may differ between
    machines, or versions of NumPy, since it is that of their log, cos and sin.

    Args:
        out: Shape (rows, ...), of numbers or bool, or of records of such; "normal" needs
            floats or complex numbers, whose parts are drawn one after the other.
        block: The rows.
        seed: From 0 to 2**128 - 1; also as text, "340282366920938463463", since not all JSON
            keeps so large a number.
        distribution: "uniform": floats or whole numbers of [low, high), as the dtype is.
            Whole numbers are floor(word * (high - low) / 2**64) + low, whose probabilities
            differ by 2**-64 at most. "normal".
        low: The least uniform number: 0 for floats, the least of the dtype for whole numbers,
            if not given.
        high: What they stay below: 1 for floats, the largest of the dtype + 1 for whole
            numbers, if not given.
        mean: Of normal numbers: 0 if not given.
        std: Their standard deviation: 1 if not given.

    Raises:
        InvalidArgumentError: A parameter that cannot be, does not belong to the distribution,
            or makes numbers that do not fit the dtype.
        WrongTypeError: A parameter is of the wrong type, or the dtype holds no such numbers.
    """
    law = Law(distribution, low, high, mean, std)
    fill_random(by_rows(out, block), block.start, seed, law)
