"""The kernel fails to write back: the pages count as clean, the disk does not have them.

A file system without a journal lies on a device that has no room for pages that it does not
have yet: what a target's blocks are to hold is lost when it is written back, and the error is
reported once, to whoever syncs first. Then there is room again. What is done must be on the
disk: the page cache, which still has every byte, is dropped before it is compared.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest
from campaign import Figures, sizes
from disks import NO_JOURNAL, PACKAGES, PROGRAMS, Disk, disk
from plays import BLOCKS, SEGMENT_ROWS, Mapping, Play, Unsynced, noted, values
from sabotage import sabotage
from support import states

import flowmap
import flowmap.attempt
from flowmap.errors import StorageError
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flowmap.segments import Segment

pytestmark = pytest.mark.system(*PROGRAMS, packages=PACKAGES, root=True)

PAGES = SEGMENT_ROWS * 8 // 4096 + 1
"""Of one segment, at most."""

LEDGER_PAGE = 2
"""Of the ledger: the second segment's, after the header's and the first's."""


@pytest.fixture
def lossy(tmp_path: Path) -> Iterator[Disk]:
    """Return a disk that can lose what is written back."""
    with disk(tmp_path, *NO_JOURNAL) as made:
        yield made


def begun(lossy: Disk, kind: type[Play], number: int) -> Play:
    """Return a play whose first segment is filled."""
    play = kind(lossy.root / f"{number}.npy")
    play.prepare()
    first, *_ = flowmap.open_target(play.path).segments
    if kind is Mapping:
        flowmap.write_segment(first, values(first))
    else:
        flowmap.fill_segment(first, noted, {"look": play.look})
    if kind is not Unsynced:
        play.done[0] = 0
    lossy.sync()
    return play


def consume_error(path: Path) -> None:
    """Sync a file as anyone may, until no error is left to be told."""
    with path.open("rb") as file:
        told = 0
        while True:
            try:
                os.fsync(file.fileno())
            except OSError:
                told += 1
            else:
                break
    assert told, "nothing was lost"


def wrong_on_disk(lossy: Disk, play: Play) -> list[str]:
    """Drop the page cache; name what is not as it was told."""
    lossy.remount()
    return list(play.faults())


@pytest.mark.parametrize("rounds", sizes(2, 100))
def test_a_failed_sync_fails_the_segment(lossy: Disk, rounds: int, figures: Figures) -> None:
    """Nothing is done then; run again, it is done and on the disk, and so is the rest."""
    for number in range(rounds):
        play = begun(lossy, Play, number)
        with lossy.full(number % PAGES):
            second = flowmap.open_target(play.path).segments[1]
            with pytest.raises(StorageError, match="cannot sync the rows"):
                flowmap.fill_segment(second, noted, {"look": play.look})
        assert states(flowmap.open_target(play.path)) == ["done", "failed", "pending"]
        play.fill()
        assert not wrong_on_disk(lossy, play)
        play.check_whole()
        figures.add("failed write-back", "of a segment, seen by its own sync")


@pytest.mark.parametrize("rounds", sizes(2, 100))
def test_a_record_that_was_lost_is_written_again(
    lossy: Disk, rounds: int, figures: Figures
) -> None:
    """A ledger that cannot be synced fails the segment; the retry's record is on the disk."""
    for number in range(rounds):
        play = begun(lossy, Play, number)
        second = flowmap.open_target(play.path).segments[1]
        lossy.punch(Sidecar.of(play.path).ledger, LEDGER_PAGE)
        with lossy.full(PAGES), pytest.raises(StorageError, match="cannot sync the ledger"):
            flowmap.fill_segment(second, noted, {"look": play.look})
        play.fill()
        assert not wrong_on_disk(lossy, play)
        play.check_whole()
        figures.add("failed write-back", "of the ledger")


def killed_before_its_sync(play: Play) -> None:
    """Fill the second segment in a process that is killed when it comes to its sync."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            vars(flowmap.attempt)["sync_data"] = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            second = flowmap.open_target(play.path).segments[1]
            flowmap.fill_segment(second, noted, {"look": play.look})
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def lost_behind_a_kill(lossy: Disk, number: int) -> list[str]:
    """Lose rows of a killed attempt, their error told to others; fill again; name the lost."""
    play = begun(lossy, Play, number)
    with lossy.full(number % PAGES):
        killed_before_its_sync(play)
        consume_error(play.path)
    computed = len(play.asked)
    play.fill()
    assert len(play.asked) == computed + BLOCKS  # of the third; the second was there
    return wrong_on_disk(lossy, play)


@pytest.mark.parametrize("rounds", sizes(2, 100))
def test_rows_lost_behind_a_killed_attempt_are_written_again(
    lossy: Disk, rounds: int, figures: Figures
) -> None:
    """What the page cache has and the disk has not is on the disk before it is done."""
    for number in range(rounds):
        assert not lost_behind_a_kill(lossy, number)
        figures.add("failed write-back", "of a killed attempt, its error told to others")


@pytest.mark.parametrize("name", ["no writing again", "no dropping of the cache"])
def test_rows_that_are_not_really_written_again_would_be_caught(
    lossy: Disk, name: str, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """Read again only, or written where they still are, they are done and not on the disk."""
    sabotage(name, monkeypatch.setattr)
    assert "the ledger vouches for what is not there" in str(lost_behind_a_kill(lossy, 0))
    figures.add("failed write-back", "broken on purpose, and caught")


@pytest.mark.parametrize("rounds", sizes(2, 100))
def test_a_validation_that_cannot_sync_trusts_nothing_that_it_should(
    lossy: Disk, rounds: int, figures: Figures
) -> None:
    """With `durability="end"` it raises, and all that was left to it is written again."""
    for number in range(rounds):
        play = begun(lossy, Unsynced, number)
        with lossy.full(number % PAGES):
            play.fill()
            lossy_states = states(flowmap.open_target(play.path))
            with pytest.raises(OSError, match=r"No space|Input/output"):
                lossy.sync()  # of the whole disk: the file's own error is still to be told
        assert lossy_states == ["written"] * 3
        with pytest.raises(StorageError, match="cannot sync the target"):
            flowmap.validate(play.path)
        assert states(flowmap.open_target(play.path)) == ["failed"] * 3
        play.fill()
        play.validate()
        assert not wrong_on_disk(lossy, play)
        play.check_whole()
        figures.add("failed write-back", "seen by a validation")


def validated_behind_others(lossy: Disk, number: int) -> Play:
    """Lose what validation is to sync, its error told to others; validate, fill again."""
    play = begun(lossy, Unsynced, number)
    with lossy.full(number % PAGES):
        play.fill()
        consume_error(play.path)
    assert not flowmap.validate(play.path).ok
    play.fill()
    play.validate()
    return play


@pytest.mark.parametrize("rounds", sizes(2, 100))
def test_a_validation_believes_the_disk(lossy: Disk, rounds: int, figures: Figures) -> None:
    """What the page cache has and the disk has not is found, though no sync tells of it."""
    for number in range(rounds):
        play = validated_behind_others(lossy, number)
        assert not wrong_on_disk(lossy, play)
        play.check_whole()
        figures.add("failed write-back", "left to a validation, its error told to others")


def test_a_validation_that_believes_the_cache_would_be_caught(
    lossy: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropping it first, it seals what the disk does not have."""
    monkeypatch.setattr("flowmap.validation.drop_cached", lambda *_: None)
    with pytest.raises(AssertionError):
        validated_behind_others(lossy, 0)


def store(segment: Segment, *, flush: bool = False) -> None:
    """Store into a mapped segment; a flush in the block fails, and is forgotten."""
    with flowmap.open_segment(segment) as out:
        out[...] = values(segment)
        if flush:
            with pytest.raises(StorageError):
                out.flush()


def store_what_is_missing(segment: Segment) -> None:
    """Map a segment, and store only where it does not hold what it shall."""
    with flowmap.open_segment(segment) as out:
        missing = out != values(segment)
        out[missing] = values(segment)[missing]


def swallowed_in_a_block(lossy: Disk, number: int) -> list[str]:
    """Lose what a block stored, the error told to it; store the rest; name the lost."""
    play = begun(lossy, Mapping, number)
    second = flowmap.open_target(play.path).segments[1]
    failing = pytest.raises(StorageError, match="cannot sync the rows")
    with lossy.full(number % PAGES), failing:
        store(second, flush=True)
    assert states(flowmap.open_target(play.path)) == ["done", "failed", "pending"]
    store_what_is_missing(second)
    del failing  # which has kept the error, and with it the array
    play.done[1] = 0
    return wrong_on_disk(lossy, play)


@pytest.mark.parametrize("rounds", sizes(2, 100))
def test_an_error_that_the_block_swallowed_fails_a_mapped_segment(
    lossy: Disk, rounds: int, figures: Figures
) -> None:
    """A flush in the block was told; the end fails, and the next sees what the disk has."""
    for number in range(rounds):
        assert not swallowed_in_a_block(lossy, number)
        figures.add("failed write-back", "swallowed in a mapped segment's block")


def test_a_mapping_of_what_only_the_cache_has_would_be_caught(
    lossy: Disk, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """Where the cache is not dropped first nothing seems to be missing, and it is."""
    sabotage("no dropping of the cache", monkeypatch.setattr)
    assert "the ledger vouches for what is not there" in str(swallowed_in_a_block(lossy, 0))
    figures.add("failed write-back", "broken on purpose, and caught")
