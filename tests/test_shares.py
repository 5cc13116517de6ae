"""Shares of a job, filled for engines that go by files, and the sentinels that tell of them."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import logged, logged_rows, ramp, snapshot, versioned

import flowmap
from flowmap import sentinels
from flowmap.errors import (
    ClaimLostError,
    FillerError,
    ForeignFileError,
    InvalidArgumentError,
    NotFoundError,
    OtherJobError,
    OtherWorkError,
    SegmentsFailedError,
    WrongTypeError,
)
from flowmap.exporting import export

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.segments import Block
    from flowmap.target import Target


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Allocate 100 rows in ten segments."""
    return flowmap.allocate(tmp_path / "out.npy", 100, "<f8", segments=10)


@flowmap.filler
def uneven(out: NDArray[Any], block: Block) -> None:
    """Fail in each segment that begins with an odd ten."""
    if block.start // 10 % 2:
        raise ValueError(f"no row {block.start}")
    out[...] = 1


def vouched(file: Path) -> list[int]:
    """Return the segments that a sentinel vouches for."""
    return sorted(map(int, json.loads(file.read_text())["segments"]))


@pytest.mark.parametrize("items", [1, 3, 10, 25])
def test_any_number_of_shares_makes_the_whole(target: Target, items: int) -> None:
    """Each segment is in one share, and vouched for by its sentinel."""
    told: list[int] = []
    for item in range(1, items + 1):
        file = target.path.with_name(f"{item}.json")
        records = flowmap.fill_share(target, f"{item}-of-{items}", ramp, sentinel=file)
        assert [record.state for record in records] == ["done"] * len(vouched(file))
        told += vouched(file)
    assert told == list(range(10))
    assert flowmap.validate(target).ok
    np.testing.assert_array_equal(np.load(target.path), np.sqrt(np.arange(100.0)))


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_who_may_write_a_sentinel(target: Target, mask: int) -> None:
    """What the umask leaves: Snakemake replaces nothing that the user may not write to."""
    before = os.umask(mask)
    try:
        flowmap.fill_share(target, "1-of-2", ramp, sentinel=target.path.with_name("1.json"))
        export(target, target.path.with_name("export.json"))
    finally:
        os.umask(before)
    for name in ("1.json", "export.json"):
        mode = target.path.with_name(name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o666 & ~mask


def test_what_is_done_is_not_computed_again(target: Target, tmp_path: Path) -> None:
    """Nor does its sentinel change, whatever the number of shares was before."""
    log, file = tmp_path / "log", tmp_path / "half.json"
    work: dict[str, Any] = {"filler": logged, "arguments": {"log": str(log)}}
    flowmap.fill_share(target.path, "3-of-10", **work)
    assert logged_rows(log) == [20]
    flowmap.fill_share(target.path, "1-of-2", **work, sentinel=file)
    assert sorted(logged_rows(log)) == [0, 10, 20, 30, 40]
    before = file.read_bytes()
    flowmap.fill_share(target.path, "1-of-2", **work, sentinel=file)
    assert file.read_bytes() == before
    assert sorted(logged_rows(log)) == [0, 10, 20, 30, 40]


def test_failing_segments(target: Target, tmp_path: Path) -> None:
    """The others of the share are filled, and there is no sentinel."""
    file = tmp_path / "all.json"
    with pytest.raises(SegmentsFailedError, match=r"(?s)5 of 10 segments.*no row 10") as caught:
        flowmap.fill_share(target, "all", uneven, sentinel=file)
    assert sorted(caught.value.failures) == [1, 3, 5, 7, 9]
    with pytest.raises(FillerError, match="no row 10"):
        flowmap.fill_share(target, "1", uneven, sentinel=file)
    assert not file.exists()
    assert len(target.pending()) == 5


def test_written_at_the_end(tmp_path: Path) -> None:
    """With durability="end" a segment is vouched for before the validation syncs it."""
    target = flowmap.allocate(tmp_path / "a.npy", 40, "<f8", segments=4, durability="end")
    flowmap.fill_share(target, "1-of-2", ramp, sentinel=tmp_path / "1.json")
    assert vouched(tmp_path / "1.json") == [0, 1]


@pytest.mark.parametrize("share", ["10", "8-10", "first", "", "-1-of-3"])
def test_names_of_no_share(target: Target, tmp_path: Path, share: str) -> None:
    """They are refused, with what can be written."""
    before = snapshot(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"names no segments.*3-of-64"):
        flowmap.fill_share(target, share, ramp)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("0-of-8", r"count from 1, .* 1-of-8 to 8-of-8.*int\(os.environ.*\+ 1\}-of-8"),
        ("9-of-8", r"count from 1, so write 1-of-8 to 8-of-8\.$"),
        ("1-of-0", "a share of none"),
    ],
)
def test_numbers_of_no_share(target: Target, share: str, message: str) -> None:
    """Shares count from 1; of a task that counts from 0 it says what to write."""
    with pytest.raises(InvalidArgumentError, match=message):
        flowmap.fill_share(target, share, ramp)


def test_refused_before_anything_is_filled(target: Target, tmp_path: Path) -> None:
    """Sentinels that would replace what is none, or have no folder; work that is no work."""
    np.save(tmp_path / "mine.npy", np.zeros(3))
    (tmp_path / "touched").touch()
    (tmp_path / "link.json").symlink_to("mine.npy")
    before = snapshot(tmp_path)
    refused: list[tuple[Any, type[Exception], str]] = [
        (target.path, InvalidArgumentError, "which is the target"),
        (tmp_path / "out.npy.flowmap" / "job.json", InvalidArgumentError, "among the records"),
        (tmp_path / "mine.npy", ForeignFileError, "no sentinel"),
        (tmp_path / "touched", ForeignFileError, "no sentinel"),
        (tmp_path / "link.json", ForeignFileError, "no sentinel"),
        (tmp_path, ForeignFileError, "no sentinel"),
        (tmp_path / "no" / "1.json", NotFoundError, "make it first"),
        (5, WrongTypeError, "sentinel"),
    ]
    for sentinel, kind, message in refused:
        with pytest.raises(kind, match=message):
            flowmap.fill_share(target, "1-of-2", ramp, sentinel=sentinel)
    with pytest.raises(InvalidArgumentError, match="no filler"):
        flowmap.fill_share(target, "1-of-2", arguments={"a": 1})
    assert snapshot(tmp_path) == before


def test_work_is_recalled(target: Target) -> None:
    """Once there is one, it need not be named again."""
    with pytest.raises(InvalidArgumentError, match="has none"):
        flowmap.fill_share(target, "all")
    flowmap.fill_share(target, "1-of-2", "arange", {"start": 5})
    flowmap.fill_share(target, "2-of-2")
    np.testing.assert_array_equal(np.load(target.path), np.arange(5.0, 105.0))


def test_other_work(target: Target, tmp_path: Path) -> None:
    """What other work has done is not vouched for."""
    flowmap.fill_share(target, "1-of-2", ramp)
    with pytest.raises(OtherWorkError):
        flowmap.fill_share(target, "0", versioned, sentinel=tmp_path / "0.json")
    assert not (tmp_path / "0.json").exists()


def test_overwritten_meanwhile(target: Target, tmp_path: Path) -> None:
    """It is told as that, and not as a fault of the sentinel's."""
    flowmap.fill_share(target, "all", ramp)
    flowmap.allocate(target.path, 100, "<f8", segments=10, exist="overwrite")
    place = sentinels.place_of(tmp_path / "all.json", target.path)
    with pytest.raises(OtherJobError, match="allocated anew"):
        sentinels.write(place, target, target.segments)
    assert not place.exists()


def test_opened_again_meanwhile(target: Target, tmp_path: Path) -> None:
    """The records have the last word, not what the filling was told."""
    flowmap.fill_share(target, "all", ramp)
    flowmap.reset(target, [4])
    place = sentinels.place_of(tmp_path / "all.json", target.path)
    with pytest.raises(ClaimLostError, match=r"segment 0004 .*opened again"):
        sentinels.write(place, target, target.segments)
    assert not place.exists()
