"""A kill, and an error, at every system call by which flowmap touches the disk, by strace."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import select
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from campaign import sizes
from support import damage, states
from tracing import READS, ROWS, SHAPE, WRITES, Told, Tracer, Zygote, log_of, unsynced
from truth import computed, lies, missing, not_completed, noted, records

import flowmap
from flowmap.errors import DamagedJobError, FlowmapError
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from campaign import Figures

pytestmark = pytest.mark.system("strace", packages="strace")

CASES = ("allocate", "overwrite", "fill", "map", "seal", "sync", "mark")
"""What is done meanwhile. The last three validate: what is done; what is written only; what is
sealed, and damaged since."""

ERRORS = [(name, ever) for ever in ("", "+") for name in ("ENOSPC", "EIO", "EDQUOT")]
"""Each at one call, and at all from then on."""

INTERRUPTED = ("EINTR", "")
"""At one call only: whoever is interrupted tries again, as Python does."""

TRIED_AGAIN = ("pwrite64", "fallocate", "ftruncate", "fdatasync", "fsync")
"""The calls that an interruption must not fail."""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """Return the process that forks the children of this module."""
    with Zygote() as process:
        yield process


class Case:
    """One of `CASES` in a folder of its own, again and again from the same beginning.

    Args:
        name: Which.
        folder: Where all of it goes.
        zygote: What forks the children.
    """

    def __init__(self, name: str, folder: Path, zygote: Zygote) -> None:
        self.name = name
        self.scenario = "validate" if name in ("seal", "sync", "mark") else name
        self.zygote = zygote
        self._first, self._now = folder / "first", folder / "now"
        self.path = self._now / "a.npy"
        self.log = Path(log_of(self.path))
        (self._first / "log").mkdir(parents=True)
        self.id = "" if name == "allocate" else self._prepare(self._first / "a.npy")

    def _prepare(self, path: Path) -> str:
        durability: Any = "end" if self.name == "sync" else "segment"
        target = flowmap.allocate(path, **SHAPE, durability=durability)
        if self.name not in ("fill", "map", "workers"):
            flowmap.fill(target, noted, {"log": log_of(path)}, executor="threads")
            computed(Path(log_of(path)))
        if self.name == "mark":
            assert flowmap.validate(target).sealed
            damage(target, 1)
        return target.id

    def begin_anew(self) -> None:
        """Put the folder back to the beginning."""
        shutil.rmtree(self._now, ignore_errors=True)
        shutil.copytree(self._first, self._now)

    def run(self, *inject: str, **options: Any) -> Told:
        """Run it from the beginning, as `Zygote.run` does."""
        self.begin_anew()
        return self.zygote.run(self.scenario, self.path, *inject, **options)

    def faults(self, told: Told) -> list[str]:
        """Name what is wrong on the disk after a run, and after another that does the rest."""
        if self.scenario == "allocate":
            return [*self._new_or_nothing(), *self._allocated_again()]
        if self.scenario == "overwrite":
            return [*self._old_or_new_or_told(), *self._allocated_again()]
        loose = unsynced(told.seen.values(), self.path)
        if self.name == "sync":  # what others have written counts from the beginning
            written = f'pwrite64(3<{self.path}>, "", {8 * ROWS}, 4096) = {8 * ROWS}'
            loose = unsynced([[written, *itertools.chain(*told.seen.values())]], self.path)
        spoilt = 1 if self.name == "mark" else None
        return [*lies(self.path, loose, spoilt), *self._completed()]

    def _new_or_nothing(self) -> list[str]:
        return self._new() if os.path.lexists(self.path) else []

    def _new(self) -> list[str]:
        """Name what is wrong with a target that was allocated and never filled."""
        try:
            target = flowmap.open_target(self.path)
        except FlowmapError as error:
            return [f"half a target: {error}"]
        fresh = set(states(target)) == {"pending"} and not target.asarray().any()
        return [] if fresh else ["a new target is not empty"]

    def _old_or_new_or_told(self) -> list[str]:
        try:
            target = flowmap.open_target(self.path)
            if target.id != self.id:
                return self._new()
            return [*flowmap.validate(target, mark=False).problems, *lies(self.path)]
        except FlowmapError as error:
            told = isinstance(error, DamagedJobError) and "cut short" in str(error)
            return [] if told else [f"neither the old job nor the new: {error}"]

    def _allocated_again(self) -> list[str]:
        again = self.zygote.run(self.scenario, self.path, traced=False)
        if again.error is not None:
            return [f"not done again: {again.error['traceback']}"]
        named = {"job.json", "ledger.npy", "header.lock"}
        for entry in Sidecar.of(self.path).folder.iterdir():
            # What attaches takes no lock, and leaves a second name of the whole target.
            if entry.name not in named and not entry.samefile(self.path):
                return [f"left behind: {entry.name}"]
        return self._new()

    def _completed(self) -> list[str]:
        if self.name == "mark":  # a run knows of the damage from a validation only
            flowmap.validate(self.path)
        mapped = self.scenario == "map"
        left, before = missing(self.path, mapped=mapped), records(self.path)
        computed(self.log)
        again = self.zygote.run("map" if mapped else "fill", self.path, traced=False)
        if again.error is not None:
            return [f"not completed: {again.error['traceback']}"]
        faults = not_completed(self.path, before)
        if (done := computed(self.log)) != left:
            faults.append(f"{done} were computed again where {left} were missing")
        return faults

    def badly_told(self, told: Told, number: int) -> list[str]:
        """Name what is wrong with how a run told of an error that it met, if it did."""
        if told.status:
            return [f"ended with {told.status}"]
        if told.error is not None:
            return [*self._badly_raised(told.error, number), *self._left_behind()]
        if self.scenario != "validate":
            return []
        if self.name == "mark":
            return ["calls right what is damaged"] if told.result["ok"] else []
        said = told.result["ok"] or any(
            os.strerror(number) in line for line in told.result["told"]
        )
        return [] if said else [f"nothing of {number} in {told.result['told']}"]

    def _badly_raised(self, raised: dict[str, Any], number: int) -> list[str]:
        return [
            f"badly told: {error['traceback']}"
            for error in raised["failures"] or [raised]
            if not (error["ours"] and error["errno"] == number)
            or not (str(self.path) in error["message"] or "segment 0" in error["message"])
        ]

    def _left_behind(self) -> list[str]:
        """Name what an allocation that failed left, but for its folder and the lock."""
        if self.scenario != "allocate" or os.path.lexists(self.path):
            return []
        left = self.path.parent.glob(f"{Sidecar.of(self.path).folder.name}/*")
        return [f"left behind: {each.name}" for each in left if each.name != "header.lock"]


def moments(case: Case, call: str, count: int, most: int) -> list[int]:
    """Return which of so many calls are hit: all, or the same few in each run."""
    every = range(1, count + 1)
    few = random.Random(f"{case.name} {call}")
    return list(every) if not most or count <= most else sorted(few.sample(every, most))


@pytest.mark.parametrize("most", sizes(2, 0))
@pytest.mark.parametrize("name", CASES)
def test_kill_at_any_call(
    name: str, most: int, tmp_path: Path, zygote: Zygote, figures: Figures
) -> None:
    """Whatever the call, what is done is on the disk, and a second run does the rest only."""
    case = Case(name, tmp_path, zygote)
    counts = case.run().calls()
    for call in WRITES:
        for n in moments(case, call, counts[call], most):
            told = case.run(f"{call}:signal=KILL:when={n}")
            assert not case.faults(told), (call, n)
            figures.add("kill", f"at a system call, {name}", told.status == -signal.SIGKILL)


@pytest.mark.parametrize("most", sizes(1, 0))
@pytest.mark.parametrize("name", CASES)
def test_error_at_any_call(
    name: str, most: int, tmp_path: Path, zygote: Zygote, figures: Figures
) -> None:
    """It is flowmap's error with its number, or does no harm; a second run does the rest."""
    case = Case(name, tmp_path, zygote)
    counts = case.run().calls()
    turn = itertools.count()
    for call in (*WRITES, *READS):
        errors = [*ERRORS, INTERRUPTED] if call in WRITES else [("EIO", ""), ("EIO", "+")]
        for n in moments(case, call, counts[call], most):
            for error, ever in [errors[next(turn) % len(errors)]] if most else errors:
                told = case.run(f"{call}:error={error}:when={n}{ever}")
                wrong = case.badly_told(told, getattr(errno, error))
                harmless = error == "EINTR" and call in TRIED_AGAIN
                if told.error and (harmless or call == "sync_file_range"):
                    wrong.append(f"not to be failed by: {told.error['traceback']}")
                if call.startswith("unlink") and ever:  # what can be removed no more is left
                    wrong = [each for each in wrong if not each.startswith("left behind")]
                assert not wrong + case.faults(told), (call, error, n, ever)
                figures.add("error of a system call", name, bool(told.injected))


@pytest.mark.parametrize("most", sizes(3, 0))
@pytest.mark.parametrize("name", ["allocate", "overwrite", "fill", "sync"])
def test_kill_within_a_write(
    name: str, most: int, tmp_path: Path, zygote: Zygote, figures: Figures
) -> None:
    """Where the system takes a write in pieces, all is written; a torn record costs itself."""
    case = Case(name, tmp_path, zygote)
    told = case.run(pieces=150)  # a slot of the ledger, 256 bytes, in two
    assert not case.badly_told(told, 0) + case.faults(told)
    for n in moments(case, "pwrite64", told.calls()["pwrite64"], most):
        told = case.run(f"pwrite64:signal=KILL:when={n}", pieces=150)
        assert not case.faults(told), n
        figures.add("kill", f"within a write, {name}", told.status == -signal.SIGKILL)


@pytest.mark.parametrize("step", sizes(20_011, 509))
@pytest.mark.parametrize("name", ["allocate", "overwrite", "fill", "sync"])
def test_files_that_may_not_grow(
    name: str, step: int, tmp_path: Path, zygote: Zygote, figures: Figures
) -> None:
    """At a limit of its process's the kernel cuts a write short, and then refuses (EFBIG)."""
    case = Case(name, tmp_path, zygote)
    for limit in range(100, 4096 + 8 * ROWS, step):
        told = case.run(limit=limit)
        assert not case.badly_told(told, errno.EFBIG) + case.faults(told), limit
        figures.add("error of a system call", "limit to a file's size")


@pytest.mark.parametrize("most", sizes(1, 0))
@pytest.mark.parametrize("whole_tree", [False, True], ids=["worker", "tree"])
def test_kill_of_workers_at_any_call(
    whole_tree: bool, most: int, tmp_path: Path, zygote: Zygote, figures: Figures
) -> None:
    """A run outlives its workers; of one that is killed with them, a second does the rest."""
    case = Case("workers", tmp_path, zygote)
    counts = run_with_workers(case)[0].calls()
    for call in ("openat", "pwrite64", "fdatasync", "rename", "sync_file_range"):
        for n in moments(case, call, counts[call], most):
            inject = f"{call}:signal=KILL:when={n}"
            told, deaths = run_with_workers(case, inject, whole_tree=whole_tree)
            if not whole_tree:
                done = computed(case.log)
                assert told.error is None, told.error
                assert not flowmap.open_target(case.path).pending()
                assert len(done) - len(set(done)) <= deaths, (done, deaths)
                told.seen.clear()  # another worker, which was not traced, went on
            assert not case.faults(told), (call, n)
            figures.add("kill", "of a worker" + ", then the run" * whole_tree, bool(deaths))


def run_with_workers(case: Case, *inject: str, whole_tree: bool = False) -> tuple[Told, int]:
    """Fill by worker processes to which strace is attached; return also how many died of it."""
    case.begin_anew()
    child = case.zygote.begin("workers", case.path)
    os.kill(child, signal.SIGCONT)
    assert case.zygote.stopped() == child
    workers = json.loads(case.path.with_name("pids").read_text())
    tracer = Tracer(case.path, workers, inject)
    ends = [os.pidfd_open(pid) for pid in workers]
    os.kill(child, signal.SIGCONT)
    if whole_tree:
        select.select(ends, [], [])  # the first to die takes the others along
        for pid in (child, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for end in ends:
        os.close(end)
    told = case.zygote.end(case.path, tracer)
    last = [told.seen[pid][-2:-1] for pid in workers]  # none of one that was killed while idle
    return told, sum(line.endswith("= ?") for lines in last for line in lines)


BROKEN = {
    "done before the sync": ("fill", "fdatasync:signal=KILL"),
    "no sync of the target": ("map", "fdatasync:signal=KILL"),
    "named before its job": ("allocate", "rename:signal=KILL"),
    "no removing of old records": ("overwrite", "rename:signal=KILL"),
    "errors as they come": ("fill", "pwrite64:error=EIO"),
    "no comparing of digests": ("mark", "pwrite64:error=EIO"),
    "half writes": ("fill", "pwrite64:error=EIO"),
}
"""What is broken, and in which case under which fault it must be found."""


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_flowmap_would_be_caught(broken: str, tmp_path: Path, zygote: Zygote) -> None:
    """The same checks find a fault in what is broken on purpose."""
    name, fault = BROKEN[broken]
    case = Case(name, tmp_path, zygote)
    options: dict[str, Any] = {"pieces": 150} if broken == "half writes" else {}
    for n in range(1, 40):
        told = case.run(f"{fault}:when={n}", broken=broken, **options)
        wrong = case.badly_told(told, errno.EIO) if "error" in fault else []
        if wrong + case.faults(told):
            return
    pytest.fail("it was not caught")
