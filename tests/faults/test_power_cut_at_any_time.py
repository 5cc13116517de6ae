"""The power is cut at random moments while two processes fill.

They report what is done, and what is durable, as they go; what they reported before the cut
must be there after it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from campaign import Figures, sizes
from disks import EXT4, PACKAGES, PROGRAMS, XFS, Disk, disk
from plays import Checkpointing, Mapping, Play
from support import script, start

import flowmap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system(*PROGRAMS, packages=PACKAGES, root=True)

SEGMENTS: Final = 12

FILLERS = """
import os, signal, sys
from pathlib import Path
import plays, sabotage

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Told(dict):
    def __init__(self, word):
        self.word = word

    def __setitem__(self, index, value):
        tell(self.word, index, value)

class Asked(list):
    def append(self, row):
        tell("asked", row, 0)
        super().append(row)

def fill(path, kind, name, number):
    sabotage.sabotage(name)
    play = getattr(plays, kind)(Path(path))
    play.share = (number,)
    play.done, play.durable, play.asked = Told("done"), Told("durable"), Asked()
    play.fill()

for line in sys.stdin:
    pids = []
    for number in (0, 1):
        pid = os.fork()
        if pid == 0:
            try:
                fill(*line.rstrip().split("\\t"), number)
            finally:
                tell("end", 0, 0)
                os._exit(0)
        pids.append(pid)
    sys.stdin.readline()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    tell("over", 0, 0)
"""


class Fillers:
    """A process that forks two that fill, as often as it is told to: Python starts once."""

    def __init__(self) -> None:
        self.process = start(script(FILLERS), stdin=subprocess.PIPE)
        self._text = b""

    def begin(self, *words: object) -> None:
        """Begin to fill."""
        self._text = b""
        self._say(*words)

    def end(self) -> None:
        """Kill both, and wait until they are gone."""
        self._say("end")
        self.told("over", 1)

    def told(self, word: str, number: int) -> list[tuple[str, int, int]]:
        """Return what was told, when a word was told so often, or when both have ended."""
        assert self.process.stdout is not None
        while True:
            text = self._text[: self._text.rfind(b"\n") + 1].decode()
            told = [(name, int(i), int(n)) for name, i, n in map(str.split, text.splitlines())]
            names = [name for name, _, _ in told]
            if names.count(word) >= number or (word != "over" and names.count("end") == 2):
                return told
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            assert piece, text
            self._text += piece

    def _say(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\t".join(map(str, words)) + "\n")
        self.process.stdin.flush()


@pytest.fixture(scope="module")
def fillers() -> Iterator[Fillers]:
    """Return what fills in two processes."""
    made = Fillers()
    yield made
    made.process.communicate()


@pytest.fixture(params=[EXT4, XFS], ids=["ext4", "xfs"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """Return a disk of each kind."""
    with disk(tmp_path, *request.param) as one:
        yield one


def cut(
    disk: Disk, fillers: Fillers, kind: type[Play], moments: random.Random, name: str = "none"
) -> Play:
    """Fill from two processes and cut the power; return the play with what it told before."""
    folder = disk.root / "job"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    play = kind(folder / "a.npy")
    play.segments, play.most_again = SEGMENTS, 2 * kind.most_again
    play.prepare()
    disk.sync()
    fillers.begin(play.path, kind.__name__, name)
    # Right after a report, and at any moment until the next. What is told later does not count:
    # ext4 may answer a sync that the shutdown overtakes with success, which no program would
    # live to see had the power gone.
    told = fillers.told("done", moments.randrange(SEGMENTS))
    time.sleep(moments.choice((0, moments.uniform(0, 0.01))))
    disk.cut()
    fillers.end()
    disk.remount()
    for word, index, value in told:
        if word == "asked":
            play.asked.append(index)
        elif word in ("done", "durable"):
            vars(play)[word][index] = value
    return play


@pytest.mark.parametrize("number", sizes(8, 400))
@pytest.mark.parametrize("kind", [Play, Checkpointing, Mapping])
def test_a_cut_at_any_moment_loses_nothing_that_was_told(
    made: Disk, fillers: Fillers, kind: type[Play], number: int, figures: Figures
) -> None:
    """What two processes told is there, and running again completes it."""
    moments = random.Random(number)
    told = 0
    for _ in range(number):
        play = cut(made, fillers, kind, moments)
        assert not list(play.faults())
        told += len(play.done)
        play.finish()
        figures.add("power cut", f"at a random moment, on {made.kind}")
    assert told > number, "the cuts did not fall into the fills"


@pytest.mark.parametrize("kind", [Play, Mapping])
@pytest.mark.parametrize("name", ["no sync of the target", "no sync of the ledger"])
def test_a_fill_without_its_syncs_would_be_caught(
    made: Disk, fillers: Fillers, kind: type[Play], name: str, figures: Figures
) -> None:
    """Without fdatasync of either file something that was told is lost: it is seen."""
    moments = random.Random(name)
    assert any(list(cut(made, fillers, kind, moments, name).faults()) for _ in range(20))
    figures.add("power cut", "broken on purpose, and caught")


@pytest.mark.parametrize("fortran", [False, True], ids=["C", "F"])
def test_a_window_that_was_flushed_survives_a_power_cut(made: Disk, fortran: bool) -> None:
    """`flush` brings its window to the disk, all pieces of it, and not its neighbour."""
    path = made.root / "a.npy"
    flowmap.open_memmap(path, "w+", "<f8", (512, 512), fortran)
    made.sync()
    for offset in (100, 400):
        window = flowmap.open_memmap(path, offset=offset, shape=(10, 512))
        window[...] = offset
        if offset == 100:
            window.flush()
    made.cut()
    del window
    made.remount()
    rows = np.load(path)
    assert (rows[100:110] == 100).all()
    assert not (rows[400:410] == 400).any(), "the cut is none"
