"""Tracebacks of what a user's code raised, in this process or in another."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

_LONGEST: Final = 20_000  # characters of a traceback that are kept

_CALLERS: Final = frozenset({"flowmap.write", "flowmap.work"})
"""The modules that call a filler: what failed is not in these."""


class RemoteTraceback(Exception):  # noqa: N818 -- as in concurrent.futures
    """The traceback of an error's cause in another process, in its place there.

    Args:
        text: The traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def from_filler(found: TracebackType | None) -> TracebackType | None:
    """Return a traceback without its first frames, those that called the filler."""
    while found is not None and found.tb_frame.f_globals.get("__name__") in _CALLERS:
        found = found.tb_next
    return found


def traceback_text(error: BaseException) -> str:
    """Return the traceback of an error, from where the filler was called, and its causes."""
    if isinstance(error, RemoteTraceback):
        return error.text
    lines = traceback.format_exception(type(error), error, from_filler(error.__traceback__))
    text = "".join(lines)
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}\n...\n{text[-half:]}"
