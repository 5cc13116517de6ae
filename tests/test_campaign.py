"""The page of figures: what ran again replaces its rows, and leaves the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from campaign import BEGIN, END, Figures

if TYPE_CHECKING:
    from pathlib import Path


def test_figures_replace_the_rows_of_their_class_alone(tmp_path: Path) -> None:
    """Two runs of one class and one of another: a row each, of the last run."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    for fault, count in (("race", 3), ("kill", 1000), ("race", 4)):
        figures = Figures()
        figures.add(fault, "of a worker", count)
        figures.write(page)
    lines = page.read_text().splitlines()
    assert lines[:2] == ["before", BEGIN]
    assert lines[-2:] == [END, "after"]
    head, _, kill, race = (line for line in lines if line.startswith("|"))
    assert head.startswith("| fault | made on |")
    assert kill.startswith("| kill | 20")
    assert kill.endswith(" | 1,000 | of a worker 1,000 |")
    assert race.endswith(" | 4 | of a worker 4 |")
