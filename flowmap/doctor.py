"""What goes wrong for people, looked for all at once, and what to do about each."""

from __future__ import annotations

import functools
import os
import resource
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowmap import human
from flowmap.diagnosis_of_folders import examine_folder
from flowmap.diagnosis_of_prefect import prefect, versions
from flowmap.errors import FlowmapError, ForeignFileError
from flowmap.findings import Finding, guarded, refused
from flowmap.job import read_job
from flowmap.kernel import free_bytes
from flowmap.lease import holder
from flowmap.machine import NETWORK_FILE_SYSTEMS, available_cpus, file_system_type
from flowmap.records import FINISHED
from flowmap.sidecar import absolute
from flowmap.storage import PAGE
from flowmap.target import Target, open_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Finding", "examine"]

_FEWEST_OPEN: Final = 1024  # descriptors: what any Linux gives at least


def examine(path: str | os.PathLike[str] | None = None) -> list[Finding]:
    """Look at what goes wrong for people: versions, Prefect, a folder, a target, limits.

    Nothing is changed: what is tried out is tried in a private folder, which is removed.
    Prefect is not imported. A server is asked for its health, version and settings, without
    any key.

    Args:
        path: Of a target, which may be yet to be made; or a folder. None for the working
            directory.

    Returns:
        What was found, in a fixed order. A check that fails itself is a finding as well.
    """
    return [
        *guarded("packages", versions),
        *guarded("settings", prefect),
        *guarded("folder", functools.partial(_place, path)),
        *guarded("processors", _processors),
        *guarded("memory", _memory),
        *guarded("open files", _open_files),
        *guarded("file size", functools.partial(_file_size, path)),
    ]


def _place(path: str | os.PathLike[str] | None) -> Iterator[Finding]:
    """Look at a folder, and at the target in it if one is meant."""
    if path is None:
        yield from examine_folder(Path.cwd())
    elif _is_folder(path):
        yield from examine_folder(Path(os.path.realpath(os.fsdecode(path))))
    else:
        target = absolute(path)
        yield from examine_folder(target.parent)
        if os.path.lexists(target):
            yield from guarded("target", functools.partial(_target, target))


def _is_folder(path: str | os.PathLike[str]) -> bool:
    given: object = path  # whatever a caller gives
    return isinstance(given, str | os.PathLike) and Path(os.fsdecode(given)).is_dir()


def _target(path: Path) -> Iterator[Finding]:
    """Look at a target that is there."""
    try:
        target = open_target(path)
        status = target.status()
    except ForeignFileError as error:
        yield refused("target", error, level="note")
        return
    except FlowmapError as error:
        yield refused("target", error, "Look at the disk, and at the permissions of its files.")
        return
    done = sum(state in FINISHED for state in status["state"].tolist())
    yield Finding("target", "ok", f"{path} has {len(status)} segments, {done} of them filled.")
    yield from guarded("pages", functools.partial(_pages, target))
    yield from guarded("reserved", functools.partial(_reserved, target, status))
    yield from guarded("lease", functools.partial(_lease, target))


def _pages(target: Target) -> Iterator[Finding]:
    """Look for segments that share pages where that loses data; elsewhere say nothing."""
    kind, job = file_system_type(target.path), target.job
    if kind not in NETWORK_FILE_SYSTEMS:
        return
    advice = job.plan.keeping_apart(job.layout.row_bytes, PAGE, job.data_offset)
    if advice is None:
        yield Finding("pages", "ok", f"No two segments share a page of {PAGE} bytes.")
        return
    yield Finding(
        "pages",
        "trouble",
        f"{target.path} is on {kind}, where two hosts that write to one page of {PAGE} bytes "
        "lose data, and its segments share pages.",
        f"Fill it from one host only, or allocate it anew. {advice}.",
    )


def _reserved(target: Target, status: NDArray[Any]) -> Iterator[Finding]:
    """Compare what segments that are not filled may still take with the free space."""
    rows = sum(
        stop - start
        for state, start, stop in status[["state", "start", "stop"]].tolist()
        if state not in FINISHED
    )
    size = target.path.stat()
    lacking = max(0, size.st_size - size.st_blocks * 512)  # stat(2): its unit, on any disk
    needed = min(rows * target.job.layout.row_bytes, lacking)
    free = free_bytes(os.statvfs(target.path.parent))
    lacks = f"{human.size(needed)} of it have no space reserved"
    if not needed:
        yield Finding("reserved", "ok", "What is left to fill has its space.")
    elif free is None:
        found = f"{lacks}, and the free space is unknown."
        yield Finding("reserved", "note", found, "See that there is room for it.")
    elif needed <= free:
        yield Finding("reserved", "ok", f"{lacks}, and {human.size(free)} are free.")
    else:
        yield Finding(
            "reserved",
            "trouble",
            f"{lacks}, and only {human.size(free)} are free.",
            f"Free {human.size(needed - free)} or more there, or allocate it on another disk.",
        )


def _lease(target: Target) -> Iterator[Finding]:
    """Say which run has the job, or died with it."""
    lease = holder(target.job)
    if lease is None:
        yield Finding("lease", "ok", "No run is filling it.")
        return
    run = f"{lease['name']} (process {lease['pid']} on {lease['host']})"
    if lease["live"]:
        yield Finding("lease", "ok", f"The run {run} is filling it.")
        return
    yield Finding(
        "lease",
        "note",
        f"The run {run} does not hold the job: it ended, or its lease is a minute old.",
        "Run the job again, which takes it over: what is done is kept.",
    )


def _processors() -> Iterator[Finding]:
    """Report how many workers a run has by itself."""
    yield Finding(
        "processors",
        "ok",
        f"This process may use {available_cpus()} of {os.cpu_count()} processors, by its "
        "affinity, its cgroup and its batch system.",
    )


def _memory() -> Iterator[Finding]:
    """Look at what worker processes need of the system's own folders."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        found = "No folder for temporary files can be written to."
        yield Finding("memory", "note", found, "export TMPDIR=/a/folder/of/yours")
        return
    yield Finding("memory", "ok", "Worker processes find what they need.")


def _open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FEWEST_OPEN:
        yield Finding("open files", "ok", "A process may have enough files open.")
        return
    more = hard == resource.RLIM_INFINITY or hard >= _FEWEST_OPEN
    line = f"ulimit -n {_FEWEST_OPEN}"
    yield Finding(
        "open files",
        "note",
        f"A process may have {soft} files open, few for a pool of many workers.",
        line if more else f"Ask an administrator for more; then: {line}",
    )


def _file_size(path: str | os.PathLike[str] | None) -> Iterator[Finding]:
    """Compare the limit for a file's size with the target, where there is one."""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most == resource.RLIM_INFINITY:
        yield Finding("file size", "ok", "A file may be of any size.")
        return
    size = _size(path)
    found = f"A file may have {human.size(most)} at most, by a limit of this shell"
    if size > most:
        found = f"{found}, and the target has {human.size(size)}."
        yield Finding("file size", "trouble", found, "ulimit -f unlimited")
    else:
        yield Finding("file size", "note", f"{found}.", "ulimit -f unlimited")


def _size(path: str | os.PathLike[str] | None) -> int:
    """Return how many bytes a target has, 0 where there is none."""
    try:
        return 0 if path is None or _is_folder(path) else read_job(absolute(path)).size
    except FlowmapError:  # what is wrong with it is found elsewhere
        return 0
