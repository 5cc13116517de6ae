"""The seal on a target that passed its validation: a file, and no permission to write.

The permission is taken after the seal is there and given back before it goes, so that what is
cut short in between leaves a target that may be written, never one that nobody knows to open.

Other users may be able to write the seal. So the permissions that it records are only a wish:
lifting it adds write permissions and nothing else, and none that the umask denies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from flowmap.documents import publish_json, read_json
from flowmap.errors import NotValidatedError, storage_error, told
from flowmap.machine import host_name, umask, user_name
from flowmap.records import SegmentRecord, digest_of
from flowmap.sidecar import FORMAT, Sidecar, why_not_writable
from flowmap.storage import NotRegularError, opened, sync_folder, unlink

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.target import Target

JobState = Literal["valid", "done", "incomplete", "damaged"]

_MODE: Final = 0o777  # no set-id bits, no sticky bit
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
    now = _permissions(target)
    path = Sidecar.of(job.path).seal
    mode = now if now & _WRITE else _mode(_read(path), now)
    seal = {
        "format": FORMAT,
        "job": job.id,
        "digest": digest,
        "mode": mode,
        "time": time.time(),
        "host": host_name(),
    }
    publish_json(path, seal)
    notes = []
    try:
        if now & _WRITE:
            os.fchmod(target, now & ~_WRITE)
    except OSError as error:
        notes.append(f"Sealed, but not made read-only: {_why_not(error, job.path)}.")
    if claimed():
        lift(job)
        if not notes:  # the claim may have lifted the seal before the permission was taken
            os.fchmod(target, _writable(now, mode))
        return False, ["Not sealed: a segment was claimed meanwhile; validate again."]
    return True, notes


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
            now = _permissions(target)
            if not now & _WRITE:
                # Whoever can rename files may have put another of its owner's files there.
                ours = job.problem_with(target) is None
                os.fchmod(target, _writable(now, _mode(seal, now) if ours else now))
    except (FileNotFoundError, NotRegularError):
        pass  # then there is nothing to write to
    except OSError as error:
        doing = f"cannot lift the seal: {_why_not(error, job.path)}"
        raise storage_error(error, doing, job.path) from error
    with told("cannot remove the seal", path):
        unlink(path, missing_ok=True)
        sync_folder(path.parent)


def seal_of(job: Job) -> dict[str, Any] | None:
    """Return what the seal of a job says; None where it has none, or one that is damaged."""
    seal = _read(Sidecar.of(job.path).seal)
    ours = seal.get("job") == job.id and isinstance(seal.get("digest"), str)
    return seal if ours else None


def digest_if_done(status: NDArray[Any]) -> str | None:
    """Return the digest of the whole, as in `records.digest_of`, if every segment is done.

    Args:
        status: What `Target.status` returned.
    """
    if (status["state"] != "done").any():
        return None
    rows = status[["index", "start", "stop", "digest"]].tolist()
    return digest_of(
        SegmentRecord(index, start, stop, digest=digest) for index, start, stop, digest in rows
    )


def state_of(status: NDArray[Any], seal: dict[str, Any] | None) -> JobState:
    """Return what a job has come to.

    Args:
        status: What `Target.status` returned.
        seal: What `seal_of` returned.

    Returns:
        "valid": done, and sealed by a validation; "done"; "incomplete"; "damaged": a segment
        is, or the seal is of other digests.
    """
    if (status["state"] == "damaged").any():
        return "damaged"
    digest = digest_if_done(status)
    if digest is None:
        return "incomplete"
    if seal is None:
        return "done"
    return "valid" if seal["digest"] == digest else "damaged"


def proven(target: Target) -> dict[str, Any]:
    """Return the seal of a target that was validated, and whose records are as they were then.

    The bytes are not read again.

    Raises:
        NotValidatedError: It has no whole seal, a segment is not done, or they have other
            digests than were sealed.
        OtherJobError, NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in
            `Target.status`.
    """
    status = target.status()
    # After the ledger, since a seal is lifted before a segment is claimed.
    seal = seal_of(target.job)
    left = int((status["state"] != "done").sum())
    if left:
        why = f"{left} of {len(status)} segments are not done; run the job, and validate it"
    elif seal is None:
        why = "there is no whole seal beside it; validate it first"
    elif seal["digest"] != digest_if_done(status):
        why = "its segments have other digests than were sealed; validate it again"
    else:
        return seal
    raise NotValidatedError(f"{target.path} is not validated: {why}.", path=str(target.path))


def _read(path: Path) -> dict[str, Any]:
    """Return what the seal says; nothing where it is damaged."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _why_not(error: OSError, path: Path) -> str:
    """Say why the permissions of a target cannot be changed."""
    with contextlib.suppress(OSError):
        owner = path.lstat().st_uid
        if error.errno == errno.EPERM and owner != os.geteuid():
            return f"only its owner, {user_name(owner)}, can change its permissions (chmod)"
    return why_not_writable(error, path) or os.strerror(error.errno or 0)


def _permissions(target: int) -> int:
    """Return the permissions of an open file."""
    return os.fstat(target).st_mode & _MODE


def _mode(seal: dict[str, Any], otherwise: int) -> int:
    """Return the permissions that the target had before, by what the seal says."""
    mode = seal.get("mode")
    return mode if type(mode) is int and mode == mode & _MODE else otherwise


def _writable(now: int, recorded: int) -> int:
    """Return the permissions of a target whose seal is lifted.

    Its owner may write to it. Others may where the seal recorded it, the umask of this process
    allows it, and they may read the file: else its owner has closed it to them since.
    """
    may_read = now >> 1 & _WRITE
    return now | stat.S_IWUSR | recorded & may_read & ~umask()
