"""Pickles of functions by value: what keeps their file and their names."""

from __future__ import annotations

import io
import sys
from collections import ChainMap
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable

_STANDARD: Final[Callable[[CodeType], tuple[Any, ...]]] = cloudpickle.Pickler.dispatch_table[
    CodeType
]


def reduce_code(code: CodeType) -> tuple[Any, ...]:
    """Pickle code with its file: cloudpickle 3.1.3 puts "<dynamic-code>" into tracebacks."""
    make, arguments = _STANDARD(code)[:2]
    return _made, (code.co_filename, make, *arguments)


def _made(file: str, make: Callable[..., CodeType], *arguments: Any) -> CodeType:
    return make(*arguments).replace(co_filename=file)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    dispatch_table: Final = ChainMap(
        {CodeType: reduce_code}, cloudpickle.Pickler.dispatch_table
    )


def lend_to_main(value: object) -> None:
    """Let `pickle` find the functions of a script by name: in a `multiprocessing.Pool`, say.

    For a worker process, whose `__main__` is not the script: a function of a script travels
    with those that it calls, but not into a module.
    """
    names = value.__globals__ if isinstance(value, FunctionType) else {}
    if names.get("__name__") == "__main__":
        named = {name: each for name, each in names.items() if not name.startswith("__")}
        vars(sys.modules["__main__"]).update(named)


def dumps(value: object) -> bytes:
    """Pickle a value as `cloudpickle.dumps` does; code keeps its file."""
    with io.BytesIO() as file:
        _Pickler(file).dump(value)
        return file.getvalue()
