"""What two hosts do to one job on NFS: plays, each of which notes what is wrong after it.

`nfs_machine` runs this file as the first process of the machine. What counts in the end is what
the server's own disk has.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

import nfs_acts as act
import nfs_server
from nfs_acts import BLOCK_ROWS, ROWS, SEGMENT_ROWS, SEGMENTS
from nfs_disasters import cut, killed
from nfs_hosts import listening
from nfs_stage import BREAKS, Hosts, Stage, knowing

# Loaded before the hosts are forked, so that no process loads them again.
import flowmap.alloc
import flowmap.executors
import flowmap.validation
import flowmap.workers
import flowmap.write  # noqa: F401
from flowmap.records import FINISHED
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def absent(stage: Stage) -> None:
    """B has remembered that there is no such file when A makes the whole job."""
    a, b = stage.on(stage.a), stage.on(stage.b)
    for name in ("same", "other", "error", "foreign"):
        stage.expect(b.does(act.is_absent, stage.at / name), f"{name} is there already")
    job = a.does(act.make, stage.at / "same")
    ended = b.tries(act.allocate, stage.at / "same")
    stage.expect(ended.value == job, f"attaching on B: {ended}")
    stage.expect_whole("same", job)
    job = a.does(act.make, stage.at / "other")
    ended = b.tries(act.allocate, stage.at / "other", dtype="<f8")
    stage.expect_ended(ended, "OtherJobError", of="another job on B")
    stage.expect_whole("other", job)
    job = a.does(act.make, stage.at / "error")
    ended = b.tries(act.allocate, stage.at / "error", exist="error")
    stage.expect_ended(ended, "TargetExistsError", of='exist="error" on B')
    stage.expect_whole("error", job)
    a.does(act.save, stage.at / "foreign")
    before = (stage.own / "foreign").read_bytes()
    ended = b.tries(act.allocate, stage.at / "foreign")
    stage.expect_ended(ended, "ForeignFileError", "TargetExistsError", of="a foreign file")
    same = (stage.own / "foreign").read_bytes() == before
    stage.expect(same, "the foreign file is not what it was")
    left = [path.name for path in Sidecar.of(stage.own / "foreign").folder.glob("*")]
    stage.expect(set(left) <= {"header.lock"}, f"left beside the foreign file: {left}")


def overtaken(stage: Stage) -> None:
    """A has half of a segment when B claims and finishes it; A goes on, or fails."""
    last = 3 * SEGMENT_ROWS - BLOCK_ROWS
    for name, row, fails in (
        ("goes-on", last - BLOCK_ROWS, ()),
        ("last-block", last, ()),
        ("fails", last, (last,)),
    ):
        a, b, path = stage.on(stage.a), stage.on(stage.b), stage.at / name
        job = a.does(act.allocate, path)
        a.does(act.at, pauses=(row,), fails=fails)
        a.pauses(act.fill, path, 2)
        b.does(act.fill, path)
        stage.expect_none(b.does(act.validate, path), f"{name}: before A goes on")
        a.go_on()
        lost = ("FillerError",) if fails else ()
        stage.expect_ended(a.ends(), "ClaimLostError", *lost, of=f"{name}: A")
        stage.expect_whole(name, job, of="after A")


def overtaken_at_a_write(stage: Stage) -> None:
    """A is stopped before a write, of any, while B claims and finishes the segment.

    Half of the segments have failed once before, since an attempt then does more. Before A has
    claimed the segment itself, it may cost B's record, and the seal: then the job is run again.
    """
    b, failing = stage.on(stage.b), stage.on(stage.b)
    failing.does(act.at, fails=(0,))
    for way, durability in itertools.product(("fill", "write", "store"), ("segment", "end")):
        do, failed = getattr(act, way), int(durability == "end")

        def made(path: Path, durability: str = durability, failed: int = failed) -> str:
            job = b.does(
                act.allocate, path, shape=SEGMENT_ROWS, segments=1, durability=durability
            )
            if failed:
                stage.expect_ended(failing.tries(act.fill, path), "FillerError", of=path.name)
            return str(job)

        path = stage.at / f"{way}-{durability}"
        made(path)
        count = stage.on(stage.a).does(act.at_a_write, None, do, path)
        for step in range(count) if stage.whole else range(2, count, 7):
            a, path = stage.on(stage.a), stage.at / f"{way}-{durability}-{step}"
            job = made(path)
            a.pauses(act.at_a_write, step, do, path)
            attempts, state = b.does(act.standing, path)
            what = f"before write {step} of {count}"
            if state not in FINISHED:
                b.does(do, path)
            stage.expect_none(b.does(act.validate, path), f"{path.name}, {what}: on B")
            a.go_on()
            ended = a.ends()
            if state not in FINISHED:
                stage.expect_ended(ended, "ClaimLostError", of=f"{path.name}, {what}: A")
            a.kill()
            if attempts == failed:
                b.does(act.fill if way == "fill" else act.write, path)
                stage.expect_none(b.does(act.validate, path), f"{path.name}, {what}: again")
            stage.expect_whole(path.name, job, of=what)


def leased(stage: Stage) -> None:
    """B has looked for a lease before A took it; B's clock is right, or ten minutes off."""
    for ahead in (0, 600, -600):
        name = f"clock-{ahead}"
        a, b, path = stage.on(stage.a), stage.on(stage.b), stage.at / name
        job = a.does(act.allocate, path)
        b.does(act.set_clock, ahead)
        b.does(act.look_for_lease, path)
        a.does(act.at, pauses=(2 * SEGMENT_ROWS,))
        a.pauses(act.run, path, "of A")
        ended = b.tries(act.run, path, "of B")
        stage.expect_ended(ended, "JobBusyError", of=f"{name}: the run of B")
        a.go_on()
        ended = a.ends()
        stage.expect(ended.value == SEGMENTS, f"{name}: the run of A: {ended}")
        stage.expect_none(a.does(act.validate, path), f"{name}: after the run of A")
        stage.expect_whole(name, job)


def racing(stage: Stage) -> None:
    """Two processes of each host allocate a job at once that one of B's has looked for."""
    processes = [stage.on(host) for host in (stage.a, stage.b) * 2]
    for number in range(40 if stage.whole else 2):
        name = f"round-{number}"
        path = stage.at / name
        processes[1].does(act.is_absent, path)
        for process in processes:
            process.begin(act.allocate, path)
        ends = [process.ends() for process in processes]
        jobs = {ended.value for ended in ends}
        stage.expect(
            None not in jobs and len(jobs) == 1, f"{name}: {', '.join(map(str, ends))}"
        )
        for process in processes[:2]:
            process.does(act.fill, path)
        stage.expect_none(processes[0].does(act.validate, path), name)
        stage.expect_whole(name, next(iter(jobs)))


def interleaved(stage: Stage) -> None:
    """A fills the even segments and B the odd ones, each a page, at the same time."""
    pages = ROWS // BLOCK_ROWS
    a, b = stage.on(stage.a), stage.on(stage.b)
    for number in range(100 if stage.whole else 1):
        name = f"round-{number}"
        path = stage.at / name
        job = a.does(act.allocate, path, segments=(BLOCK_ROWS,) * pages, block_rows=100)
        a.begin(act.fill, path, *range(0, pages, 2))
        b.begin(act.fill, path, *range(1, pages, 2))
        stage.expect_ended(a.ends(), of=f"{name}: A")
        stage.expect_ended(b.ends(), of=f"{name}: B")
        validating = (a, b)[number % 2]
        stage.expect_none(validating.does(act.validate, path), name)
        stage.expect_whole(name, job)


def overwritten(stage: Stage) -> None:
    """A replaces the job, by other values and a longer one, that B is filling."""
    for name, changes in (
        ("other-dtype", {"dtype": "<f8"}),
        ("longer", {"shape": 2 * ROWS, "segments": (2 * SEGMENT_ROWS,) * SEGMENTS}),
    ):
        a, b, other = stage.on(stage.a), stage.on(stage.b), stage.on(stage.b)
        path = stage.at / name
        a.does(act.allocate, path)
        a.does(act.fill, path, 0)
        b.does(act.at, pauses=(SEGMENT_ROWS + BLOCK_ROWS,))
        b.pauses(act.fill, path, 1)
        stage.expect_none(other.does(act.lies, path), f"{name}, on B before")
        job = a.does(act.make, path, exist="overwrite", **changes)
        ended = other.tries(act.allocate, path, **changes)
        stage.expect(ended.value == job, f"{name}: attaching on B: {ended}")
        stage.expect_none(other.does(act.lies, path), f"{name}, on B after")
        b.go_on()
        ended = b.ends()
        told = ("OtherJobError", "ForeignFileError", "ClaimLostError")
        stage.expect_ended(ended, *told, of=f"{name}: B")
        stage.expect_whole(name, job)


def seen(stage: Stage) -> None:
    """B reads in every way while A fills: no row that is shown lacks its bytes."""
    a, b, path = stage.on(stage.a), stage.on(stage.b), stage.at / "seen"
    job = a.does(act.allocate, path)
    b.does(act.lies, path)  # B has zeros in its cache from here on
    blocks = range(0, ROWS, BLOCK_ROWS)
    a.does(act.at, pauses=blocks)
    a.pauses(act.fill, path)
    for row in blocks:
        stage.expect_none(b.does(act.lies, path), f"on B, before row {row}")
        a.go_on()
        a.wait()
    stage.expect_none(b.does(act.lies, path), "on B in the end")
    stage.expect_none(b.does(act.validate, path), "on B")
    stage.expect_whole("seen", job)


def cleaned(stage: Stage) -> None:
    """A cleans while the ledger is open elsewhere: nothing is left, or it is said."""
    for name, host, to_write in (
        ("open-on-B", stage.b, False),
        ("open-to-write-on-B", stage.b, True),
        ("open-on-A", stage.a, False),
    ):
        a, holding, path = stage.on(stage.a), stage.on(host), stage.at / name
        a.does(act.make, path)
        holding.pauses(act.hold_ledger, path, to_write=to_write)
        ended = a.tries(act.clean, path)
        left = [entry.name for entry in stage.own.iterdir() if name in entry.name]
        left.remove(name)
        stage.cases += 1
        said = ended.error and all(entry in ended.text for entry in left)
        stage.expect(not left or said, f"{name}: {ended}, and {', '.join(left)} is left")
        holding.go_on()
        stage.expect_ended(holding.ends(), of=f"{name}: the process with the ledger")


def odd_rows(stage: Stage) -> None:
    """Rows do not divide a page: whatever the error advises works when it is followed."""
    a = stage.on(stage.a)
    for rows, dtype, segments in (
        (12345, _rows_of(24), 8),
        (12345, _rows_of(24), 100),
        (250_000, _rows_of(24), 300),
        (30_000, _rows_of(10), 7),
        (2500, _rows_of(4100), 2),
        (10, _rows_of(4100), 2),
        (4096, [(f"{i}{'x' * 999}", "<i8") for i in range(9)], 2),  # a header without padding
    ):
        name = f"{rows}-rows-in-{segments}"
        job = {"shape": rows, "dtype": dtype, "segments": segments}
        ended = a.tries(act.bounds, stage.at / name, **job)
        stage.expect_ended(ended, "InvalidArgumentError", of=name)
        advice = list(_advised(ended.text, rows))
        stage.expect(advice, f"{name}: no advice in {ended.text}")
        for number, changes in enumerate(advice):
            stage.cases += 1
            followed = a.tries(act.bounds, stage.at / f"{name}-{number}", **(job | changes))
            right = not followed.error and not any(at % PAGE for at in followed.value)
            stage.expect(right, f"{name}: {ended.text} With {changes}: {followed}")
        free = a.tries(act.bounds, stage.at / f"{name}-free", **(job | {"segments": None}))
        for most in re.findall(r"count up to (\d+)|which makes (\d+)", ended.text):
            few = free.error or int("".join(most)) < len(free.value) + 1
            stage.expect(not few, f"{name}: {ended.text} With segments=None: {free}")


def _rows_of(row_bytes: int) -> list[tuple[str, str]]:
    return [("n", "<i8"), ("rest", f"V{row_bytes - 8}")]


def _advised(text: str, rows: int) -> Iterator[dict[str, Any]]:
    """Yield the arguments that a message suggests; there are more ways than it has words."""
    for found in re.findall(r"segments=(None|\d+)", text):
        yield {"segments": int(found) if found.isdigit() else None}
    for found in re.findall(r"count (?:up to|of \d+ to) (\d+)", text):
        yield {"segments": int(found)}
    for found in re.findall(r"count of (\d+) to \d+", text):
        yield {"segments": int(found)}
    for found in re.findall(r"each but the last a multiple of (\d+)", text):
        full, rest = divmod(rows, int(found))
        yield {"segments": [int(found)] * full + [rest] * bool(rest)}
    for found in re.findall(r"pad each row to (\d+) bytes", text):
        yield {"dtype": _rows_of(int(found))}
    if "pad the dtype so that rows divide 4096 bytes" in text:
        yield {"dtype": _rows_of(4096)}


PLAYS: Final[dict[str, Callable[[Stage], None]]] = {
    play.__name__: play
    for play in (
        *(absent, racing, overtaken, overtaken_at_a_write, leased, interleaved, killed, cut),
        *(overwritten, seen, cleaned, odd_rows),
    )
}


def main(results: str, size: str, *wanted: str) -> None:
    """Play what is asked for, and write down what was wrong.

    Args:
        results: The folder outside.
        size: "short" or "whole".
        wanted: "play@mount" or "play@mount@break", in this order.
    """
    nfs_server.prepare_machine(results)
    for what in itertools.chain(*BREAKS.values()):
        knowing(what)
    nfs_server.serve("/dev/ubda")
    hosts = Hosts(listening())
    played = list[dict[str, Any]]()
    for number, asked in enumerate(wanted):
        name, mount, broken = [*asked.split("@"), ""][:3]
        began = time.monotonic()
        stage = Stage(hosts, mount, f"play-{number}", broken, whole=size == "whole")
        try:
            PLAYS[name](stage)
        except Exception:  # noqa: BLE001 -- whatever it is, it is the result of the play
            stage.wrong.append(traceback.format_exc())
        stage.end()
        result = {
            "seconds": time.monotonic() - began,
            "cases": stage.cases,
            "wrong": stage.wrong,
        }
        print(asked, json.dumps(result, indent=1), flush=True)  # noqa: T201 -- on the console
        played.append({"play": name, "mount": mount, "broken": broken} | result)
        (nfs_server.RESULTS / "played.json").write_text(json.dumps(played))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:  # noqa: BLE001 -- the console of the machine is all that is seen
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        nfs_server.switch_off()
