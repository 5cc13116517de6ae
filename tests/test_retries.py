"""Attempts of runs: a later one attaches to the job that an earlier one allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import flowmap
from flowmap.alloc import allocate_or_attach
from flowmap.documents import publish_json, read_json
from flowmap.errors import OtherJobError, TargetExistsError
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND, THIRD = ({"flow": state} for state in ("1", "2", "3"))


def allocate(path: Path, runs: dict[str, str], **asked: Any) -> flowmap.Target:
    """Allocate as `alloc_task` does, with `exist="overwrite"` if nothing else is asked for."""
    options: dict[str, Any] = {
        "shape": 8,
        "dtype": "<f8",
        "fortran_order": False,
        "segments": 4,
        "block_rows": None,
        "exist": "overwrite",
        "reserve": True,
        "align": 4096,
        "durability": "segment",
        "checkpoint_seconds": 30,
        "filler": None,
        "arguments": None,
        "runs": runs,
    }
    return allocate_or_attach(path, **(options | asked))[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a job of the first attempt, with one segment done."""
    made = allocate(tmp_path / "a.npy", FIRST)
    flowmap.write_segment(made.segments[0], np.ones(2))
    return made.path


@pytest.mark.parametrize("exist", ["overwrite", "error"])
def test_every_later_attempt_attaches(path: Path, exist: str) -> None:
    """Also the third, to what the first one began, and whatever is to be done with others."""
    first = flowmap.open_target(path)
    for runs in (SECOND, THIRD):
        again = allocate(path, runs, exist=exist)
        assert again.id == first.id
        assert len(again.pending()) == 3


def test_the_same_attempt_replaces(path: Path) -> None:
    """Two allocations in one attempt are meant; the next attempt begins with the first."""
    first = flowmap.open_target(path)
    second = allocate(path, FIRST)
    third = allocate(path, SECOND)
    fourth = allocate(path, SECOND)
    assert len({target.id for target in (first, second, third, fourth)}) == 4
    with pytest.raises(TargetExistsError):
        allocate(path, SECOND, exist="error")


def test_after_it_attached_an_attempt_replaces(path: Path) -> None:
    """The job names the attempt that attached: its second allocation is meant, too."""
    first = allocate(path, SECOND)
    second = allocate(path, SECOND)
    assert first.id != second.id
    assert allocate(path, THIRD).id != second.id


@pytest.mark.parametrize(
    "asked", [{"shape": 9}, {"dtype": "<f4"}, {"filler": "arange"}, {"segments": 2}]
)
def test_other_arguments_replace(path: Path, asked: dict[str, Any]) -> None:
    """A later attempt that asks for another job gets that; with "error" it is refused."""
    first = flowmap.open_target(path)
    with pytest.raises(TargetExistsError):
        allocate(path, SECOND, exist="error", **asked)
    assert allocate(path, SECOND, **asked).id != first.id


@pytest.mark.parametrize("state", ["sealed", "failed validation", "cut short", "damaged"])
def test_how_far_the_earlier_attempt_got(path: Path, state: str) -> None:
    """What is whole is kept, sealed or not; what is not whole is replaced."""
    first = flowmap.open_target(path)
    if state in ("sealed", "failed validation"):
        for segment in first.segments:
            flowmap.write_segment(segment, np.full(2, np.nan if segment.index else 1.0))
        flowmap.validate(path, finite=state != "sealed")
    elif state == "cut short":
        publish_json(Sidecar.of(path).intent, {"format": 1, "id": first.id, "time": 0.0})
        Sidecar.of(path).job.unlink()
    else:
        path.write_bytes(b"short")
    again = allocate(path, SECOND)
    kept = state in ("sealed", "failed validation")
    assert (again.id == first.id) is kept
    assert len(again.pending()) == (0 if kept else 4)
    assert flowmap.validate(path).ok is kept


@pytest.mark.parametrize("by", [{}, {"other": "1"}])
def test_another_run_has_replaced_it(path: Path, by: dict[str, str]) -> None:
    """A later attempt leaves what came after its own job, also two jobs later."""
    between = allocate(path, {"between": "1"})
    there = allocate(path, by)
    for runs in (SECOND, {"between": "2"}):
        with pytest.raises(OtherJobError, match="replaced by another run"):
            allocate(path, runs)
    assert flowmap.open_target(path).id == there.id != between.id
    assert allocate(path, FIRST).id != there.id  # no later attempt: it means what it says
    assert allocate(path, SECOND).id == flowmap.open_target(path).id


def test_any_run_around_counts(path: Path) -> None:
    """A task that is tried again within an attempt of its flow, and one in a later attempt."""
    task = {"task": "1"} | FIRST
    first = allocate(path, task)
    assert allocate(path, task | {"task": "2"}).id == first.id
    other = allocate(path, {"task of another call": "1"} | FIRST)
    assert other.id != first.id
    assert allocate(path, {"task of another call": "2"} | FIRST).id == other.id


def test_a_job_of_no_run_is_replaced(tmp_path: Path) -> None:
    """So are those of versions that named no runs, and of calls that no run surrounds."""
    first = allocate(tmp_path / "a.npy", {})
    assert "runs" not in first.job.made
    assert allocate(first.path, SECOND).id != first.id


@pytest.mark.parametrize(
    "runs", [5, {"flow": 5}, {"flow": ["1"]}, {"flow": [1, 0]}, {"flow": ["1", "0"]}]
)
def test_runs_that_cannot_be(path: Path, runs: object) -> None:
    """Other users may have written them: they name no run."""
    job = read_json(Sidecar.of(path).job)
    made = job["made"] | {"runs": runs, "replaced": runs}
    publish_json(Sidecar.of(path).job, job | {"made": made})
    before = flowmap.open_target(path)
    assert allocate(path, SECOND).id != before.id


def test_few_are_remembered(path: Path) -> None:
    """A path that is replaced every day has a `job.json` of the same length for ever."""
    for day in range(30):
        allocate(path, {f"day {day}": "1"})
    assert len(flowmap.open_target(path).job.made["replaced"]) == 24
