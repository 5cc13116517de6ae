"""FLOWMAP_ROOT: the folder that every path must lie in, where an administrator has set one.

What limits a run also limits its fillers in whatever process they run: a `Work` carries the
`Limits` of the process that made it, and holds them while its filler runs.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from flowmap.errors import InvalidArgumentError, short, storage_error
from flowmap.filenames import check_filename

ROOT: Final = "FLOWMAP_ROOT"
"""The environment variable that names the folder."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The files and the fillers that a run may reach.

    Attributes:
        roots: Folders that each path must lie in, all of them; the first is the one that
            relative paths are taken from.
        fillers: Packages and modules whose fillers may be looked up by name, beside the
            published ones; None where any may.
    """

    roots: tuple[str, ...] = ()
    fillers: tuple[str, ...] | None = None

    @classmethod
    def current(cls) -> Self:
        """Return the limits of the run whose filler is running, and of this process."""
        held = LIMITS.get()
        return cls(tuple(dict.fromkeys(_roots())), held.fillers)


LIMITS: Final[ContextVar[Limits]] = ContextVar("LIMITS", default=Limits())  # noqa: B039 -- frozen
"""The limits of the run whose filler is running, in the thread where it runs."""


def _roots() -> tuple[str, ...]:
    """Return the folders of the run, and that of this process, where there are any."""
    text = os.environ.get(ROOT)
    return (*LIMITS.get().roots, text) if text else LIMITS.get().roots


def root() -> Path | None:
    """Return the folder that relative paths are taken from, or None where none is set.

    Raises:
        InvalidArgumentError: It is not named by an absolute path, or is not there.
    """
    return next((_folder(text) for text in _roots()), None)


def _folder(text: str) -> Path:
    folder = Path(text)
    if not (folder.is_absolute() and folder.is_dir()):
        raise InvalidArgumentError(
            f"{ROOT} is {text!r}, no folder by its absolute path. Whoever runs "
            f"this process must set it anew, as in: export {ROOT}=/data/arrays"
        )
    return folder


def rooted(path: str | os.PathLike[str], *, follow: bool = False) -> Path:
    """Return where a path leads under `FLOWMAP_ROOT`; the path itself where that is not set.

    A relative path is taken from the root. It is within if its name is, once the links of its
    folders are followed, and also what it leads to, if it is a link itself. The root itself is
    refused: the records of such a target would be outside. In a worker the root of the run
    counts, and also the worker's own.

    What is returned is the very path that was checked. Another user who may rename folders in
    the root can put a link in the place of one afterwards: `names_in_root` is against that.

    Args:
        path: Of a target, or of a file to read.
        follow: Whether to return what a link of that name leads to, also where no root is set.

    Raises:
        WrongTypeError, InvalidArgumentError: As in `check_filename`; or it leads out of the
            root, or the root is no folder.
        StorageError: Its folders change while it is looked at.
    """
    given = Path(check_filename(path))
    folders = [_folder(text) for text in _roots()]
    if not folders and not follow:
        return given
    full = folders[0] / given if folders else given
    try:
        named = Path(os.path.realpath(full.parent)) / full.name
        real = Path(os.path.realpath(full))
    except OSError as error:  # somebody put a folder in the place of a link meanwhile
        raise storage_error(
            error, "cannot tell where the path leads; try again", full
        ) from error
    for folder in folders:
        within = Path(os.path.realpath(folder))
        if not (within in named.parents and within in real.parents):
            raise _leads_out(path, folder)
    return real if follow else named


def check_within(given: Path, real: Path) -> None:
    """Refuse a path that names a place in a root, and by now leads out of it.

    Args:
        given: An absolute path.
        real: Where it leads.

    Raises:
        InvalidArgumentError: It leads out.
    """
    for text in _roots():
        within = Path(os.path.realpath(text))
        named = given.is_relative_to(text) or given.is_relative_to(within)
        if named and within not in real.parents:
            raise _leads_out(given, Path(text))


def names_in_root(path: str | os.PathLike[str]) -> tuple[Path, tuple[str, ...]] | None:
    """Return the root that a path is in by its name, and the names that lead from it there.

    Returns:
        None where no root is set, or the path is in none.

    Raises:
        InvalidArgumentError: One of the names leads up.
    """
    for text in _roots():
        within, full = Path(os.path.realpath(text)), Path(path)
        for folder in (within, Path(text)):
            if folder in full.parents:
                names = full.relative_to(folder).parts
                if ".." in names:
                    raise _leads_out(path, folder)
                return within, names
    return None


def _leads_out(path: str | os.PathLike[str], folder: Path) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"path is {short(path)}, which leads out of {folder}. Choose one within, relative to "
        "it for one; or let whoever runs this process set another folder, as in: "
        f"export {ROOT}=/data/arrays"
    )
