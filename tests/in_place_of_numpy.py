"""A plugin for pytest that puts flowmap's `load` and `open_memmap` in the place of NumPy's."""

from __future__ import annotations

import collections
import functools
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

import flowmap

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS: collections.Counter[str] = collections.Counter()


def _replace(name: str, ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    """Replace a function wherever NumPy's modules hold it, and count its calls."""

    @functools.wraps(theirs)
    def counted(*arguments: Any, **options: Any) -> Any:
        CALLS[name] += 1
        return ours(*arguments, **options)

    for module in [m for n, m in sys.modules.items() if n.partition(".")[0] == "numpy"]:
        if vars(module).get(name) is theirs:
            setattr(module, name, counted)


_replace("load", flowmap.load, np.load)
_replace("open_memmap", flowmap.open_memmap, np.lib.format.open_memmap)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell how often flowmap's functions were called."""
    for name, calls in CALLS.items():
        terminalreporter.write_line(f"flowmap.{name} was called {calls} times")
