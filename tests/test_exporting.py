"""The export of a job: all that is known of it, in one document that outlives its records."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import ORDINARY, damage, flip, logged, run, script, snapshot, written

import flowmap
from flowmap import exporting
from flowmap.claims import Claim
from flowmap.documents import publish_json, read_json
from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    InvalidArgumentError,
    NotFoundError,
    OtherJobError,
    StorageError,
    WrongTypeError,
)
from flowmap.exporting import export, read_export, record_of
from flowmap.sealing import seal_of
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flowmap.target import Target


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Return a target of four segments, pinned to its work, filled and sealed."""
    work = {"log": str(tmp_path / "the log")}
    target = flowmap.allocate(
        tmp_path / "a.npy", 12, "f8", segments=4, filler=logged, arguments=work
    )
    flowmap.fill(target, logged, work, executor="threads", workers=1)
    assert flowmap.validate(target).sealed
    return target


def test_all_that_is_known(target: Target) -> None:
    """Job, works, segments and seal are there as the records have them."""
    before = time.time()
    record = record_of(target.path)
    assert before <= record["exported"] <= time.time()
    assert record["format"] == 1
    assert record["flowmap"] == flowmap.__version__
    assert record["path"] == str(target.path)
    sidecar = Sidecar.of(target.path)
    assert record["job"] == read_json(sidecar.job)
    assert record["seal"] == read_json(sidecar.seal)
    fingerprint = Work.of(logged, {"log": "another"}).fingerprint
    assert record["works"] == {fingerprint: read_json(sidecar.work(fingerprint))}
    assert "def logged" in record["works"][fingerprint]["source"]
    status = target.status()
    assert len(record["segments"]) == 4
    for segment, row in zip(record["segments"], status, strict=True):
        assert list(segment) == list(status.dtype.names or ())
        assert all(segment[name] == row[name] for name in segment)


def test_summary(target: Target) -> None:
    """It adds up what the ledger says, and has the digest that was sealed."""
    status = target.status()
    summary = record_of(target)["summary"]
    assert summary == {
        "state": "valid",
        "segments_done": 4,
        "segments_failed": 0,
        "rows_done": 12,
        "rows": 12,
        "nbytes": 96,
        "attempts": 4,
        "hosts": [socket.gethostname()],
        "began": status["started"].min(),
        "finished": status["finished"].max(),
        "seconds": pytest.approx((status["finished"] - status["started"]).sum()),
        "digest": flowmap.validate(target).digest,
    }
    assert summary["digest"] == read_json(Sidecar.of(target.path).seal)["digest"]


def test_volatile_arguments_stay_out(target: Target, tmp_path: Path) -> None:
    """What is recorded nowhere is not exported either, in whatever form."""
    export(target, tmp_path / "export.json")
    assert "the log" not in (tmp_path / "export.json").read_text()


def test_written_and_read(target: Target, tmp_path: Path) -> None:
    """The file holds what was returned, as indented JSON that ends in a newline."""
    file = tmp_path / "export.json"
    document = export(target.path, file)
    text = file.read_text()
    assert text.endswith("}\n")
    assert text.count("\n") > 50
    assert {k: v for k, v in json.loads(text).items() if k != "checksum"} == document
    assert read_export(file) == document
    again = record_of(target)
    assert again == document | {"exported": again["exported"]}
    shutil.rmtree(Sidecar.of(target.path).folder)
    assert read_export(str(file)) == document


def test_an_earlier_export_is_replaced(target: Target, tmp_path: Path) -> None:
    """Also that of another job; nothing else is left beside it."""
    file = tmp_path / "export.json"
    export(target, file)
    other = flowmap.allocate(tmp_path / "b.npy", 3, "f8")
    export(other, file)
    assert read_export(file)["job"]["id"] == other.id
    assert not list(tmp_path.glob(".*"))


def _failed(target: Target) -> None:
    flowmap.reset(target, 2)
    with target.job.ledger(write=True) as ledger:
        Claim(ledger, ledger.read(2, 6, 9), "", state="failed")


def _damaged(target: Target) -> None:
    damage(target, 1)
    assert flowmap.validate(target).marked


def _reseal(target: Target, **changes: str) -> None:
    path = Sidecar.of(target.path).seal
    publish_json(path, read_json(path) | changes)


def _torn(target: Target) -> None:
    path = Sidecar.of(target.path).ledger
    first = path.stat().st_size - 4 * PAGE
    for slot in range(16):
        flip(path, first + slot * 256 + 100)


STATES: dict[str, Callable[[Target], object]] = {
    "valid": lambda target: None,
    "done": lambda target: Sidecar.of(target.path).seal.unlink(),
    "done, and another's seal": lambda target: publish_json(
        Sidecar.of(target.path).seal,
        read_json(Sidecar.of(target.path).seal) | {"job": "0" * 32},
    ),
    "done, and a damaged seal": lambda target: flip(Sidecar.of(target.path).seal, 20),
    "incomplete": lambda target: flowmap.reset(target, [0, 3]),
    "incomplete, and failed": _failed,
    "incomplete, and torn": _torn,
    "damaged": _damaged,
    "damaged, by its seal": lambda target: _reseal(target, digest="0" * 32),
}


@pytest.mark.parametrize("case", STATES)
def test_state(target: Target, case: str) -> None:
    """The summary says in a word how the job is; a digest of the whole needs all of it."""
    STATES[case](target)
    record = record_of(target)
    summary = record["summary"]
    assert summary["state"] == case.partition(",")[0]
    states = [segment["state"] for segment in record["segments"]]
    assert states == target.status()["state"].tolist()
    assert summary["segments_done"] == states.count("done")
    assert summary["segments_failed"] == states.count("failed")
    assert (summary["digest"] is None) == (set(states) != {"done"})
    assert (record["seal"] is None) == (not case.startswith("valid") and case not in SEALED)


SEALED = {"incomplete, and torn", "damaged, by its seal"}


def test_nothing_done_yet(tmp_path: Path) -> None:
    """A job that nobody has begun has no times, hosts or works."""
    target = flowmap.allocate(tmp_path / "a.npy", (5, 2), "f4", segments=2)
    record = export(target, tmp_path / "export.json")
    assert record["works"] == {}
    assert record["seal"] is None
    assert record["summary"] == {
        "state": "incomplete",
        "segments_done": 0,
        "segments_failed": 0,
        "rows_done": 0,
        "rows": 5,
        "nbytes": 40,
        "attempts": 0,
        "hosts": [],
        "began": None,
        "finished": None,
        "seconds": 0.0,
        "digest": None,
    }
    assert read_export(tmp_path / "export.json") == record


SHAPES = {
    "no segments": (np.zeros((0, 3)), False),
    "Fortran order": (np.arange(24.0).reshape(4, 6), True),
    "no axes": (np.array(7.0), False),
    "records": (np.zeros(6, [("a", "<i2"), ("b", ">f8", (2, 3))]), False),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes(tmp_path: Path, case: str) -> None:
    """Whatever the target is like, its export reads back the same, and names its digest."""
    values, fortran_order = SHAPES[case]
    target = written(tmp_path / "a.npy", values, fortran_order=fortran_order)
    report = flowmap.validate(target)
    assert report.sealed
    document = export(target, tmp_path / "export.json")
    assert read_export(tmp_path / "export.json") == document
    assert document["job"]["fortran_order"] is fortran_order
    assert len(document["segments"]) == len(target.segments)
    assert document["summary"]["state"] == "valid"
    assert document["summary"]["digest"] == report.digest


def test_work_that_is_lost(target: Target) -> None:
    """A fingerprint whose file is damaged or gone is named, and means nothing any more."""
    sidecar = Sidecar.of(target.path)
    (fingerprint,) = record_of(target)["works"]
    flip(sidecar.work(fingerprint), 30)
    assert record_of(target)["works"] == {fingerprint: None}
    sidecar.work(fingerprint).unlink()
    assert record_of(target)["works"] == {fingerprint: None}


def test_reset_meanwhile(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledger and seal are of one moment."""
    looks: list[Any] = []

    def look(job: Any) -> Any:
        seal = seal_of(job)
        looks.append(seal)
        if len(looks) == 1:
            flowmap.reset(target, 0)
        return seal

    monkeypatch.setattr(exporting, "seal_of", look)
    record = record_of(target)
    assert looks[0] is not None
    assert record["seal"] is None
    assert record["summary"]["state"] == "incomplete"


def test_allocated_anew_meanwhile(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of two jobs is no record of either."""
    real = exporting._works

    def look(*arguments: Any) -> Any:
        flowmap.allocate(target.path, 3, "f8", exist="overwrite")
        return real(*arguments)

    monkeypatch.setattr(exporting, "_works", look)
    with pytest.raises(OtherJobError, match="allocated anew"):
        record_of(target)


def test_damaged_ledger(target: Target, tmp_path: Path) -> None:
    """Where nothing is known of the segments nothing is exported."""
    Sidecar.of(target.path).ledger.unlink()
    with pytest.raises(DamagedJobError, match=r"ledger.*missing"):
        export(target, tmp_path / "export.json")
    assert not (tmp_path / "export.json").exists()


def _put(place: Path, what: str) -> None:
    """Put something other than an export there."""
    if what == "JSON":
        place.write_text('{"flowmap": "1", "job": {}}\n')
    elif what == "record":
        publish_json(place, {"format": 1, "id": "0" * 32})
    elif what == "later":
        publish_json(place, record_of(place.with_name("a.npy")) | {"format": 2})
    elif what == "changed":
        export(place.with_name("a.npy"), place)
        place.write_text(place.read_text().replace('"rows": 12', '"rows": 13'))
    elif what == "array":
        np.save(place.with_name("array.npy"), np.zeros(3))
        place.with_name("array.npy").rename(place)
    elif what == "folder":
        place.mkdir()
    elif what == "link":
        export(place.with_name("a.npy"), place.with_name("real.json"))
        place.symlink_to("real.json")
    else:
        place.touch()


def listed(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return what is in a folder, as far as a change would show."""
    found = {entry.name: entry.lstat() for entry in folder.iterdir()}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items()}


FOREIGN = ["JSON", "record", "later", "changed", "array", "folder", "link", "empty"]


@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_else_is_replaced_or_read(target: Target, tmp_path: Path, what: str) -> None:
    """What is there and is no export is left alone, and refused by name."""
    place = tmp_path / "export.json"
    _put(place, what)
    before = listed(tmp_path)
    with pytest.raises(ForeignFileError, match=r"export\.json is no export"):
        export(target, place)
    with pytest.raises(ForeignFileError, match=r"export\.json is no export"):
        read_export(place)
    assert listed(tmp_path) == before


def test_what_appears_meanwhile_stays(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that takes the name at the last moment is not replaced."""
    place = tmp_path / "export.json"
    real = exporting._earlier

    def look(path: Path) -> bool:
        found = real(path)
        place.write_text("mine")
        return found

    monkeypatch.setattr(exporting, "_earlier", look)
    with pytest.raises(ForeignFileError, match="appeared meanwhile"):
        export(target, place)
    assert place.read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_never_onto_the_target_or_into_its_records(target: Target, tmp_path: Path) -> None:
    """Those are the places where an export would destroy, or be destroyed."""
    before = snapshot(target.path)
    folder = Sidecar.of(target.path).folder
    (tmp_path / "link").symlink_to(folder)
    for place in (
        target.path,
        folder,
        folder / "export.json",
        folder / "deeper/export.json",
        tmp_path / "link/export.json",
        folder / "job.json",
    ):
        with pytest.raises(InvalidArgumentError, match="Choose another"):
            export(target, place)
    (tmp_path / "same.json").hardlink_to(target.path)
    with pytest.raises(ForeignFileError):
        export(target, tmp_path / "same.json")
    assert snapshot(target.path) == before


def test_names_that_cannot_be(target: Target, tmp_path: Path) -> None:
    """They are refused as the argument that they are."""
    wrong: Any = 7
    for act in (lambda place: export(target, place), read_export):
        with pytest.raises(WrongTypeError, match=r"file is 7; .* \.json file"):
            act(wrong)
        with pytest.raises(InvalidArgumentError, match="file is ''"):
            act("")
    with pytest.raises(NotFoundError):
        read_export(tmp_path / "nothing.json")
    with pytest.raises(NotFoundError, match="cannot write the export"):
        export(target, tmp_path / "nowhere/export.json")


def test_full_disk(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier export stays whole, and nothing is left beside it."""
    place = tmp_path / "export.json"
    document = export(target, place)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"cannot write the export; free some space"):
        export(target, place)
    assert read_export(place) == document
    assert not list(tmp_path.glob(".*"))


EXPORT = """
import sys
import flowmap
from flowmap.errors import AccessDeniedError
from flowmap.exporting import export, record_of
assert record_of(sys.argv[1])["summary"]["state"] == "valid"
try:
    export(sys.argv[1], sys.argv[2])
except AccessDeniedError as error:
    print(error)
"""


@pytest.mark.system("setpriv", packages="util-linux")
def test_folder_that_may_only_be_read(target: Target, tmp_path: Path) -> None:
    """Who may only read can look at the job, and is told where the export cannot go."""
    for path in (Sidecar.of(target.path).folder, tmp_path):
        path.chmod(0o555)
    command = script(EXPORT, target.path, tmp_path / "export.json")
    child = run([*ORDINARY, *command] if os.geteuid() == 0 else command)
    tmp_path.chmod(0o755)
    assert child.returncode == 0, child.stderr
    assert "cannot write the export" in child.stdout
    assert not (tmp_path / "export.json").exists()


def test_no_target(tmp_path: Path) -> None:
    """What is no job has no record."""
    with pytest.raises(NotFoundError):
        record_of(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ForeignFileError):
        record_of(tmp_path / "a.npy")
