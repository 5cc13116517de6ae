"""Paths that users give: one rule for all functions, before anything looks at the disk."""

from __future__ import annotations

import os
import re
from typing import Any, Final

from flowmap.errors import InvalidArgumentError, WrongTypeError, short

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""An address such as "s3://bucket/x.npy", of which `pathlib` leaves one slash."""

_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")


def check_filename(given: Any, name: str = "path", suffix: str = ".npy") -> str:
    """Return the path of a file as text, if it means the same to flowmap as to its user.

    Like NumPy, flowmap expands nothing in a path. So "~/x.npy" or "s3://bucket/x.npy" would be
    a file in a folder of that odd name.

    Args:
        given: What the user gave.
        name: Of the argument, for messages.
        suffix: Of the file, for messages.

    Raises:
        WrongTypeError: It is not a path, or a path in bytes.
        InvalidArgumentError: No file can have this path, or it would name another file than
            its user means.
    """
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if isinstance(text, bytes):
        raise WrongTypeError(
            f"{name} is {short(given)}, a path in bytes. Pass text: os.fsdecode({name})."
        )
    if not isinstance(text, str):
        raise WrongTypeError(
            f"{name} is {short(given)}; it takes the path of a {suffix} file, as a str or a "
            "pathlib.Path."
        )
    fault = _fault_of(text)
    if fault is not None:
        raise InvalidArgumentError(f"{name} is {short(text)}, {fault}.")
    return text


def _fault_of(text: str) -> str | None:
    """Say what is wrong with a path, and what to do; None if nothing is."""
    if not text:
        return "an empty text. Give the path of a file"
    try:
        possible = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        return "which names no file: it has a character that no file name can have"
    if os.path.basename(text) in ("", ".", ".."):  # noqa: PTH119 -- pathlib drops the slash
        return "which names a folder. Add the name of a file"
    return _meant_otherwise(text)


def _meant_otherwise(text: str) -> str | None:
    """Say what is wrong with a path that a shell or a library would read in another way."""
    if text.startswith("~") and (home := os.path.expanduser(text)) != text:  # noqa: PTH111 -- a text
        return (
            "and '~' is not expanded, as in NumPy: a shell does that, or os.path.expanduser. "
            f"Give {home!r}; or {os.path.abspath(text)!r} for a folder called so"  # noqa: PTH100 -- as above
        )
    if text.startswith("file:/"):
        return f"an address. Give the path: {re.sub('^file:/+', '/', text)!r}"
    if _ADDRESS.match(text):
        return (
            "an address. flowmap opens files only: give a path in a mounted file system, or "
            "copy the file from there or to there yourself"
        )
    if _DRIVE.match(text):
        return (
            "a path of Windows. Give the path that this system has for it, as in '/mnt/c/...'"
        )
    return None
