"""How the command speaks: to people, or in JSON to programs."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.text import Text

from flowmap.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from flowmap.errors import FlowmapError

PLAIN: Final[dict[str, Any]] = {"highlight": False, "markup": False, "emoji": False}
"""Texts are taken as they are: paths and what users wrote, too."""


def out(*, wrap: bool = False) -> Console:
    """Return the console of what a command is asked for.

    Args:
        wrap: Whether lines are broken between words, as only people want them.
    """
    return Console(soft_wrap=not wrap, **PLAIN)


def err() -> Console:
    """Return the console of errors and of progress."""
    return Console(stderr=True, soft_wrap=True, **PLAIN)


def quoted(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def say(*parts: RenderableType) -> None:
    """Tell people what a command is asked for."""
    console = out()
    for part in parts:
        console.print(part)


def say_json(document: dict[str, Any]) -> None:
    """Tell a program: one JSON object on one line."""
    sys.stdout.write(json.dumps(document) + "\n")


def message_of(error: FlowmapError) -> str:
    """Return what an error says, without the number that the system has for it."""
    if isinstance(error, StorageError):
        place = f"{error.path}: " if error.path else ""
        return f"{place}{error.strerror}."
    return str(error)


def say_error(message: str, *, kind: str, code: int, as_json: bool) -> None:
    """Tell what ended the command: people on stderr, a program on stdout.

    Args:
        message: What is wrong, where, and what to do.
        kind: The name of the error's type.
        code: The exit code.
        as_json: Whether a program is told.
    """
    if as_json:
        say_json({"error": {"type": kind, "message": message, "code": int(code)}})
    else:
        err().print(Text.assemble(("flowmap: ", "bold red"), message))
