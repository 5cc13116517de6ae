"""One job, battered at random from a seed until it is done."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from battered import TRAPS, Runs, expected, patterned
from support import DTYPES, data_bytes, flip, saved_bytes, until_gone

import flowmap
from flowmap.errors import DamagedJobError, ForeignFileError, JobBusyError, NotFoundError
from flowmap.records import FINISHED, SLOTS
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from campaign import Figures

    from flowmap.target import Target

EXECUTORS = ["threads", "a pool of threads", "a pool of processes", "processes"]
KEPT = {"header.lock", "job.json", "ledger.npy", "seal.json"}


def job_of(rng: random.Random) -> dict[str, Any]:
    """Draw what to allocate."""
    order = rng.choice("<>")
    simple = f"{order}{rng.choice(['i2', 'u4', 'i8', 'f2', 'f4', 'f8', 'c8', 'U2'])}"
    record = np.dtype([("a", simple), ("b", f"S{rng.randint(1, 9)}", (rng.randint(1, 3),))])
    dtype = rng.choice([*DTYPES, np.dtype(simple), record])
    axes = rng.choice([0, 1, 1, 2, 2, 3])
    shape = [rng.randint(1, 9) for _ in range(axes)]
    fortran = rng.random() < 0.5
    rows = rng.choice([0, 1, *[rng.randint(2, 400)] * 6])
    if shape:
        shape[-1 if fortran else 0] = rows
    rows = rows if shape else 1
    cuts = sorted(rng.choices(range(1, rows), k=rng.randint(0, 9))) if rows > 1 else []
    bounds = [0, *dict.fromkeys(cuts), rows]
    uneven = [stop - begin for begin, stop in itertools.pairwise(bounds)]
    counted = [None, rng.randint(1, max(1, min(rows, 20)))]
    return {
        "shape": shape,
        "dtype": dtype,
        "fortran_order": fortran,
        "segments": rng.choice([*counted, uneven] if rows else counted),
        "block_rows": rng.choice([None, 1, rng.randint(1, 50)]),
        "durability": rng.choice(["segment", "segment", "end"]),
        "checkpoint_seconds": rng.choice([0, 30]),
        "reserve": rng.random() < 0.8,
        "align": rng.choice([64, 4096, 1 << 16]),
    }


class Battle:
    """One job: allocated, battered, run again until it is done."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        runs: Runs,
        figures: Figures,
        *,
        sabotage: str = "none",
        server: str = "",
    ) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.path = folder / "a.npy"
        self.runs = runs
        self.figures = figures
        self.sabotage = sabotage
        # Worker processes take a second to start, and no part in what is broken on purpose.
        self.weights = (20, 10, 5, 1) if sabotage == "none" else (1, 1, 0, 0)
        self.server = server
        self.job = job_of(self.rng)
        self.work = {"shape": self.job["shape"], "seed": seed % 1000}
        if server:  # a flow takes no sequence, and pins its work
            self.weights = (2, 0, 0, 1)
            if isinstance(self.job["segments"], list):
                self.job["segments"] = len(self.job["segments"])
        if server or self.rng.random() < 0.5:
            self.job |= {"filler": patterned, "arguments": self.work}
        self.target = self.allocate()
        self.turn = 0
        self.killed = False
        self.orphans = False  # workers whose run was killed, which may hold a segment yet
        self.flipped: set[int] = set()  # done, and damaged since
        self.doubtful: set[int] = set()  # damaged otherwise, or known to be

    def allocate(self, **changes: Any) -> Target:
        """Make the job or attach to it."""
        return flowmap.allocate(self.path, **(self.job | changes))

    def count(self, what: str) -> None:
        """Count what was done to a job."""
        self.figures.add("whole jobs", what)

    def play(self) -> None:
        """Batter the job, then finish it, and look at everything."""
        for _ in range(self.rng.randint(2, 6)):
            self.rng.choice([self.trapped, self.damaged])()
        self.finish()

    def trapped(self) -> None:
        """Run the job, and have something happen to the run."""
        pending = self.target.pending()
        rows = [row for segment in pending for row in range(segment.start, segment.stop)]
        others = (
            [] if self.server else ["a full disk", "kill -9 at a call", "validation beside"]
        )
        what = self.rng.choice([*TRAPS, *others])
        if what == "a full disk":
            self.run(limit=self.rng.randint(PAGE, self.target.job.size + PAGE))
        elif what == "kill -9 at a call":
            self.run(call=self.rng.randint(1, 300), executor=self.rng.choice(EXECUTORS[:2]))
        elif what == "validation beside":
            self.run(beside=True)
        elif rows:
            self.run({"row": self.rng.choice(rows), "what": what})
        else:
            return
        self.count(what)

    def run(
        self, trap: dict[str, Any] | None = None, *, beside: bool = False, **changes: Any
    ) -> None:
        """Run the job in a process of its own, to whatever end; check what it computed.

        Args:
            trap: What a filler does at which row.
            beside: Whether to validate meanwhile.
            **changes: To what a run is told.
        """
        self.turn += 1
        sprung, log = self.folder / f"sprung-{self.turn}", self.folder / f"log-{self.turn}"
        arguments = self.work | {"log": str(log)}
        if trap is not None:
            arguments["trap"] = trap | {"sprung": str(sprung), "on": f"{sprung}-on"}
        spec = self.spec() | {"arguments": arguments, "sprung": str(sprung)} | changes
        kept = self.kept()
        pid = self.runs.begin(spec)
        if trap is not None and trap["what"] == "SIGSTOP":
            self.watch(pid, trap["row"])
            Path(f"{sprung}-on").touch()
        while beside and not self.runs.has_ended():
            certain, report = self.certain(), flowmap.validate(self.path)
            assert not {s.index for s in report.bad_segments} & certain, report
        code, output = self.runs.code(), self.runs.output.read_text()
        hit = sprung.exists() or bool(spec["limit"])
        self.killed |= hit
        orphans, self.orphans = self.orphans, code < 0 and "processes" in spec["executor"]
        found = False
        if beside or self.server:  # a flow validates, too: that may have found damage
            self.doubtful |= self.flipped
            self.flipped.clear()
            found = bool(self.doubtful)
        assert code == 0 or hit or beside or orphans or found, output
        ended = self.server or (trap is not None and trap["what"] == "SIGTERM")
        assert code != 1 or (hit and ended), output
        self.check(log, kept, once=not (code or hit or orphans))
        if code:
            self.count("runs again after one that failed")
        if code or (beside and found):
            return
        states = set(self.target.status()["state"].tolist())
        assert states <= FINISHED, f"a run that succeeded left {states}"
        self.doubtful.clear()

    def spec(self) -> dict[str, Any]:
        """Return what a run is told, where nothing is to happen to it."""
        flow = self.job | {"path": str(self.path), "dtype": self.target.job.layout.descr}
        unknown = ("align", "filler", "arguments")
        return {
            "path": str(self.path),
            "sabotage": self.sabotage,
            "executor": self.rng.choices(EXECUTORS, self.weights)[0],
            "limit": 0,
            "call": 0,
            "flow": self.server,
            "job": {name: flow[name] for name in flow if name not in unknown},
        }

    def watch(self, pid: int, row: int) -> None:
        """Wait for a run to stand still, or to end; let it go on."""
        while not self.runs.has_ended():
            if _state(pid) == "T":
                self.while_stopped(row)
                os.killpg(pid, signal.SIGCONT)
                return

    def settle(self) -> None:
        """Wait for the end of workers whose run was killed."""
        if self.orphans:
            assert not until_gone(self.runs.groups[-1])
        self.orphans = False

    def kept(self) -> list[int]:
        """Return how many rows of each segment need not be computed again."""
        unsure = self.flipped | self.doubtful
        status = self.target.status()
        return [0 if row["index"] in unsure else row["rows_done"] for row in status]

    def certain(self) -> set[int]:
        """Return the segments that are done and undamaged."""
        (done,) = np.nonzero(self.target.status()["state"] == "done")
        return set(done.tolist()) - self.flipped - self.doubtful

    def check(self, log: Path, kept: list[int], *, once: bool) -> None:
        """Check that a run computed nothing that was there, and nothing twice."""
        lines = log.read_text().splitlines() if log.exists() else []
        blocks = [tuple(map(int, line.split())) for line in lines]
        for segment, rows in zip(self.target.segments, kept, strict=True):
            again = [
                start
                for start, _ in blocks
                if segment.start <= start < min(segment.start + rows, segment.stop)
            ]
            assert not again, f"{segment.name}: computed {again}, where {rows} rows were there"
        assert not once or len(set(blocks)) == len(blocks), f"computed twice: {blocks}"

    def while_stopped(self, row: int) -> None:
        """Do beside a run that stands still what must not disturb it, or end its attempt."""
        with pytest.raises(JobBusyError):
            flowmap.fill(self.path, patterned, self.work, executor="threads", workers=1)
        if self.rng.random() < 0.8:
            segment = next(s for s in self.target.segments if s.start <= row < s.stop)
            flowmap.reset(self.path, segment)
            self.count("reset of a segment in hand")
            self.flipped.discard(segment.index)

    def damaged(self) -> None:
        """Damage a file of the job."""
        self.settle()
        if self.rng.random() < 0.2:
            what, refused = self.rng.choice(list(REFUSED.items()))
            refused(self)
            self.anew()
        else:
            what, damage = self.rng.choice(list(DAMAGES.items()))
            if not damage(self):
                return
        self.count(what)

    def anew(self) -> None:
        """Begin anew, after damage that must be refused."""
        for attempt in (
            lambda: flowmap.fill(self.path, patterned, self.work, executor="threads"),
            lambda: flowmap.open_target(self.path).status(),
        ):
            with pytest.raises((DamagedJobError, ForeignFileError, NotFoundError)):
                attempt()
        self.target = self.allocate(exist="overwrite")
        self.flipped.clear()
        self.doubtful.clear()

    def finish(self) -> None:
        """Run and validate until all is well, twice at most; compare with the oracle."""
        self.settle()
        for _ in range(2):
            self.run()
            report = flowmap.validate(self.path)
            bad = {segment.index for segment in report.bad_segments}
            assert self.flipped <= bad <= self.flipped | self.doubtful, report
            self.doubtful |= bad
            self.flipped.clear()
            if report.ok:
                break
        assert report.sealed, report
        whole = expected(self.target.job, self.work["seed"])
        saved = saved_bytes(whole, self.folder, fortran_order=self.job["fortran_order"])
        assert data_bytes(self.path, self.target.job.data_offset) == saved
        assert self.allocate().id == self.target.id
        names = {entry.name for entry in Sidecar.of(self.path).folder.iterdir()}
        works = {name for name in names if name.startswith("work-")}
        # Kept apart where the file of the work was lost or damaged when a run began.
        sources = {name for name in names if name.startswith("source-")}
        failures = {name for name in names if name.startswith("failure-")}
        private = {name for name in names if name.startswith(".")}
        assert len(works) <= 1
        assert names - works - sources - failures - private <= KEPT, names - KEPT
        assert self.killed or not private
        self.count("jobs that were battered, and are right in the end")


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def flip_target(battle: Battle) -> bool:
    """Flip a bit of the data; see whether validation finds it, or leave that to the end."""
    target, rng = battle.target, battle.rng
    segments = [s for s in target.segments if s.index in battle.certain()]
    row_bytes = target.job.layout.row_bytes
    if not segments or not row_bytes:
        return False
    segment = rng.choice(segments)
    first = target.job.data_offset + segment.start * row_bytes
    flip(target.path, first + rng.randrange(segment.rows * row_bytes), 1 << rng.randrange(8))
    battle.flipped.add(segment.index)
    if rng.random() < 0.5:
        report = flowmap.validate(target)
        marked = {segment.index for segment in report.marked}
        assert battle.flipped <= marked <= battle.flipped | battle.doubtful, report
        battle.doubtful |= marked
        battle.flipped.clear()
    return True


def flip_rows_in_hand(battle: Battle) -> bool:
    """Flip a bit in rows of a segment that was begun and is not done."""
    target, rng = battle.target, battle.rng
    status = target.status()
    begun = status[(status["state"] != "done") & (status["rows_done"] > 0)]
    row_bytes = target.job.layout.row_bytes
    if not len(begun) or not row_bytes:
        return False
    row = begun[rng.randrange(len(begun))]
    first = target.job.data_offset + int(row["start"]) * row_bytes
    flip(target.path, first + rng.randrange(int(row["rows_done"]) * row_bytes))
    battle.doubtful.add(int(row["index"]))
    return True


def flip_ledger(battle: Battle) -> bool:
    """Flip a bit in the records of a segment."""
    if not battle.target.segments:
        return False
    ledger = Sidecar.of(battle.path).ledger
    index = battle.rng.randrange(len(battle.target.segments))
    header = ledger.stat().st_size - len(battle.target.segments) * PAGE
    slots = battle.rng.choice([2, 4, SLOTS]) * PAGE // SLOTS  # the first are those that count
    flip(ledger, header + index * PAGE + battle.rng.randrange(slots))
    battle.doubtful.add(index)
    return True


def cut(path: Path) -> None:
    """Cut a byte off a file."""
    os.truncate(path, path.stat().st_size - 1)


def remove_what_may_go(battle: Battle) -> bool:
    """Remove a file of the sidecar that nothing depends on."""
    names = ("run.json", "seal.json", "header.lock", "work-*.json", "failure-*.json")
    found = [path for name in names for path in Sidecar.of(battle.path).folder.glob(name)]
    if found:
        battle.rng.choice(sorted(found)).unlink()
    return bool(found)


def change_time(battle: Battle) -> bool:
    """Give the target another time of change."""
    os.utime(battle.path, (battle.rng.randrange(1 << 31),) * 2)
    return True


def reset_some(battle: Battle) -> bool:
    """Make segments pending again, on purpose."""
    indices = range(len(battle.target.segments))
    chosen = [index for index in indices if battle.rng.random() < 0.5]
    flowmap.reset(battle.target, chosen)
    battle.flipped -= set(chosen)
    return bool(chosen)


REFUSED: dict[str, Callable[[Battle], object]] = {
    "a bit of the ledger's header": lambda battle: flip(
        Sidecar.of(battle.path).ledger, battle.rng.randrange(64)
    ),
    "a target cut short": lambda battle: cut(battle.path),
    "a ledger cut short": lambda battle: cut(Sidecar.of(battle.path).ledger),
    "no ledger": lambda battle: Sidecar.of(battle.path).ledger.unlink(),
    "no job.json": lambda battle: Sidecar.of(battle.path).job.unlink(),
    "no target": lambda battle: battle.path.unlink(),
}
"""What nothing goes on with."""

DAMAGES: dict[str, Callable[[Battle], bool]] = {
    "a bit of the target": flip_target,
    "a bit of rows in hand": flip_rows_in_hand,
    "a bit of a record": flip_ledger,
    "no file that may go": remove_what_may_go,
    "another time of change": change_time,
    "reset of segments": reset_some,
}
"""What is done to the files of a job between its runs; each says whether there was any."""
