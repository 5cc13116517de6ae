"""Files of every wrong length: refused, and never changed by reading them."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from campaign import sizes
from harm import ADVICE, refused, small_job, some, stamps, traced
from sabotage import sabotage
from support import snapshot

import flowmap
from flowmap.documents import read_json
from flowmap.errors import DamagedJobError, InvalidArgumentError
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from campaign import Figures

    from flowmap.target import Target


def readings(target: Target) -> dict[str, Callable[[], Any]]:
    """Return every way to read a target through its records."""
    path, load = target.path, functools.partial(flowmap.load, target.path)
    return {
        "open_target": lambda: flowmap.open_target(path),
        "asarray r": lambda: np.sum(target.asarray("r")),
        "asarray c": lambda: np.sum(target.asarray("c")),
        "masked": lambda: target.masked().sum(),
        "load masked": lambda: load(masked=True).sum(),
        "load masked r": lambda: load("r", masked=True).sum(),
        "load masked window": lambda: load(masked=True, offset=3, shape=5).sum(),
        "to_dask": lambda: target.to_dask().sum().compute(scheduler="synchronous"),
        "zarr_references": target.zarr_references,
    }


def plain_readings(target: Target) -> dict[str, Callable[[], Any]]:
    """Return every way to read a file as NumPy does, with no look at the records."""
    path, load = target.path, functools.partial(flowmap.load, target.path)
    return {
        "load": lambda: load().sum(),
        "load r": lambda: load("r").sum(),
        "load c": lambda: load("c").sum(),
        "load window": lambda: load(offset=3, shape=5).sum(),
        "load window r": lambda: load("r", offset=3, shape=5).sum(),
        "open_memmap r": lambda: flowmap.open_memmap(path, "r").sum(),
        "open_memmap window": lambda: flowmap.open_memmap(path, "c", offset=3, shape=5).sum(),
    }


def writings(target: Target) -> dict[str, Callable[[], Any]]:
    """Return every way to write to a target."""
    segment = target.segments[0]
    return {
        "fill_segment": lambda: flowmap.fill_segment(segment, traced),
        "write_segment": lambda: flowmap.write_segment(segment, np.ones(10), replace=True),
        "open_segment": lambda: flowmap.open_segment(segment, replace=True).__enter__(),
        "fill": lambda: flowmap.fill(target, traced, executor="threads"),
    }


def size_faults(target: Target, size: int) -> Iterator[str]:
    """Give the file of a target a wrong size; tell what is not refused, or changes it."""
    good, whole = target.path.read_bytes(), target.path.stat()
    os.truncate(target.path, size)
    before, content = stamps(target), snapshot(target.path)
    wrong: dict[str, tuple[Callable[[], Any], Any, str]] = {
        name: (use, DamagedJobError, ADVICE) for name, use in readings(target).items()
    }
    if size < whole.st_size:
        other = (InvalidArgumentError, ValueError, EOFError)
        wrong |= {name: (use, other, "") for name, use in plain_readings(target).items()}
    uses = writings(target)
    del uses["fill"]  # which takes a lease, and has nothing to do
    wrong |= {name: (use, DamagedJobError, ADVICE) for name, use in uses.items()}
    for name, (use, kinds, advice) in wrong.items():
        fault = refused(use, *(kinds if isinstance(kinds, tuple) else (kinds,)), advice=advice)
        if fault:
            yield f"{size} bytes: {name} {fault}"
    if size > whole.st_size:  # NumPy takes what follows an array for something else's
        for name, use in plain_readings(target).items():
            if not use() > 0:
                yield f"{size} bytes: {name} reads something else"
    for mark in (False, True):
        report = flowmap.validate(target, mark=mark)
        told = f"has {size} bytes, where {whole.st_size}" in " ".join(report.problems)
        if report.bad_segments or not told:
            yield f"{size} bytes: {report}"
    if stamps(target) != before or snapshot(target.path) != content:
        yield f"{size} bytes: a file was changed"
    target.path.write_bytes(good)


def wrong_sizes(whole: int, most: int | None) -> list[int]:
    """Return sizes below that of a file of so many bytes, and a page and more beyond."""
    edges = [0, 1, 6, 8, 10, 63, 64, PAGE - 1, PAGE, PAGE + 1, whole - 8, whole - 1]
    longer = [
        whole + 1,
        whole + 7,
        whole + 8,
        whole + PAGE,
        whole + PAGE + 1,
        whole + (1 << 20),
    ]
    return [
        *some(range(whole), most, edges),
        *some(range(whole + 1, whole + PAGE + 2), most, longer[:-1]),
        longer[-1],
    ]


@pytest.mark.parametrize("most", sizes(100, None))
def test_a_wrong_size_is_refused_everywhere(
    tmp_path: Path, figures: Figures, most: int | None
) -> None:
    """Nobody writes to, or believes, a target of another size; it keeps that size."""
    target = small_job(tmp_path, 2)
    for size in wrong_sizes(target.path.stat().st_size, most):
        assert not list(size_faults(target, size))
        figures.add("damage", "wrong sizes of a target")
    assert flowmap.validate(target).sealed


def test_wrong_sizes_that_are_accepted_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same look finds the fault of a flowmap that compares no sizes."""
    target = small_job(tmp_path, 2)
    sabotage("no comparing of sizes", monkeypatch.setattr)
    assert any(size_faults(target, target.path.stat().st_size + 1))
    ledger = Sidecar.of(target.path).ledger
    assert any(cut_faults(target, ledger, ledger.stat().st_size + 1))


@pytest.mark.parametrize("sealed", [False, True])
def test_reading_changes_nothing(tmp_path: Path, sealed: bool) -> None:
    """However a target is read: bytes, sizes, times and inodes of all its files stay."""
    target = small_job(tmp_path, 2)
    if sealed:
        assert flowmap.validate(target).sealed
    before, content = stamps(target), snapshot(target.path)
    looks: dict[str, Callable[[], Any]] = {
        "status": target.status,
        "pending": target.pending,
        "as_completed": lambda: list(target.as_completed()),
        "validate": lambda: flowmap.validate(target, mark=False),
        "fill a segment that is done": lambda: flowmap.fill_segment(target.segments[0], traced),
    }
    for name, look in (readings(target) | plain_readings(target) | looks).items():
        look()
        assert stamps(target) == before, name
    assert snapshot(target.path) == content


def cut_faults(target: Target, file: Path, size: int) -> Iterator[str]:
    """Cut or extend a file of the records; tell what is not refused, or is changed."""
    good = file.read_bytes()
    os.truncate(file, size)
    content = snapshot(target.path)
    uses = writings(target) | {
        "status": target.status,
        "pending": target.pending,
        "masked": target.masked,
        "load": lambda: flowmap.load(target.path, masked=True),
        "reset": lambda: flowmap.reset(target, 0),
    }
    if file.name == "job.json":
        uses |= readings(target) | {"validate": lambda: flowmap.validate(target)}
    else:
        report = flowmap.validate(target)
        if report.ok or report.marked:
            yield f"{size} bytes of {file.name}: {report}"
    for name, use in uses.items():
        fault = refused(use, DamagedJobError)
        if fault:
            yield f"{size} bytes of {file.name}: {name} {fault}"
    changed = {
        name for name, data in snapshot(target.path).items() if data != content.get(name)
    }
    if changed:
        yield f"{size} bytes of {file.name}: {changed} were changed"
    file.write_bytes(good)


@pytest.mark.parametrize("most", sizes(60, None))
@pytest.mark.parametrize("name", ["job.json", "ledger.npy"])
def test_records_of_a_wrong_size_are_refused_everywhere(
    tmp_path: Path, figures: Figures, name: str, most: int | None
) -> None:
    """A ledger or a `job.json` of any other length vouches for nothing, and is kept."""
    target = small_job(tmp_path, 1)
    file = Sidecar.of(target.path).folder / name
    for size in wrong_sizes(file.stat().st_size, most):
        assert not list(cut_faults(target, file, size))
        figures.add("damage", f"wrong sizes of {name}")
    assert flowmap.validate(target).sealed


def test_other_records_of_a_wrong_size_are_none(tmp_path: Path, figures: Figures) -> None:
    """A seal, lease or work that is cut short, wherever, is not taken for what it was."""
    target = small_job(tmp_path, 1)
    assert flowmap.validate(target).sealed
    sidecar = Sidecar.of(target.path)
    for file in sidecar.folder.glob("[sw]*.json"):
        text = file.read_bytes()
        for size in range(len(text)):
            file.write_bytes(text[:size])
            with pytest.raises(ValueError, match="not"):
                read_json(file)
            figures.add("damage", "wrong sizes of seals and works")
    assert flowmap.validate(target).sealed
    read_json(sidecar.seal)
