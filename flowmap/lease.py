"""The lease: one run at a time fills a job."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from flowmap.documents import publish_json, read_json
from flowmap.errors import JobBusyError, printable, told
from flowmap.job import Job, refuse_replaced
from flowmap.locks import header_lock
from flowmap.machine import host_name, is_alive, machine_id, process_started
from flowmap.overtaken import what_is_there
from flowmap.publication import remove_stale
from flowmap.sidecar import FORMAT, Sidecar
from flowmap.starting import start
from flowmap.stopping import refuse_if_asked
from flowmap.storage import NotRegularError, file_system_time, sync_folder, unlink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import UnionType

REFRESH: Final = 10.0
"""Seconds between two refreshes of a lease."""

TERM: Final = 60.0
"""Seconds that a lease holds without one: six refreshes, for a file system that hangs."""

LOOKS: Final = 20
"""Looks, a second apart, at a lease that seems old, before another run takes it over.

Some file systems stamp a file with the clock of the host that writes it (Lustre, FUSE). If that
clock is behind, a lease seems old although it is refreshed. Two refreshes show that it is not.
"""

_FIELDS: Final[dict[str, type | UnionType]] = {
    **dict.fromkeys(("job", "token", "name", "host", "machine"), str),
    "pid": int,
    "process_started": int | None,
    "refreshed": float,
}
"""What a lease must say to be one."""

_HELD: Final[set[str]] = set()
"""The tokens of the leases that this process holds."""

_LOGGER: Final = logging.getLogger("flowmap")


class Lease:
    """The right to fill a job, held by a run; `leased` makes it.

    Args:
        job: The job.
        document: What `run.json` says.
    """

    def __init__(self, job: Job, document: dict[str, Any]) -> None:
        self._job = job
        self._path = Sidecar.of(job.path).run
        self._document = document
        self._refreshed = document["refreshed"]
        self._ended = threading.Event()
        self._lost: str | None = None
        self._work_left = False

    @property
    def token(self) -> str:
        """Token of this run, for `is_over`."""
        return str(self._document["token"])

    def note_work_left(self) -> None:
        """Note that workers still have segments of this run; `end` then leaves word to them."""
        self._work_left = True

    def check(self, *, now: bool = False) -> None:
        """Look whether the run still has the job.

        Args:
            now: Whether to read the lease, and not wait for its thread to: a segment that
                failed may have done so because another run has it.

        Raises:
            JobBusyError: Another run took it over, or the target was allocated anew.
        """
        if now:
            with contextlib.suppress(OSError):
                self._is_ours()
        if self._lost is not None:
            raise JobBusyError(f"The run {self._document['name']} lost the job {self._lost}")

    @property
    def dead(self) -> list[str]:
        """What identifies the runs that died with the lease, and were not closed since."""
        return list(self._document["dead"])

    def forget_dead(self) -> None:
        """Note that the dead runs are closed; until then the lease hands them on."""
        if not self.dead:
            return
        self._document = self._document | {"dead": []}
        with contextlib.suppress(OSError):
            self._refresh()

    def refresh_until_ended(self) -> None:
        """Refresh the lease every `REFRESH` seconds: what the lease's thread does."""
        while self._lost is None and not self._ended.wait(REFRESH):
            # A file system that fails for a while costs refreshes, not the run.
            with contextlib.suppress(OSError):
                self._refresh()

    def _refresh(self) -> None:
        if self._is_ours():
            now = time.time()
            publish_json(self._path, self._document | {"refreshed": now})
            self._refreshed = now

    def _is_ours(self) -> bool:
        found = _read(self._path)
        if found is None or found["token"] != self._document["token"]:
            self._lost = self._why_lost(found)
        return self._lost is None

    def _why_lost(self, found: dict[str, Any] | None) -> str:
        if found is not None and found["refreshed"] > 0:
            kept = "kept" if found["job"] == self._job.id else "gone: that run replaced the job"
            same = _is_attempt_of(self._document["run"], found)
            which = ", another attempt of the same flow run" if same else ""
            return (
                f"to {found['name']}{which} (process {found['pid']} on {found['host']}), and "
                f"noticed it {time.time() - self._refreshed:.0f} s after it last refreshed its "
                f"lease. What it finished is {kept}. Wait for the other run to end."
            )
        return f"since its lease {self._path} is gone. {what_is_there(self._job)}"

    def stop(self) -> None:
        """Let the lease's thread end, so that none refreshes what `end` has given back."""
        self._ended.set()

    def end(self) -> None:
        """Give the job back, and record what is left: workers that run, dead runs to close."""
        with contextlib.suppress(OSError):
            if not self._is_ours():
                return
            if self.dead or self._work_left:
                publish_json(self._path, self._document | {"run": "", "refreshed": 0.0})
            else:
                unlink(self._path)
                sync_folder(self._path.parent)


@contextlib.contextmanager
def leased(job: Job, name: str, run: str = "") -> Iterator[Lease]:
    """Hold the lease of a job for a `with` block.

    Args:
        job: The job.
        name: Of the run, which a second run is told.
        run: What identifies the run to whatever orchestrates it; see `Lease.dead`. A later
            attempt of the same run takes the lease over.

    Raises:
        JobBusyError: Another run has the job.
        OtherJobError: The target was allocated anew since the job was read.
        NotFoundError, ForeignFileError, DamagedJobError: There is no such job any more.
        LockTimeoutError: The header lock was held too long.
        StoppedError: The process was asked to stop while it watched an old lease.
        StorageError: The lease cannot be written.
        InvalidArgumentError: The system allows no more threads.
    """
    now = time.time()
    token = secrets.token_hex(16)
    document = {
        "format": FORMAT,
        "job": job.id,
        "token": token,
        "name": name,
        "run": run,
        "host": host_name(),
        "machine": machine_id(),
        "pid": os.getpid(),
        "process_started": process_started(os.getpid()) or 0,
        "began": now,
        "refreshed": now,
    }
    lease = Lease(job, document)
    thread = threading.Thread(
        target=lease.refresh_until_ended, name="flowmap-lease", daemon=True
    )
    _HELD.add(token)
    try:  # from before the lease is written, so that Ctrl-C never leaves it behind
        _take(job, document)
        start(thread)
        yield lease
    finally:
        lease.stop()
        with contextlib.suppress(RuntimeError):  # not begun yet: it will end at once
            thread.join()
        lease.end()
        _HELD.discard(token)


@contextlib.contextmanager
def unleased(job: Job, run: str = "") -> Iterator[dict[str, Any] | None]:
    """Hold the header lock of a job that no run has, for a `with` block.

    A process that is seen to live holds its lease, however old; one that is seen to be dead
    holds none. If it cannot be seen, the lease holds for `TERM` seconds by the file system's
    clock, and longer if it changes while it is watched. Two hosts' clocks are never compared.

    Args:
        job: The job.
        run: Id of the run that asks. Its own earlier attempts do not count as another run.

    Yields:
        The void lease that is there, if any.

    Raises:
        FlowmapError: As in `leased`.
    """
    path = Sidecar.of(job.path).run
    refuse_replaced(job)  # before the lock: it would be made behind a link, or in a new folder
    silent = None
    while True:
        with header_lock(path.parent):
            now, found = _asked(path)
            refuse_replaced(job)
            holds = (
                found is not None
                and found["job"] == job.id
                and found != silent
                and not _is_attempt_of(run, found)
                and _holds(found, path, now)
            )
            if found is None or holds is False:
                yield found
                return
            if holds:
                raise _busy(job, found, _age(path, now))
        _watch(job, found)
        silent = found


def holder(job: Job) -> dict[str, Any] | None:
    """Return what the lease of a job says, and whether it holds: nothing is changed.

    Nothing is decided by it. Where the process cannot be seen, it compares this host's clock
    with the file's time, and is wrong if these differ by a minute.

    Args:
        job: The job.

    Returns:
        The document of `run.json`, with "live": False where the lease is void, since its run
        died or gave it back with dead runs to be closed. None where there is no lease.

    Raises:
        StorageError: The lease cannot be read.
    """
    path = Sidecar.of(job.path).run
    with told("cannot read the lease of the run", path):
        found = _read(path)
        if found is None or found["job"] != job.id:
            return None
        return found | {"live": _holds(found, path, time.time()) is True}


def is_over(path: Path, token: str) -> bool:
    """Return whether the lease says that a run is over: given back, or taken by another run.

    A missing lease says nothing: a network file system may not show it yet.

    Args:
        path: Path of the target.
        token: Token of the run.
    """
    with contextlib.suppress(OSError):
        found = _read(Sidecar.of(path).run)
        return found is not None and (found["token"] != token or not found["refreshed"])
    return False


def _take(job: Job, document: dict[str, Any]) -> None:
    """Write the lease, if the job is still the one at its path and nobody has it."""
    sidecar = Sidecar.of(job.path)
    with unleased(job, document["run"]) as found:
        document["dead"] = _dead(found, job)
        remove_stale(sidecar)
        with told("cannot write the lease of the run", sidecar.run):
            publish_json(sidecar.run, document)


def _dead(found: dict[str, Any] | None, job: Job) -> list[str]:
    """Return the runs that a lease, void by now, leaves to be closed, each once."""
    if found is None or found["job"] != job.id:
        return []
    earlier = found.get("dead")
    runs = [*(earlier if isinstance(earlier, list) else ()), found.get("run")]
    return list(dict.fromkeys(run for run in runs if run and isinstance(run, str)))


def _is_attempt_of(run: str, found: dict[str, Any]) -> bool:
    """Return whether a lease is of this run's other attempts, and not held by this process."""
    return bool(run) and found.get("run") == run and found["token"] not in _HELD


def _holds(found: dict[str, Any], path: Path, now: float) -> bool | None:
    """Return whether a lease holds; None where only watching it can tell."""
    if not found["refreshed"] > 0:  # it was given back
        return False
    if found["machine"] and found["machine"] == machine_id():
        if found["pid"] == os.getpid() and found["token"] not in _HELD:
            return False  # this process could not give it back, or has a dead one's number
        lives = is_alive(found["pid"], found["process_started"])
        if lives is not None:
            return lives
    return True if abs(_age(path, now)) < TERM else None


def _age(path: Path, now: float) -> float:
    """Return how many seconds ago a lease was written, by the file system's clock."""
    with contextlib.suppress(FileNotFoundError):
        return now - path.lstat().st_mtime
    return TERM  # it was given back since it was read


def _busy(job: Job, found: dict[str, Any], age: float) -> JobBusyError:
    return JobBusyError(
        f"The run {found['name']} is filling {job.path} (process {found['pid']} on "
        f"{found['host']}; it refreshed its lease {max(age, 0):.0f} s ago). Wait for the run "
        "to end, or end that process: the job is free once it is dead, or, if it cannot be "
        f"seen from here, {TERM:g} s after it last refreshed its lease.",
        run=found["name"],
    )


def _watch(job: Job, found: dict[str, Any]) -> None:
    """Watch a lease that seems old until it changes, or for `LOOKS` seconds.

    Raises:
        JobBusyError: Its run refreshed it.
    """
    path = Sidecar.of(job.path).run
    message = "The lease of the run %s seems older than %g s: watching it for %d s"
    _LOGGER.warning(message, printable(found["name"]), TERM, LOOKS)
    for _ in range(LOOKS):
        refuse_if_asked()
        time.sleep(1)
        _, seen = _asked(path)
        if seen != found:
            if seen is not None and seen["token"] == found["token"] and seen["refreshed"] > 0:
                raise _busy(job, seen, 0.0)
            return


def _asked(path: Path) -> tuple[float, dict[str, Any] | None]:
    """Return the file system's time, and the lease that its server has."""
    with told("cannot look at the lease of the run", path):
        return file_system_time(path.parent), _read(path)


def _read(path: Path) -> dict[str, Any] | None:
    """Return the lease that is there; None for none, or one that nobody can have written."""
    try:
        document = read_json(path)
    except (FileNotFoundError, NotRegularError, ValueError):
        return None
    whole = all(
        name in document and isinstance(document[name], kind) for name, kind in _FIELDS.items()
    )
    return document if whole else None
