"""What a benchmark is made of: cases, the contestants of each, and the goals of the project.

A case is played in rounds. Each round runs each contestant once, and what one run measured is a
dict of figures, the JSON line that it printed. A goal is one line of the table of goals: a
measure makes one value of each round, whose median is held against the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeAlias

Figures: TypeAlias = Mapping[str, float]
Rounds: TypeAlias = Sequence[Mapping[str, Figures]]
"""For each round, by the name of the contestant, what it measured."""

Measure: TypeAlias = Callable[[Rounds, str], list[float]]
"""Makes, for the contestant of that name, one value of each round."""

Disk: TypeAlias = Literal["disk", "memory"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that does the work of a case.

    Attributes:
        name: As the tables show it; unique within the case.
        command: What `python -m` is to run, with its arguments; `--folder` and `--scale` are
            added: an empty folder on the disk of the case, and the factor for all sizes. It
            imports and warms up, clocks the work, checks what came out, and prints figures as
            one JSON object on the last line of its standard output.
        peer: Whether it is another way to do what flowmap does, neither flowmap nor a limit.
    """

    name: str
    command: tuple[str, ...]
    peer: bool = False


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be reached, and how it is computed.

    Attributes:
        text: As the table shows it.
        limit: What the median is held against.
        measure: Makes the values; see `speed`, `share`, `value`, `cost` and `fastest`.
        at_most: Whether the limit is the largest that will do, not the least.
        contestant: Whose values they are.
        unit: Of the values, as the table shows it; empty for a ratio.
        noise: The measure by which the reference's second copy shows the noise; None for the
            ratio of its speed to the first's.
    """

    text: str
    limit: float
    measure: Measure
    at_most: bool = False
    contestant: str = "flowmap"
    unit: str = ""
    noise: Measure | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """Contestants that do the same work.

    Attributes:
        name: One word or two with a dash, as the command line takes it.
        title: One line that says what the work is.
        contestants: Who does it, in the order of the tables.
        reference: The name of the contestant that the others are divided by. It is played
            twice in each round; the second copy's name is `again`.
        compared: Whether the tables and the picture show ratios: not where each contestant's
            figures speak for themselves.
        goals: What is to be reached.
        columns: The figures that the tables show, each with its heading; ratios are of the
            first of them.
        disk: Where the folder lies: on the disk, or in memory (tmpfs).
        rest: Seconds to wait before each run, once all disks are synced.
        most: Rounds that are worth their time, where a run takes minutes.
    """

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    reference: str
    compared: bool = True
    goals: tuple[Goal, ...] = ()
    columns: Mapping[str, str] = field(default_factory=lambda: {"seconds": "seconds"})
    disk: Disk = "disk"
    rest: float = 1.0
    most: int = 1000

    @property
    def again(self) -> str:
        """The name of the second copy of the reference."""
        return f"{self.reference}, again"

    @property
    def figure(self) -> str:
        """The figure that ratios are made of."""
        return next(iter(self.columns))

    @property
    def players(self) -> tuple[Contestant, ...]:
        """All that are played in a round."""
        first = next(c for c in self.contestants if c.name == self.reference)
        return (*self.contestants, Contestant(self.again, first.command))

    @property
    def peers(self) -> tuple[str, ...]:
        """The names of the other ways to do the work."""
        return tuple(c.name for c in self.contestants if c.peer)

    def noise(self, rounds: Rounds, goal: Goal | None = None) -> list[float]:
        """Return what a measure gives for two identical programs, for each round."""
        measure = goal.noise if goal and goal.noise else speed(self.reference, self.figure)
        return measure(rounds, self.again)


def speed(against: str, figure: str = "seconds") -> Measure:
    """Return the measure of how many times as fast as another contestant one is."""
    return lambda rounds, name: [r[against][figure] / r[name][figure] for r in rounds]


def share(against: str, figure: str = "seconds") -> Measure:
    """Return the measure of which part of another contestant's figure one needs."""
    return lambda rounds, name: [r[name][figure] / r[against][figure] for r in rounds]


def value(figure: str = "seconds", factor: float = 1) -> Measure:
    """Return the measure that is a figure itself, times a factor."""
    return lambda rounds, name: [r[name][figure] * factor for r in rounds]


def cost(against: str, per: str, figure: str = "seconds", factor: float = 1e6) -> Measure:
    """Return the measure of what one needs more than another for each of so many things.

    Args:
        against: The other.
        per: The figure that says how many things there were.
        figure: What is needed.
        factor: For the unit: from seconds to microseconds.
    """
    return lambda rounds, name: [
        (r[name][figure] - r[against][figure]) / r[name][per] * factor for r in rounds
    ]


def fastest(names: Sequence[str], rounds: Rounds, figure: str = "seconds") -> str:
    """Return which of some contestants has the least median."""
    return min(names, key=lambda name: median(r[name][figure] for r in rounds))


def speed_against_fastest(names: Sequence[str], figure: str = "seconds") -> Measure:
    """Return the measure of speed against whichever of some contestants is the fastest."""
    return lambda rounds, name: speed(fastest(names, rounds, figure), figure)(rounds, name)
