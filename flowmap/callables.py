"""What may be a filler: partials are opened, and what would not fill is refused."""

from __future__ import annotations

import inspect
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from flowmap.advice import ON_FILLERS, advice_on
from flowmap.errors import WrongTypeError, short

if TYPE_CHECKING:
    from collections.abc import Callable

_NOT_PLAIN: Final[dict[Callable[[Any], bool], str]] = {
    inspect.isclass: "a class",
    inspect.iscoroutinefunction: "a coroutine function",
    inspect.isasyncgenfunction: "an asynchronous generator function",
    inspect.isgeneratorfunction: "a generator function",
}


def open_partial(function: Any) -> tuple[Any, dict[str, Any]]:
    """Return the function that a partial calls, through others, and the arguments it binds.

    Raises:
        WrongTypeError: It binds some by position, which are those of `out` and `block`.
    """
    bound: dict[str, Any] = {}
    while isinstance(function, partial):
        if function.args:
            raise WrongTypeError(
                "filler is a functools.partial that binds arguments by position, "
                "where a filler gets out and block. Bind them by name: "
                "functools.partial(f, rate=0.1)."
            )
        bound = function.keywords | bound
        function = function.func
    return function, bound


def check_callable(function: Callable[..., object]) -> None:
    """Refuse what can be called but does not fill when it is.

    Raises:
        WrongTypeError: It is that; the message says what to pass.
    """
    advice = advice_on(function, getattr(function, "__name__", "f"), ON_FILLERS)
    if advice:
        raise WrongTypeError(
            f"filler is {short(function)}, a {type(function).__name__}. {advice}"
        )
    called = (
        function,
        getattr(function, "__func__", None),  # of a staticmethod
        getattr(type(function), "__call__", None),  # noqa: B004 -- the function that it is
    )
    for test, what in _NOT_PLAIN.items():
        if any(map(test, called)):
            raise WrongTypeError(
                f"filler is {short(function)}, {what}, which does not fill when it is called. "
                "Pass a plain function (def, without async and yield)."
            )
    if _is_of_an_object(function):
        raise WrongTypeError(
            f"filler is {short(function)}, which is not made to fill. Pass a function of "
            "your own: def fill(out, block): out[:] = ..."
        )


def _is_of_an_object(function: Any) -> bool:
    """Say whether it is a function of Python itself, or a method of a built-in object.

    A function of an extension module is a built-in, too, and belongs to its module, or to a
    capsule of its compiler.
    """
    owner = getattr(function, "__self__", None)
    if isinstance(owner, ModuleType):
        return owner.__name__ == "builtins"
    package = type(owner).__module__.partition(".")[0]
    return package == "numpy" or (
        inspect.isbuiltin(function) and type(owner).__name__ not in ("NoneType", "PyCapsule")
    )
