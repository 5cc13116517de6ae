"""A real power cut: ext4 on a loop device, whose unsynced bytes are dropped at random moments.

SIGKILL never tests a sync, since the page cache survives it. The ioctl FS_IOC_SHUTDOWN with
the flag NOLOGFLUSH (linux/fs.h; generic/043 to 055 of xfstests use it so) does: what was not
on the disk is gone at the next mount.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import struct
import subprocess
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xxhash
from support import ramp, script, start, states

import flowmap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flowmap.target import Target

pytestmark = pytest.mark.system(
    "mkfs.ext4", "mount", "umount", packages="e2fsprogs mount", root=True
)

SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2  # FS_SHUTDOWN_FLAGS_NOLOGFLUSH
ROWS = 64 * 1024
SEGMENTS = 64
BLOCK_ROWS = 256
CUTS = 18

FILL = """
import sys
import numpy as np
import flowmap, flowmap.attempt, flowmap.ledger, flowmap.windows

path, first, sabotage, way = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
nothing = lambda *_: None
if sabotage == "target":
    flowmap.attempt.sync_data = flowmap.attempt.start_writeback = nothing
    flowmap.windows._Mapping.sync = nothing
if sabotage == "ledger":
    flowmap.ledger.sync_data = nothing

def tell(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

@flowmap.filler
def ramp(out, block):
    if target.job.checkpoint_seconds == 0:
        tell("durable", block.start)  # the rows before it, says the last checkpoint
    out[...] = np.sqrt(np.arange(block.start, block.stop, dtype=float))

ramp.__flowmap_filler__ = flowmap.fillers.Mark("support:ramp")
target = flowmap.open_target(path)
tell("ready")
sys.stdin.readline()
for segment in target.segments[first::2]:
    if way == "mapped":
        with flowmap.open_segment(segment) as out:
            out[...] = np.sqrt(np.arange(segment.start, segment.stop, dtype=float))
    else:
        flowmap.fill_segment(segment, ramp)
    tell("done", segment.index)
"""


class Disk:
    """An ext4 file system in an image, whose power can be cut.

    Args:
        folder: Where the image and the mount point go.
    """

    def __init__(self, folder: Path) -> None:
        self.image = folder / "image"
        self.root = folder / "mounted"
        self.root.mkdir()
        with self.image.open("wb") as image:
            image.truncate(24 << 20)
        call("mkfs.ext4", "-q", "-F", str(self.image))

    def mount(self) -> None:
        """Mount it; the loop device goes with the mount."""
        call("mount", "-o", "loop", str(self.image), str(self.root))

    def unmount(self) -> None:
        """Unmount it."""
        call("umount", str(self.root))

    def cut(self) -> None:
        """Drop what is not on the disk, and refuse every write from now on."""
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


def call(*command: str) -> None:
    """Run a program of the system that must succeed."""
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Return a mounted disk, and leave no mount behind."""
    made = Disk(tmp_path)
    try:
        made.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount a loop device; needs docker run --privileged: {error}")
    try:
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "-l", str(made.root)], check=False, capture_output=True)


def fill_and_cut(
    disk: Disk, target: Target, seconds: float, sabotage: str = "none", way: str = "filled"
) -> list[list[str]]:
    """Fill a target from two processes, cut the power; return what they told before."""
    children = [
        start(script(FILL, target.path, first, sabotage, way), stdin=subprocess.PIPE)
        for first in (0, 1)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    time.sleep(seconds)
    # What is told later does not count: ext4 may answer a sync that the shutdown overtakes
    # with success, which no program would live to see had the power gone.
    told = [told_so_far(child) for child in children]
    disk.cut()
    for child in children:
        child.kill()
        child.communicate()
    disk.unmount()
    disk.mount()
    return [line.split() for text in told for line in text.splitlines()]


def told_so_far(child: subprocess.Popen[str]) -> str:
    """Return the whole lines that a child has written by now."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    os.set_blocking(descriptor, False)
    text = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(descriptor, 1 << 16):
            text += piece
    os.set_blocking(descriptor, True)
    return text[: text.rfind(b"\n") + 1].decode()


def lost(target: Target, told: list[list[str]]) -> list[str]:
    """Compare the disk after a cut with what was reported before; name what is not there."""
    oracle = np.sqrt(np.arange(ROWS, dtype=float))
    content = np.fromfile(target.path, "f8", offset=target.job.data_offset)
    by_segment: dict[int, int] = defaultdict(int)
    starts = [segment.start for segment in target.segments]
    faults = []
    with target.job.ledger() as ledger:
        records = [ledger.read(s.index, s.start, s.stop) for s in target.segments]
    for word, number in told:
        if word == "durable":
            index = int(np.searchsorted(starts, int(number), side="right")) - 1
            by_segment[index] = max(by_segment[index], int(number) - starts[index])
        else:
            by_segment[int(number)] = target.segments[int(number)].rows
            if records[int(number)].state != "done":
                faults.append(f"segment {number} was done, is {records[int(number)].state}")
    for index, rows in by_segment.items():
        if records[index].rows_durable < rows:
            faults.append(f"segment {index}: {rows} durable, {records[index].rows_durable} now")
        told_rows = slice(starts[index], starts[index] + rows)
        if not np.array_equal(content[told_rows], oracle[told_rows]):
            faults.append(f"segment {index}: rows that were durable are wrong")
    for record in records:  # what the ledger says, told or not
        durable = content[record.start : record.start + record.rows_durable].tobytes()
        if record.rows_durable and xxhash.xxh3_128_hexdigest(durable) != record.digest_durable:
            faults.append(f"segment {record.index}: the ledger vouches for what is not there")
    return faults


def check_completes(target: Target, way: str = "filled") -> None:
    """Run the job again, and compare with the oracle."""
    done = [index for index, state in enumerate(states(target)) if state == "done"]
    attempts = target.status()["attempt"][done]
    if way == "mapped":
        for segment in target.pending():
            with flowmap.open_segment(segment) as out:
                out[...] = np.sqrt(np.arange(segment.start, segment.stop, dtype=float))
    else:
        flowmap.fill(target, ramp, executor="threads")
    assert (target.status()["attempt"][done] == attempts).all()
    assert flowmap.validate(target).sealed
    np.testing.assert_array_equal(np.load(target.path), np.sqrt(np.arange(ROWS)))


def allocated(disk: Disk, checkpoint_seconds: float = 30) -> flowmap.Target:
    """Allocate the target of these tests anew."""
    return flowmap.allocate(
        disk.root / "a.npy",
        ROWS,
        "f8",
        segments=SEGMENTS,
        block_rows=BLOCK_ROWS,
        checkpoint_seconds=checkpoint_seconds,
        exist="overwrite",
    )


@pytest.mark.parametrize(
    ("way", "checkpoint_seconds"), [("filled", 0), ("filled", 30), ("mapped", 30)]
)
def test_what_was_done_is_there_after_a_power_cut(
    disk: Disk, way: str, checkpoint_seconds: int
) -> None:
    """Of many cuts none loses a segment, or checkpoint, that was reported before it."""
    moments = random.Random(checkpoint_seconds)
    progress = []
    for _ in range(CUTS):
        target = allocated(disk, checkpoint_seconds)
        told = fill_and_cut(disk, target, moments.uniform(0, 0.15), way=way)
        assert not lost(target, told), json.dumps(told)
        progress.append(len([words for words in told if words[0] == "done"]))
        check_completes(target, way)
    assert max(progress) > 3, progress  # the cuts did fall into the fills


@pytest.mark.parametrize("way", ["filled", "mapped"])
@pytest.mark.parametrize("sabotage", ["target", "ledger"])
def test_a_fill_without_its_syncs_would_be_caught(disk: Disk, sabotage: str, way: str) -> None:
    """Without fdatasync of either file something that was reported is lost: it is seen."""
    for _ in range(8):
        target = allocated(disk)
        if lost(target, fill_and_cut(disk, target, 0.1, sabotage, way)):
            break
    else:
        pytest.fail("nothing was lost: the cut is none")
    flowmap.validate(target)  # finds what was lost, which is computed again
    check_completes(target, way)


def test_an_allocation_survives_a_power_cut(disk: Disk) -> None:
    """What `allocate` returned is there after the cut: file, size, job and ledger."""
    target = flowmap.allocate(disk.root / "a.npy", ROWS, "f8", segments=SEGMENTS)
    disk.cut()
    disk.unmount()
    disk.mount()
    assert flowmap.open_target(target.path).id == target.id
    check_completes(target)


@pytest.mark.parametrize("fortran", [False, True], ids=["C", "F"])
def test_a_window_that_was_flushed_survives_a_power_cut(disk: Disk, fortran: bool) -> None:
    """`flush` brings its window to the disk, all pieces of it, and not its neighbour."""
    path = disk.root / "a.npy"
    flowmap.open_memmap(path, "w+", "<f8", (2048, 512), fortran)
    os.sync()
    for offset in (700, 1500):
        window = flowmap.open_memmap(path, offset=offset, shape=(10, 512))
        window[...] = offset
        if offset == 700:
            window.flush()
    disk.cut()
    del window
    disk.unmount()
    disk.mount()
    rows = np.load(path)
    assert (rows[700:710] == 700).all()
    assert not (rows[1500:1510] == 1500).any(), "the cut is none"


def test_replaced_values_never_keep_the_old_record(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut while a done segment is replaced leaves no record that vouches for its bytes."""
    target = flowmap.allocate(
        disk.root / "a.npy", ROWS, "f8", segments=1, block_rows=BLOCK_ROWS
    )
    flowmap.write_segment(target.segments[0], np.sqrt(np.arange(ROWS)))

    class PowerCutError(Exception):
        """The moment of the cut."""

    def cut_at_the_end(descriptor: int) -> None:
        # The kernel may write any page back at any time: here all of the target, and no more.
        os.fdatasync(descriptor)
        disk.cut()
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.attempt.sync_data", cut_at_the_end)
        with pytest.raises(PowerCutError):
            flowmap.write_segment(target.segments[0], np.zeros(ROWS), replace=True)
    disk.unmount()
    disk.mount()
    assert states(target) == ["running"]
    flowmap.write_segment(target.segments[0], np.zeros(ROWS))
    assert flowmap.validate(target).sealed
