"""HTML for notebooks: a small table, and a bar."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Final

from flowmap.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_COLOURS: Final = {
    "done": "#2e9e5b",
    "written": "#3aa6b9",
    "running": "#d9a520",
    "pending": "#c8c8c8",
    "failed": "#d9534f",
    "damaged": "#a01515",
}


def table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of two columns; texts are escaped.

    Args:
        title: What it is of.
        rows: A name and a text each.
    """
    lines = "".join(
        f"<tr><th style='text-align:left'>{_escaped(name)}</th>"
        f"<td style='text-align:left'>{_escaped(text)}</td></tr>"
        for name, text in rows
    )
    return f"<strong>{_escaped(title)}</strong><table>{lines}</table>"


def bar(parts: Mapping[str, int]) -> str:
    """Return a bar whose parts are as long as numbers by state.

    Args:
        parts: How much of each state there is.
    """
    cells = "".join(
        f"<div title='{state}' style='flex:{parts[state]};background:{colour}'></div>"
        for state, colour in _COLOURS.items()
        if parts.get(state)
    )
    return f"<div style='display:flex;height:8px;max-width:40em'>{cells}</div>"


def listed(lines: Iterable[str]) -> str:
    """Return a list; texts are escaped."""
    return f"<ul>{''.join(f'<li>{_escaped(line)}</li>' for line in lines)}</ul>"


def _escaped(text: str) -> str:
    return html.escape(printable(text))
