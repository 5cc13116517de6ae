"""The seal on a target that passed its validation: a file, and no permission to write.

The permission is taken after the seal is there and given back before it goes, so that what is
cut short in between leaves a target that may be written, never one that nobody knows to open.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from typing import TYPE_CHECKING, Final

from flowmap.errors import storage_error
from flowmap.job import FORMAT, Job, Sidecar
from flowmap.storage import NotRegularError, opened, publish_json, read_json, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_WRITE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def put(
    job: Job, target: int, digest: str, *, claimed: Callable[[], bool]
) -> tuple[bool, list[str]]:
    """Seal a job, and make its target read-only.

    Args:
        job: The job.
        target: A descriptor of its target.
        digest: Of the whole.
        claimed: Says whether a segment was claimed since the bytes were looked at. An attempt
            lifts the seal after its claim: one of the two sees the other.

    Returns:
        Whether it is sealed; and why it is not, or is not read-only.

    Raises:
        OSError: The seal cannot be written.
    """
    now = stat.S_IMODE(os.fstat(target).st_mode)
    path = Sidecar.of(job.path).seal
    seal = {
        "format": FORMAT,
        "job": job.id,
        "digest": digest,
        "mode": now if now & _WRITE else _mode(path, job, now),
        "time": time.time(),
        "host": socket.gethostname(),
    }
    publish_json(path, seal)
    notes = []
    try:
        os.fchmod(target, now & ~_WRITE)
    except OSError as error:
        notes.append(f"Sealed, but not made read-only: {os.strerror(error.errno or 0)}.")
    if claimed():
        os.fchmod(target, int(str(seal["mode"])))
        lift(job)
        return False, ["Not sealed: a segment was claimed meanwhile; validate again."]
    return True, notes


def lift(job: Job) -> None:
    """Give the target its permissions back and remove the seal, durably, if there is one.

    Raises:
        StorageError: The permissions are not this user's to give.
        OSError: The seal cannot be removed.
    """
    path = Sidecar.of(job.path).seal
    if not os.path.lexists(path):
        return
    try:
        with opened(job.path) as target:
            now = stat.S_IMODE(os.fstat(target).st_mode)
            before = _mode(path, job, now | stat.S_IWUSR)
            if not now & _WRITE and before != now:
                os.fchmod(target, before)
    except (FileNotFoundError, NotRegularError):
        pass  # then there is nothing to write to
    except OSError as error:
        doing = "the target is sealed and read-only; its owner can reset() or fill it"
        raise storage_error(error, doing, job.path) from error
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def _mode(path: Path, job: Job, otherwise: int) -> int:
    """Return the permissions that the target had before it was sealed."""
    try:
        seal = read_json(path)
    except (OSError, ValueError):
        return otherwise
    mode = seal.get("mode")
    known = seal.get("job") == job.id and isinstance(mode, int)
    return stat.S_IMODE(mode) if known and isinstance(mode, int) else otherwise
