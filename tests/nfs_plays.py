"""What two hosts do to one job on NFS: plays, each of which says what is wrong after it.

`nfs_machine` runs this file as the first process of the machine. A play is a function of a
`Stage`; it says what was expected and did not come by `Stage.expect`. What counts is what the
server's own disk has, which no client has cached.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nfs_hosts
import numpy as np
from nfs_hosts import AT, EXPORT, LEASE, MOUNTS, RESULTS, Ended, Host, Process, pause

import flowmap
import flowmap.alloc
import flowmap.cleaning
import flowmap.executors
import flowmap.lease
import flowmap.masking
import flowmap.validation
import flowmap.write
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Listener

    from numpy.typing import NDArray

SEGMENTS: Final = 4
BLOCKS: Final = 4  # of a segment
BLOCK_ROWS: Final = PAGE // 8
SEGMENT_ROWS: Final = BLOCKS * BLOCK_ROWS
ROWS: Final = SEGMENTS * SEGMENT_ROWS

# ---------------------------------------------------------------------------------- breaks


def _in_all_modules(name: str, replacement: object) -> None:
    """Replace what flowmap's modules know by a name; fail where none does."""
    found = False
    for module in list(sys.modules.values()):
        if module.__name__.startswith("flowmap") and hasattr(module, name):
            setattr(module, name, replacement)
            found = True
    if not found:
        raise LookupError(f"flowmap has no {name}: a break that breaks nothing")


BREAKS: Final[dict[str, Callable[[], None]]] = {
}
"""How flowmap is broken on purpose in every process of both hosts. FILLED IN WHEN MERGING:

"no probe": lambda: _in_all_modules("ask_server", lambda *_: None),
"no sync of a write": lambda: _in_all_modules("sync_flags", lambda *_: 0),
"no drop of a page": ...
"""

CAUGHT_BY: Final[dict[str, tuple[str, ...]]] = {
    "no probe": ("absent", "lease"),
    "no sync of a write": ("overtaken", "cut"),
    "no drop of a page": ("overtaken",),
}
"""The plays that must find something wrong with each of them."""

# ------------------------------------------------------------- what processes of a host do


PAUSES: set[int] = set()
"""The rows before which `numbers` pauses in this process."""

FAILS: set[int] = set()
"""The rows at which it raises."""


@flowmap.filler
def numbers(out: NDArray[Any], block: flowmap.Block) -> None:
    """Number the rows from 1 on; pause, or fail, where this process shall."""
    if block.start in PAUSES:
        pause(f"row {block.start}")
    if block.start in FAILS:
        raise RuntimeError("this block fails")
    out[...] = np.arange(block.start + 1, block.stop + 1).astype(out.dtype)


def truth(rows: int = ROWS) -> NDArray[Any]:
    """Return what `numbers` makes of a target."""
    return np.arange(1, rows + 1)


def allocate(path: Path, exist: str = "resume", **changes: Any) -> str:
    """Allocate the job of the plays, or one that differs; return its id."""
    job: dict[str, Any] = {
        "shape": ROWS,
        "dtype": "<i8",
        "segments": (SEGMENT_ROWS,) * SEGMENTS,
        "block_rows": BLOCK_ROWS,
    }
    return flowmap.allocate(path, exist=exist, **(job | changes)).id  # type: ignore[arg-type]


def fill(path: Path, *indices: int, pauses: tuple[int, ...] = (), fails: tuple[int, ...] = ()) -> None:
    """Fill some segments, or all that are pending."""
    PAUSES.clear()
    PAUSES.update(pauses)
    FAILS.clear()
    FAILS.update(fails)
    target = flowmap.open_target(path)
    for segment in [target.segments[i] for i in indices] if indices else target.pending():
        flowmap.fill_segment(segment, numbers)


def run(path: Path, name: str, *, pauses: tuple[int, ...] = ()) -> int:
    """Fill a job as a run, which leases it; return how many segments it filled."""
    PAUSES.clear()
    PAUSES.update(pauses)
    return len(flowmap.fill(path, numbers, executor="threads", workers=1, name=name))


def validate(path: Path) -> list[str]:
    """Validate a job, and seal it; return what is wrong."""
    report = flowmap.validate(path)
    return [] if report.ok and report.sealed else [str(report), *report.problems]


def make(path: Path) -> str:
    """Make a whole job: allocated, filled and sealed; return its id."""
    job = allocate(path)
    fill(path)
    assert not validate(path)
    return job


def states(path: Path) -> list[str]:
    """Return what the ledger says of the segments."""
    return [str(state) for state in flowmap.open_target(path).status()["state"]]


def not_there(path: Path) -> bool:
    """Look for a target, and say whether there is none."""
    try:
        flowmap.open_target(path)
    except flowmap.FlowmapError:
        return not os.path.lexists(path)
    return False


def forget() -> None:
    """Let the machine forget what it has cached and need not write."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def unmasked_lies(path: Path) -> list[str]:
    """Read a job in each way there is; return where rows that count as done are wrong."""
    expected, wrong = truth(), []
    target = flowmap.open_target(path)
    before = target.status()
    mapped = target.asarray()
    for row in before[before["state"] == "done"]:
        rows = slice(row["start"], row["stop"])
        if not np.array_equal(mapped[rows], expected[rows]):
            wrong.append(f"segment {row['index']} is done, and asarray() has other rows")
    for how, array in (
        ("masked()", target.masked()),
        ("load(masked=True)", flowmap.load(path, masked=True)),
    ):
        shown = ~np.ma.getmaskarray(array)
        if not np.array_equal(array.data[shown], expected[shown]):
            wrong.append(f"{how} shows rows that are not those of the filler")
        done = before["rows_done"][before["state"] == "done"].sum()
        if shown.sum() < done:
            wrong.append(f"{how} shows {shown.sum()} rows, {done} are done")
    return wrong


_STEPS: Final = (
    *("open", "pwrite", "fdatasync", "fsync", "ftruncate", "mkdir", "rmdir"),
    *("rename", "replace", "unlink", "link", "chmod", "fchmod", "setxattr", "lstat"),
)


def stepped(at: int | None, do: Callable[..., Any], *given: Any) -> int:
    """Do something, and pause before one of its calls of the system; return how many it made."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*of: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == at:
                pause(f"step {at}")
            return real(*of, **named)

        return step

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))
    do(*given)
    return count


def written(at: int | None, do: Callable[..., Any], *given: Any) -> int:
    """Do something, and pause before one of its writes; return how many it made."""
    global _STEPS  # noqa: PLW0603
    _STEPS = ("pwrite",)  # type: ignore[misc]
    return stepped(at, do, *given)


# ---------------------------------------------------------------------------------- stage


class Stage:
    """Two hosts, and a folder that both have mounted.

    Args:
        hosts: What makes a host of a name.
        mount: Of `MOUNTS`.
        name: Of the folder.
        broken: Of `BREAKS`, or "".

    Attributes:
        a: One host.
        b: The other.
        at: The folder, on both.
        wrong: What was expected and did not come.
    """

    def __init__(self, hosts: Hosts, mount: str, name: str, broken: str) -> None:
        self.hosts = hosts
        self.a, self.b = hosts.named("a"), hosts.named("b")
        self.at = AT / mount / name
        self.own = EXPORT / name
        self.own.mkdir()
        self.wrong: list[str] = []
        self.cases = 0
        self._prepare = BREAKS[broken] if broken else None
        self._processes: list[Process] = []

    def on(self, host: Host) -> Process:
        """Begin a process."""
        process = host.process(self._prepare)
        self._processes.append(process)
        return process

    def end(self) -> None:
        """End all that runs."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.kill()

    def expect(self, right: object, what: str) -> None:
        """Note what was expected, where it did not come."""
        if not right:
            self.wrong.append(what)

    def expect_error(self, ended: Ended, *errors: str, of: str) -> None:
        """Expect a call to have raised one of these."""
        self.expect(ended.error in errors, f"{of}: {ended} instead of {' or '.join(errors)}")

    def expect_whole(self, name: str, job: str | None = None, *, of: str = "") -> None:
        """Expect a job to be done and sealed and right on the server's own disk."""
        self.cases += 1
        path, of = self.own / name, f"{of}: " if of else ""
        try:
            target = flowmap.open_target(path)
            seal = Sidecar.of(path).seal.exists()
            found = [str(state) for state in target.status()["state"]]
        except flowmap.FlowmapError as error:
            self.wrong.append(f"{of}{name}: {type(error).__name__}: {error}")
            return
        self.expect(job in (None, target.id), f"{of}{name}: another job")
        self.expect(set(found) == {"done"}, f"{of}{name}: the ledger says {', '.join(found)}")
        self.expect(seal, f"{of}{name}: no seal")
        rows = np.load(path)
        bad = np.flatnonzero(rows != truth(len(rows)))
        self.expect(not len(bad), f"{of}{name}: {len(bad)} wrong rows, from {bad[:1]} on")
        report = flowmap.validate(path, mark=False)
        self.expect(report.ok, f"{of}{name}: validation says {'; '.join(report.problems)}")


class Hosts:
    """The hosts of the machine, which are made when they are first asked for."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._hosts: dict[str, Host] = {}
        self._made = 0

    def named(self, name: str) -> Host:
        """Return a host."""
        if name not in self._hosts:
            self._made += 1
            mounts = {key: MOUNTS[key] for key in MOUNTS}
            self._hosts[name] = Host(f"{name}{self._made}", self._made, self._listener, mounts)
        return self._hosts[name]

    def lose(self, name: str) -> None:
        """Never use a host again: the next one of this name is new."""
        del self._hosts[name]


# ---------------------------------------------------------------------------------- plays


def absent(stage: Stage) -> None:
    """B has remembered that there is no such file, when A has made the whole job."""
    a, b = stage.on(stage.a), stage.on(stage.b)
    names = ("same", "other", "error", "foreign")
    for name in names:
        stage.expect(b.does(not_there, stage.at / name), f"{name} is there before it is made")
    for name in ("same", "other", "error"):
        job = a.does(make, stage.at / name)
        if name == "same":
            ended = b.tries(allocate, stage.at / name)
            stage.expect(ended.value == job, f"attaching on B: {ended}")
        elif name == "other":
            ended = b.tries(allocate, stage.at / name, dtype="<f8")
            stage.expect_error(ended, "OtherJobError", of="another job on B")
        else:
            ended = b.tries(allocate, stage.at / name, exist="error")
            stage.expect_error(ended, "TargetExistsError", of='exist="error" on B')
        stage.expect_whole(name, job)
    a.does(save, stage.at / "foreign")
    before = (stage.own / "foreign").read_bytes()
    ended = b.tries(allocate, stage.at / "foreign")
    stage.expect_error(ended, "ForeignFileError", "TargetExistsError", of="a foreign file")
    same = (stage.own / "foreign").read_bytes() == before
    stage.expect(same, "the foreign file is not what it was")
    left = Sidecar.of(stage.own / "foreign")
    stage.expect(not left.job.exists() and not left.ledger.exists(), "records of a foreign file")


def save(path: Path) -> None:
    """Save an array that flowmap knows nothing of."""
    with path.open("wb") as file:
        np.save(file, truth())


def overtaken(stage: Stage) -> None:
    """A has half of a segment when B claims and finishes it; A goes on, or fails."""
    for name, row, more in (
        ("goes-on", 2 * SEGMENT_ROWS + 2 * BLOCK_ROWS, {}),
        ("last-block", 3 * SEGMENT_ROWS - BLOCK_ROWS, {}),
        ("fails", 3 * SEGMENT_ROWS - BLOCK_ROWS, {"fails": (3 * SEGMENT_ROWS - BLOCK_ROWS,)}),
    ):
        a, b = stage.on(stage.a), stage.on(stage.b)
        path = stage.at / name
        job = a.does(allocate, path)
        a.pauses(fill, path, 2, pauses=(row,), **more)
        b.does(fill, path)
        stage.expect(not b.does(validate, path), f"{name}: not valid before A goes on")
        a.go_on()
        lost = ("ClaimLostError", "FillerError") if more else ("ClaimLostError",)
        stage.expect_error(a.ends(), *lost, of=f"{name}: A")
        stage.expect_whole(name, job)


def overtaken_at_a_write(stage: Stage, every: int = 3) -> None:
    """A is stopped before each of its writes, while B claims and finishes the segment."""
    a, b = stage.on(stage.a), stage.on(stage.b)
    a.does(allocate, stage.at / "count")
    count = a.does(written, None, fill, stage.at / "count", 1)
    for step in range(1, count, every):
        name = f"step-{step}"
        a, path = stage.on(stage.a), stage.at / name
        job = b.does(allocate, path)
        a.pauses(written, step, fill, path, 1)
        b.does(fill, path)
        stage.expect(not b.does(validate, path), f"{name}: not valid before A goes on")
        a.go_on()
        stage.expect_error(a.ends(), "ClaimLostError", of=f"{name} of {count}: A")
        stage.expect_whole(name, job, of=f"write {step} of {count}")


def lease(stage: Stage) -> None:
    """B has looked for a lease before A took it; while A's run lives, B's is refused."""
    a, b = stage.on(stage.a), stage.on(stage.b)
    path = stage.at / "leased"
    job = a.does(allocate, path)
    b.does(lease_of, path)
    a.pauses(run, path, "of A", pauses=(2 * SEGMENT_ROWS,))
    stage.expect_error(b.tries(run, path, "of B"), "JobBusyError", of="the run of B")
    a.go_on()
    ended = a.ends()
    stage.expect(ended.value == SEGMENTS, f"the run of A: {ended}")
    stage.expect(not a.does(validate, path), "not valid after A's run")
    stage.expect_whole("leased", job)


def lease_of(path: Path) -> Any:
    """Look for the lease of a job."""
    return flowmap.lease.holder(flowmap.open_target(path).job)


def short_lease() -> None:
    """Let a lease hold for seconds only, in this process."""
    flowmap.lease.REFRESH, flowmap.lease.TERM = 1.0, 5.0  # type: ignore[misc]


def interleaved(stage: Stage, rounds: int = 2) -> None:
    """A fills the even segments and B the odd ones, at the same time."""
    for number in range(rounds):
        name = f"round-{number}"
        a, b = stage.on(stage.a), stage.on(stage.b)
        path = stage.at / name
        shape = {"segments": (BLOCK_ROWS,) * (ROWS // BLOCK_ROWS), "block_rows": 100}
        job = a.does(allocate, path, **shape)
        a.begin(fill, path, *range(0, ROWS // BLOCK_ROWS, 2))
        b.begin(fill, path, *range(1, ROWS // BLOCK_ROWS, 2))
        for process, who in ((a, "A"), (b, "B")):
            ended = process.ends()
            stage.expect(not ended.error, f"{who}: {ended}")
        problems = (a, b)[number % 2].does(validate, path)
        stage.expect(not problems, f"{name}: {'; '.join(problems)}")
        stage.expect_whole(name, job)


def cut(stage: Stage) -> None:
    """A is cut off in the middle of its work; B does all of it; A comes back and goes on."""
    b = stage.on(stage.b)
    half = {"block_rows": BLOCK_ROWS // 2}
    paths = {name: stage.at / name for name in ("claimed", "late", "in-flight", "leased")}
    jobs, on_a = {}, {}
    for name, path in paths.items():
        a = on_a[name] = stage.on(stage.a)
        jobs[name] = a.does(allocate, path, **({} if name == "claimed" else half))
        if name == "leased":
            a.does(short_lease)
            a.pauses(run, path, "of A", pauses=(2 * SEGMENT_ROWS,))
        else:
            # With half a page written the client has the other half from before B's time.
            row = SEGMENT_ROWS + (2 * BLOCK_ROWS if name == "claimed" else BLOCK_ROWS // 2)
            a.pauses(fill, path, 1, pauses=(row,))
    stage.a.cut()
    try:
        on_a["in-flight"].go_on()
        b.does(short_lease)
        deadline = time.monotonic() + 60
        ended = b.tries(run, paths["leased"], "of B")
        stage.expect_error(ended, "JobBusyError", of="the run of B while A's lease is fresh")
        while ended.error == "JobBusyError" and time.monotonic() < deadline:
            time.sleep(1)
            ended = b.tries(run, paths["leased"], "of B")
        stage.expect(not ended.error, f"the run of B: {ended}")
        for name, path in paths.items():
            ended = b.tries(fill, path)
            stage.expect(not ended.error, f"{name}: filling on B: {ended}")
            problems = b.does(validate, path)
            stage.expect(not problems, f"{name}: {'; '.join(problems)}")
            stage.expect_whole(name, jobs[name], of="before A is back")
    finally:
        stage.a.mend()
    for name in ("claimed", "late", "leased"):
        on_a[name].go_on()
    for name, a in on_a.items():
        lost = ("SegmentsFailedError", "JobBusyError") if name == "leased" else ("ClaimLostError",)
        stage.expect_error(a.ends(), *lost, of=f"{name}: A")
    stage.on(stage.a).does(os.sync)
    for name, path in paths.items():
        stage.expect_whole(name, jobs[name], of="after A is back")
    forget()
    for name, path in paths.items():
        problems = stage.on(stage.b).does(validate, path)
        stage.expect(not problems, f"{name} on B in the end: {'; '.join(problems)}")


PLAYS: Final[dict[str, Callable[[Stage], None]]] = {
    play.__name__: play
    for play in (absent, overtaken, overtaken_at_a_write, lease, interleaved, cut)
}


def main(results: str, *wanted: str) -> None:
    """Play what is asked for, and write down what was wrong.

    Args:
        results: The folder outside.
        wanted: "play@mount" or "play@mount@break", in this order.
    """
    listener = nfs_hosts.prepare_machine(results)
    nfs_hosts.serve("/dev/ubda")
    hosts = Hosts(listener)
    played = []
    for number, asked in enumerate(wanted):
        name, mount, broken = (asked.split("@") + [""])[:3]
        began = time.monotonic()
        stage = Stage(hosts, mount, f"play-{number}", broken)
        try:
            PLAYS[name](stage)
        except Exception:  # noqa: BLE001 -- what it says is all that comes out of here
            stage.wrong.append(traceback.format_exc())
        finally:
            stage.end()
        took = time.monotonic() - began
        print(f"{asked}: {took:.1f} s: {'; '.join(stage.wrong) or 'nothing wrong'}", flush=True)
        played.append(
            {
                "play": name,
                "mount": mount,
                "broken": broken,
                "cases": stage.cases,
                "seconds": took,
                "wrong": stage.wrong,
            }
        )
        (RESULTS / "played.json").write_text(json.dumps(played))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:  # noqa: BLE001 -- nobody sees this process but by what it prints
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        nfs_hosts.switch_off()
