"""Hosts that are killed or cut off in the middle of their work: plays of `nfs_plays`."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import nfs_acts as act
import nfs_server
from nfs_acts import BLOCK_ROWS, SEGMENT_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nfs_hosts import Ended, Process
    from nfs_stage import Stage

_HALF: Final = BLOCK_ROWS // 2
_LAST: Final = 2 * SEGMENT_ROWS - BLOCK_ROWS


@dataclass(frozen=True, slots=True)
class _Work:
    """What A is in the middle of when it is cut off.

    Attributes:
        pause: The row before which it pauses, in the second segment.
        told: The errors of which it must get one when it goes on; none where it never does.
        block_rows: Of the job. With half a page written the client has the other half as it
            was, too.
        fails: The row at which it fails.
    """

    pause: int
    told: tuple[str, ...]
    block_rows: int = BLOCK_ROWS
    fails: tuple[int, ...] = ()


_MIDDLES: Final = {
    "claimed": _Work(SEGMENT_ROWS + 2 * BLOCK_ROWS, ("ClaimLostError",)),
    "fails": _Work(_LAST, ("ClaimLostError", "FillerError"), fails=(_LAST,)),
    "late": _Work(SEGMENT_ROWS + _HALF, (), _HALF),
    "in-flight": _Work(SEGMENT_ROWS + _HALF, ("ClaimLostError",), _HALF),
    "leased": _Work(SEGMENT_ROWS, ("SegmentsFailedError", "JobBusyError")),
    "replaced": _Work(SEGMENT_ROWS + BLOCK_ROWS, ("OtherJobError",)),
}
"""What happens to the job meanwhile, or what A does.

"late": its process dies, and its client writes what it has when the link is back. "in-flight":
it goes on without the link. "leased": it is a run. "replaced": B allocates the job anew.
"""


@dataclass(slots=True)
class _Job:
    """One job in the middle of which A is.

    Attributes:
        name: Of `_MIDDLES`.
        path: As both hosts have it mounted.
        process: Of A.
        id: Of the job.
    """

    name: str
    path: Path
    process: Process
    id: str


def killed(stage: Stage) -> None:
    """All processes of A are killed, each at another step; B does all of it."""
    paths = _stopped_at_steps(stage, "a")
    stage.a.kill_all()
    _run_to_the_end(stage, paths)


def cut(stage: Stage) -> None:
    """A is cut off in the middle of its work; B does all of it; A comes back and goes on.

    At the same time another host is cut off for good, at each step of its work.
    """
    jobs = [_begun(stage, *of) for of in itertools.product(("4.1", "4.2"), _MIDDLES)]
    b = stage.on(stage.b)
    for job in jobs:
        if job.name == "leased":
            ended = b.tries(act.run, job.path, "of B")
            stage.expect_ended(ended, "JobBusyError", of=f"{job.path.name}: B, before the cut")
    paths = _stopped_at_steps(stage, "c")
    stage.hosts.lose("c")
    stage.a.cut()
    try:
        _do_instead(stage, jobs)
        _run_to_the_end(stage, paths)
    finally:
        stage.a.mend()
    for job in jobs:
        told = _MIDDLES[job.name].told
        if told:
            if job.name != "in-flight":
                job.process.go_on()
            stage.expect_ended(job.process.ends(), *told, of=f"{job.path.name}: A")
    for mount in ("4.1", "4.2"):
        stage.on(stage.a).does(act.sync, stage.through(mount))
    for job in jobs:
        stage.expect_whole(job.path.name, job.id, of="after A is back")
    nfs_server.forget()
    for job in jobs:
        problems = stage.on(stage.b).does(act.validate, job.path)
        stage.expect_none(problems, f"{job.path.name}, on B in the end")


def _begun(stage: Stage, mount: str, name: str) -> _Job:
    """Let A begin a job, and pause in the middle of it."""
    work, path = _MIDDLES[name], stage.through(mount) / f"{name}-{mount}"
    a = stage.on(stage.a)
    job = _Job(name, path, a, a.does(act.allocate, path, block_rows=work.block_rows))
    a.does(act.at, pauses=(work.pause,), fails=work.fails)
    if name == "leased":
        a.does(act.shorten_leases)
        a.pauses(act.run, path, "of A")
    else:
        a.pauses(act.fill, path, 1)
    return job


def _do_instead(stage: Stage, jobs: list[_Job]) -> None:
    """Let B do what A is cut off from."""
    b = stage.on(stage.b)
    b.does(act.shorten_leases)
    for job in jobs:
        if job.name == "in-flight":
            job.process.go_on()
        elif job.name == "late":
            job.process.kill()
    for job in jobs:
        name = job.path.name
        if job.name == "leased":
            ended = _in_the_end(b, "JobBusyError", act.run, job.path, "of B")
        elif job.name == "replaced":
            ended = b.tries(act.make, job.path, exist="overwrite", dtype="<f8")
            job.id = ended.value
        else:
            ended = b.tries(act.fill, job.path)
        stage.expect_ended(ended, of=f"{name}: B")
        stage.expect_none(b.does(act.validate, job.path), f"{name}: on B")
        stage.expect_whole(name, job.id, of="before A is back")


def _in_the_end(process: Process, error: str, do: Callable[..., Any], *given: Any) -> Ended:
    """Let a process do something again while it raises such an error, for a while."""
    until = time.monotonic() + 90
    while (ended := process.tries(do, *given)).error == error and time.monotonic() < until:
        time.sleep(1)
    return ended


def _stopped_at_steps(stage: Stage, host: str) -> list[Path]:
    """Stop processes of a host, each at another step of a job that B has looked for before."""
    paths, b = [], stage.on(stage.b)
    for way in ("allocate", "fill"):
        counting = stage.on(stage.hosts.named(host))
        given: list[Any] = [stage.at / f"{way}-{host}"]
        if way == "fill":
            counting.does(act.allocate, *given)
            given.append(1)
        count = counting.does(act.at_a_change, None, getattr(act, way), *given)
        for step in range(0, count, 1 if stage.whole else 12):
            path = stage.at / f"{way}-{host}-{step}-of-{count}"
            process = stage.on(stage.hosts.named(host))
            b.does(act.is_absent, path)
            if way == "fill":
                process.does(act.allocate, path)
            process.pauses(act.at_a_change, step, getattr(act, way), path, *given[1:])
            paths.append(path)
    return paths


def _run_to_the_end(stage: Stage, paths: list[Path]) -> None:
    """Let B run jobs to the end of which somebody else died."""
    b = stage.on(stage.b)
    for path in paths:
        ended = _in_the_end(b, "LockTimeoutError", act.allocate, path)
        stage.expect_ended(ended, of=f"{path.name}: B allocates")
        if not ended.error:
            stage.expect_ended(b.tries(act.fill, path), of=f"{path.name}: B fills")
            stage.expect_none(b.does(act.validate, path), f"{path.name}: on B")
        stage.expect_whole(path.name)
