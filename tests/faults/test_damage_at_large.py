"""Flipped bits in a million segments, and checks of the user that are wrong."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
from campaign import sizes
from harm import COMPUTED, pages, traced
from hypothesis import given, settings
from sabotage import sabotage
from support import DTYPES, ORDERS, damage, oracle, snapshot, states, written

import flowmap
from flowmap.errors import ClaimLostError, DamagedJobError, StorageError
from flowmap.sidecar import Sidecar
from flowmap.storage import CHUNK, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from campaign import Figures
    from numpy.typing import NDArray

    from flowmap.segments import Block
    from flowmap.target import Target

REFILLED = 300
"""As many segments, at most, are hit in the last round, which is repaired by a run."""


def large_job(folder: Path, segments: int) -> Target:
    """Return a target of so many segments, of one to four rows each, all of it done."""
    lengths = np.sort(np.random.default_rng(1).integers(1, 5, segments))
    target = flowmap.allocate(
        folder / "a.npy", int(lengths.sum()), "<f8", segments=lengths.tolist(), durability="end"
    )
    for segment in target.segments:
        flowmap.fill_segment(segment, traced)
    assert flowmap.validate(target).sealed
    return target


def flip_in_segments(target: Target, hit: NDArray[np.int64], seed: int) -> None:
    """Flip one bit in each of some segments, wherever it falls; twice is not at all."""
    rng = np.random.default_rng(seed)
    bounds = np.array([(segment.start, segment.stop) for segment in target.segments])[hit]
    first, length = bounds[:, 0] * 8, (bounds[:, 1] - bounds[:, 0]) * 8
    content = np.memmap(target.path, np.uint8, "r+", offset=target.job.data_offset)
    content[first + rng.integers(0, length)] ^= (1 << rng.integers(0, 8, len(hit))).astype("u1")


def round_faults(target: Target, hit: NDArray[np.int64], seed: int) -> str:
    """Flip a bit in each of some segments; tell how a validation finds others."""
    before = pages(target)
    flip_in_segments(target, hit, seed)
    report = flowmap.validate(target)
    (changed,) = np.nonzero((pages(target) != before).any(axis=1))
    found: dict[str, list[int]] = {
        "named": [segment.index for segment in report.bad_segments],
        "told": sorted(int(problem.split()[1]) for problem in report.problems),
        "marked": [segment.index for segment in report.marked],
        "pending": [segment.index for segment in target.pending()],
        "changed": changed.tolist(),
    }
    wrong = {what: len(each) for what, each in found.items() if not np.array_equal(each, hit)}
    return f"{len(hit)} segments were hit, but {wrong}" if wrong or report.ok else ""


@pytest.mark.parametrize("size", sizes((500, 4_000), (10_000, 1_000_000)))
def test_flips_in_very_many_segments(
    tmp_path: Path, figures: Figures, size: tuple[int, int]
) -> None:
    """Of so many segments hit each is found and named, and no other is marked."""
    segments, left = size
    target, rng = large_job(tmp_path, segments), np.random.default_rng(2)
    good, records = target.path.read_bytes(), pages(target)
    ledger = np.memmap(Sidecar.of(target.path).ledger, np.uint8, "r+", PAGE, records.shape)
    for seed in itertools.count():
        most = min(segments, left - 1) if left > REFILLED else REFILLED
        hit = np.sort(rng.choice(segments, rng.integers(1, most + 1), replace=False))
        assert not round_faults(target, hit, seed)
        figures.add("damage", "segments with a bit flipped, of very many", len(hit))
        left -= len(hit)
        if left <= 0:
            break
        flip_in_segments(target, hit, seed)  # back again, and the marks as well
        ledger[hit] = records[hit]
    COMPUTED.clear()
    flowmap.fill(target, traced, executor="threads", workers=2)
    rows = [range(target.segments[i].start, target.segments[i].stop) for i in hit]
    assert sorted(COMPUTED) == list(itertools.chain(*rows))
    assert flowmap.validate(target).sealed
    assert target.path.read_bytes() == good


@pytest.mark.parametrize(
    "broken", ["no comparing of digests", "a mark too many", "a mark too few"]
)
def test_what_does_not_find_them_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The same rounds find the fault of a flowmap that does not look."""
    target = large_job(tmp_path, 100)
    sabotage(broken, monkeypatch.setattr)
    assert round_faults(target, np.arange(10, 90, 3), 0)


def test_flips_at_the_edges_of_what_is_read_at_once(tmp_path: Path) -> None:
    """In segments that are hashed piece by piece each piece counts, to its last byte."""
    rows = 3 * CHUNK // 8 + 5
    target = flowmap.allocate(tmp_path / "a.npy", 2 * rows, "<f8", segments=[rows, rows])
    flowmap.fill(target, traced, executor="threads", workers=2)
    good = target.path.read_bytes()
    edges = [0, CHUNK, 2 * CHUNK, 3 * CHUNK, rows * 8]
    for byte in sorted({max(edge - 1, 0) for edge in edges} | set(edges[:-1])):
        damage(target, 1, byte)
        assert [segment.index for segment in flowmap.validate(target).marked] == [1]
        flowmap.fill_segment(target.segments[1], traced)
        assert target.path.read_bytes() == good


class UnspeakableError(Exception):
    """What cannot even say what it is."""

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


class Truthless:
    """What is neither true nor false, and has no representation."""

    def __bool__(self) -> bool:
        raise ValueError

    __repr__ = __bool__  # type: ignore[assignment]


RAISED: list[BaseException] = [
    *(ValueError("no"), OSError(5, "no"), MemoryError(), RecursionError(), StopIteration()),
    *(SystemExit(3), UnspeakableError(), AssertionError(), Warning("no"), GeneratorExit()),
    *(KeyboardInterrupt(), StorageError(5, "no"), DamagedJobError("no")),
    *(ClaimLostError("no"), BaseExceptionGroup("no", [KeyboardInterrupt()])),
]
RETURNED: list[Any] = [
    *(False, np.False_, 0, 1, "", "yes", [], np.zeros(3), float("nan"), NotImplemented),
    *(Truthless(), Ellipsis, np.ma.masked, object, np.zeros((), bool)),
]


def check_that(outcome: object) -> Callable[[Any, Block], object]:
    """Return a check that raises or returns something, and writes where it must not."""

    def check(values: NDArray[Any], block: Block) -> object:
        with contextlib.suppress(ValueError):
            values.flags.writeable = True
            values.view()[...] = np.zeros((), values.dtype)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return check


def mark_faults(target: Target, check: Any, *, finite: bool) -> Iterator[str]:
    """Validate with a check that fails; tell what was marked, changed or sealed by it."""
    before, seal = snapshot(target.path), Sidecar.of(target.path).seal
    try:
        report = flowmap.validate(target, check=check, finite=finite)
    except (KeyboardInterrupt, GeneratorExit, BaseExceptionGroup):
        report = None  # to end the program is not a check's verdict
    if report is not None and (report.ok or report.marked or report.sealed):
        yield f"gives {report}"
    if snapshot(target.path) != before or seal.exists():
        yield "changes something"
    if set(states(target)) != {"done"}:
        yield f"leaves {states(target)}"


failing = st.one_of(
    st.sampled_from(RAISED).map(check_that), st.sampled_from(RETURNED).map(check_that)
)


@pytest.mark.parametrize("examples", sizes(100, 3000))
def test_a_wrong_check_marks_nothing(
    tmp_path_factory: pytest.TempPathFactory, figures: Figures, examples: int
) -> None:
    """Whatever a check raises or returns, and the dtype: no record changes, no seal is made."""

    @settings(max_examples=examples)
    @given(st.sampled_from(DTYPES), st.sampled_from(ORDERS), failing, st.booleans())
    def prove(dtype: np.dtype[Any], fortran_order: bool, check: Any, finite: bool) -> None:
        folder = tmp_path_factory.mktemp("job")
        values = oracle((6, 2), dtype)
        target = written(folder / "a.npy", values, fortran_order=fortran_order, segments=2)
        assert not list(mark_faults(target, check, finite=finite))
        assert flowmap.validate(target).sealed
        figures.add("damage", "checks that fail, raise or return nonsense")

    prove()


INEXACT = [
    *(np.dtype(code) for code in ("<f2", ">f4", "<f8", "<c8", ">c16", "<M8[s]", "<m8[ms]")),
    np.dtype([("a", "<i2"), ("b", "<f4", (2,)), ("c", [("d", "<c8")])]),
]


def spoilt(dtype: np.dtype[Any], row: int) -> NDArray[Any]:
    """Return zeros, with all that has a NaN spoilt in one row."""
    values = np.zeros((6, 2), dtype)
    if dtype.names is None:
        values[row] = np.nan if dtype.kind in "fc" else np.array("NaT", dtype)
    else:
        values["b"][row], values["c"]["d"][row] = np.inf, np.nan
    return values


@pytest.mark.parametrize("examples", sizes(50, 1000))
def test_a_nan_marks_nothing(
    tmp_path_factory: pytest.TempPathFactory, figures: Figures, examples: int
) -> None:
    """Under `finite` a NaN, in whatever field and row, is a problem and costs no record."""

    @settings(max_examples=examples)
    @given(st.sampled_from(INEXACT), st.integers(0, 5))
    def prove(dtype: np.dtype[Any], row: int) -> None:
        target = written(
            tmp_path_factory.mktemp("job") / "a.npy", spoilt(dtype, row), segments=3
        )
        assert not list(mark_faults(target, None, finite=True))
        report = flowmap.validate(target, finite=True)
        assert [segment.index for segment in report.bad_segments] == [row // 2]
        assert flowmap.validate(target).sealed
        figures.add("damage", "values that are not finite")

    prove()


def test_a_check_that_marks_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same look finds the mark of a flowmap that marks what fails a check."""
    target = written(tmp_path / "a.npy", np.zeros((6, 2)), segments=2)
    sabotage("a failed check marks", monkeypatch.setattr)
    assert list(mark_faults(target, check_that(outcome=False), finite=False))
