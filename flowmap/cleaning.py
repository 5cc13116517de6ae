"""Removing the records of a job that is over: `clean`.

The folder is renamed first, which is one step: at its own name it is whole or gone. Then, and
only then, it is looked at once more, since filling and resetting take no lock: they look for
`job.json` after each claim of what was done, so that they see that it is gone, or the claim is
seen here and the folder is put back. Only when `job.json` is removed from it is it settled that
the records go. A folder that was left with `job.json` in it is put back by the next `clean`,
one without is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

from flowmap.documents import read_json
from flowmap.errors import (
    ForeignFileError,
    NotFoundError,
    NotValidatedError,
    OtherJobError,
    StorageError,
    storage_error,
    told,
)
from flowmap.exporting import export, read_export
from flowmap.job import Job
from flowmap.kernel import job_mark, mark_job
from flowmap.lease import unleased
from flowmap.locks import header_lock
from flowmap.sealing import proven
from flowmap.sidecar import Sidecar, absolute
from flowmap.storage import NotRegularError, opened, sync_folder
from flowmap.target import open_target

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.target import Target

_ID: Final = re.compile("[0-9a-f]{32}")

_DOCUMENT: Final = (
    r"(job|run|seal|overwrite|failure-[0-9]+|work-[0-9a-f]{32}|source-[0-9a-f]{32}-[0-9a-f]{8})"
    r"\.json"
)

_KEPT_OPEN: Final = re.compile(r"\.(nfs|fuse_hidden)[0-9a-f]+")
"""What NFS or FUSE calls a removed file until the last process of its host closes it."""

_CLOSING_SECONDS: Final = 10
"""How long `clean` waits for such a file: to close one takes less."""

_PAUSE: Final = 0.05
"""Seconds between two looks for it."""

_OURS: Final = re.compile(
    rf"{_DOCUMENT}|\.{_DOCUMENT}\.[0-9a-f]{{16}}"
    r"|ledger\.npy|header\.lock|\.(target|ledger|flowmap-probe)\.[0-9a-f]{32}"
    rf"|{_KEPT_OPEN.pattern}"
)
"""What flowmap puts into the folder of the records, private names included."""

_LONGEST_NAME: Final = 255  # NAME_MAX of Linux and macOS
_TAKEN: Final = (errno.ENOTEMPTY, errno.EEXIST)  # of a rename to a folder with something in it


def clean(
    path: str | os.PathLike[str], *, export_to: str | os.PathLike[str] | None = None
) -> list[Path]:
    """Remove the folder with the records of a job that was validated.

    The target stays as it is, read-only if it was; its mark in the extended attributes goes,
    where this user may remove it. flowmap knows the file no more then. Killed at any point,
    the job is whole, or the next call goes on; what a killed one has left beside the target is
    removed, too.

    Args:
        path: Of the target, or the target.
        export_to: Write all that is known of the job there first, as `export` does.

    Returns:
        The folders that were removed.

    Raises:
        NotValidatedError: The job is not sealed, or not all done.
        JobBusyError: A run has the job.
        ForeignFileError: There are files in the folder that are not flowmap's; or the target
            was not allocated by flowmap, or is clean already.
        NotFoundError: There is no target, or another call was faster.
        InvalidArgumentError, WrongTypeError: As in `export`.
        OtherJobError: The target was allocated anew since it was opened, or meanwhile.
        DamagedJobError: The target, its header or its records are not what was allocated.
        LockTimeoutError: Another process held the header lock too long.
        StorageError: The folder cannot be removed, or the export not be written.
    """
    removed = _settle(absolute(path))
    try:
        target = open_target(path)
    except (NotFoundError, ForeignFileError):
        if not removed:
            raise
        if export_to is not None:
            _refuse_unless_exported(export_to, removed)
        return removed
    folder = Sidecar.of(target.path).folder
    with unleased(target.job):
        target = open_target(target)  # of the same job, under the lock
        _records(folder)
        private = _clean(target, folder, export_to)
    _drop(private)
    return [*removed, folder]


def _refuse_unless_exported(file: str | os.PathLike[str], removed: list[Path]) -> None:
    """Refuse to say that what is gone was exported, unless a killed call did it before.

    Raises:
        NotFoundError, ForeignFileError, StorageError: It was not.
    """
    job = read_export(file)["job"].get("id")
    if not any(folder.name.endswith(f".{job}") for folder in removed):
        raise ForeignFileError(
            f"{file} is the export of another job. The records of this one were removed by an "
            "earlier clean, and cannot be exported any more.",
            path=os.fspath(file),
        )


def _records(folder: Path) -> list[Path]:
    """Return what is in a folder of records; refuse what flowmap did not put there.

    Raises:
        ForeignFileError: There is such a thing.
        StorageError: The folder cannot be read.
    """
    with told("cannot look at the records; see who may", folder):
        entries = sorted(folder.iterdir())
        odd = [entry.name for entry in entries if not _is_ours(entry)]
    if odd:
        raise ForeignFileError(
            f"{folder} holds what flowmap did not put there: {', '.join(odd)}. Move it away, "
            "and clean again.",
            path=str(folder),
        )
    return entries


def _is_ours(entry: Path) -> bool:
    try:
        regular = stat.S_ISREG(entry.lstat().st_mode)
    except FileNotFoundError:  # a private name, renamed meanwhile
        regular = True
    return regular and _OURS.fullmatch(entry.name) is not None


def _clean(target: Target, folder: Path, export_to: str | os.PathLike[str] | None) -> Path:
    """Take the records away, and remove all of them but the lock, which the caller holds.

    Returns:
        The private name that the folder has now.
    """
    job = target.job
    private = folder.with_name(f"{_prefix(target.path)}{job.id}")
    with job.ledger() as ledger:
        digest = proven(target)["digest"]
        if export_to is not None:
            export(target, export_to)
        bounds = np.array(list(job.plan.bounds()), np.int64).reshape(-1, 2)
        before = ledger.records(bounds)
        try:
            with told("cannot take the records away; see who may write to the folder", folder):
                folder.rename(private)
            with told("cannot sync the folder of the target; look at the disk", folder.parent):
                sync_folder(folder.parent)
            _records(private)
            same = ledger.records(bounds) == before and _sealed_in(private) == digest
            _refuse_changed(target, same=same)
            _decide(private)
        except BaseException:
            _put_back(private, folder)
            raise
    _empty(private, target.path, job.id)
    return private


def _refuse_changed(target: Target, *, same: bool) -> None:
    if not same:
        raise NotValidatedError(
            f"{target.path} was filled or reset while it was being cleaned, and keeps its "
            "records. Run the job, validate it, and clean again.",
            path=str(target.path),
        )


def _prefix(path: Path) -> str:
    """Return what the name begins with that the folder has while it is being removed.

    The id of the job follows.
    """
    prefix = f".{path.name}.flowmap.cleaned."
    name = os.fsencode(prefix)
    if len(name) + 32 > _LONGEST_NAME:
        return f".{xxhash.xxh3_64_hexdigest(name)}.flowmap.cleaned."
    return prefix


def _sealed_in(private: Path) -> object:
    """Return the digest that the seal in a folder is of, if there is one."""
    try:
        return read_json(Sidecar(private).seal).get("digest")
    except (OSError, ValueError):
        return None


def _decide(private: Path) -> None:
    """Settle that the records go: what is cut short from here on only removes the rest."""
    with told("cannot remove the records; clean again", private):
        Sidecar(private).job.unlink(missing_ok=True)
        sync_folder(private)


def _put_back(private: Path, folder: Path) -> None:
    """Give the folder its own name again, unless it is settled that the records go."""
    if not os.path.lexists(Sidecar(private).job):
        return
    doing = f"the records are in {private.name} and cannot be put back; rename that"
    try:
        with told(doing, folder):
            private.rename(folder)
    except StorageError as error:
        if error.errno not in _TAKEN:
            raise
        raise OtherJobError(
            f"{folder}: another job was allocated in the place of the one that was being "
            f"cleaned. The records of that one are in {private.name}; the next clean removes "
            "them.",
            path=str(folder),
        ) from error
    with contextlib.suppress(OSError):  # why they are put back is what matters
        sync_folder(folder.parent)


def _empty(private: Path, path: Path, job: str) -> None:
    """Remove the mark of the target, and the records but for the lock, which is held."""
    _unmark(path, job)
    for entry in _records(private):
        if entry.name != Sidecar(private).lock.name and not _KEPT_OPEN.fullmatch(entry.name):
            with told("cannot remove the records; clean again", private):
                entry.unlink(missing_ok=True)


def _unmark(path: Path, job: str) -> None:
    """Remove the id of the job from the target's attributes, where this user may.

    A mark that stays does no harm: only a job compares it with its own.
    """
    with contextlib.suppress(OSError), opened(path) as target:
        if job_mark(target) != job:
            return
        mode = stat.S_IMODE(os.fstat(target).st_mode)
        closed = not mode & stat.S_IWUSR  # then its owner may not change its attributes either
        if closed:
            os.fchmod(target, mode | stat.S_IWUSR)
        try:
            mark_job(target, None)
        finally:
            if closed:
                os.fchmod(target, mode)


def _drop(private: Path) -> None:
    """Remove the folder and its lock, which nobody holds: on NFS one that is held stays."""
    until = time.monotonic() + _CLOSING_SECONDS
    while not _is_removed(private):
        if time.monotonic() >= until:
            message = (
                "cannot remove the folder of the records, since a process of this host has one "
                "of its files open; end that process, and clean again"
            )
            raise StorageError(errno.EBUSY, message, str(private))
        time.sleep(_PAUSE)


def _is_removed(private: Path) -> bool:
    """Remove the lock and the folder; return False if one of its files is still open."""
    with told("cannot remove the folder of the records; clean again", private):
        Sidecar(private).lock.unlink(missing_ok=True)
        try:
            private.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            # Else another call has made the lock again, and removes both.
            with contextlib.suppress(FileNotFoundError):
                if any(_KEPT_OPEN.fullmatch(entry.name) for entry in private.iterdir()):
                    return False
        sync_folder(private.parent)
    return True


def _settle(path: Path) -> list[Path]:
    """Finish what killed calls have left beside a target.

    Returns:
        The folders that were removed, by their private names.
    """
    removed = []
    for private in _leftovers(path):
        try:
            with header_lock(private):  # a call that lives holds it
                _records(private)
                if _is_put_back(private, path):
                    continue
                _decide(private)
                _empty(private, path, private.name[-32:])
        except NotFoundError:  # that call has put it back or removed it
            continue
        _drop(private)
        removed.append(private)
    return removed


def _leftovers(path: Path) -> list[Path]:
    prefix = _prefix(path)
    try:
        entries = list(path.parent.iterdir())
    except OSError:  # `open_target` says what is wrong, if anything is
        return []
    return sorted(
        entry
        for entry in entries
        if entry.name.startswith(prefix)
        and _ID.fullmatch(entry.name[len(prefix) :])
        and entry.is_dir()
        and not entry.is_symlink()
    )


def _is_put_back(private: Path, path: Path) -> bool:
    """Put a folder back of which it was not settled that it goes, if its target is there.

    The caller holds its lock. What has taken the place of the job meanwhile stays.
    """
    folder = Sidecar.of(path).folder
    if os.path.lexists(folder):
        return False
    try:
        job = Job.of_document(path, read_json(Sidecar(private).job))
        with opened(path) as target:
            if job.problem_with(target) is not None:
                return False
    except (FileNotFoundError, NotRegularError):
        return False  # it is settled, or the target is gone
    except (ValueError, TypeError, KeyError, AttributeError):
        return False  # damaged
    except OSError as error:
        doing = f"cannot tell whether the records in {private.name} are still wanted"
        raise storage_error(error, doing, folder) from error
    try:
        private.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        if error.errno in _TAKEN:  # another job has the place now
            return False
        doing = f"cannot put the records back from {private.name}; rename it"
        raise storage_error(error, doing, folder) from error
    return True
