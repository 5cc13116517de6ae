"""Many processes on one path at once: what a child of the tests of races runs.

`python -c "import storm; storm.main()" JSON` forks the processes, lets each act again and again
until the time is up, kills some of them if asked to, and prints what happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sabotage import sabotage
from support import wholeness

import flowmap
import flowmap.alloc
import flowmap.lease
from flowmap.errors import (
    ClaimLostError,
    DamagedJobError,
    FlowmapError,
    InvalidArgumentError,
    JobBusyError,
    NotFoundError,
    OtherJobError,
    SegmentsFailedError,
)
from flowmap.lease import leased

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from flowmap.segments import Block, Segment
    from flowmap.target import Target

JOBS: list[dict[str, Any]] = [
    {"shape": (96, 3), "dtype": "<u8", "segments": 4, "block_rows": 7},
    {"shape": (200,), "dtype": "<u8", "segments": 3, "block_rows": 20},
    {"shape": (50, 7), "dtype": "<u8", "segments": 6, "block_rows": 50},
]
"""The jobs that fight for the path."""

RACES: dict[str, Callable[[int], dict[str, Any]]] = {
    "resume": lambda number: {},
    "error": lambda number: {"exist": "error"},
    "different": lambda number: {"shape": (100 + number % 2, 3)},
    "overwrite": lambda number: {"exist": ("resume", "overwrite")[number % 4 == 0]},
}
"""How each process allocates a path that is not there yet."""


def values(job: str, start: int, stop: int) -> NDArray[np.uint64]:
    """Return what rows hold of a job, as told by its id."""
    return np.arange(start, stop, dtype="u8") + (int(job[:12], 16) << 16)


@flowmap.filler
def tagged(out: NDArray[Any], block: Block, *, job: str) -> None:
    """Fill what tells the job and the row."""
    out.T[...] = values(job, block.start, block.stop)


class Shared:
    """What the processes see of each other, in memory that they share."""

    def __init__(self, count: int) -> None:
        self.overwrites = self._cells(count)  # odd while one is under way
        self.inside = self._cells(count)
        self.holder = self._cells(1)
        self.killed = self._cells(1 << 16)  # the number of those killed, and who they are
        self.dead = self._cells(1)  # how many of them are dead by now
        self.probe = os.open("probe", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self.log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    @staticmethod
    def _cells(count: int) -> NDArray[np.int64]:
        return np.frombuffer(mmap.mmap(-1, 8 * count), np.int64)

    def kill(self, pid: int) -> None:
        """Kill a child, and say so before and when it is dead, but not yet waited for."""
        count = self.killed[0] + 1
        self.killed[count], self.killed[0] = pid, count
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.dead[0] = count

    @contextlib.contextmanager
    def alone(self, number: int) -> Iterator[None]:
        """Hold what nobody else may hold at the same time.

        The lock is at a lower descriptor than those that are opened later, so that a process
        that dies gives it back before those. One with threads, though, is taken for dead when
        its first thread is: where it was killed it is waited for.
        """
        while True:
            try:
                fcntl.lockf(self.probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = int(self.holder[0])
                if other not in self.killed[1 : 1 + self.killed[0]]:
                    raise AssertionError(f"process {other} is in it, too") from None
            else:
                break
        self.holder[0], self.inside[number] = os.getpid(), 1
        try:
            yield
        finally:
            self.holder[0], self.inside[number] = 0, 0
            fcntl.lockf(self.probe, fcntl.LOCK_UN)


class Storm:
    """One process of a storm of everything on one path."""

    ALLOWED: ClassVar[dict[str, tuple[type[Exception], ...]]] = {
        "attach": (OtherJobError,),
        "overwrite": (),
        "look": (DamagedJobError,),
        "fill": (OtherJobError, ClaimLostError, NotFoundError, DamagedJobError),
        "run": (
            *(OtherJobError, ClaimLostError, NotFoundError, DamagedJobError),
            *(JobBusyError, SegmentsFailedError),
        ),
        "validate": (OtherJobError, DamagedJobError),
        "reset": (OtherJobError, ClaimLostError, InvalidArgumentError, DamagedJobError),
        "read": (OtherJobError, DamagedJobError),
    }

    def __init__(self, path: Path, number: int, shared: Shared, *, kills: bool) -> None:
        self.path = path
        self.number = number
        self.shared = shared
        self.kills = kills
        for module in (flowmap.alloc, flowmap.lease):
            real = vars(module)["header_lock"]
            module.header_lock = self._guarded(real)  # type: ignore[attr-defined]

    def _guarded(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def lock(*arguments: Any) -> Iterator[None]:
            with real(*arguments), self.shared.alone(self.number):
                yield

        return lock

    def act(self, rng: random.Random) -> str:
        """Do something; return what came of it, or raise what must not be."""
        (name,) = rng.choices(list(self.ALLOWED), [4, 1, 2, 4, 1, 1, 1, 2])
        before = self.shared.overwrites.copy()
        try:
            getattr(self, name)(rng)
        except FlowmapError as error:
            every = [error, *getattr(error, "failures", {}).values()]
            if not all(self._may_be(name, each, before) for each in every):
                raise
            return f"{name}: {type(error).__name__}"
        return f"{name}: ok"

    def _may_be(self, name: str, error: BaseException, before: NDArray[np.int64]) -> bool:
        allowed = isinstance(error, self.ALLOWED[name])
        if not isinstance(error, DamagedJobError):
            return allowed
        overwritten = bool((before % 2).any() or (before != self.shared.overwrites).any())
        return "cut short" in str(error) and (self.kills or (allowed and overwritten))

    def attach(self, rng: random.Random) -> None:
        """Allocate what is there, or something else."""
        job = rng.choice(JOBS)
        target = flowmap.allocate(self.path, **job)
        assert target.shape == job["shape"]
        assert len(target.segments) == job["segments"]

    def overwrite(self, rng: random.Random) -> None:
        """Replace what is there."""
        self.shared.overwrites[self.number] += 1
        flowmap.allocate(self.path, **rng.choice(JOBS), exist="overwrite")
        self.shared.overwrites[self.number] += 1

    def look(self, rng: random.Random) -> None:
        """Open it, and look past flowmap whether what is there belongs together."""
        target = flowmap.open_target(self.path)
        assert target.shape in [job["shape"] for job in JOBS]
        assert not (faults := wholeness(self.path)), faults

    def fill(self, rng: random.Random) -> None:
        """Fill a segment, or find that it is done."""
        target = flowmap.open_target(self.path)
        fill_one(target, rng.choice(target.segments), mapped=rng.random() < 0.5)

    def run(self, rng: random.Random) -> None:
        """Fill what is left, as a run."""
        target = flowmap.open_target(self.path)
        if by_filler(target):
            work = {"job": target.id}
            flowmap.fill(target, tagged, work, executor="threads", workers=1)

    def validate(self, rng: random.Random) -> None:
        """Prove it whole, if it is."""
        report = flowmap.validate(self.path)
        whole = ("not done" in each or "cut short" in each for each in report.problems)
        assert all(whole), report

    def reset(self, rng: random.Random) -> None:
        """Make a segment pending again."""
        target = flowmap.open_target(self.path)
        flowmap.reset(self.path, rng.choice(target.segments))

    def read(self, rng: random.Random) -> None:
        """Look whether the rows that are done are those of the job."""
        target = flowmap.open_target(self.path)
        assert not (faults := foreign_rows(target)), faults


def by_filler(target: Target) -> bool:
    """Return whether a job is filled by a filler, or with values at hand: its id decides."""
    return int(target.id[0], 16) % 2 == 0


def fill_one(target: Target, segment: Segment, *, mapped: bool = False) -> None:
    """Fill a segment in the way of its job; with values also where it is done."""
    if by_filler(target):
        flowmap.fill_segment(segment, tagged, {"job": target.id})
        return
    whole = np.empty((segment.rows, *target.shape[1:]), "u8")
    whole.T[...] = values(target.id, segment.start, segment.stop)
    if mapped:
        with flowmap.open_segment(segment, replace=True) as out:
            out[...] = whole
    else:
        flowmap.write_segment(segment, whole)


def foreign_rows(target: Target) -> list[str]:
    """Name the segments that are done with rows that are not of the job."""
    found = target.masked()
    faults = []
    for segment in target.segments:
        part = found[segment.start : segment.stop]
        rows = values(target.id, segment.start, segment.stop)
        wrong = np.asarray(rows != part.T)[~np.ma.getmaskarray(part.T)]
        if wrong.any():
            faults.append(f"{segment.name} of {target.id} holds {part.tolist()}")
    return faults


class Leasing:
    """One process of many that want the lease of one job."""

    def __init__(self, path: Path, number: int, shared: Shared, *, kills: bool) -> None:
        self.job = flowmap.open_target(path).job
        self.number = number
        self.shared = shared
        flowmap.lease.REFRESH = 0.001  # type: ignore[misc]

    def act(self, rng: random.Random) -> str:
        """Hold the lease for a moment, alone; or be told who has it, who lives."""
        dead = self.shared.killed[1 : 1 + self.shared.dead[0]].tolist()
        try:
            with (
                leased(self.job, f"run {os.getpid()}") as lease,
                self.shared.alone(self.number),
            ):
                time.sleep(rng.random() / 50)
                lease.check()
        except JobBusyError as error:
            if "run" not in vars(error):  # it had the lease, and lost it
                raise
            holder = int(str(vars(error)["run"]).split()[1])
            assert holder not in dead, "the lease of a dead process holds"
            return "lease: JobBusyError"
        return "lease: ok"


ACTORS = {"storm": Storm, "leases": Leasing}


def _act_until(end: float, actor: Any, rng: random.Random, shared: Shared) -> None:
    while time.monotonic() < end:
        try:
            line = actor.act(rng)
        except Exception:  # noqa: BLE001 -- whatever it is, it is told
            line = "FAULT" + json.dumps(traceback.format_exc())
        os.write(shared.log, f"{line}\n".encode())


def _fork(number: int, seed: str, end: float, shared: Shared, options: Any) -> int:
    child = os.fork()
    if child:
        return child
    try:
        actor = ACTORS[options["what"]]
        acting = actor(Path(options["path"]), number, shared, kills=options["kills"])
        _act_until(end, acting, random.Random(seed), shared)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def crowd(options: dict[str, Any]) -> dict[str, Any]:
    """Let processes act until the time is up; return what happened.

    Args:
        options: `what` of `ACTORS`, `path`, `count` of processes, `seconds`, `seed`, `kills`.
    """
    shared = Shared(options["count"])
    end = time.monotonic() + options["seconds"]
    rng = random.Random(options["seed"])
    inside = forks = 0

    def fork(number: int) -> int:
        nonlocal forks
        forks += 1
        shared.inside[number], shared.overwrites[number] = 0, 0
        return _fork(number, f"{options['seed']}/{forks}", end, shared, options)

    children = {fork(number): number for number in range(options["count"])}
    while options["kills"] and time.monotonic() < end:
        time.sleep(rng.random() / 25)
        pid = int(shared.holder[0])
        if pid not in children:
            continue
        shared.kill(pid)
        os.waitpid(pid, 0)
        number = children.pop(pid)
        inside += int(shared.inside[number])
        children[fork(number)] = number
    codes = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children}
    assert codes == {0}
    lines = Path("log").read_text().splitlines()
    faults = [json.loads(line[5:]) for line in lines if line.startswith("FAULT")]
    counts = Counter(line for line in lines if not line.startswith("FAULT"))
    return {"counts": counts, "faults": faults, "inside": inside}


def _allocate_anew(number: int, options: dict[str, Any], barrier: Any) -> None:
    asked: dict[str, Any] = {"shape": (100, 3), "dtype": "<f8", "segments": 4}
    rng = random.Random(f"{options['seed']}/{number}")
    for turn in range(options["rounds"]):
        path = Path(f"{turn}.npy")
        barrier.wait()
        try:
            if options["what"] == "foreign" and number == 0:
                time.sleep(rng.expovariate(400))
                with path.open("x") as file:
                    file.write("mine")
                outcome = "mine"
            else:
                how = RACES.get(options["what"], RACES["resume"])(number)
                outcome = flowmap.allocate(path, **asked | how).id
        except (FlowmapError, FileExistsError) as error:
            outcome = type(error).__name__
        Path(f"{turn}-{number}.txt").write_text(outcome)


def race(options: dict[str, Any]) -> list[list[str]]:
    """Let processes allocate one path after the other at once; return their outcomes.

    Args:
        options: `what` of `RACES`, or "foreign", where the first process is no flowmap's;
            `count` of processes, `rounds`, `seed`.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(options["count"])
    children = [
        context.Process(target=_allocate_anew, args=(number, options, barrier))
        for number in range(options["count"])
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert not any(child.exitcode for child in children)
    return [
        [Path(f"{turn}-{number}.txt").read_text() for number in range(options["count"])]
        for turn in range(options["rounds"])
    ]


def main() -> None:
    """Do what the argument says, in the working directory."""
    options = json.loads(sys.argv[1])
    sabotage(options["sabotage"])
    result = crowd(options) if options["what"] in ACTORS else race(options)
    sys.stdout.write(json.dumps(result))
