"""Many processes on one path: at every moment, and in the end, there is one whole job."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from campaign import sizes
from storm import JOBS, fill_one, foreign_rows, values
from support import data_bytes, run, saved_bytes, script, wholeness

import flowmap
from flowmap.errors import DamagedJobError
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from campaign import Figures

TIDY = {"header.lock", "job.json", "ledger.npy"}
RACERS = 16


def played(folder: Path, what: str, **options: Any) -> Any:
    """Let a child play a storm or a race in a folder; return what it tells."""
    options = {"what": what, "seed": 1, "sabotage": "none", "kills": False} | options
    child = run(script("import storm; storm.main()", json.dumps(options)), cwd=folder)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def crowded(folder: Path, what: str, size: tuple[int, float], **options: Any) -> Any:
    """Begin with a job, let many processes go at it for some seconds; return what happened."""
    path = folder / "a.npy"
    flowmap.allocate(path, **JOBS[0])
    count, seconds = size
    return played(folder, what, path=str(path), count=count, seconds=seconds, **options)


def names(path: Path) -> set[str]:
    """Return what lies beside a target."""
    return {entry.name for entry in Sidecar.of(path).folder.iterdir()}


def wrong_in_the_end(path: Path, folder: Path, *, kills: bool) -> list[str]:
    """Say what a storm left that must not be; go on with the job that is there, to its end."""
    try:
        target = flowmap.open_target(path)
    except DamagedJobError:
        if not kills:  # only who is killed leaves an overwrite cut short
            raise
        target = flowmap.allocate(path, **JOBS[0], exist="overwrite")
    job = next(job for job in JOBS if job["shape"] == target.shape)
    assert flowmap.allocate(path, **job).id == target.id
    faults = wholeness(path) + foreign_rows(target)
    for segment in target.pending():
        fill_one(target, segment)
    report = flowmap.validate(target)
    whole = np.empty(target.shape, target.dtype)
    whole.T[...] = values(target.id, 0, len(whole))
    content = data_bytes(path, target.job.data_offset)
    if not report.sealed or content != saved_bytes(whole, folder):
        faults.append(f"the job cannot be completed: {report}")
    private = {name for name in names(path) if name.startswith(".")}
    if private and not kills:
        faults.append(f"left behind: {private}")
    flowmap.allocate(path, **JOBS[0], exist="overwrite")
    if names(path) != TIDY or path.stat().st_nlink > 1:
        faults.append(f"left behind by the last allocation: {names(path)}")
    return faults


def count_into(figures: Figures, done: dict[str, Any]) -> None:
    """Count what processes did, and what they were told."""
    for line, count in done["counts"].items():
        what, outcome = line.split(": ")
        refused = "" if outcome == "ok" else ", refused"
        figures.add("race", f"{what} in a crowd{refused}", count)
    figures.add("race", "kill -9 of who holds the header lock or lease", done["inside"])


@pytest.mark.parametrize("kills", [False, True], ids=["calm", "kills"])
@pytest.mark.parametrize("size", sizes((16, 4), (64, 60)))
def test_storm(tmp_path: Path, figures: Figures, size: tuple[int, float], kills: bool) -> None:
    """Whoever looks sees one whole job, whatever the others do, or are killed at.

    Allocating, attaching, overwriting, filling in every way, running, validating, resetting and
    reading give what they promise, or the error that names the race; no row of an old job is
    done in the next. The header lock has one holder at a time; when it is killed, the next.
    """
    done = crowded(tmp_path, "storm", size, kills=kills)
    assert not done["faults"], "\n".join(done["faults"][:3])
    assert not (faults := wrong_in_the_end(tmp_path / "a.npy", tmp_path, kills=kills)), faults
    everything = {line.split(": ")[0] for line in done["counts"] if line.endswith("ok")}
    assert len(everything) == 8, everything
    assert not kills or done["inside"] > size[1]
    count_into(figures, done)


@pytest.mark.parametrize("size", sizes((16, 4), (64, 60)))
def test_leases(tmp_path: Path, figures: Figures, size: tuple[int, float]) -> None:
    """No two runs have a job at once; who is killed frees it, and holds it no moment longer."""
    done = crowded(tmp_path, "leases", size, kills=True)
    assert not done["faults"], "\n".join(done["faults"][:3])
    assert min(done["counts"]["lease: ok"], done["inside"]) > size[1] / 10
    assert done["counts"]["lease: JobBusyError"]
    flowmap.allocate(tmp_path / "a.npy", **JOBS[0], exist="overwrite")
    assert names(tmp_path / "a.npy") == TIDY
    count_into(figures, done)


@pytest.mark.parametrize("what", ["storm", "leases"])
def test_two_in_the_header_lock_are_caught(tmp_path: Path, what: str) -> None:
    """Without the lock, two are seen where one may be."""
    done = crowded(tmp_path, what, (16, 1), sabotage="no header lock")
    assert any("is in it, too" in fault for fault in done["faults"])


def check_race(path: Path, what: str, outcomes: list[str]) -> None:
    """Check what came of one race for a path that was free."""
    if what == "foreign" and outcomes[0] == "mine":
        assert path.read_text() == "mine"
        assert set(outcomes[1:]) <= {"ForeignFileError", "TargetExistsError"}
        return
    target = flowmap.open_target(path)
    if what == "resume":
        assert set(outcomes) == {target.id}
    elif what == "error":
        assert Counter(outcomes) == {target.id: 1, "TargetExistsError": RACERS - 1}
    elif what == "different":
        assert Counter(outcomes) == {target.id: RACERS / 2, "OtherJobError": RACERS / 2}
        assert {*outcomes[target.shape[0] - 100 :: 2]} == {target.id}
    elif what == "overwrite":
        assert all(len(outcome) == len(target.id) for outcome in outcomes)
        assert len({*outcomes[::4]}) == RACERS / 4
        assert target.id in outcomes[::4]
    else:
        assert Counter(outcomes) == {"FileExistsError": 1, target.id: RACERS - 1}
    assert len(target.pending()) == 4
    assert not np.load(path).any()
    assert names(path) == TIDY
    assert path.stat().st_nlink == 1


@pytest.mark.parametrize("what", ["resume", "error", "different", "overwrite", "foreign"])
@pytest.mark.parametrize("rounds", sizes(3, 300))
def test_first(tmp_path: Path, figures: Figures, what: str, rounds: int) -> None:
    """Of processes that allocate a free path at once one makes the file.

    The others attach to it; are told that it exists; have another job in mind, and are told
    so; or replace it. What another program puts there first is nobody's to replace.
    """
    for turn, outcomes in enumerate(played(tmp_path, what, count=RACERS, rounds=rounds)):
        check_race(tmp_path / f"{turn}.npy", what, outcomes)
    figures.add("race", f"{RACERS} processes for one free path: {what}", rounds)


def test_a_name_that_replaces_is_caught(tmp_path: Path) -> None:
    """Where the target takes its name whatever has it, another program's file is lost."""
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        options = {
            "count": RACERS,
            "rounds": 20,
            "seed": seed,
            "sabotage": "names that replace",
        }
        for turn, outcomes in enumerate(played(folder, "foreign", **options)):
            try:
                check_race(folder / f"{turn}.npy", "foreign", outcomes)
            except (AssertionError, UnicodeDecodeError):
                return
    pytest.fail("nothing was lost")
