"""Asking before something is given up for good."""

from __future__ import annotations

import sys

from flowmap.cli.output import Text, err
from flowmap.errors import InvalidArgumentError


def ask(what: str, *, yes: bool) -> None:
    """Return where something is to be done: because it was said, or is said now.

    Args:
        what: What would be lost, a sentence.
        yes: Whether it was said already.

    Raises:
        InvalidArgumentError: It is not to be done, or there is nobody to ask.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and err().is_terminal):
        raise InvalidArgumentError(f"{what} Nothing was done; say so with --yes.")
    err().print(Text(f"{what} Go on? [y/N] "), end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InvalidArgumentError("Nothing was done.")
