"""How commands warn that the filler of an array was edited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowmap.cli.output import Text, err, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowmap.changes import Change


def say_changes(path: str, changes: Iterable[Change], *, as_json: bool) -> dict[str, list[str]]:
    """Warn people of changes on stderr; return what the JSON for programs says of them.

    Args:
        path: Path of the array, as it was typed.
        changes: What was found.
        as_json: Whether the command prints JSON.
    """
    warnings = [change.command_text(quoted(path)) for change in changes]
    if not as_json:
        for warning in warnings:
            err().print(Text.assemble(("flowmap: ", "bold yellow"), f"warning: {warning}"))
    return {"warnings": warnings}
