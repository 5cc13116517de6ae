"""FLOWMAP_ROOT: the folder that every path must lie in, where an administrator has set one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flowmap.errors import InvalidArgumentError, WrongTypeError, short

ROOT: Final = "FLOWMAP_ROOT"
"""The environment variable that names the folder."""


def root() -> Path | None:
    """Return the folder that `FLOWMAP_ROOT` names, or None where it is not set.

    Raises:
        InvalidArgumentError: It names no folder by an absolute path.
    """
    text = os.environ.get(ROOT)
    if not text:
        return None
    folder = Path(text)
    if not (folder.is_absolute() and folder.is_dir()):
        raise InvalidArgumentError(
            f"{ROOT} is {text!r}, no folder by its absolute path. Whoever runs "
            f"this process must set it anew, as in: export {ROOT}=/data/arrays"
        )
    return folder


def rooted(path: str | os.PathLike[str]) -> Path:
    """Return where a path leads under `FLOWMAP_ROOT`; the path itself where that is not set.

    A relative path is taken from the root. It lies within if its name does, once the links of
    its folders are followed, and also what it leads to, if it is a link itself; the root does
    not lie within itself, since what is beside a target is not beneath it.

    Args:
        path: Of a target, or of a file to read.

    Raises:
        InvalidArgumentError: It leads out of the root, or the root is no folder.
        WrongTypeError: It is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise WrongTypeError(f"path is {short(path)}; it takes the name of a file.")
    folder, given = root(), Path(os.fsdecode(path))
    if folder is None:
        return given
    full = folder / given
    try:
        named = Path(os.path.realpath(full.parent)) / full.name
        real = Path(os.path.realpath(folder))
        within = all(real in each.parents for each in (named, Path(os.path.realpath(full))))
    except ValueError as error:  # a zero byte, which no name can hold
        raise InvalidArgumentError(f"path is {short(path)}, which names no file.") from error
    if not within:
        raise InvalidArgumentError(
            f"path is {short(path)}, which leads out of {folder}. Choose one within, relative "
            f"to it for one; or let whoever runs this process set another folder, as in: "
            f"export {ROOT}=/data/arrays"
        )
    return full
