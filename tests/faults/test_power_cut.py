"""The power is cut before every call that changes the disk, whatever was written back by then.

Each play does something that flowmap promises about. It is played once for each call that it
makes, on ext4 and on XFS: the power goes before that call, or in the middle of it, after the
kernel has written this or that of its own accord. Then the disk is mounted again: what was told
before must be there, no record may vouch for bytes that are not, and running again must
complete the job.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Final

import pytest
from campaign import Figures, sizes
from disks import EXT4, PACKAGES, PROGRAMS, WRITTEN_BACK, XFS, Disk, Power, disk
from plays import (
    Allocating,
    Checkpointing,
    Damaging,
    Mapping,
    Overwriting,
    OverwritingForeign,
    Play,
    Replacing,
    Resetting,
    Resuming,
    ResumingCheckpoints,
    Unsynced,
)
from sabotage import sabotage
from support import run, script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.system(*PROGRAMS, packages=PACKAGES, root=True)

PLAYS: Final[tuple[type[Play], ...]] = (
    Allocating,
    Play,
    Checkpointing,
    Resuming,
    ResumingCheckpoints,
    Mapping,
    Unsynced,
    Replacing,
    Damaging,
    Resetting,
    Overwriting,
    OverwritingForeign,
)

PLAY_ALL = """
import os, sys
from pathlib import Path
import disks, plays

for name in sys.argv[2:]:
    path = Path(sys.argv[1], name)
    path.mkdir()
    play = getattr(plays, name)(path / "a.npy")
    play.prepare()
    with disks.Power(None, -1) as power:
        os.access("begin", 0)
        play.act()
        os.access("end", 0)
    print(power.calls)
"""

CHANGES = re.compile(
    r"\d+ +(write(?!\(2)|p?write[v6]|f?datasync|fsync|msync|syncfs|f?truncate|fallocate"
    r"|rename|unlink|link|symlink|mk|rm|f?l?setxattr|f?l?removexattr|f?chmod|f?chown|utime"
    r"|copy_file_range|sendfile|open.*O_(CREAT|TRUNC))"
)


@pytest.fixture(scope="module", params=[EXT4, XFS], ids=["ext4", "xfs"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Disk]:
    """Return a disk of each kind."""
    with disk(tmp_path_factory.mktemp("disk"), *request.param) as one:
        yield one


def cut(disk: Disk, kind: type[Play], power: Power) -> tuple[Play, list[str]]:
    """Play until the power is gone; return the play, and what is wrong when it is back."""
    folder = disk.root / "job"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    play = kind(folder / "a.npy")
    play.prepare()
    disk.sync()
    with power:
        play.act()
        power.step()
    disk.remount()
    return play, list(play.faults())


def cuts(disk: Disk, kind: type[Play], every: int) -> Iterator[Power]:
    """Yield a power for each call, each way of writing back; of these every so many only."""
    whole = Power(disk, -1)
    cut(disk, kind, whole)
    number = 0
    for at in range(whole.calls):
        for torn in (False, True) if at in whole.writes else (False,):
            for written in WRITTEN_BACK:
                number += 1
                if number % every == 0:
                    yield Power(disk, at, written, torn=torn, seed=number)


@pytest.mark.system("strace", packages="strace")
def test_no_call_that_changes_the_disk_is_left_out(tmp_path: Path) -> None:
    """The system sees as many such calls as there are cuts."""
    names = [kind.__name__ for kind in PLAYS]
    trace = tmp_path / "trace"
    strace = ["strace", "--follow-forks", f"--output={trace}"]
    done = run([*strace, *script(PLAY_ALL, tmp_path, *names)])
    seen: list[int] = []
    counting = False
    for line in trace.read_text().splitlines():
        if 'access("begin"' in line:
            seen.append(0)
            counting = True
        elif 'access("end"' in line:
            counting = False
        elif counting and CHANGES.match(line):
            seen[-1] += 1
    assert list(map(int, done.stdout.split())) == seen, done.stderr


@pytest.mark.parametrize("every", sizes(47, 1))
@pytest.mark.parametrize("kind", PLAYS)
def test_a_cut_at_any_call_loses_nothing_that_was_told(
    made: Disk, kind: type[Play], every: int, figures: Figures
) -> None:
    """What was told is there, nothing else is vouched for, and running again completes it."""
    for power in cuts(made, kind, every):
        play, faults = cut(made, kind, power)
        assert not faults, power
        play.finish()
        figures.add("power cut", f"at a call, on {made.kind}")


@pytest.mark.parametrize(
    ("name", "kind", "every"),
    [
        ("no sync of the target", Play, 5),
        ("no sync of the ledger", Play, 5),
        ("no sync of the ledger", Replacing, 5),
        ("no sync of names", Allocating, 1),
        ("no sync of names", Resetting, 5),
        ("done before the sync", Play, 5),
        ("no checkpoints", Checkpointing, 5),
        ("no removing of old records", Overwriting, 5),
    ],
)
def test_a_flowmap_that_is_broken_would_be_caught(
    made: Disk,
    name: str,
    kind: type[Play],
    every: int,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    """Without what keeps a promise, the same cuts find that it is not kept."""
    sabotage(name, monkeypatch.setattr)
    assert any(cut(made, kind, power)[1] for power in cuts(made, kind, every))
    figures.add("power cut", "broken on purpose, and caught")
