"""A guard against scripts that allocate or fill while a filler is imported from them.

Python executes a whole module to import a filler that is named in text, or that a worker loads
by its name. In a script without `if __name__ == "__main__":` this runs `fill()`, whose workers
import the script again; and to pickle the filler, a thread waits for the import to end.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flowmap.errors import FillerNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_IMPORTING: Final[ContextVar[bool]] = ContextVar("_IMPORTING", default=False)
"""Whether this thread imports a filler now; other threads may fill meanwhile."""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Refuse to allocate and to fill in this thread for a `with` block."""
    before = _IMPORTING.set(True)
    try:
        yield
    finally:
        _IMPORTING.reset(before)


def check_not_importing(doing: str) -> None:
    """Refuse to allocate or to fill while a filler, or a script by its workers, is imported.

    Args:
        doing: What the module does, for the message: "runs fill()".

    Raises:
        FillerNotFoundError: This thread imports a filler; or it executes the script again to
            start a worker of `multiprocessing`.
    """
    frames = list(_modules())
    if _IMPORTING.get() or "__mp_main__" in map(_name_of, frames):
        raise _refusal(doing, next(iter(frames), None))


def check_imported(function: object) -> None:
    """Refuse to send a filler to other processes while its module is being imported.

    To pickle it, another thread imports its module, and would wait for this import to end.

    Raises:
        FillerNotFoundError: This thread imports its module, by whatever import.
    """
    name = getattr(function, "__module__", None)
    for frame in _modules():
        if _name_of(frame) == name != "__main__":
            raise _refusal("runs fill()", frame)


def place_in_module(error: BaseException) -> str | None:
    """Return the file and line of a module that raised while it was imported, if one did.

    Of several, which import each other, it is the innermost: the last that can be corrected.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}, line {error.lineno}"
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "<module>":
            place = f"{frame.f_code.co_filename}, line {line}"
    return place


def _modules() -> Iterator[FrameType]:
    """Yield the frames of this thread in which a module is executed, the innermost first."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- as inspect.currentframe does
    while frame is not None:
        imported = frame.f_globals.get("__spec__") is not None
        if frame.f_code.co_name == "<module>" and (
            imported or _name_of(frame) == "__mp_main__"
        ):
            yield frame
        frame = frame.f_back


def _name_of(frame: FrameType) -> object:
    return frame.f_globals.get("__name__")


def _refusal(doing: str, frame: FrameType | None) -> FillerNotFoundError:
    name, place = "The filler's module", ""
    if frame is not None:
        file = frame.f_code.co_filename
        name, place = Path(file).name, f" ({file}, line {frame.f_lineno})"
    return FillerNotFoundError(
        f"{name} {doing} while it is imported; put that under "
        f"`if __name__ == '__main__':`{place}."
    )
