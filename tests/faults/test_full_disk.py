"""Full disks: space, inodes or allowed size that runs out at every page of what flowmap does.

The disks are real and small; a file takes all but so many of their pages. What fills runs in
a forked process, so that a store into a page that is not to be had (SIGBUS) is seen.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import shutil
import signal
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from campaign import Figures, sizes
from mounts import SmallDisk, small_disk
from sabotage import sabotage
from support import forked, logged, logged_rows, snapshot, states, unproven

import flowmap
from flowmap.errors import FlowmapError, SegmentsFailedError, StorageError
from flowmap.records import FINISHED
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [
    pytest.mark.system(
        *("mkfs.ext4", "mkfs.xfs", "mount", "umount"),
        packages="e2fsprogs xfsprogs mount",
        root=True,
    ),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # 3.12 on
]

FAULT: Final = "full disk"
BLOCK: Final = PAGE // 8
SEGMENTS: Final = 4
ROWS: Final = 4 * SEGMENTS * BLOCK
KINDS: Final = ("tmpfs", "inodes", "ext4", "xfs")
SPARE: Final = {"tmpfs": 2, "inodes": 6, "ext4": 8, "xfs": 80}
"""Pages, or inodes, that a fill needs for what was not reserved: new files in the sidecar."""

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "target": {},
    "ledger": {"shape": 40 * BLOCK // 8, "segments": 40},
}
"""Jobs of which one needs more pages for its target, the other for its ledger."""

MOST: Final = {"tmpfs": 90, "inodes": 10, "ext4": 90, "xfs": 240}
"""As many of them as are more than any of these jobs needs."""


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    """Return a small disk of each kind."""
    with small_disk(tmp_path, request.param) as made:
        yield made


def allocated(path: Path, **options: Any) -> flowmap.Target:
    """Allocate the job of these tests."""
    wanted = {"shape": ROWS, "segments": SEGMENTS, "block_rows": BLOCK, **options}
    return flowmap.allocate(path, dtype="<f8", **wanted)


def values(target: flowmap.Target) -> NDArray[np.float64]:
    """Return what is to be in a target."""
    whole: NDArray[np.float64] = np.sqrt(np.arange(target.shape[0], dtype=float))
    return whole


def filled(target: flowmap.Target, way: str, log: Path) -> str:
    """Fill a target in one of the ways; return, as JSON, what each segment's error said."""
    wrong: dict[int, tuple[int | None, str]] = {}
    arguments = {"log": str(log)}
    if way in ("threads", "processes"):
        try:
            flowmap.fill(target, logged, arguments, executor=way, workers=2)
        except SegmentsFailedError as error:
            for index, failure in error.failures.items():
                wrong[index] = getattr(failure, "errno", None), str(failure)
        except StorageError as error:
            wrong |= {s.index: (error.errno, f"{s.name}: {error}") for s in target.pending()}
        return json.dumps(wrong)
    for segment in target.pending():
        mine = values(target)[segment.start : segment.stop]
        try:
            if way == "fill":
                flowmap.fill_segment(segment, logged, arguments)
            elif way == "write":
                flowmap.write_segment(segment, mine)
            else:
                with flowmap.open_segment(segment) as out:
                    out[...] = mine
        except FlowmapError as error:
            wrong[segment.index] = getattr(error, "errno", None), str(error)
    return json.dumps(wrong)


def after_a_fill(target: flowmap.Target, said: str, numbers: tuple[int, ...]) -> Iterator[str]:
    """Yield what is wrong after a fill that may have met a full disk.

    Args:
        target: What was filled.
        said: What `filled` returned, or the signal that ended its process.
        numbers: The errors that there may be.
    """
    if said.startswith("signal"):
        yield f"the process died of {said}"
        return
    wrong = {int(index): error for index, error in json.loads(said).items()}
    for index, (number, message) in wrong.items():
        if number not in numbers or target.segments[index].name not in message:
            yield f"segment {index} failed otherwise: {number} {message}"
        if number == errno.ENOSPC and "free some" not in message:
            yield f"segment {index} has no advice: {message}"
    found = states(target)
    finished = [index for index, state in enumerate(found) if state in FINISHED]
    if set(finished) != set(range(len(found))) - set(wrong):
        yield f"{finished} are finished, {sorted(wrong)} failed"
    unsound = unproven(target)
    if set(unsound) & set(finished):
        yield f"{unsound} are not as they were recorded: {found}"
    yield from validated(target, unsound, numbers)


def validated(
    target: flowmap.Target, unsound: list[int], numbers: tuple[int, ...]
) -> Iterator[str]:
    """Validate on the full disk; yield what is wrong with what is said of it."""
    try:
        report = flowmap.validate(target)
    except StorageError as error:  # what was written does not fit where it is synced
        if target.job.durability == "segment" or error.errno not in numbers:
            yield f"cannot be validated: {error}"
        if "done" in states(target):
            yield "some are done although the sync failed"
        return
    if [segment.index for segment in report.bad_segments] != unsound:
        yield f"validation names {report.bad_segments}, not {unsound}"
    if report.sealed and unsound:
        yield f"sealed, and bad: {report}"
    if report.ok and not report.sealed and "marked or sealed" not in str(report.notes):
        yield f"not sealed, and not told: {report}"


def completed(target: flowmap.Target, way: str, folder: Path) -> Iterator[str]:
    """Fill what is missing, now that there is space; yield what is wrong."""
    missing = set()
    fills = way not in ("write", "map")
    for record, segment in zip(target.status(), target.segments, strict=True):
        if record["state"] not in FINISHED:
            kept = int(record["rows_done"]) if fills else 0
            missing |= {*range(segment.start + kept, segment.stop, BLOCK)}
    attempts = target.status()["attempt"][[s not in target.pending() for s in target.segments]]
    log = folder / "again.log"
    log.unlink(missing_ok=True)
    said = filled(target, "fill" if fills else way, log)
    if said != "{}":
        yield f"does not complete: {said}"
    if fills and set(logged_rows(log)) != missing:
        yield f"computed {logged_rows(log)}, not {sorted(missing)}"
    if not set(attempts) <= set(target.status()["attempt"]):
        yield "filled again what was done"
    report = flowmap.validate(target)
    if not report.sealed:
        yield f"not valid in the end: {report}"
    if not np.array_equal(np.load(target.path), values(target)):
        yield "not the same bytes in the end"


def refused(error: StorageError) -> Iterator[str]:
    """Yield what is wrong with the error of an allocation that failed."""
    message = str(error)
    early = "folder for the records" in message or "header lock" in message
    if error.errno not in (errno.ENOSPC, errno.EFBIG) or "free some space" not in message:
        yield f"failed otherwise: {message}"
    if not early and " bytes" not in message:
        yield f"does not say how many bytes: {message}"


def left(path: Path, before: dict[str, bytes]) -> Iterator[str]:
    """Yield what an allocation that failed left behind, or changed of what was there."""
    if before:
        if snapshot(path) != before or not flowmap.validate(path, mark=False).ok:
            yield "what was there is not as it was"
        return
    sidecar = Sidecar.of(path).folder
    names = {entry.name: entry.stat().st_size for entry in sidecar.glob("*")}
    if path.exists() or names not in ({}, {"header.lock": 0}):
        yield f"left {names}"
    shutil.rmtree(sidecar, ignore_errors=True)


def allocations(
    disk: SmallDisk, options: dict[str, Any], step: int, figures: Figures, *, old: bool
) -> Iterator[str]:
    """Allocate with ever more space until it is enough, and fill; yield what is wrong.

    Args:
        disk: Where.
        options: Of the job.
        step: Pages, or inodes, from one attempt to the next.
        figures: Counts the attempts.
        old: Whether another job is there, whole and valid, and is overwritten.
    """
    path, log = disk.root / "a.npy", disk.root.parent / "log"
    before = {}
    if old:
        disk.leave(MOST[disk.kind])
        said = filled(allocated(path), "fill", log)
        assert said == "{}"
        assert flowmap.validate(path).sealed
        before = snapshot(path)
    for count in range(0, MOST[disk.kind], step):
        free = disk.leave(count)
        figures.add(FAULT, f"allocations on {disk.kind} with so many {disk.unit}s left")
        try:
            target = allocated(path, exist="overwrite" if old else "resume", **options)
        except StorageError as error:
            yield from refused(error)
            yield from left(path, before)
            if disk.free != free:
                yield f"of {free} {disk.unit}s {disk.free} are free"
            continue
        disk.leave(SPARE[disk.kind])
        for way in ("fill", "map"):
            said = forked(functools.partial(filled, target, way, log))
            if said != "{}":
                yield f"allocated with {count} {disk.unit}s, and then: {said}"
            flowmap.reset(target, target.segments)
        return
    yield "never allocated"


@pytest.mark.parametrize("step", sizes(17, 1))
@pytest.mark.parametrize("old", [False, True], ids=["anew", "overwrite"])
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_allocate(
    disk: SmallDisk, options: dict[str, Any], old: bool, step: int, figures: Figures
) -> None:
    """It fails at once and leaves nothing, or has all the space that filling needs."""
    step = 1 if disk.unit == "inode" else step * 3 if disk.kind == "xfs" else step
    assert not list(allocations(disk, options, step, figures, old=old))


def fills(
    disk: SmallDisk, way: str, durability: str, counts: Iterable[int], figures: Figures
) -> Iterator[str]:
    """Fill a sparse target with so much space, then with enough; yield what is wrong."""
    log = disk.root.parent / "log"
    for count in counts:
        disk.leave(MOST[disk.kind])
        target = allocated(
            disk.root / "a.npy", reserve=False, durability=durability, exist="overwrite"
        )
        disk.leave(count)
        figures.add(FAULT, f"fills on {disk.kind} with so many {disk.unit}s left")
        said = forked(functools.partial(filled, target, way, log))
        for fault in after_a_fill(target, said, (errno.ENOSPC,)):
            yield f"with {count}: {fault}"
        fitting = max(0, (count - SPARE[disk.kind]) // (ROWS // SEGMENTS // BLOCK))
        if disk.unit == "page" and target.status()["rows_done"].sum() < min(fitting, 4) * BLOCK:
            yield f"with {count} pages only {states(target)}"
        disk.leave(MOST[disk.kind])
        for fault in completed(target, way, disk.root.parent):
            yield f"with {count}, then enough: {fault}"


@pytest.mark.parametrize("step", sizes(23, 1))
@pytest.mark.parametrize("durability", ["segment", "end"])
@pytest.mark.parametrize("way", ["fill", "write", "map", "threads"])
def test_fill_without_reservation(
    disk: SmallDisk, way: str, durability: str, step: int, figures: Figures
) -> None:
    """What does not fit fails, by its name; the rest is done, and kept once there is space."""
    counts = range(0, 8 if disk.unit == "inode" else ROWS // BLOCK + SPARE[disk.kind], step)
    assert not list(fills(disk, way, durability, counts, figures))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_fill_by_processes(tmp_path: Path, kind: str, figures: Figures) -> None:
    """So it does where processes fill."""
    with small_disk(tmp_path, kind) as disk:
        assert not list(fills(disk, "processes", "segment", [12], figures))


@pytest.mark.parametrize("step", sizes(9, 1))
@pytest.mark.parametrize("way", ["fill", "write", "map", "threads"])
@pytest.mark.parametrize("sparse", [False, True], ids=["", "sparse ledger"])
def test_only_the_records_do_not_fit(
    disk: SmallDisk, way: str, sparse: bool, step: int, figures: Figures
) -> None:
    """Where only the target is reserved, what cannot be recorded is said to have failed."""
    log = disk.root.parent / "log"
    step *= 10 if disk.kind == "xfs" else 1
    for count in range(0, SPARE[disk.kind] + 4, step):
        disk.leave(MOST[disk.kind])
        target = allocated(disk.root / "a.npy", exist="overwrite")
        ledger = Sidecar.of(target.path).ledger
        if sparse:  # as a copy of it may be
            size = ledger.stat().st_size
            os.truncate(ledger, PAGE)
            os.truncate(ledger, size)
        disk.leave(count)
        figures.add(FAULT, f"fills on {disk.kind} where only records did not fit")
        said = forked(functools.partial(filled, target, way, log))
        assert not list(after_a_fill(target, said, (errno.ENOSPC,)))
        disk.leave(MOST[disk.kind])
        assert not list(completed(target, way, disk.root.parent))


def limited(pages: int, act: Callable[[], str]) -> str:
    """Do something in a process whose files may have so many pages; SIGXFSZ comes with that."""

    def act_within() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (pages * PAGE, pages * PAGE))
        return act()

    return forked(act_within)


@pytest.mark.parametrize("step", sizes(3, 1))
@pytest.mark.parametrize("way", ["fill", "write", "map", "threads"])
def test_limited_size(tmp_path: Path, way: str, step: int, figures: Figures) -> None:
    """A limit on the size of files, as a quota, fails what goes beyond it, and nothing else."""

    def allocate(path: Path) -> str:
        try:
            allocated(path)
        except StorageError as error:
            return json.dumps([*refused(error)])
        return "allocated"

    for pages in range(0, ROWS // BLOCK + 1, step):
        path = tmp_path / f"{pages}.npy"
        assert limited(pages, functools.partial(allocate, path)) == "[]"
        assert not list(left(path, {}))
        target = allocated(path)
        said = limited(pages, functools.partial(filled, target, way, tmp_path / "log"))
        assert not list(after_a_fill(target, said, (errno.EFBIG,)))
        assert not list(completed(target, way, tmp_path))
        figures.add(FAULT, "allocations and fills with a limit on the size of files")


@pytest.mark.parametrize("way", ["allocate", "map"])
def test_what_would_be_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Without any reservation the same checks find what was promised and is not there."""
    sabotage("no reservation", monkeypatch.setattr)
    with small_disk(tmp_path, "tmpfs") as disk:
        if way == "allocate":
            wrong = list(allocations(disk, {}, 1, Figures(), old=False))
            expected = "allocated with 7 pages, and then"
        else:
            wrong = list(fills(disk, "map", "segment", [12], Figures()))
            expected = f"signal {signal.SIGBUS:d}"
    assert expected in str(wrong)
