"""Publishing a target: built whole under a private name, and given its own name last."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from typing import TYPE_CHECKING, Final

from flowmap import storage
from flowmap.documents import publish_json, read_json, staged_json
from flowmap.errors import (
    ForeignFileError,
    NotFoundError,
    StorageError,
    TargetExistsError,
    storage_error,
)
from flowmap.kernel import mark_job, reserve
from flowmap.ledger import create_ledger
from flowmap.machine import umask, user_name
from flowmap.sidecar import FORMAT, Sidecar, why_not_writable
from flowmap.storage import PAGE, created, link, rename, sync_folder, unlink, write_all
from flowmap.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flowmap.job import Job

_RECORDS = (
    *("ledger.npy", "run.json", "seal.json", "overwrite.json"),
    *("work-*.json", "source-*.json", "failure-*.json"),
    *(".target.*", ".ledger.*", ".*.json.*"),  # private names of what was cut short
    ".flowmap-probe.*",
)

_STALE: Final = re.compile(
    r"\.(target|ledger|flowmap-probe)\.[0-9a-f]{32}|\.(job|overwrite)\.json\.[0-9a-f]{16}"
)
"""Private names that are made under the header lock only, or whose loss is harmless."""


def check_folder(path: Path) -> None:
    """Check that the folder of a target is there.

    Raises:
        StorageError: It is not, is not a folder, or cannot be looked at.
    """
    try:
        mode = path.parent.stat().st_mode
    except FileNotFoundError as error:
        advice = "the folder of the target does not exist; make it first"
        raise storage_error(error, advice, path.parent) from error
    except OSError as error:
        raise storage_error(error, "cannot look at the target's folder", path.parent) from error
    if not stat.S_ISDIR(mode):
        raise StorageError(
            errno.ENOTDIR, "the parent of the target is not a folder", str(path.parent)
        )


def make_folder(folder: Path) -> None:
    """Make the folder for the records, where there is none yet.

    Raises:
        ForeignFileError: Something else has its name, or another user owns it.
        NotFoundError: It was there, and was removed meanwhile.
        StorageError: It cannot be made.
    """
    if os.geteuid() and umask() & stat.S_IRWXU:
        message = f"the umask is {umask():04o}, which closes your files to you; set another one"
        raise storage_error(PermissionError(errno.EACCES, ""), message, folder)
    try:
        storage.make_folder(folder)
    except FileExistsError as error:
        if not os.path.lexists(folder):
            message = "the folder of the records is gone; see whether the target was cleaned"
            raise NotFoundError(errno.ENOENT, message, str(folder)) from error
        raise ForeignFileError(
            f"{folder}, where the records go, is there and is no folder. Move it away.",
            path=str(folder),
        ) from error
    except OSError as error:
        why = why_not_writable(error, folder.parent)
        doing = "cannot make the folder for the records"
        raise storage_error(error, f"{doing}: {why}" if why else doing, folder) from error
    if folder.is_symlink():
        raise ForeignFileError(
            f"{folder}, where the records go, is a link; flowmap follows none. Remove it.",
            path=str(folder),
        )
    _check_owner(folder)


def _check_owner(folder: Path) -> None:
    """Refuse a folder for the records that another user owns, other than root.

    Its owner could change the records of the new job at any time: in /tmp anybody can make a
    folder of that name beforehand.

    Raises:
        ForeignFileError: Another user owns it.
        NotFoundError: It was removed meanwhile.
        StorageError: It cannot be looked at.
    """
    try:
        owner = folder.lstat().st_uid
        if owner in (0, os.geteuid()):
            return
        # A server may give all files to one user, whoever makes them (NFS: all_squash).
        probe = folder.with_name(f".flowmap-owner.{secrets.token_hex(8)}")
        with created(probe) as descriptor:
            unlink(probe)
            if os.fstat(descriptor).st_uid == owner:
                return
    except OSError as error:
        doing = "cannot tell who owns the folder of the records"
        raise storage_error(error, doing, folder) from error
    raise ForeignFileError(
        f"{folder}, where the records go, belongs to {user_name(owner)}, who could change "
        "the records of your job at any time. Choose another path for the target, or remove "
        "this folder, or ask its owner to.",
        path=str(folder),
    )


def remove_stale(sidecar: Sidecar) -> None:
    """Remove what a killed allocation left behind; the caller holds the header lock.

    These names are made under the lock only, so whoever made them is gone: a target that
    was never finished and keeps its space, or a second name of one that was; and the empty file
    at the name of a target that is whole here (see `storage.link`). The empty file of
    `file_system_time` is no loss to a process that still has it. A file that cannot be removed
    is left, since nothing depends on it.

    Args:
        sidecar: The folder beside the target.
    """
    with contextlib.suppress(OSError, ValueError):
        path = sidecar.folder.with_suffix("")
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            whole = sidecar.folder / f".target.{read_json(sidecar.job).get('id')}"
            if whole.lstat().st_size:
                unlink(path)
    with contextlib.suppress(OSError):
        for entry in list(sidecar.folder.iterdir()):
            if _STALE.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    unlink(entry)


def publish(job: Job, header: bytes, *, replace: bool = False) -> None:
    """Make the target and its records; the caller holds the header lock.

    Both are built whole under private names first, so that a full disk changes nothing. A
    new target gets its name last. Where one is replaced, `job.json` goes first and comes
    last, so that at no point an old ledger vouches for a new file.

    Args:
        job: What to allocate.
        header: The bytes before the data.
        replace: Whether what is there by then may be replaced.

    Raises:
        ForeignFileError: A folder has the name of a record; nothing was changed.
        TargetExistsError: The name was taken meanwhile, by a program other than flowmap.
        StorageError: There is no space, or no permission.
    """
    sidecar = Sidecar.of(job.path)
    target = sidecar.folder / f".target.{job.id}"
    ledger = sidecar.folder / f".ledger.{job.id}"
    try:
        _refuse_folders(sidecar)
        with _removed_after(target, ledger):
            _build(job, header, target)
            create_ledger(ledger, len(job.plan))
            if replace and os.path.lexists(job.path):
                _replace(job, sidecar, target, ledger)
            else:
                _name_anew(job, sidecar, target, ledger)
    except TargetExistsError:
        raise
    except OSError as error:
        raise storage_error(error, _advice(error, job), job.path) from error


def _refuse_folders(sidecar: Sidecar) -> None:
    """Refuse what removing the old records would stop at, half done."""
    for entry in (sidecar.job, *_records(sidecar)):
        if entry.is_dir() and not entry.is_symlink():
            raise ForeignFileError(
                f"{entry}, where a record goes, is a folder. Move it away.", path=str(entry)
            )


def _records(sidecar: Sidecar) -> Iterator[Path]:
    """Yield what is there of the records, but `job.json`."""
    for pattern in _RECORDS:
        yield from sidecar.folder.glob(pattern)


def _build(job: Job, header: bytes, target: Path) -> None:
    with created(target) as descriptor:
        if job.reserve:
            reserve(descriptor, job.size)
        else:
            os.ftruncate(descriptor, job.size)
        write_all(descriptor, header, 0)
        mark_job(descriptor, job.id)
        os.fsync(descriptor)


def _replace(job: Job, sidecar: Sidecar, target: Path, ledger: Path) -> None:
    # From the intent on nothing needs space: all that is left to do is to rename and remove.
    with staged_json(sidecar.job, job.document()) as staged:
        publish_json(sidecar.intent, {"format": FORMAT, "id": job.id, "time": time.time()})
        # The ledger's name stays: where one is new, a rename may need space after all (XFS).
        _clear(sidecar, keep=(target, ledger, sidecar.ledger, sidecar.intent, staged))
        rename(ledger, sidecar.ledger)
        sync_folder(sidecar.folder)
        rename(target, job.path)
        sync_folder(job.path.parent)
        rename(staged, sidecar.job)
    sync_folder(sidecar.folder)
    unlink(sidecar.intent)
    sync_folder(sidecar.folder)


def _name_anew(job: Job, sidecar: Sidecar, target: Path, ledger: Path) -> None:
    _check_free(job.path)
    try:
        _clear(sidecar, keep=(target, ledger))  # of a job whose target is gone
        rename(ledger, sidecar.ledger)
        sync_folder(sidecar.folder)
        publish_json(sidecar.job, job.document())
        sync_folder(job.path.parent)
        _name(target, job.path)
    except BaseException:
        if not _is_named(target, job.path):
            _abandon(sidecar)
        raise
    sync_folder(job.path.parent)


def _name(private: Path, path: Path) -> None:
    """Give the whole file its name, which must be free."""
    try:
        link(private, path)
    except FileExistsError:
        # NFS may answer so to its own repeated request: then it is this very file.
        Sidecar.of(path).look_afresh()
        if _is_named(private, path):
            return
        raise _appeared(path) from None


def _check_free(path: Path) -> None:
    """Refuse a name that is taken by now, before any record beside it is removed.

    Building the file may have taken long; the header lock keeps only flowmap away.
    """
    Sidecar.of(path).look_afresh()
    if os.path.lexists(path):
        raise _appeared(path)


def _appeared(path: Path) -> TargetExistsError:
    return TargetExistsError(
        f"{path} appeared while flowmap was allocating it: another program made it. Choose "
        "another path.",
        path=str(path),
    )


def _is_named(private: Path, path: Path) -> bool:
    """Return whether the file has its name: by a link, or by a rename that left no other."""
    if not os.path.lexists(path):
        return False
    try:
        return os.path.samestat(private.lstat(), path.lstat())
    except FileNotFoundError:
        return True


def _clear(sidecar: Sidecar, keep: tuple[Path, ...]) -> None:
    """Remove the records of a job that is void, its `job.json` first."""
    unlink(sidecar.job, missing_ok=True)
    sync_folder(sidecar.folder)
    for entry in list(_records(sidecar)):
        if entry not in keep:  # a worker of the old job may be renaming it
            unlink(entry, missing_ok=True)


def _abandon(sidecar: Sidecar) -> None:
    """Remove the records of a target that got no name, also where nothing can be synced."""
    for path in (sidecar.job, sidecar.ledger):
        with contextlib.suppress(OSError):
            unlink(path)
    with contextlib.suppress(OSError):
        sync_folder(sidecar.folder)


@contextlib.contextmanager
def _removed_after(*paths: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for path in paths:
            # Gone, or what is left is a second name of the whole target, which the next
            # allocation removes: neither is worth hiding how the first one went.
            with contextlib.suppress(OSError):
                unlink(path)


def _advice(error: OSError, job: Job) -> str:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        folders = (Sidecar.of(job.path).folder, job.path.parent)
        closed = [each for each in folders if not os.access(each, os.W_OK | os.X_OK)]
        why = why_not_writable(error, (*closed, job.path)[0])
        return f"cannot make the target and its records{f': {why}' if why else ''}"
    return (
        f"cannot allocate {job.size} bytes, and {len(job.plan) * PAGE} for the records of "
        f"{len(job.plan)} segments; free some space or choose another disk, or pass "
        f"{setting(reserve=False)} for a sparse file"
    )
