"""Every bit of a small job flipped: it is caught, costs what it hit, and is repaired."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xxhash
from campaign import sizes
from harm import (
    COMPUTED,
    flipped,
    pages,
    refused,
    small_job,
    some,
    telling_bits,
    traced,
    untrue,
    weathered_job,
)
from sabotage import sabotage
from support import flip

import flowmap
from flowmap import lease
from flowmap.documents import read_json
from flowmap.errors import DamagedJobError
from flowmap.records import SLOT, SLOTS
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from campaign import Figures

    from flowmap.target import Target

    Told = tuple[str, int, int, str]

TOLD = ("state", "rows_done", "attempt", "digest")
NO_RECORD: Told = ("pending", 0, 0, "")
SLOT_BITS = SLOT.itemsize * 8
WORDS = 150 * 8
"""The bits of a header before its padding, and some of that: in every sample."""


def data_faults(folder: Path, most: int | None) -> Iterator[str]:
    """Flip bits of the data, one at a time, and run again; tell what did not go well."""
    target = small_job(folder)
    good, segment_bits = target.path.read_bytes(), target.segments[0].rows * 64
    for bit in some(range(target.nbytes * 8), most):
        faults, hit, before = list[str](), bit // segment_bits, pages(target)
        flip(target.path, target.job.data_offset + bit // 8, 1 << bit % 8)
        report = flowmap.validate(target)
        (changed,) = np.nonzero((pages(target) != before).any(axis=1))
        told = (
            [segment.index for segment in report.bad_segments],
            [segment.index for segment in report.marked],
            [segment.index for segment in target.pending()],
            changed.tolist(),
            [int(problem.split()[1]) for problem in report.problems],
        )
        if report.ok or told != ([hit],) * len(told):
            faults.append(f"{report}, {told}")
        COMPUTED.clear()
        for segment in target.pending():
            flowmap.fill_segment(segment, traced)
        mine = target.segments[hit]
        if list(range(mine.start, mine.stop)) != COMPUTED:
            faults.append(f"rows {COMPUTED} are computed again")
        if target.path.read_bytes() != good or not flowmap.validate(target).sealed:
            faults.append("it is not repaired")
        yield told_of(f"bit {bit} of segment {hit}", faults)


def header_faults(folder: Path, most: int | None) -> Iterator[str]:
    """Flip bits of the header, one at a time; tell what is not refused, or marked."""
    target = small_job(folder)
    segment, records = target.segments[0], pages(target)
    uses: list[Callable[[], object]] = [
        lambda: flowmap.load(target.path, masked=True),
        lambda: flowmap.load(target.path, "r", masked=True, offset=1, shape=2),
        lambda: flowmap.fill_segment(segment, traced),
        lambda: flowmap.write_segment(segment, np.zeros(segment.rows), replace=True),
        lambda: flowmap.open_segment(segment, replace=True).__enter__(),
        target.masked,
        target.asarray,
    ]
    for bit in some(range(PAGE * 8), most, range(WORDS)):
        with flipped(target.path, bit):
            found = refused_in(DamagedJobError, _open(target), uses[bit % len(uses)])
            report = flowmap.validate(target)
        if report.bad_segments or "another header" not in " ".join(report.problems):
            found.append(f"is reported as {report}")
        if not np.array_equal(pages(target), records):
            found.append("marks something")
        yield told_of(f"bit {bit} of the header", found)


def whole_records(target: Target) -> dict[int, list[tuple[int, Told]]]:
    """Read the ledger by NumPy alone: the number and the record of each segment's whole slots.

    The one that counts comes last.
    """
    found = {}
    for index, page in enumerate(np.load(Sidecar.of(target.path).ledger)):
        slots = []
        for number, slot in enumerate(page):
            whole = xxhash.xxh3_64_intdigest(slot.tobytes()[:-8]) == slot["checksum"]
            if whole and (slot["job"].decode(), slot["segment"]) == (target.id, index):
                digest = bytes(slot["digest"])
                state, rows, attempt, sequence = slot[
                    ["state", "rows_done", "attempt", "sequence"]
                ].tolist()
                told = (state.decode(), rows, attempt, digest.hex() if any(digest) else "")
                slots.append(((attempt, sequence), number, told))
        found[index] = [(number, told) for _, number, told in sorted(slots)]
    return found


def ledger_faults(folder: Path, most: int | None) -> Iterator[str]:
    """Flip bits of the pages, one at a time; tell where another record counts than must."""
    target = weathered_job(folder)
    records, ledger = whole_records(target), Sidecar.of(target.path).ledger
    newest = [
        (index * SLOTS + slots[-1][0]) * SLOT_BITS + byte * 8 + byte % 8
        for index, slots in records.items()
        if slots
        for byte in range(SLOT.itemsize)
    ]
    for bit in some(range(len(records) * PAGE * 8), most, newest):
        index, slot = divmod(bit // SLOT_BITS, SLOTS)
        left = [
            [told for number, told in slots if (each, number) != (index, slot)]
            for each, slots in records.items()
        ]
        expected = [told[-1] if told else NO_RECORD for told in left]
        with flipped(ledger, bit + PAGE * 8):
            try:
                status = target.status()[list(TOLD)].tolist()
                found = [] if status == expected else [f"gives {status}"]
                found += [f"makes a lie of {lie}" for lie in untrue(target)]
            except UnicodeDecodeError as error:
                found = [str(error)]
            if slot in [number for number, _ in records[index]] and not found:
                bad = [each.index for each in flowmap.validate(target, mark=False).bad_segments]
                pending = [each for each, told in enumerate(expected) if told[0] != "done"]
                found = [] if bad == pending else [f"leaves the segments {bad} bad"]
        yield told_of(f"bit {bit}, in slot {slot} of segment {index},", found)


def ledger_header_faults(folder: Path, most: int | None) -> Iterator[str]:
    """Flip bits of the ledger's header, one at a time; tell what is not refused."""
    target = small_job(folder)
    segment, before = target.segments[0], target.path.read_bytes()
    uses: list[Callable[[], object]] = [
        target.status,
        target.masked,
        lambda: flowmap.reset(target, 0),
        lambda: flowmap.fill_segment(segment, traced),
        lambda: flowmap.write_segment(segment, np.zeros(segment.rows), replace=True),
    ]
    for bit in some(range(PAGE * 8), most, range(WORDS)):
        with flipped(Sidecar.of(target.path).ledger, bit):
            found = refused_in(DamagedJobError, target.pending, uses[bit % len(uses)])
            report = flowmap.validate(target)
        if report.ok or report.marked or "another header" not in " ".join(report.problems):
            found.append(f"is reported as {report}")
        if target.path.read_bytes() != before:
            found.append("changes the target")
        yield told_of(f"bit {bit} of the ledger's header", found)


def job_faults(folder: Path, most: int | None) -> Iterator[str]:
    """Flip bits of `job.json`, one at a time; tell what is not refused."""
    target = small_job(folder, filler=traced)
    segment, job = target.segments[0], Sidecar.of(target.path).job
    again = functools.partial(flowmap.allocate, target.path, target.shape, target.dtype)
    uses: list[Callable[[], object]] = [
        target.status,
        functools.partial(again, segments=4, block_rows=3),
        lambda: flowmap.validate(target),
        lambda: flowmap.reset(target, 0),
        lambda: flowmap.fill_segment(segment, traced),
        lambda: flowmap.fill(target, traced, executor="threads"),
        lambda: flowmap.load(target.path, masked=True),
    ]
    for bit in some(telling_bits(job), most):
        with flipped(job, bit):
            found = refused_in(DamagedJobError, _open(target), uses[bit % len(uses)])
        yield told_of(f"bit {bit} of job.json", found)


def other_faults(folder: Path, most: int | None) -> Iterator[str]:
    """Flip bits of the seal, the lease and the works; tell where one is taken for whole."""
    target = small_job(folder)
    sidecar = Sidecar.of(target.path)
    assert flowmap.validate(target).sealed
    fingerprint = str(target.status()["work"][0])
    works, named = sidecar.work(fingerprint), target.job.describe_work(fingerprint)
    with lease.leased(target.job, "a run"):
        kept = sidecar.run.read_bytes()
    sidecar.run.write_bytes(kept)
    for file in (sidecar.seal, sidecar.run, works):
        for bit in some(telling_bits(file), most):
            with flipped(file, bit):
                fault = refused(functools.partial(read_json, file), ValueError, advice="")
                held = file == sidecar.run and lease._read(file) is not None
                told = file == works and target.job.describe_work(fingerprint) == named
            found = [fault] * bool(fault) + ["is believed"] * (held or told)
            yield told_of(f"bit {bit} of {file.name}", found)
    with flipped(sidecar.run, 100), lease.leased(target.job, "another run"):
        pass
    with flipped(sidecar.seal, 100):
        assert flowmap.validate(target).sealed
    read_json(sidecar.seal)


def told_of(what: str, faults: list[str]) -> str:
    """Return a line that tells of faults, empty where there are none."""
    return f"{what} {'; '.join(faults)}" if faults else ""


def refused_in(kind: type[Exception], *uses: Callable[[], object]) -> list[str]:
    """Tell how some uses are not refused with an error of a kind."""
    return [fault for use in uses if (fault := refused(use, kind))]


def _open(target: Target) -> Callable[[], object]:
    return functools.partial(flowmap.open_target, target.path)


CLASSES: dict[str, tuple[Callable[[Path, int | None], Iterator[str]], int]] = {
    "bits of data": (data_faults, 200),
    "bits of a header": (header_faults, 500),
    "bits of a ledger's pages": (ledger_faults, 500),
    "bits of a ledger's header": (ledger_header_faults, 250),
    "bits of job.json": (job_faults, 100_000),
    "bits of seal, lease and works": (other_faults, 100_000),
}
"""What flips bits of a class, and tells of each what is wrong; how many of them by default."""


@pytest.mark.parametrize("share", sizes("some", "all"))
@pytest.mark.parametrize("kind", CLASSES)
def test_every_bit(tmp_path: Path, figures: Figures, kind: str, share: str) -> None:
    """Whichever bit is flipped, it is caught, marks what it hit, and is repaired."""
    flip_and_tell, most = CLASSES[kind]
    outcomes = list(flip_and_tell(tmp_path, None if share == "all" else most))
    assert not any(outcomes), [fault for fault in outcomes if fault][:10]
    figures.add("damage", kind, len(outcomes))


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        ("bits of data", "no comparing of digests"),
        ("bits of data", "a mark too many"),
        ("bits of data", "a mark too few"),
        ("bits of a header", "no comparing of headers"),
        ("bits of a ledger's header", "no comparing of headers"),
        ("bits of a ledger's pages", "no checksums"),
        ("bits of a ledger's pages", "one slot for a claim"),
        ("bits of job.json", "no checksum of documents"),
        ("bits of seal, lease and works", "no checksum of documents"),
    ],
)
def test_what_does_not_catch_them_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, broken: str
) -> None:
    """The same flips find the fault of a flowmap that does not look."""
    sabotage(broken, monkeypatch.setattr)
    assert any(CLASSES[kind][0](tmp_path, 50))
