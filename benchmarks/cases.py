"""All cases, in the order in which they are played and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import core_cases, fill_cases, orchestration

if TYPE_CHECKING:
    from benchmarks.case import Case

CASES: Final[tuple[Case, ...]] = (
    *fill_cases.CASES,
    *core_cases.CASES,
    *orchestration.CASES,
)
