"""Validation: every kind of damage is named, only damage is marked, and a seal is the truth."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xxhash
from support import (
    DTYPES,
    ORDERS,
    damage,
    flip,
    let_others_in,
    oracle,
    ramp,
    run,
    script,
    snapshot,
    states,
)

import flowmap
from flowmap import sealing
from flowmap.claims import Claim
from flowmap.cli.app import run as run_command
from flowmap.documents import publish_json, read_json
from flowmap.errors import (
    ClaimLostError,
    DamagedJobError,
    ForeignFileError,
    InvalidArgumentError,
    NotFoundError,
    OtherJobError,
    SegmentsFailedError,
    StorageError,
    ValidationFailed,
    WrongTypeError,
)
from flowmap.sidecar import Sidecar
from flowmap.storage import open_existing, sync_data, write_all
from flowmap.validation import _Validation

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.records import SegmentRecord
    from flowmap.segments import Block
    from flowmap.target import Target


@flowmap.filler
def constant(out: NDArray[Any], block: Block, *, value: float) -> None:
    """Fill one value."""
    out[...] = value


def allocate(folder: Path, **how: Any) -> Target:
    """Allocate a job of five segments and twenty rows."""
    return flowmap.allocate(folder / "a.npy", 20, "f8", segments=5, block_rows=3, **how)


def fill_all(target: Target, **changes: Any) -> None:
    """Fill what is pending, in this thread."""
    for segment in target.pending():
        flowmap.fill_segment(segment, ramp)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Return a job of five segments, all done."""
    target = allocate(tmp_path)
    fill_all(target)
    return target


def sealed(target: Target) -> bool:
    """Say whether there is a seal."""
    return Sidecar.of(target.path).seal.exists()


@pytest.mark.parametrize("fortran_order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_digest_is_as_defined(
    tmp_path: Path, dtype: np.dtype[Any], fortran_order: bool
) -> None:
    """xxh3_128 over the ordered (start, stop, digest) of the segments, each of its bytes."""
    array = oracle((4, 3, 7) if fortran_order else (7, 3, 4), dtype)
    target = flowmap.allocate(
        tmp_path / "a.npy", array.shape, dtype, fortran_order=fortran_order, segments=[4, 1, 2]
    )
    content = np.asarray(array, order="F" if fortran_order else "C")
    axis_last = np.zeros(content.shape, dtype, order="F" if fortran_order else "C")
    axis_last[...] = content
    for segment in target.segments:
        rows = slice(segment.start, segment.stop)
        flowmap.write_segment(segment, array[..., rows] if fortran_order else array[rows])
    report = flowmap.validate(target)
    assert report.ok
    raw = axis_last.tobytes("A")
    row_bytes = len(raw) // 7
    whole = xxhash.xxh3_128()
    for start, stop in ((0, 4), (4, 5), (5, 7)):
        part = xxhash.xxh3_128_digest(raw[start * row_bytes : stop * row_bytes])
        whole.update(struct.pack("<qq", start, stop) + part)
    assert report.digest == whole.hexdigest()


def test_success_seals(target: Target) -> None:
    """A good report is true, short, and sealed with its digest."""
    report = flowmap.validate(target.path)
    assert report
    assert report.sealed
    assert (report.problems, report.bad_segments, report.marked, report.notes) == ((),) * 4
    seal = read_json(Sidecar.of(target.path).seal)
    assert (seal["digest"], seal["job"]) == (report.digest, target.id)
    assert str(report) == f"{target.path} is valid: digest {report.digest}."
    assert repr(report) == f"<flowmap.ValidationReport {target.path}: ok>"
    report.raise_if_bad()
    assert flowmap.validate(target) == report


def test_nothing_is_valid_too(tmp_path: Path) -> None:
    """A target with no rows has no segments, and is whole."""
    target = flowmap.allocate(tmp_path / "a.npy", (0, 3), "f8")
    report = flowmap.validate(target)
    assert report.sealed
    assert report.digest == xxhash.xxh3_128_hexdigest(b"")


@pytest.mark.parametrize("byte", [0, 13, 31])
def test_a_flipped_bit_costs_its_segment(target: Target, byte: int) -> None:
    """Each damaged segment is named and marked, no other; running again repairs just it."""
    before = target.path.read_bytes()
    good = flowmap.validate(target)
    for index in range(5):
        attempts = target.status()["attempt"]
        damage(target, index, byte)
        report = flowmap.validate(target)
        assert not report
        assert report.bad_segments == report.marked == (target.segments[index],)
        assert report.digest is None
        assert len(report.problems) == 1
        assert target.segments[index].name in str(report)
        assert "run the job" in str(report)
        assert not sealed(target)
        assert target.pending() == [target.segments[index]]
        assert states(target)[index] == "damaged"
        fill_all(target)
        assert target.path.read_bytes() == before
        again = target.status()["attempt"] - attempts
        assert np.nonzero(again)[0].tolist() == [index]
        assert flowmap.validate(target) == good


def test_several_damaged_segments(target: Target) -> None:
    """All are named at once, in order."""
    for index in (3, 1):
        damage(target, index)
    report = flowmap.validate(target)
    assert report.bad_segments == (target.segments[1], target.segments[3])
    assert report.marked == report.bad_segments
    fill_all(target)
    assert flowmap.validate(target).sealed


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * 4096)


def _shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _other_header(path: Path) -> None:
    flip(path, 4000)


def _magic(path: Path) -> None:
    flip(path, 0)


@pytest.mark.parametrize(
    "harm", [_longer, _shorter, _empty, _other_header, _magic], ids=lambda f: f.__name__
)
def test_a_wrong_size_or_header_marks_nothing(target: Target, harm: Any) -> None:
    """The report is bad, the records stay: the data may be well."""
    harm(target.path)
    before = snapshot(target.path)
    report = flowmap.validate(target)
    assert not report.ok
    assert report.marked == ()
    assert not report.sealed
    assert snapshot(target.path) == before
    with pytest.raises(ValidationFailed, match="nothing was marked"):
        report.raise_if_bad()


def test_missing_segments_are_named(tmp_path: Path) -> None:
    """Pending, half filled and failed segments are problems, each with its state."""
    target = allocate(tmp_path)
    for index in (0, 3):
        flowmap.fill_segment(target.segments[index], ramp)

    def fail(out: NDArray[Any], block: Block) -> None:
        raise RuntimeError("no such luck")

    with pytest.raises(flowmap.FlowmapError):
        flowmap.fill_segment(target.segments[2], fail)
    before = snapshot(target.path)
    report = flowmap.validate(target)
    assert report.bad_segments == tuple(target.segments[index] for index in (1, 2, 4))
    assert "failed (RuntimeError: no such luck)" in report.problems[1]
    assert report.marked == ()
    assert snapshot(target.path) == before


def test_a_mixture_of_works_is_refused(tmp_path: Path) -> None:
    """Rows of two works are no one result, unless the user says so; nothing is marked."""
    target = allocate(tmp_path)
    for segment in target.segments:
        flowmap.fill_segment(segment, constant, {"value": segment.index % 2})
    before = snapshot(target.path)
    report = flowmap.validate(target)
    assert not report.ok
    assert "2 different works" in str(report)
    assert (report.bad_segments, report.marked) == ((), ())
    assert snapshot(target.path) == before
    assert flowmap.validate(target, mixed=True).sealed


def test_a_failed_check_only_reports(target: Target) -> None:
    """A check that is false, raises, or gives no truth value names its segment, no more."""

    def of_row_9(verdict: Any) -> Any:
        def check(values: NDArray[Any], block: Block) -> Any:
            assert values.shape == (len(block),)
            np.testing.assert_array_equal(values, np.sqrt(np.arange(block.start, block.stop)))
            assert not values.flags.writeable
            return verdict(values) if block.start <= 9 < block.stop else None

        return check

    def explode(values: NDArray[Any]) -> None:
        raise ZeroDivisionError("of a sort")

    before = snapshot(target.path)
    for verdict, words in [
        (lambda _: False, "fails the check in rows 8 to 11"),
        (lambda _: np.False_, "fails the check"),
        (lambda _: 0, "fails the check"),
        (explode, "ZeroDivisionError: of a sort"),
        (lambda values: values > 0, "not True, False or None"),
    ]:
        report = flowmap.validate(target, check=of_row_9(verdict))
        assert report.bad_segments == (target.segments[2],)
        assert words in str(report)
        assert (report.marked, report.sealed) == ((), False)
        assert report.digest is not None
        assert snapshot(target.path) == before
    for verdict in (lambda _: None, lambda _: True, lambda _: np.True_):
        assert flowmap.validate(target, check=of_row_9(verdict)).ok
    with pytest.raises(WrongTypeError, match="check"):
        flowmap.validate(target, check=3)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        ("f4", np.nan),
        ("c8", complex(0, np.inf)),
        ("M8[s]", np.datetime64("NaT")),
        ([("a", "i4"), ("b", [("c", "f8", 2)])], (1, (np.inf,))),
        ("i8", None),
        ("S3", None),
    ],
)
def test_finite(tmp_path: Path, dtype: Any, bad: Any) -> None:
    """NaN and infinity, in any field, are a problem only where asked for, and mark nothing."""
    target = flowmap.allocate(tmp_path / "a.npy", 6, dtype, segments=3)
    array = np.zeros(6, dtype)
    if bad is not None:
        array[2] = bad
    for segment in target.segments:
        flowmap.write_segment(segment, array[segment.start : segment.stop])
    assert flowmap.validate(target, mark=False).ok
    report = flowmap.validate(target, finite=True)
    assert report.bad_segments == (() if bad is None else (target.segments[1],))
    assert report.marked == ()
    assert states(target) == ["done"] * 3


def test_mark_false_changes_nothing(tmp_path: Path) -> None:
    """Looking is possible without recording: no mark, no seal, no sync made done."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)
    before = snapshot(target.path)
    report = flowmap.validate(target, mark=False)
    assert report.ok
    assert "5 segments are written and not synced" in str(report)
    assert snapshot(target.path) == before
    damage(target, 1)
    before = snapshot(target.path)
    report = flowmap.validate(target, mark=False)
    assert report.bad_segments == (target.segments[1],)
    assert (report.marked, report.sealed) == ((), False)
    assert snapshot(target.path) == before


AS_NOBODY = """
import os, sys
import flowmap, flowmap.validation
os.chdir("/")
os.setgid(65534)
os.setuid(65534)
report = flowmap.validate(sys.argv[1])
print(report.ok, len(report.marked), report.sealed, len(report.problems), len(report.notes))
print(report)
"""


@pytest.mark.system(packages="sudo", root=True)
@pytest.mark.parametrize("harmed", [False, True])
def test_a_folder_that_may_only_be_read(target: Target, harmed: bool) -> None:
    """The report is whole, and says that nothing was marked or sealed."""
    if harmed:
        damage(target, 2)
    let_others_in(target.path)
    before = snapshot(target.path)
    child = run(script(AS_NOBODY, target.path))
    assert child.returncode == 0, child.stderr
    first, rest = child.stdout.split("\n", 1)
    assert first == ("False 0 False 1 1" if harmed else "True 0 False 0 1")
    assert "Nothing was marked or sealed: " in rest
    assert harmed or "a.npy.flowmap belongs to user root, and user nobody may not" in rest
    assert snapshot(target.path) == before


def test_durability_end_becomes_done(tmp_path: Path) -> None:
    """Written segments are synced and made done; a damaged one is not."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)
    assert states(target) == ["written"] * 5
    damage(target, 4)
    assert flowmap.validate(target).marked == (target.segments[4],)
    assert states(target) == ["done"] * 4 + ["damaged"]
    fill_all(target)
    report = flowmap.validate(target)
    assert report.sealed
    assert not target.pending()


def test_a_segment_that_was_written_anew_meanwhile_is_left_to_its_attempt(
    tmp_path: Path,
) -> None:
    """Eight attempts on, the record of one done would lie where the newest is."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)

    def written_anew(values: NDArray[Any], block: Block) -> None:
        if block.start == target.segments[1].start:
            for _ in range(8):
                flowmap.write_segment(target.segments[1], np.ones(4), replace=True)

    assert not flowmap.validate(target, check=written_anew).sealed
    assert states(target) == ["done", "written", "done", "done", "done"]
    assert target.status()["attempt"].tolist() == [1, 9, 1, 1, 1]


def test_durability_end_syncs_before_it_says_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is synced while no record says done, and before its bytes are read."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)
    seen: list[list[str]] = []

    def sync(descriptor: int) -> None:
        seen.append(states(target))
        sync_data(descriptor)

    monkeypatch.setattr("flowmap.validation.sync_data", sync)
    assert flowmap.validate(target).ok
    assert seen == [["written"] * 5]


def test_only_a_validation_that_marks_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only looks must not take an error that the next could not see again."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)
    errors = [OSError(5, "Input/output error")]

    def reported_once(_: int) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr("flowmap.validation.sync_data", reported_once)
    assert flowmap.validate(target, mark=False).ok
    assert errors
    with pytest.raises(StorageError, match="sync"):
        flowmap.validate(target)
    assert states(target) == ["failed"] * 5


def test_a_failed_sync_distrusts_what_was_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one report of the error covers segments recorded since the ledger was read, too."""
    target = allocate(tmp_path, durability="end")
    for segment in target.segments[:4]:
        flowmap.fill_segment(segment, ramp)

    def fail(_: int) -> None:
        flowmap.fill_segment(target.segments[4], ramp)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.validation.sync_data", fail)
        with pytest.raises(StorageError, match="sync"):
            flowmap.validate(target)
    assert states(target) == ["failed"] * 5


def test_a_failed_sync_that_cannot_be_marked_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the ledger fails as well, the error is the only place that knows of the loss."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("flowmap.validation.sync_data", fail)
    monkeypatch.setattr("flowmap.ledger.write_all", fail)
    with pytest.raises(StorageError, match=r"nor mark its segments as failed.*reset"):
        flowmap.validate(target)
    assert states(target) == ["written"] * 5


def test_a_failed_sync_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sync that failed nothing is done until it was written again."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.validation.sync_data", fail)
        with pytest.raises(StorageError, match="sync"):
            flowmap.validate(target)
    assert states(target) == ["failed"] * 5
    assert not flowmap.validate(target).ok
    written: list[int] = []

    def count(descriptor: int, data: memoryview, offset: int) -> None:
        written.append(len(data))
        write_all(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.attempt.write_all", count)
        fill_all(target)
    assert sum(written) == 20 * 8
    assert flowmap.validate(target).sealed


def test_a_segment_that_cannot_be_read_is_damaged(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector costs its segment; the others are looked at all the same."""
    real = os.preadv

    def failing(descriptor: int, buffers: Any, offset: int) -> int:
        if offset == target.job.data_offset + target.segments[2].start * 8:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr("os.preadv", failing)
        report = flowmap.validate(target)
    assert report.bad_segments == report.marked == (target.segments[2],)
    assert "Input/output error" in str(report)
    fill_all(target)
    assert flowmap.validate(target).sealed


def test_a_claim_meanwhile_keeps_the_job_unsealed(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that is reset while the seal is made lifts it."""
    real = flowmap.validation._Validation._seal

    def reset_first(*arguments: Any) -> tuple[bool, list[str]]:
        flowmap.reset(target, 1)
        return real(*arguments)

    monkeypatch.setattr("flowmap.validation._Validation._seal", reset_first)
    report = flowmap.validate(target)
    assert not report.sealed
    assert "claimed meanwhile" in str(report)
    assert not sealed(target)


def test_a_damaged_segment_that_is_refilled_meanwhile_is_left_alone(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed since it was read belongs to whoever is filling it."""
    damage(target, 2)
    real = flowmap.validation._Validation._record

    def refill_first(*arguments: Any) -> Any:
        flowmap.reset(target, 2)
        flowmap.fill_segment(target.segments[2], ramp)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.validation._Validation._record", refill_first)
        assert flowmap.validate(target).marked == ()
    assert states(target) == ["done"] * 5
    assert flowmap.validate(target).sealed


@pytest.mark.parametrize("harm", ["missing", "cut", "link", "header"])
def test_a_damaged_ledger_is_reported(target: Target, harm: str) -> None:
    """Without its records no segment is known to be done: the report says so."""
    ledger = Sidecar.of(target.path).ledger
    if harm == "cut":
        os.truncate(ledger, 4096)
    elif harm == "header":
        flip(ledger, 100)
    else:
        kept = ledger.rename(ledger.with_name("kept"))
        if harm == "link":
            ledger.symlink_to(kept)
    report = flowmap.validate(target)
    assert not report.ok
    assert "ledger" in str(report)
    assert report.digest is None
    assert not report.sealed


@pytest.mark.parametrize("harm", [_longer, _other_header, "ledger"])
@pytest.mark.parametrize("mark", [True, False])
def test_damage_of_the_whole_lifts_the_seal(target: Target, harm: Any, mark: bool) -> None:
    """No seal outlives a wrong size, a wrong header or a lost ledger, once that was seen."""
    assert flowmap.validate(target).sealed
    if harm == "ledger":
        Sidecar.of(target.path).ledger.unlink()
    else:
        harm(target.path)
    report = flowmap.validate(target, mark=mark)
    assert not report.ok
    assert sealed(target) is not mark


@pytest.mark.parametrize("begin", ["reset", "write"])
def test_a_kill_after_a_claim_leaves_no_seal(
    target: Target, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    """The seal is gone before the first claim, not only after it."""
    assert flowmap.validate(target).sealed
    seen: list[bool] = []
    real = Claim.check

    def check(claim: Claim) -> None:
        seen.append(sealed(target))
        real(claim)

    monkeypatch.setattr(Claim, "check", check)
    if begin == "reset":
        flowmap.reset(target, 1)
    else:
        flowmap.write_segment(target.segments[1], np.ones(4), replace=True)
    assert not any(seen)


def test_a_reset_that_is_overtaken_keeps_what_it_did(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments before the one claimed meanwhile are durably pending, with no seal."""
    assert flowmap.validate(target).sealed
    synced: list[bool] = []
    real = Claim.check

    def check(claim: Claim) -> None:
        if claim.record.index == 1:
            publish_json(Sidecar.of(target.path).seal, {})  # by a validation meanwhile
            raise ClaimLostError("claimed meanwhile")
        real(claim)

    monkeypatch.setattr(Claim, "check", check)
    monkeypatch.setattr("flowmap.ledger.sync_data", lambda _: synced.append(True))
    with pytest.raises(ClaimLostError):
        flowmap.reset(target, [0, 1])
    assert states(target)[0] == "pending"
    assert synced
    assert not sealed(target)


def test_an_unreadable_ledger_is_reported(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page on a bad sector is a problem of the report, not a crash."""

    def bad(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.preadv", bad)  # the headers are read by pread
        report = flowmap.validate(target)
    assert not report.ok
    assert "cannot read the ledger" in str(report)
    assert flowmap.validate(target).sealed


def test_an_unreadable_header_is_told(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the target itself cannot be read flowmap's own error says so."""

    def bad(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", bad)
    with pytest.raises(StorageError, match="cannot read the target"):
        flowmap.validate(target)


def test_no_memory_makes_no_segment_bad(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be looked at for want of memory is not marked as damaged."""

    def none_left(_: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.blocks.buffer_of", none_left)
        with pytest.raises(StorageError, match="no memory"):
            flowmap.validate(target, finite=True)
    assert states(target) == ["done"] * 5


def test_a_link_is_read_through(tmp_path: Path, target: Target) -> None:
    """What git-annex or DVC makes of a target: read-only, under another name, behind a link."""
    store = tmp_path / "store"
    store.mkdir()
    content = target.path.rename(store / "MD5-s4256--d41d8")
    content.chmod(0o444)
    target.path.symlink_to(content)
    before = snapshot(target.path)
    report = flowmap.validate(target.path)
    assert report.ok
    assert not report.sealed
    assert "is a link: nothing was marked or sealed" in str(report)
    assert flowmap.validate(target, mark=False).notes == ()
    content.chmod(0o644)
    flip(content, target.job.data_offset + 40)
    report = flowmap.validate(target)
    assert report.bad_segments == (target.segments[1],)
    assert report.marked == ()
    content.unlink()
    with pytest.raises(NotFoundError, match="is a link to; fetch it first"):
        flowmap.validate(target)
    assert run_command(["validate", str(target.path)]) == 2
    assert {path for path in before if "flowmap" in path} == set(snapshot(target.path))
    assert states(target) == ["done"] * 5


def test_a_link_to_what_is_not_done(tmp_path: Path) -> None:
    """The command reports what is missing, as of a file."""
    target = allocate(tmp_path)
    target.path.symlink_to(target.path.rename(tmp_path / "content"))
    assert run_command(["validate", str(target.path)]) == 3


def test_a_link_without_records(
    tmp_path: Path, target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link from elsewhere is refused with the path of the file that has the records."""
    link = tmp_path / "link.npy"
    link.symlink_to(target.path)
    for function in (flowmap.validate, flowmap.open_target):
        with pytest.raises(ForeignFileError, match="Give that path: the records are beside it"):
            function(link)
    assert run_command(["status", str(link)]) == 2
    assert f"is not a regular file but a link to '{target.path}'" in capsys.readouterr().err
    link.unlink()
    link.symlink_to(tmp_path / "other.npy")
    (tmp_path / "other.npy").touch()
    with pytest.raises(ForeignFileError, match="was not allocated by flowmap"):
        flowmap.validate(link)


def test_a_link_out_of_the_root(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FLOWMAP_ROOT set no link leads out of it, not even to be read."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.move(Sidecar.of(target.path).folder, root)
    (root / "a.npy").symlink_to(target.path)
    assert flowmap.validate(root / "a.npy").ok
    monkeypatch.setenv("FLOWMAP_ROOT", str(root))
    with pytest.raises(InvalidArgumentError, match="leads out of"):
        flowmap.validate(root / "a.npy")


def _bytes_read(monkeypatch: pytest.MonkeyPatch, target: Target) -> list[int]:
    """Return a list that grows by the bytes of each read of the target's data."""
    seen: list[int] = []
    real, inode = os.preadv, target.path.stat().st_ino

    def noted(descriptor: int, buffers: Any, offset: int) -> int:
        count = real(descriptor, buffers, offset)
        if os.fstat(descriptor).st_ino == inode:
            seen.append(count)
        return count

    monkeypatch.setattr("os.preadv", noted)
    return seen


@pytest.mark.parametrize("check", [None, lambda values, block: True])
def test_each_byte_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Any
) -> None:
    """Digests, finiteness and a check of the user's come of one reading."""
    target = flowmap.allocate(tmp_path / "a.npy", 500_000, "f8", segments=[200_001, 299_999])
    flowmap.fill(target, ramp, executor="threads")
    seen = _bytes_read(monkeypatch, target)
    assert flowmap.validate(target, finite=True, check=check).sealed
    assert sum(seen) == target.nbytes


def test_a_check_gets_the_blocks_in_order(tmp_path: Path) -> None:
    """It is called by one thread, block by block, may keep state and may keep what it got."""
    target = flowmap.allocate(tmp_path / "a.npy", 20_000, "f8", segments=7, block_rows=100)
    flowmap.fill(target, ramp, executor="threads")
    kept: list[tuple[int, NDArray[Any], Block]] = []

    def check(values: NDArray[Any], block: Block) -> None:
        kept.append((threading.get_ident(), values, block))

    assert flowmap.validate(target, check=check, finite=True).ok
    assert {thread for thread, _, _ in kept} == {threading.get_ident()}
    expected = [
        (start, min(start + 100, segment.stop))
        for segment in target.segments
        for start in range(segment.start, segment.stop, 100)
    ]
    assert [(block.start, block.stop) for _, _, block in kept] == expected
    np.testing.assert_array_equal(
        np.concatenate([values for _, values, _ in kept]), np.sqrt(np.arange(20_000))
    )


def test_few_blocks_are_read_ahead_of_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with the array: a slow check has some blocks before it at most."""
    how: dict[str, Any] = {"segments": 7, "block_rows": 500}
    target = flowmap.allocate(tmp_path / "a.npy", 20_000, "f8", **how)
    monkeypatch.setattr("flowmap.inspection._AHEAD_BYTES", 8000)
    flowmap.fill(target, ramp, executor="threads")
    seen = _bytes_read(monkeypatch, target)
    memory: set[int] = set()
    called = 0

    def check(values: NDArray[Any], block: Block) -> None:
        nonlocal called
        called += 1
        time.sleep(0.002)
        assert len(seen) <= called + 1
        memory.add(values.ctypes.data)

    assert flowmap.validate(target, check=check).ok
    assert called == 42
    assert len(memory) == 2


def test_a_check_does_not_judge_damage(target: Target) -> None:
    """A segment whose bytes are wrong is damaged, whatever the check says of them."""
    damage(target, 1, byte=7)
    seen: list[int] = []

    def check(values: NDArray[Any], block: Block) -> bool:
        seen.append(block.start)
        return not 4 <= block.start < 8 and block.start != 11

    report = flowmap.validate(target, check=check, finite=True)
    assert [problem.partition(" ")[2][:22] for problem in report.problems] == [
        "0001 [4:8] is damaged:",
        "0002 [8:12] fails the ",
    ]
    assert report.marked == (target.segments[1],)


def test_the_rows_that_are_not_finite(tmp_path: Path) -> None:
    """The first block with such a value is named, with and without a check."""
    target = flowmap.allocate(
        tmp_path / "a.npy", (3, 300_000), "f4", fortran_order=True, segments=2, block_rows=1000
    )
    values = np.zeros((3, 300_000), "f4", order="F")
    values[1, 199_999] = np.inf
    values[0, 250_500] = np.nan
    for segment in target.segments:
        flowmap.write_segment(segment, values[:, segment.start : segment.stop])
    second = target.segments[1].start
    begin = second + (199_999 - second) // 1000 * 1000
    rows = f"holds NaN or infinity in rows {begin} to {begin + 1000}."
    for check in (None, lambda values, block: True):
        report = flowmap.validate(target, finite=True, check=check, mark=False)
        assert report.problems == (f"{target.segments[1].name} {rows}",)


def test_what_cannot_be_looked_at_raises(tmp_path: Path, target: Target) -> None:
    """No file, no job, a device or a pipe in the file's place: errors, not reports."""
    with pytest.raises(NotFoundError):
        flowmap.validate(tmp_path / "none.npy")
    np.save(tmp_path / "foreign.npy", np.zeros(3))
    with pytest.raises(ForeignFileError):
        flowmap.validate(tmp_path / "foreign.npy")
    with pytest.raises(WrongTypeError):
        flowmap.validate(3)  # type: ignore[arg-type]  # what is tested
    moved = target.path.rename(tmp_path / "moved")
    for kind in ("link", "pipe"):
        if kind == "link":
            target.path.symlink_to("/dev/zero")
        else:
            os.mkfifo(target.path)
        with pytest.raises(ForeignFileError, match="not a regular file but"):
            flowmap.validate(target)
        target.path.unlink()
    moved.rename(target.path)
    Sidecar.of(target.path).job.write_text("{}")
    with pytest.raises(DamagedJobError):
        flowmap.validate(target)


def test_a_job_that_moved_is_still_valid(tmp_path: Path, target: Target) -> None:
    """Target and records may be moved together."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.move(target.path, folder)
    shutil.move(Sidecar.of(target.path).folder, folder)
    assert flowmap.validate(folder / "a.npy").sealed


def test_the_failure_survives_pickling(target: Target) -> None:
    """Prefect and worker processes send it: report and message come through."""
    damage(target, 0)
    report = flowmap.validate(target)
    with pytest.raises(ValidationFailed) as caught:
        report.raise_if_bad()
    assert caught.value.report is report
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) == str(report)
    assert copy.report == report
    assert isinstance(copy, ValueError)


def test_a_long_report_is_cut(tmp_path: Path) -> None:
    """Ten problems are told, the others counted; the representation is one line."""
    target = flowmap.allocate(tmp_path / "a.npy", 30, "f8", segments=30)
    flowmap.fill(target, "constant", {"value": np.nan}, executor="threads")
    report = flowmap.validate(target, finite=True)
    assert len(report.problems) == 30
    assert len(str(report).splitlines()) == 12
    assert "segment 0009 [9:10] holds NaN" in str(report)
    assert "segment 0010" not in str(report)
    assert "and 20 more" in str(report)
    assert "and 20 more" in report._repr_html_()
    assert repr(report) == f"<flowmap.ValidationReport {target.path}: 30 problems>"


def test_a_problem_of_many_segments_is_told_once(tmp_path: Path) -> None:
    """The segments that failed for one cause take one line, as in the error of the run."""
    target = flowmap.allocate(tmp_path / "a.npy", 64, "f8", segments=64)

    def fails(out: Any, block: Block) -> None:
        if block.start >= 2:
            raise KeyError("k" if block.start % 32 else "rare")

    with pytest.raises(SegmentsFailedError):
        flowmap.fill(target, fails, executor="threads")
    flowmap.reset(target, [1])
    report = flowmap.validate(target)
    assert len(report.problems) == len(report.bad_segments) == 63
    again = ": run the job again."
    assert str(report).splitlines()[1:] == [
        f"  - segment 0001 [1:2] is not done but pending{again}",
        f"  - 61 segments (2-31, 33-63) are not done but failed (KeyError: 'k'){again}",
        f"  - segment 0032 [32:33] is not done but failed (KeyError: 'rare'){again}",
    ]


@pytest.mark.parametrize("which", ["index", "numpy", "segment", "mixed", "range", "array"])
def test_reset(target: Target, which: str) -> None:
    """Segments are pending again, the seal is gone, and the next run computes them anew."""
    assert flowmap.validate(target).sealed
    chosen: Any = {
        "index": 2,
        "numpy": np.int64(2),
        "segment": target.segments[2],
        "mixed": [target.segments[2], 2, np.int32(2)],
        "range": range(2, 3),
        "array": np.array([2]),
    }[which]
    flowmap.reset(target, chosen)
    assert states(target) == ["done", "done", "pending", "done", "done"]
    assert not sealed(target)
    assert target.pending() == [target.segments[2]]
    flowmap.fill_segment(target.segments[2], constant, {"value": 1})
    assert target.asarray()[8:12].tolist() == [1] * 4


@pytest.mark.parametrize(
    ("nonsense", "error"),
    [
        ([0, 5], InvalidArgumentError),
        ([0, -1], InvalidArgumentError),
        ([0, "1"], WrongTypeError),
        ([0, 1.0], WrongTypeError),
        (True, WrongTypeError),
        (None, WrongTypeError),
        (1.5, WrongTypeError),
        ("01", WrongTypeError),
    ],
)
def test_reset_refuses_nonsense(target: Target, nonsense: Any, error: type[Exception]) -> None:
    """One wrong segment among good ones, and nothing is reset."""
    flowmap.validate(target)
    before = snapshot(target.path)
    with pytest.raises(error, match="segments"):
        flowmap.reset(target, nonsense)
    assert snapshot(target.path) == before


def test_reset_refuses_segments_of_others(target: Target) -> None:
    """A segment of an earlier allocation is not one of this job's."""
    new = flowmap.allocate(target.path, 20, "f8", segments=5, exist="overwrite")
    with pytest.raises((InvalidArgumentError, OtherJobError), match="segment 0001"):
        flowmap.reset(new, target.segments[1])
    assert not new.status()["attempt"].any()


@pytest.mark.parametrize("segments", [5, 4])
def test_a_reset_that_an_overwrite_overtakes(
    target: Target, monkeypatch: pytest.MonkeyPatch, segments: int
) -> None:
    """It writes nothing into the ledger of the new job, which would not be filled then."""
    real = sealing.lift

    def overtaken(job: Job) -> None:
        monkeypatch.setattr(sealing, "lift", real)
        flowmap.allocate(target.path, 20, "f8", segments=segments, exist="overwrite")

    monkeypatch.setattr(sealing, "lift", overtaken)
    with pytest.raises(OtherJobError, match="allocated anew"):
        flowmap.reset(target, 1)
    flowmap.fill(target.path, ramp, executor="threads")
    assert flowmap.validate(target.path).ok


@pytest.mark.parametrize("rows", [20, 24])
def test_an_overwrite_while_it_is_validated(
    target: Target, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """What replaced the file is not taken for damage to it."""
    real = open_existing

    def overtaken(*arguments: Any, **options: Any) -> int:
        monkeypatch.setattr("flowmap.validation.open_existing", real)
        flowmap.allocate(target.path, rows, "f8", segments=4, exist="overwrite")
        return real(*arguments, **options)

    monkeypatch.setattr("flowmap.validation.open_existing", overtaken)
    with pytest.raises(OtherJobError, match="allocated anew"):
        flowmap.validate(target)


def test_reset_of_nothing_changes_nothing(target: Target) -> None:
    """An empty list does not lift the seal."""
    flowmap.validate(target)
    flowmap.reset(target, [])
    assert sealed(target)


def test_a_running_attempt_notices_a_reset(tmp_path: Path) -> None:
    """It stops before it writes, and what it had is not kept."""
    target = allocate(tmp_path)

    def reset_meanwhile(out: NDArray[Any], block: Block) -> None:
        flowmap.reset(target, 0)
        out[...] = 1

    with pytest.raises(ClaimLostError):
        flowmap.fill_segment(target.segments[0], reset_meanwhile)
    assert states(target)[0] == "pending"
    assert not target.asarray().any()


def test_a_second_record_that_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment is recorded as written twice: the second time says nothing new."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)
    real = _Validation._compare_bytes

    def late(self: _Validation, finished: list[SegmentRecord]) -> list[SegmentRecord]:
        damaged = real(self, finished)
        with target.job.ledger(write=True) as ledger:
            ledger.write(dataclasses.replace(finished[0], sequence=finished[0].sequence + 1))
        return damaged

    monkeypatch.setattr(_Validation, "_compare_bytes", late)
    assert flowmap.validate(target).sealed
    assert set(states(target)) == {"done"}


def test_what_is_not_recorded_as_done_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that kept its token, and the segment written, leaves no seal behind."""
    target = allocate(tmp_path, durability="end")
    fill_all(target)
    monkeypatch.setattr(_Validation, "_record", lambda *_: ([], []))
    assert not flowmap.validate(target).sealed
    assert not Sidecar.of(target.path).seal.exists()
    assert set(states(target)) == {"written"}
