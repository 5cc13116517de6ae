"""Marks: what `@filler` notes of a function, and the name by which its work is known."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import numpy as np

from flowmap.errors import InvalidArgumentError, WrongTypeError, short
from flowmap.origin import keep_origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

F = TypeVar("F", bound="Callable[..., None]")

_MARK: Final = "__flowmap_filler__"
_LONGEST_NAME: Final = 200  # characters: it is part of every message on the work
_BUILT_IN: Final = frozenset({"arange", "constant", "copy", "linspace", "random"})


@dataclass(frozen=True, slots=True)
class Mark:
    """What `@filler` says of a function.

    Attributes:
        name: Its name where it was defined, "module:function": in another process its module
            may have none. Or the name that was given to it.
        version: Of what it computes.
        volatile: The arguments that do not change what it computes.
        function: Its "module:function", where a name was given to it.
    """

    name: str
    version: str = "1"
    volatile: tuple[str, ...] = ()
    function: str | None = None

    @property
    def place(self) -> str:
        """Where the function is imported from: "module:function"."""
        return self.function or self.name


@overload
def filler(function: F, /) -> F: ...
@overload
def filler(
    *, version: str = ..., volatile: Iterable[str] = ..., name: str | None = ...
) -> Callable[[F], F]: ...
def filler(
    function: F | None = None,
    /,
    *,
    version: str = "1",
    volatile: Iterable[str] = (),
    name: str | None = None,
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
        volatile: Names of arguments that do not change what is computed (`log`, `password`).
            They are neither part of the fingerprint nor recorded, nor told in errors.
        name: Name of the filler in the work's fingerprint, in place of "module:function".
            Give one to a function whose module has several names: a script that a batch
            system copies, or that is moved, or a notebook. Each filler needs its own name.

    Returns:
        The function itself, marked.

    Raises:
        WrongTypeError: It is no function, or version, volatile and name are no such things.
        InvalidArgumentError: The name is empty, too long, not printable, or one of flowmap's.
    """
    names = _names(volatile)
    if not isinstance(version, str):
        raise WrongTypeError(f"version is {version!r}; it takes a text.")
    if name is not None:
        _check_name(name)

    def decorate(function: F) -> F:
        if isinstance(function, functools.partial) or not callable(function):
            raise WrongTypeError(f"@filler marks a function, not {function!r}.")
        place = name_of(function)
        mark = Mark(place, version, names)
        if name is not None:
            mark = Mark(name, version, names, place)
        try:
            setattr(function, _MARK, mark)
        except (AttributeError, TypeError) as error:
            raise WrongTypeError(
                f"@filler cannot mark {function!r}; wrap it in a function of your own."
            ) from error
        keep_origin(function)
        return function

    return decorate if function is None else decorate(function)


def _names(volatile: Any) -> tuple[str, ...]:
    plain = np.iterable(volatile) and not isinstance(volatile, str)
    listed = tuple(volatile) if plain else ()
    if not plain or not all(isinstance(name, str) for name in listed):
        raise WrongTypeError(f"volatile is {volatile!r}; it takes a sequence of names.")
    return listed


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise WrongTypeError(f"name is {name!r}; it takes a text.")
    if not may_be_given(name):
        raise InvalidArgumentError(
            f"name is {short(name)}; a filler's name has 1 to {_LONGEST_NAME} printable "
            "characters, no space at its ends, and is not the name of a filler of flowmap. "
            'Write another, such as @flowmap.filler(name="sweep").'
        )


def may_be_given(name: str) -> bool:
    """Return whether a user's filler may have a name."""
    return (
        0 < len(name) <= _LONGEST_NAME
        and name.isprintable()
        and name == name.strip()
        and name not in _BUILT_IN
        and not is_own(name)
    )


def is_own(name: str) -> bool:
    """Return whether a filler is one of flowmap's, by its name."""
    package = __name__.partition(".")[0]
    return name.partition(":")[0].partition(".")[0] == package


def is_marked(function: Any) -> bool:
    """Return whether a function has the mark of `@filler`."""
    return isinstance(getattr(function, _MARK, None), Mark)


def mark_of(function: Callable[..., None]) -> Mark:
    """Return the mark of a filler, or the one it would get."""
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
