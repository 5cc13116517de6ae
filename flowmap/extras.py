"""Libraries that not everybody has: each is imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from flowmap.errors import MissingExtraError, said


def extra(module: str, name: str) -> Any:
    """Import a module that not everybody has.

    Args:
        module: Its full name.
        name: Of flowmap's extra that brings it.

    Raises:
        MissingExtraError: It, or what it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} cannot be imported ({said(error).rstrip('.')}). Install what it takes: "
            f'pip install "flowmap[{name}]".'
        ) from error
