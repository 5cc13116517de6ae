"""Records that are whole but out of place or of another job, and any sequence of damage."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
from campaign import sizes
from harm import COMPUTED, small_job, traced, untrue
from hypothesis import given, settings
from sabotage import sabotage
from support import damage, flip, states

import flowmap
from flowmap.errors import FlowmapError
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from campaign import Figures

    from flowmap.target import Target

SEGMENTS = 4


@dataclass
class Jobs:
    """A job, another of the same layout, and copies of the first one's records in between.

    Attributes:
        mine: Done but for its last segment.
        other: Done, with the same bytes in the first segment and others in the rest.
        early: The records of `mine` from when other bytes were done in segment 1.
    """

    mine: Target
    other: Target
    early: Path

    @property
    def sidecar(self) -> Path:
        """The records of `mine`."""
        return Sidecar.of(self.mine.path).folder

    @property
    def theirs(self) -> Path:
        """The records of `other`."""
        return Sidecar.of(self.other.path).folder


def two_jobs(folder: Path) -> Jobs:
    """Make the two jobs of a test."""
    (folder / "other").mkdir()
    mine, other = small_job(folder, SEGMENTS), small_job(folder / "other", SEGMENTS)
    for segment in other.segments[1:]:
        flowmap.write_segment(segment, np.full(10, -1.0), replace=True)
    flowmap.write_segment(mine.segments[1], np.full(10, 7.0), replace=True)
    early = folder / "early"
    shutil.copytree(Sidecar.of(mine.path).folder, early)
    flowmap.reset(mine, [1, SEGMENTS - 1])
    flowmap.fill_segment(mine.segments[1], traced)
    return Jobs(mine, other, early)


def put_page(ledger: Path, index: int, page: bytes) -> None:
    """Write a page over that of a segment."""
    with ledger.open("r+b") as file:
        file.seek((1 + index) * PAGE)
        file.write(page)


def page_of(ledger: Path, index: int) -> bytes:
    """Read the page of a segment."""
    return ledger.read_bytes()[(1 + index) * PAGE : (2 + index) * PAGE]


def swap_pages(jobs: Jobs) -> None:
    """Exchange the pages of two segments that are done."""
    ledger = jobs.sidecar / "ledger.npy"
    first, second = page_of(ledger, 0), page_of(ledger, 2)
    put_page(ledger, 0, second)
    put_page(ledger, 2, first)


def double_page(jobs: Jobs) -> None:
    """Write the page of a segment that is done over that of one that is not."""
    ledger = jobs.sidecar / "ledger.npy"
    put_page(ledger, SEGMENTS - 1, page_of(ledger, 0))


def drop_page(jobs: Jobs) -> None:
    """Lose a page, as if nothing had ever been written to it."""
    put_page(jobs.sidecar / "ledger.npy", 0, bytes(PAGE))


def shift_pages(jobs: Jobs) -> None:
    """Lose a page in the middle, so that those after it move up."""
    ledger = jobs.sidecar / "ledger.npy"
    data = ledger.read_bytes()
    ledger.write_bytes(data[: 2 * PAGE] + data[3 * PAGE :] + bytes(PAGE))


def shorten(jobs: Jobs) -> None:
    """Lose the last page with its place."""
    ledger = jobs.sidecar / "ledger.npy"
    os.truncate(ledger, ledger.stat().st_size - PAGE)


def page_of_another(jobs: Jobs) -> None:
    """Put in the page of another job's same segment."""
    page = page_of(jobs.theirs / "ledger.npy", SEGMENTS - 1)
    put_page(jobs.sidecar / "ledger.npy", SEGMENTS - 1, page)


def file_of_another(jobs: Jobs, name: str) -> None:
    """Put in a file of another job's records."""
    shutil.copy(jobs.theirs / name, jobs.sidecar / name)


def seal_of_another(jobs: Jobs) -> None:
    """Put in the seal of another job."""
    assert flowmap.validate(jobs.other, mixed=True).sealed
    file_of_another(jobs, "seal.json")


def records_of_another(jobs: Jobs) -> None:
    """Put in all the records of another job."""
    shutil.rmtree(jobs.sidecar)
    shutil.copytree(jobs.theirs, jobs.sidecar)


def target_of_another(jobs: Jobs) -> None:
    """Put in the file of another job."""
    shutil.copy(jobs.other.path, jobs.mine.path)


def early_page(jobs: Jobs) -> None:
    """Put back the page of a segment as it was before it was filled with other bytes."""
    put_page(jobs.sidecar / "ledger.npy", 1, page_of(jobs.early / "ledger.npy", 1))


def early_records(jobs: Jobs) -> None:
    """Put back all the records as they were before."""
    shutil.rmtree(jobs.sidecar)
    shutil.copytree(jobs.early, jobs.sidecar)


MIXTURES: dict[Callable[[Jobs], None], set[str]] = {
    swap_pages: {"true"},
    double_page: {"true"},
    drop_page: {"true"},
    shift_pages: {"true"},
    shorten: {"refused"},
    page_of_another: {"true"},
    functools.partial(file_of_another, name="ledger.npy"): {"true"},
    functools.partial(file_of_another, name="job.json"): {"true", "refused"},
    seal_of_another: {"true"},
    records_of_another: {"refused"},  # the file is marked as this job's own
    # The records are whole, and their job is that of the file by all that they say:
    target_of_another: {"found by validation"},
    early_page: {"found by validation"},
    early_records: {"found by validation"},
}
"""What is mixed up, and what may come of it: only a look at the bytes finds the last ones."""


def outcome(jobs: Jobs) -> str:
    """Say what becomes of a job whose records are mixed up; what is believed and false."""
    try:
        target = flowmap.open_target(jobs.mine.path)
        lies, done = untrue(target), np.array(states(target)) == "done"
        report = flowmap.validate(target, mixed=True)
    except FlowmapError:
        return "refused"
    marked = [segment.index for segment in report.marked]
    if report.ok or marked != lies:
        return f"{lies} are lies, but {report}, marked {marked}"
    if untrue(target):
        return f"{untrue(target)} are believed after the validation"
    kept = np.array(states(target)) == "done"
    if (kept != done).sum() != len(lies):
        return f"done was {done}, is {kept}"
    return "found by validation" if lies else "true"


def name_of(mixture: Any) -> str:
    """Name a mixture in the test's id."""
    if isinstance(mixture, functools.partial):
        return str(mixture.keywords["name"])
    return str(mixture.__name__)


@pytest.mark.parametrize("mix", MIXTURES, ids=name_of)
def test_mixed_up_records_are_not_believed(
    tmp_path: Path, figures: Figures, mix: Callable[[Jobs], None]
) -> None:
    """What is called done is so, or an error says no, or validation finds it, and no more."""
    jobs = two_jobs(tmp_path)
    mix(jobs)
    assert outcome(jobs) in MIXTURES[mix]
    figures.add("damage", "ledger pages and records mixed up")


@pytest.mark.parametrize(
    ("mix", "broken"),
    [
        (swap_pages, "records of any job and segment"),
        (double_page, "records of any job and segment"),
        (page_of_another, "records of any job and segment"),
        (shorten, "no comparing of sizes"),
        (early_page, "no comparing of digests"),
        (records_of_another, "no look at the mark"),
        (target_of_another, "a mark too few"),
    ],
)
def test_mixtures_that_are_believed_would_be_seen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mix: Callable[[Jobs], None],
    broken: str,
) -> None:
    """The same look finds the fault of a flowmap that believes any record."""
    jobs = two_jobs(tmp_path)
    mix(jobs)
    sabotage(broken, monkeypatch.setattr)
    assert outcome(jobs) not in MIXTURES[mix]


Harm = tuple[str, int, int]
"""What is harmed, and two numbers that say where."""

harms = st.tuples(
    st.sampled_from(
        ["bit", "zeros", "row", "record", "slot", "page", "swap", "double", "reset"]
    ),
    st.integers(0, 2**16),
    st.integers(0, 2**16),
)


def do_harm(target: Target, harm: Harm) -> set[int]:
    """Damage a target's data or pages; return the segments whose own these are."""
    kind, first, second = harm
    one, two = first % SEGMENTS, second % SEGMENTS
    ledger, data = Sidecar.of(target.path).ledger, target.job.data_offset
    match kind:
        case "bit":
            damage(target, one, second % 80)
        case "zeros" | "row":
            with target.path.open("r+b") as file:
                file.seek(data + 80 * one + 8 * (second % 10))
                file.write(bytes(8) if kind == "row" else bytes(80 - 8 * (second % 10)))
        case "record":
            flip(ledger, PAGE * (1 + one) + second % PAGE, 1 << first % 8)
        case "slot":
            page = bytearray(page_of(ledger, one))
            page[second % 16 * 256 :][:256] = bytes(256)
            put_page(ledger, one, bytes(page))
        case "page":
            put_page(ledger, one, bytes(PAGE))
        case "swap":
            pages = page_of(ledger, one), page_of(ledger, two)
            put_page(ledger, one, pages[1])
            put_page(ledger, two, pages[0])
            return {one, two}
        case "double":
            put_page(ledger, one, page_of(ledger, two))
        case "reset":
            flowmap.reset(target, one)
    return {one}


def repair_faults(target: Target, done: list[Harm]) -> Iterator[str]:
    """Do some harm; validate and run again until all is well; tell what does not go well."""
    good = target.path.read_bytes()
    harmed = set[int]().union(*(do_harm(target, harm) for harm in done))
    COMPUTED.clear()
    for _ in range(3):
        report = flowmap.validate(target)
        if report.ok:
            break
        for segment in target.pending():
            flowmap.fill_segment(segment, traced)
    if not report.sealed or target.path.read_bytes() != good:
        yield f"is not repaired: {report}"
    again = {row // 10 for row in COMPUTED}
    if not again <= harmed:
        yield f"segments {again} were computed again, and {harmed} were harmed"
    if any(COMPUTED.count(row) > 1 for row in COMPUTED):
        yield f"some of rows {COMPUTED} were computed more than once"


@pytest.mark.parametrize("examples", sizes(150, 10_000))
def test_any_damage_is_repaired(
    tmp_path_factory: pytest.TempPathFactory, figures: Figures, examples: int
) -> None:
    """After any sequence of it validation and a run make the job whole, and do no more."""
    target = small_job(tmp_path_factory.mktemp("job"), SEGMENTS)

    @settings(max_examples=examples)
    @given(st.lists(harms, min_size=1, max_size=8))
    def prove(done: list[Harm]) -> None:
        assert not list(repair_faults(target, done))
        figures.add("damage", "sequences of damage, each repaired")

    prove()


@pytest.mark.parametrize(
    ("broken", "done"),
    [
        ("no comparing of digests", [("bit", 1, 5)]),
        ("a mark too few", [("row", 1, 5)]),
        ("records of any job and segment", [("reset", 2, 0), ("row", 2, 0), ("double", 2, 1)]),
    ],
)
def test_damage_that_is_not_repaired_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, done: list[Harm]
) -> None:
    """The same look finds the fault of a flowmap that marks too little or too much."""
    target = small_job(tmp_path, SEGMENTS)
    sabotage(broken, monkeypatch.setattr)
    assert list(repair_faults(target, done))
