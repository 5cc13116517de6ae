"""The seal on a target that passed its validation: a file, and no permission to write.

The permission is taken after the seal is there and given back before it goes, so that what is
cut short in between leaves a target that may be written, never one that nobody knows to open.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from typing import TYPE_CHECKING, Any, Final

from flowmap.errors import storage_error, told
from flowmap.sidecar import FORMAT, Sidecar
from flowmap.storage import NotRegularError, opened, publish_json, read_json, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flowmap.job import Job

_MODE: Final = 0o7777  # all that `stat.S_IMODE` gives
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
    mode = now if now & _WRITE else _mode(_read(path), now)
    seal = {
        "format": FORMAT,
        "job": job.id,
        "digest": digest,
        "mode": mode,
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
        lift(job)
        if not notes:  # the claim may have lifted the seal before the permission was taken
            os.fchmod(target, mode)
        return False, ["Not sealed: a segment was claimed meanwhile; validate again."]
    return True, notes


def seal_of(job: Job) -> dict[str, Any] | None:
    """Return what the seal of a job says: its digest, when and where; None where it has none.

    Raises:
        StorageError: It cannot be read.
    """
    path = Sidecar.of(job.path).seal
    with told("cannot read the seal", path):
        try:
            seal = read_json(path)
        except (FileNotFoundError, NotRegularError, ValueError):
            return None
    return seal if seal.get("job") == job.id and isinstance(seal.get("digest"), str) else None


def lift(job: Job) -> None:
    """Give the target its permissions back and remove the seal, durably, if it has one.

    The seal of another job, which has taken the path since, stays.

    Raises:
        StorageError: The permissions are not this user's to give, or the seal stays.
    """
    path = Sidecar.of(job.path).seal
    if not os.path.lexists(path):
        return
    seal = _read(path)
    if seal.get("job", job.id) != job.id:
        return
    try:
        with opened(job.path) as target:
            now = stat.S_IMODE(os.fstat(target).st_mode)
            if not now & _WRITE:
                os.fchmod(target, _mode(seal, now | stat.S_IWUSR))
    except (FileNotFoundError, NotRegularError):
        pass  # then there is nothing to write to
    except OSError as error:
        doing = "the target is sealed and read-only; its owner can reset() or fill it"
        raise storage_error(error, doing, job.path) from error
    with told("cannot remove the seal", path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def _read(path: Path) -> dict[str, Any]:
    """Return what the seal says; nothing where it is damaged."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _mode(seal: dict[str, Any], otherwise: int) -> int:
    """Return the permissions that the target had before it was sealed."""
    mode = seal.get("mode")
    return mode if type(mode) is int and mode == mode & _MODE else otherwise
