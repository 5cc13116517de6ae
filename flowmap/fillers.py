"""Fillers: the user's functions, marked and looked up by name; and those that come along."""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

import numpy as np

from flowmap.errors import (
    FillerNotFoundError,
    WrongTypeError,
    said,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flowmap.segments import Block

    Filler = Callable[..., None]

F = TypeVar("F", bound="Callable[..., None]")

_MARK: Final = "__flowmap_filler__"


@dataclass(frozen=True, slots=True)
class Mark:
    """What `@filler` says of a function.

    Attributes:
        name: Its name where it was defined: in another process its module may have none.
        version: Of what it computes.
        volatile: The arguments that do not change what it computes.
    """

    name: str
    version: str = "1"
    volatile: tuple[str, ...] = ()


@overload
def filler(function: F, /) -> F: ...
@overload
def filler(*, version: str = ..., volatile: Iterable[str] = ...) -> Callable[[F], F]: ...
def filler(
    function: F | None = None, /, *, version: str = "1", volatile: Iterable[str] = ()
) -> F | Callable[[F], F]:
    """Mark a function as a filler, so that it can be named in text.

    The function is called as `function(out, block, **arguments)` and fills `out`, the
    rows `block.start` to `block.stop` of the target. `out` arrives zeroed, padding
    included, in the target's dtype and memory order: shape (rows, ...) in C order,
    (..., rows) in Fortran order, () for a 0-d target. It returns nothing. It must not
    keep `out`, which is used again for the next block.

    What the function closes over, or the object whose method it is, is not part of the
    fingerprint: pass what decides the result as arguments. Two lambdas of one module have
    the same name.

    Args:
        function: The function.
        version: Part of the work's fingerprint: change it when what is computed changes,
            so that rows of the old version are not mixed with the new.
        volatile: Names of arguments that do not change what is computed (`log`, `verbose`).

    Returns:
        The function itself, marked.

    Raises:
        WrongTypeError: It is no function, or version and volatile are no such things.
    """
    names = _names(volatile)
    if not isinstance(version, str):
        raise WrongTypeError(f"version is {version!r}; it takes a text.")

    def decorate(function: F) -> F:
        if not callable(function):
            raise WrongTypeError(f"@filler marks a function, not {function!r}.")
        try:
            setattr(function, _MARK, Mark(name_of(function), version, names))
        except (AttributeError, TypeError) as error:
            raise WrongTypeError(
                f"@filler cannot mark {function!r}; wrap it in a function of your own."
            ) from error
        return function

    return decorate if function is None else decorate(function)


def _names(volatile: Any) -> tuple[str, ...]:
    plain = np.iterable(volatile) and not isinstance(volatile, str)
    listed = tuple(volatile) if plain else ()
    if not plain or not all(isinstance(name, str) for name in listed):
        raise WrongTypeError(f"volatile is {volatile!r}; it takes a sequence of names.")
    return listed


def mark_of(function: Filler) -> Mark:
    """Return the mark of a filler, or the one it would get; `.name` is "module:function"."""
    mark = getattr(function, _MARK, None)
    return mark if isinstance(mark, Mark) else Mark(name_of(function))


def name_of(named: Any) -> str:
    """Return "module:name" of a function or class, as whoever imports it would name it."""
    module = getattr(named, "__module__", None) or type(named).__module__
    if module in ("__main__", "__mp_main__"):  # the latter in processes that spawn made
        module = _main_module_name(module)
    return f"{module}:{getattr(named, '__qualname__', None) or type(named).__qualname__}"


def _main_module_name(module: str) -> str:
    """Name the script that runs as it would be named when imported, wherever it stands.

    While a spawned process reads the script, only "__mp_main__" is the script.
    """
    main = sys.modules.get(module, sys.modules["__main__"])
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    return Path(getattr(main, "__file__", None) or "__main__").stem


def find_filler(name: str) -> Filler:
    """Look up a filler by its name, importing its module.

    Args:
        name: "package.module:function".

    Raises:
        FillerNotFoundError: There is none, or it is not marked with `@filler`.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise FillerNotFoundError(
            f"{name!r} names no filler; write it as 'package.module:function'."
        )
    try:
        found: Any = functools.reduce(
            getattr, function_name.split("."), importlib.import_module(module_name)
        )
    except (Exception, SystemExit) as error:  # whatever its module raises when imported
        raise FillerNotFoundError(
            f"The filler {short(name)} cannot be found: {said(error)}. Is its module "
            "installed, or its folder on PYTHONPATH, where the job runs?"
        ) from error
    if not isinstance(getattr(found, _MARK, None), Mark):
        raise FillerNotFoundError(
            f"{name!r} is there but not marked; put @flowmap.filler above its definition."
        )
    return cast("Filler", found)


@filler
def arange(
    out: np.ndarray[Any, Any], block: Block, *, start: float = 0, step: float = 1
) -> None:
    """Fill each row with start + step * its number, as `numpy.arange` counts.

    Args:
        out: Shape (rows, ...), any numeric dtype.
        block: The rows.
        start: The value of row 0.
        step: From one row to the next.
    """
    values = start + step * np.arange(block.start, block.stop)
    if out.ndim == 0:
        out[...] = values[0]
    elif out.flags.c_contiguous and len(out) == len(block):
        out[...] = values.reshape(-1, *[1] * (out.ndim - 1))
    else:  # Fortran order: the rows lie along the last axis
        out[...] = values
