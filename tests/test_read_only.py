"""Disks and folders that this user cannot write to: what goes, and what is said of the rest."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import read_only, snapshot, states

import flowmap
from flowmap.cleaning import clean
from flowmap.cli.app import run
from flowmap.errors import AccessDeniedError, SegmentDoneError
from flowmap.lease import leased

if TYPE_CHECKING:
    from collections.abc import Callable

HOW: dict[str, Any] = {"shape": 100, "dtype": "<f8", "segments": 4}


@pytest.fixture(params=["done", "sealed"])
def finished(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> flowmap.Target:
    """Return a finished job, validated or not, on a disk that is read-only by now."""
    target = flowmap.allocate(tmp_path / "a.npy", **HOW)
    flowmap.fill(target, "arange", executor="threads")
    if request.param == "sealed":
        assert flowmap.validate(target).sealed
    read_only(tmp_path, monkeypatch)
    return target


def test_a_finished_job_runs_again(finished: flowmap.Target) -> None:
    """Nothing is to be done, so nothing is written: not even a lease."""
    path, before = finished.path, snapshot(finished.path)
    assert flowmap.allocate(path, **HOW).id == finished.id
    told: list[int] = []
    assert flowmap.fill(path, "arange", progress=lambda now: told.append(now.rows_done)) == []
    assert told == [100]
    assert flowmap.fill(path) == []
    assert {record.state for record in flowmap.fill_share(path, "all")} == {"done"}
    assert flowmap.fill_segment(finished.segments[2], "arange").state == "done"
    assert run(["fill", str(path), "--quiet"]) == 0
    report = flowmap.validate(path)
    assert report.ok
    assert snapshot(path) == before


def test_values_that_are_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the same again writes nothing; other values, or a reset, say what is wrong."""
    target = flowmap.allocate(tmp_path / "a.npy", **HOW)
    for segment in target.segments:
        flowmap.write_segment(segment, np.ones(25))
    read_only(tmp_path, monkeypatch)
    first = target.segments[0]
    assert flowmap.write_segment(first, np.ones(25)).state == "done"
    with pytest.raises(SegmentDoneError):
        flowmap.write_segment(first, np.zeros(25))
    with pytest.raises(SegmentDoneError), flowmap.open_segment(first):
        pass
    with pytest.raises(AccessDeniedError, match="cannot open the ledger for writing"):
        flowmap.write_segment(first, np.zeros(25), replace=True)
    with pytest.raises(AccessDeniedError, match="ledger"):
        flowmap.reset(target, 0)
    assert states(target) == ["done"] * 4


def test_what_is_to_be_written_says_so(finished: flowmap.Target) -> None:
    """Each error names the read-only file system, and none blames flock."""
    target = finished
    for write in (
        lambda: flowmap.allocate(target.path, **HOW, exist="overwrite"),
        lambda: flowmap.allocate(target.path.with_name("b.npy"), **HOW),
        lambda: leased(target.job, "a run").__enter__(),
    ):
        with pytest.raises(AccessDeniedError, match="the file system is read-only") as caught:
            write()
        assert "flock" not in str(caught.value)
        assert caught.value.errno == errno.EROFS
    with pytest.raises(AccessDeniedError) as caught:
        flowmap.reset(target, 0)
    assert "its owner can" not in str(caught.value)
    with pytest.raises((AccessDeniedError, flowmap.NotValidatedError)):
        clean(target)


def test_a_pending_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is not done cannot be filled there, by whatever."""
    target = flowmap.allocate(tmp_path / "a.npy", **HOW, filler="arange")
    flowmap.fill_segment(target.segments[0], "arange")
    read_only(tmp_path, monkeypatch)
    fills: list[Callable[[], object]] = [
        lambda: flowmap.fill(target),
        lambda: flowmap.fill_share(target, "1"),
        lambda: flowmap.fill_segment(target.segments[1], "arange"),
    ]
    for fill in fills:
        with pytest.raises(AccessDeniedError, match=r"[Rr]ead-only file system"):
            fill()


@pytest.mark.parametrize("which", ["the folder", "the lock"])
def test_a_folder_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The error says whose it is, and who may not write to it; it does not blame flock."""
    target = flowmap.allocate(tmp_path / "a.npy", **HOW)
    folder = Path(f"{target.path}.flowmap")
    if which == "the folder":
        (folder / "header.lock").unlink()
    read_only(tmp_path, monkeypatch, errno.EACCES)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(AccessDeniedError) as caught:
        flowmap.fill(target, "arange")
    name = "a.npy.flowmap" if which == "the folder" else "header.lock"
    assert f"cannot take the header lock: {name} belongs to user " in str(caught.value)
    assert "may not write there; ask its owner" in str(caught.value)
    assert "flock" not in str(caught.value)
    with pytest.raises(AccessDeniedError, match=f"records: {tmp_path.name} belongs to user"):
        flowmap.allocate(tmp_path / "b.npy", **HOW)
