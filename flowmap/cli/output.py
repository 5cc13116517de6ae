"""How the command speaks: to people, or in JSON to programs."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import rich.text
from rich.console import Console
from rich.segment import Segment

from flowmap.cli.surroundings import lead_nowhere
from flowmap.documents import without_nan
from flowmap.errors import StorageError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.style import Style

    from flowmap.errors import FlowmapError


class Text(rich.text.Text):
    """A text whose control characters are written out; of some, rich would leave no trace."""

    def __init__(self, text: str = "", *args: Any, **options: Any) -> None:
        super().__init__(printable(text), *args, **options)

    def append(self, text: rich.text.Text | str, style: str | Style | None = None) -> Text:
        """Append a text, its control characters written out as well."""
        super().append(printable(text) if isinstance(text, str) else text, style)
        return self


class PlainConsole(Console):
    """A console that sends no control characters but its own, whatever it is given.

    Names of files and the records of a job may come from other users. Texts are taken as they
    are, and not as markup.

    Args:
        **options: Of `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> NoReturn:
        """Raise what rich has caught, and would exit for without another word."""
        raise  # noqa: PLE0704 -- it is being handled

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render something: all that is shown comes this way."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield Segment(printable(segment.text), segment.style)
            else:
                yield segment


class _Errors(PlainConsole):
    """A console on stderr that drops what stderr does not take: the exit code still counts."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, if stderr takes it."""
        try:
            super().print(*objects, **options)
        except OSError:
            lead_nowhere(sys.stderr)


def out(*, wrap: bool = False) -> Console:
    """Return the console of what a command is asked for.

    Args:
        wrap: Whether lines are broken between words, as only people want them.
    """
    return PlainConsole(soft_wrap=not wrap)


def err(*, wrap: bool = False) -> Console:
    """Return the console of errors and of progress.

    Args:
        wrap: As in `out`.
    """
    return _Errors(stderr=True, soft_wrap=not wrap)


def quoted(path: str) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(path)


def say(*parts: RenderableType) -> None:
    """Tell people what a command is asked for."""
    console = out()
    for part in parts:
        console.print(Text(part) if isinstance(part, str) else part)


def say_json(document: dict[str, Any]) -> None:
    """Tell a program: one JSON object on one line."""
    sys.stdout.write(json.dumps(without_nan(document), allow_nan=False) + "\n")


def message_of(error: FlowmapError) -> str:
    """Return what an error says, without the number that the system has for it."""
    if isinstance(error, StorageError):
        place = f"{error.path}: " if error.path else ""
        return f"{place}{error.strerror}."
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


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
