"""What a validation found, as its user sees it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from flowmap import human, markup
from flowmap.errors import ValidationFailed, printable

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.segments import Segment

_SHOWN: Final = 10
"""Lines about problems, at most."""

_IS: Final = re.compile(r"segment (\d+) \[\d+:\d+\] is (.*)", re.DOTALL)
"""A problem of a segment that others may have as well."""


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What a validation found.

    Attributes:
        path: Of the target.
        problems: A sentence each, none if all is well.
        bad_segments: The segments that are missing, damaged, or failed a check.
        digest: xxh3_128 of the whole, in hexadecimal, over the ordered (start, stop,
            digest) of its segments; None unless every segment is as it was recorded.
        marked: The segments that were marked, so that running the job again repairs them.
        sealed: Whether the job was sealed as valid.
        notes: What was not recorded or synced, and why; no fault of the file.
        damaged: The segments whose bytes are not what was recorded, marked or not.
        warnings: What deserves a look: segments that an earlier source of the filler filled.
            They do not make `ok` false.
    """

    path: Path
    problems: tuple[str, ...] = ()
    bad_segments: tuple[Segment, ...] = ()
    digest: str | None = None
    marked: tuple[Segment, ...] = ()
    sealed: bool = False
    notes: tuple[str, ...] = ()
    damaged: tuple[Segment, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with the file."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            lines = [f"{self.path} is valid: digest {self.digest}."]
        else:
            lines = [f"{self.path} is not valid:"]
            lines += [f"  - {line}" for line in self._problem_lines()]
        if self.marked:
            lines.append(f"{len(self.marked)} damaged segments are pending again: run the job.")
        return printable("\n".join([*lines, *self.notes, *self.warnings]))

    def __repr__(self) -> str:
        state = "ok" if self.ok else f"{len(self.problems)} problems"
        state += f", {len(self.warnings)} warnings" if self.warnings else ""
        return f"<flowmap.ValidationReport {printable(str(self.path))}: {state}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the same as the text of the report."""
        rows = [
            ("target", str(self.path)),
            ("state", "valid" if self.ok else "not valid"),
            ("digest", self.digest or "none"),
            ("sealed", "yes" if self.sealed else "no"),
        ]
        lines = [*self._problem_lines(), *self.notes, *self.warnings]
        told = markup.listed(lines) if lines else ""
        return markup.table("flowmap.ValidationReport", rows) + told

    def _problem_lines(self) -> list[str]:
        """Return a line for each problem; one that several segments have is said once."""
        groups: dict[str, list[str]] = {}
        for problem in self.problems:
            found = _IS.fullmatch(problem)
            groups.setdefault(found[2] if found else problem, []).append(problem)
        shown = list(groups.items())[:_SHOWN]
        lines = [_line(what, group) for what, group in shown]
        more = len(self.problems) - sum(len(group) for _, group in shown)
        return [*lines, f"and {more} more"] if more else lines

    def raise_if_bad(self) -> None:
        """Raise what the report says.

        Raises:
            ValidationFailed: Something is wrong; its `report` is this one.
        """
        if not self.ok:
            problems = replace(self, warnings=())  # a warning is not what failed
            raise ValidationFailed(str(problems), report=self)


def _line(what: str, problems: list[str]) -> str:
    """Return one line for a problem that one segment has, or several."""
    found = [match for problem in problems if (match := _IS.fullmatch(problem))]
    if len(found) < 2:  # noqa: PLR2004 -- several
        return problems[0]
    return f"{len(found)} segments ({human.ranges(int(m[1]) for m in found)}) are {what}"
