"""The command line: what commands there are, and what becomes of their errors."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from cyclopts import App, CycloptsError

from flowmap._version import __version__
from flowmap.cli.mistakes import explain
from flowmap.cli.surroundings import is_lost_output, lose_output, tidy_process
from flowmap.errors import FlowmapError
from flowmap.wording import of_the_command_line

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS: Final = {
    "alloc": "Allocate an array: one .npy file of its final size, and the records beside it.",
    "fill": "Fill the segments of an array that are not done yet.",
    "status": "Show how far an array is.",
    "validate": "Prove that every byte of an array is there, and seal it.",
    "reset": "Make segments pending again, to compute them anew.",
    "info": "Show what the job of an array was: who filled it, with what, where and when.",
    "clean": "Remove the records beside an array that was validated.",
    "run": "Run the flow fill-array here: allocate, fill and validate, under Prefect.",
    "deploy": "Deploy the flow fill-array to a Prefect server.",
    "doctor": "Look for what goes wrong for people, and say what to do about it.",
}

_EPILOGUE: Final = """\
Exit codes: 0 done, 1 failed, 2 refused, 3 incomplete, 4 damaged, 75 not now, 130 Ctrl-C."""


def make_app(asked: str | None = None) -> App:
    """Return the command line.

    Args:
        asked: The command that is called: its help is the whole of its docstring. Those of the
            others are not even imported.
    """
    app = App(
        name="flowmap",
        help="Fill one big NumPy .npy file from many workers.",
        help_epilogue=_EPILOGUE,
        version=__version__,
        suppress_keyboard_interrupt=False,
    )
    for place, (name, line) in enumerate(_COMMANDS.items()):
        app.command(
            f"flowmap.cli.{name}:{name}",
            name=name,
            help=None if name == asked else line,
            sort_key=place,
        )
    app.register_install_completion_command(help="Install completion for this shell.")
    return app


def main() -> None:
    """Run the command of this process, and exit with its code."""
    tidy_process()
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command.

    Args:
        words: What follows `flowmap`.

    Returns:
        The exit code; see `flowmap.cli.exits.Exit`.
    """
    try:
        code = _answer(words)
        sys.stdout.flush()
    except OSError as error:
        if not is_lost_output(error):
            raise
        return lose_output(error)
    return code


def _answer(words: Sequence[str]) -> int:
    # The rest of the command loads NumPy, which `flowmap --help` need not wait for.
    from flowmap.cli.exits import Exit, code_of  # noqa: PLC0415
    from flowmap.cli.output import message_of, say_error  # noqa: PLC0415

    as_json = "--json" in words
    if words and words[0] == "help":
        words = [*words[1:], "--help"]
    app = make_app(words[0] if words else None)
    try:
        with of_the_command_line():
            code = app(
                words, exit_on_error=False, print_error=False, result_action="return_value"
            )
    except CycloptsError as mistake:
        message = explain(mistake, words, list(_COMMANDS))
        say_error(message, kind="UsageError", code=Exit.REFUSED, as_json=as_json)
        return Exit.REFUSED
    except FlowmapError as error:
        code = code_of(error)
        say_error(message_of(error), kind=type(error).__name__, code=code, as_json=as_json)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return int(code or Exit.DONE)
