"""The lease: one run at a time fills a job."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowmap.errors import FlowmapError, JobBusyError, storage_error, told
from flowmap.job import Job, refuse_replaced
from flowmap.locks import header_lock
from flowmap.publication import remove_stale
from flowmap.sidecar import FORMAT, Sidecar
from flowmap.storage import NotRegularError, publish_json, read_json, sync_folder, unlink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import UnionType

REFRESH: Final = 10.0
"""Seconds between two refreshes of a lease."""

TERM: Final = 60.0
"""Seconds that a lease holds without one: six refreshes, for a file system that hangs."""

_FIELDS: Final[dict[str, type | UnionType]] = {
    **dict.fromkeys(("job", "token", "name", "host", "machine"), str),
    "pid": int,
    "process_started": int | None,
    "refreshed": float,
}
"""What a lease must say to be one."""


class Lease:
    """The right to fill a job, held by a run; `leased` makes it.

    Args:
        path: Of `run.json`.
        document: What it says.
    """

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self._path = path
        self._document = document
        self._ended = threading.Event()
        self._lost: str | None = None

    def check(self) -> None:
        """Look whether the run still has the job.

        Raises:
            JobBusyError: Another run took it over, or the target was allocated anew.
        """
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
            if self._is_ours():
                publish_json(self._path, self._document | {"refreshed": time.time()})

    def refresh_until_ended(self) -> None:
        """Refresh the lease every `REFRESH` seconds: what the lease's thread does."""
        while not self._ended.wait(REFRESH):
            # A file system that fails for a while costs refreshes, not the run.
            with contextlib.suppress(OSError):
                if not self._is_ours():
                    return
                publish_json(self._path, self._document | {"refreshed": time.time()})

    def _is_ours(self) -> bool:
        found = _read(self._path)
        if found is None or found["job"] != self._document["job"]:
            self._lost = (
                "since its target was allocated anew meanwhile, or the records beside it were "
                "removed. Open the target again, and see what is pending."
            )
        elif found["token"] != self._document["token"]:
            self._lost = (
                f"to {found['name']}: it had shown no sign of life for {TERM:g} s. What it "
                "finished is kept."
            )
        return self._lost is None

    def stop(self) -> None:
        """Let the lease's thread end, so that none refreshes what `end` has given back."""
        self._ended.set()

    def end(self) -> None:
        """Give the job back; leave the dead runs, if any, to a run that can close them."""
        with contextlib.suppress(OSError):
            if not self._is_ours():
                return
            if self.dead:
                publish_json(self._path, self._document | {"run": "", "refreshed": 0.0})
            else:
                unlink(self._path)
                sync_folder(self._path.parent)


@contextlib.contextmanager
def leased(job: Job, name: str, run: str = "") -> Iterator[Lease]:
    """Hold the lease of a job for a `with` block.

    A lease whose process is dead on this host is void at once; any other when it has not
    been refreshed for `TERM` seconds, or says that it was more than that in the future.

    Args:
        job: The job.
        name: Of the run, which a second run is told.
        run: What identifies the run to whatever orchestrates it; see `Lease.dead`.

    Raises:
        JobBusyError: Another run has the job.
        OtherJobError: The target was allocated anew since the job was read.
        NotFoundError, ForeignFileError, DamagedJobError: There is no such job any more.
        LockTimeoutError: The header lock was held too long.
        StorageError: The lease cannot be written.
    """
    path = Sidecar.of(job.path).run
    now = time.time()
    document = {
        "format": FORMAT,
        "job": job.id,
        "token": secrets.token_hex(16),
        "name": name,
        "run": run,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "process_started": _started(os.getpid()),
        "began": now,
        "refreshed": now,
    }
    lease = Lease(path, document)
    thread = threading.Thread(
        target=lease.refresh_until_ended, name="flowmap-lease", daemon=True
    )
    try:  # from before the lease is written, so that Ctrl-C never leaves it behind
        _take(job, document)
        thread.start()
        yield lease
    finally:
        lease.stop()
        with contextlib.suppress(RuntimeError):  # not begun yet: it will end at once
            thread.join()
        lease.end()


def holder(job: Job) -> dict[str, Any] | None:
    """Return what the lease of a job says, and whether it holds: nothing is changed.

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
    return found | {"live": _is_live(found)}


def _take(job: Job, document: dict[str, Any]) -> None:
    """Write the lease, if the job is still the one at its path and nobody has it."""
    sidecar = Sidecar.of(job.path)
    refuse_replaced(job)  # before the lock: it would be made behind a link, or in a new folder
    try:
        with header_lock(sidecar.folder):
            refuse_replaced(job)
            found = _read(sidecar.run)
            _refuse_if_live(found, job)
            document["dead"] = _dead(found, job)
            remove_stale(sidecar)
            publish_json(sidecar.run, document)
    except OSError as error:
        if isinstance(error, FlowmapError):
            raise
        doing = "cannot write the lease of the run"
        raise storage_error(error, doing, sidecar.run) from error


def _dead(found: dict[str, Any] | None, job: Job) -> list[str]:
    """Return the runs that a lease, void by now, leaves to be closed, each once."""
    if found is None or found["job"] != job.id:
        return []
    earlier = found.get("dead")
    runs = [*(earlier if isinstance(earlier, list) else ()), found.get("run")]
    return list(dict.fromkeys(run for run in runs if run and isinstance(run, str)))


def _is_live(found: dict[str, Any]) -> bool:
    age = time.time() - found["refreshed"]
    if not -TERM < age < TERM:  # stamped by a clock that is far ahead: it would hold till then
        return False
    here = found["machine"] == _machine()
    return not here or _started(found["pid"]) == found["process_started"]


def _refuse_if_live(found: dict[str, Any] | None, job: Job) -> None:
    if found is None or found["job"] != job.id or not _is_live(found):
        return
    age = time.time() - found["refreshed"]
    raise JobBusyError(
        f"The run {found['name']} is filling {job.path} (process {found['pid']} on "
        f"{found['host']}, sign of life {max(age, 0):.0f} s ago). Wait for it to end, or end "
        f"it; after {TERM:g} s without a sign of life its lease is void.",
        run=found["name"],
    )


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


def _machine() -> str:
    """Name where a process id means this process: this boot, and this container if any."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return socket.gethostname()


def _started(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        pass
    else:  # proc(5): fields 3, the state, and 22; a zombie fills nothing any more
        return None if fields[0] in "ZX" else int(fields[19])
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc: a process with this number will have to do
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return None
    return 0
