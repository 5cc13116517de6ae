"""The picture: speeds against the reference of each case, as bars."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.case import speed
from benchmarks.rounds import ROOT
from benchmarks.tables import number, quartiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from benchmarks.case import Case, Contestant
    from benchmarks.figures import Played

PICTURE: Final = ROOT / "docs" / "performance.png"
_BAR: Final = 0.22  # inches
_FLOWMAP, _REFERENCE, _OTHER = "#1b7f5c", "#5b6470", "#a9b4c0"


def draw(cases: Sequence[Case], played: dict[str, Played]) -> None:
    """Draw what was saved of the cases with ratios: a panel each, a bar for each contestant."""
    known = [case for case in cases if case.name in played and case.compared]
    if not known:
        return
    half = sum(map(_height, known)) / 2
    left = [case for i, case in enumerate(known) if sum(map(_height, known[:i])) < half]
    columns = [left, known[len(left) :]]
    inches = max(sum(map(_height, column)) for column in columns)
    with mpl.rc_context({"font.size": 8, "axes.spines.right": False, "axes.spines.top": False}):
        figure = Figure(figsize=(13, inches), layout="constrained")
        grid = figure.add_gridspec(1, 2)
        for place, column in enumerate(columns):
            _column(figure.add_subfigure(grid[0, place]), column, played)
        figure.savefig(PICTURE, dpi=120)


def _height(case: Case) -> float:
    return _BAR * len(case.players) + 0.55


def _column(part: SubFigure, cases: Sequence[Case], played: dict[str, Played]) -> None:
    if not cases:
        return
    ratios = [_height(case) for case in cases]
    grid = part.subplots(len(cases), squeeze=False, height_ratios=ratios)
    for axes, case in zip(grid[:, 0], cases, strict=True):
        _panel(axes, case, played[case.name])


def _panel(axes: Axes, case: Case, played: Played) -> None:
    names = [player.name for player in case.players]
    measure = speed(case.reference, case.figure)
    values = [measure(played.rounds, name) for name in names]
    middles = [median(each) for each in values]
    lows, highs = zip(*map(quartiles, values), strict=True)
    spread = [
        [m - low for m, low in zip(middles, lows, strict=True)],
        [high - m for m, high in zip(middles, highs, strict=True)],
    ]
    axes.barh(names, middles, xerr=spread, color=[_color(case, p) for p in case.players])
    axes.axvline(1, color=_REFERENCE, linewidth=0.8)
    for row, (middle, high) in enumerate(zip(middles, highs, strict=True)):
        axes.text(high, row, f" {number(middle)}", va="center", fontsize=7)
    axes.invert_yaxis()
    axes.set_title(case.title, loc="left", fontsize=8)


def _color(case: Case, player: Contestant) -> str:
    if player.name.startswith("flowmap"):  # also where it is the reference
        return _FLOWMAP
    if player.name.startswith(case.reference):
        return _REFERENCE
    return _OTHER if player.peer else _FLOWMAP
