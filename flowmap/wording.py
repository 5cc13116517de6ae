"""How a message names options and functions: as Python does, or as the command line does."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARIABLE: Final = "FLOWMAP_WORDING"
"""Set to "command" while a command runs. An environment variable, since the worker processes
that the command starts make messages for it, too."""

_COMMANDS: Final = {"allocate": "alloc"}
"""The functions whose command has another name."""


@contextlib.contextmanager
def of_the_command_line() -> Iterator[None]:
    """Make messages name options and commands, for a `with` block."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "command"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def either(python: str, command: str) -> str:
    """Return the text for those who call Python, or that for those who type a command."""
    return command if os.environ.get(_VARIABLE) == "command" else python


def option(name: str) -> str:
    """Name an argument: `block_rows`, or `--block-rows`."""
    return either(name, f"--{name.replace('_', '-')}")


def setting(**chosen: Any) -> str:
    """Name arguments with their values: `exist='overwrite'`, or `--exist overwrite`.

    Args:
        **chosen: The values. On the command line true and false become `--mixed` and
            `--no-reserve`.
    """
    python = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
    return either(python, " ".join(_typed(name, value) for name, value in chosen.items()))


def call(function: str, **chosen: Any) -> str:
    """Name a function: `allocate()`, or `flowmap alloc`; with arguments if there are any."""
    command = " ".join(
        ["flowmap", _COMMANDS.get(function, function)]
        + [_typed(name, value) for name, value in chosen.items()]
    )
    return either(
        f"{function}(..., {setting(**chosen)})" if chosen else f"{function}()", f"`{command}`"
    )


def overwriting() -> str:
    """Name the way to begin a job anew."""
    return either("exist='overwrite'", call("allocate", exist="overwrite"))


def segments_anew() -> str:
    """Say what helps where segments are of an allocation that is gone."""
    return either("Take the segments from open_target(path).", "Run the same command again.")


def _typed(name: str, value: Any) -> str:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed} {shlex.quote(str(value))}"
