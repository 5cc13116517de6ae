"""Why a segment failed, kept whole beside the ledger, which has room for a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import flowmap
from flowmap.failures import failure_of
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.target import Target

LONG = "the detector was asleep " * 10


@flowmap.filler(volatile=("password", "says"))
def broken(
    out: NDArray[Any], block: flowmap.Block, password: str = "", says: str = LONG
) -> None:
    """Fail in the second segment."""
    if block.start == 10:
        raise ValueError(says)
    out[...] = 1


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Return a target of four segments."""
    return flowmap.allocate(tmp_path / "out.npy", 40, "<f8", segments=4)


def fail(target: Target, **arguments: str) -> None:
    """Fill the second segment, in vain."""
    with pytest.raises(flowmap.FlowmapError):
        flowmap.fill_segment(target.segments[1], broken, arguments)


def test_reason_and_traceback_are_kept(target: Target) -> None:
    """Of the attempt that failed, and without what is told nowhere."""
    fail(target, password="tell nobody")
    row = target.status()[1]
    kept = failure_of(target.job, 1, row["attempt"])
    assert kept is not None
    assert kept["reason"] == f"ValueError: {LONG}".strip()
    first, *_ = kept["traceback"].split("raise ValueError")
    assert first.count('File "') == 1, "nothing of how the filler was called"
    assert "in broken\n" in first
    assert kept["traceback"].endswith(f"ValueError: {LONG}\n")
    text = Sidecar.of(target.path).failure(1).read_text()
    assert "tell nobody" not in text
    assert failure_of(target.job, 0, 1) is None


def test_of_the_last_attempt(target: Target) -> None:
    """And of no other, nor of another job."""
    fail(target)
    fail(target, says="something else")
    assert failure_of(target.job, 1, 1) is None
    kept = failure_of(target.job, 1, 2)
    assert kept is not None
    assert kept["reason"] == "ValueError: something else"
    anew = flowmap.allocate(target.path, 40, "<f8", segments=4, exist="overwrite")
    assert not Sidecar.of(target.path).failure(1).exists()
    assert failure_of(anew.job, 1, 2) is None


def test_long_message(target: Target) -> None:
    """Is cut; no failure fills the disk."""
    fail(target, says="x" * 1_000_000)
    assert Sidecar.of(target.path).failure(1).stat().st_size < 50_000


@pytest.mark.parametrize("text", ["", "{}", '{"job": 3}', "\0" * 100])
def test_damaged(target: Target, text: str) -> None:
    """Is as good as none: the ledger has the line."""
    fail(target)
    Sidecar.of(target.path).failure(1).write_text(text)
    assert failure_of(target.job, 1, 1) is None
    assert target.status()["reason"][1].startswith("ValueError: the detector")


def test_where_it_cannot_be_kept(target: Target) -> None:
    """The segment has failed all the same, with its own error."""
    Sidecar.of(target.path).failure(1).mkdir()
    with pytest.raises(flowmap.FlowmapError, match="the detector was asleep"):
        flowmap.fill_segment(target.segments[1], broken)
    assert target.status()["state"][1] == "failed"
