"""Many segments of unequal lengths: what each costs does not grow with their number."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import flip, ramp

import flowmap
from flowmap.errors import DamagedJobError, OtherJobError
from flowmap.job import Job
from flowmap.segments import Plan
from flowmap.sidecar import Sidecar
from flowmap.texts import ParsedTexts

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTHS = [1 + index % 5 for index in range(2000)]  # no two neighbours are equal


def make(folder: Path, **how: Any) -> flowmap.Target:
    """Allocate a job of so many segments; its `job.json` is long."""
    return flowmap.allocate(folder / "a.npy", sum(LENGTHS), "f8", segments=LENGTHS, **how)


def test_a_job_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many segments a process fills, `job.json` is parsed and planned once."""
    target = make(tmp_path)
    real, parsed = Job.of_document.__func__, []  # type: ignore[attr-defined]

    def counted(kind: type[Job], path: Path, document: dict[str, Any]) -> Job:
        parsed.append(path)
        job: Job = real(kind, path, document)
        return job

    monkeypatch.setattr(Job, "of_document", classmethod(counted))
    for segment in target.segments[:5]:
        flowmap.fill_segment(segment, ramp)
    flowmap.open_target(target.path)
    assert len(parsed) <= 1
    np.testing.assert_array_equal(target.asarray()[:15], np.sqrt(np.arange(15)))


def test_an_overwrite_is_noticed(tmp_path: Path) -> None:
    """A long `job.json` that was parsed before is not taken for that of the next job."""
    target = make(tmp_path)
    flowmap.fill_segment(target.segments[0], ramp)
    again = make(tmp_path, exist="overwrite")
    with pytest.raises(OtherJobError):
        flowmap.fill_segment(target.segments[1], ramp)
    assert flowmap.fill_segment(again.segments[1], ramp).state == "done"


def test_damage_is_noticed(tmp_path: Path) -> None:
    """A flipped bit in the middle is noticed, though size, inode and times are as before."""
    target = make(tmp_path)
    file = Sidecar.of(target.path).job
    before = file.stat()
    flowmap.fill_segment(target.segments[0], ramp)
    for _ in range(2):  # the error is not remembered either
        flip(file, before.st_size // 2)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DamagedJobError, match=r"job\.json is damaged"):
            flowmap.fill_segment(target.segments[1], ramp)
        flip(file, before.st_size // 2)
        assert flowmap.fill_segment(target.segments[1], ramp).state == "done"


class Walked(tuple[tuple[int, int], ...]):
    """Runs that count how often somebody walks along them."""

    __slots__ = ()
    walks = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        Walked.walks += 1
        return super().__iter__()


def test_bounds_are_found_without_a_walk(tmp_path: Path) -> None:
    """A plan sums its runs once; the pickle holds the runs alone."""
    runs = [(1, length) for length in LENGTHS]
    plan = Plan(Walked(runs))
    walks = Walked.walks
    first = sum(LENGTHS[:1500])
    assert plan.bounds_of(1500) == (first, first + LENGTHS[1500])
    assert (len(plan), plan.rows) == (len(LENGTHS), sum(LENGTHS))
    assert Walked.walks == walks
    data = pickle.dumps(Plan(tuple(runs)))
    assert pickle.loads(data) == Plan(tuple(runs))
    assert len(data) < 2 * len(pickle.dumps(tuple(runs)))


def test_few_texts_are_remembered() -> None:
    """The newest is, whatever its length; those before it as long as there is room."""
    parsed: list[Path] = []

    def parse(path: Path, text: bytes) -> int:
        parsed.append(path)
        return len(text)

    texts = ParsedTexts(parse)
    for number in [*range(20), 19, 4, 3]:
        assert texts(Path(f"{number}"), b"short") == 5
    assert parsed == [*map(Path, map(str, range(20))), Path("3")]
    long = bytes(33 << 20)
    for name in ("a", "a", "b", "b", "a"):
        assert texts(Path(name), long) == len(long)
    assert parsed[21:] == [Path("a"), Path("b"), Path("a")]
