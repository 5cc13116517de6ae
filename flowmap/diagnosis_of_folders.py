"""What goes wrong for people with a folder: no permission, no lock, no room.

Each check does the thing itself, in a private folder that is removed in the end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import secrets
import shlex
import shutil
import stat
from typing import TYPE_CHECKING, Final

from flowmap import human, wording
from flowmap.errors import FlowmapError
from flowmap.findings import Finding, guarded, refused
from flowmap.kernel import free_bytes, job_mark, mark_job, reserve_range
from flowmap.locks import header_lock
from flowmap.machine import NETWORK_FILE_SYSTEMS, file_system
from flowmap.storage import PAGE, created, link, opened, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PAGES: Final = 4  # that are reserved, to see whether they can be
_LEAST: Final = 1 << 20  # bytes that are next to nothing: no array is big that fits into them
_FILES: Final = 12  # of a job, while it is made
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_OF_ONE_HOST: Final = frozenset({"nolock", "local_lock=all", "local_lock=flock", "localflock"})
"""Options of nfs(5) and of Lustre with which a lock does not reach other hosts."""

_ANOTHER: Final = "Choose a folder on another file system."
_ROOM: Final = "Free some space, or choose another disk."
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def examine_folder(folder: Path) -> list[Finding]:
    """Look at a folder where a target is, or is to be.

    Args:
        folder: Its absolute path.

    Returns:
        What was found, in a fixed order; where there is no such folder, only that.
    """
    missing = _missing(folder)
    if missing is not None:
        return [missing]
    private = folder / f".flowmap-doctor.{secrets.token_hex(8)}"
    findings: list[Finding] = []  # not yielded, so that the private folder goes at once
    with _removed_after(private):
        made = _writable(folder, private)
        findings.append(made)
        findings += guarded("file system", functools.partial(_kind, folder))
        for name, check in _CHECKS.items() if made.level == "ok" else ():
            findings += guarded(name, functools.partial(check, private))
    findings += guarded("space", functools.partial(_space, folder))
    findings += guarded("inodes", functools.partial(_inodes, folder))
    return findings


def _missing(folder: Path) -> Finding | None:
    """Return what is wrong where there is no such folder."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        remedy = f"mkdir -p {shlex.quote(str(folder))}"
        return Finding("folder", "trouble", f"There is no folder {folder}.", remedy)
    except OSError as error:
        found = f"{folder} cannot be looked at ({error.strerror})."
        return Finding("folder", "trouble", found, "Ask whose it is, or choose another folder.")
    if not stat.S_ISDIR(mode):
        found = f"{folder}, where the target is to be, is no folder."
        return Finding("folder", "trouble", found, "Choose a folder.")
    return None


@contextlib.contextmanager
def _removed_after(folder: Path) -> Iterator[None]:
    """Remove a folder with all that is in it, if it was made, at the end of a `with` block."""
    try:
        yield
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:  # a Ctrl-C may have cut the first one short
            shutil.rmtree(folder, ignore_errors=True)


def _writable(folder: Path, private: Path) -> Finding:
    """Make the private folder and a file, and remove the file again."""
    try:
        private.mkdir()
        file = private / "file"
        with created(file) as descriptor:
            write_all(descriptor, b"flowmap", 0)
            os.fsync(descriptor)
        file.unlink()
    except OSError as error:
        remedy = (
            "Free some space there, or choose another folder."
            if error.errno in _FULL
            else f"Choose another folder, or see whose it is: ls -ld {shlex.quote(str(folder))}"
        )
        found = f"{folder} cannot be written to ({error.strerror})."
        return Finding("folder", "trouble", found, remedy)
    return Finding("folder", "ok", f"{folder} can be written to.")


def _kind(folder: Path) -> Iterator[Finding]:
    mount = file_system(folder)
    if mount is None:
        yield Finding("file system", "ok", f"The system does not say what {folder} is on.")
        return
    kind, options = mount
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding(
            "file system",
            "note",
            f"{folder} is on {kind}, where two hosts that write to one page of {PAGE} bytes "
            "lose data.",
            f"Leave {wording.option('segments')} and {wording.option('align')} of "
            f"{wording.call('allocate')} to flowmap, which cuts at pages.",
        )
    elif kind in _IN_MEMORY:
        yield Finding(
            "file system",
            "note",
            f"{folder} is on {kind}, in memory, and gone when the machine is started anew.",
            "Choose a folder on a disk for what is to last.",
        )
    else:
        yield Finding("file system", "ok", f"{folder} is on {kind}.")
    if options & _OF_ONE_HOST:
        option = min(options & _OF_ONE_HOST)
        yield Finding(
            "mount",
            "note",
            f"{folder} is mounted with {option}, so that no lock there reaches other hosts.",
            f"Allocate and begin runs on one host only, or have it mounted without {option}.",
        )


def _lock(private: Path) -> Iterator[Finding]:
    """Take the header lock, and see that a second descriptor is refused."""
    try:
        with (
            header_lock(private, timeout=1),
            opened(private / "header.lock", write=True) as second,
        ):
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield Finding("lock", "ok", "flock(2) works: a second one is refused.")
                return
    except FlowmapError as error:
        yield refused("lock", error, _ANOTHER)
        return
    found = "flock(2) does not work: two descriptors have the lock of one file at once."
    yield Finding("lock", "trouble", found, _ANOTHER)


def _reservation(private: Path) -> Iterator[Finding]:
    """Reserve a few pages."""
    nbytes = _PAGES * PAGE
    try:
        with created(private / "reserved") as descriptor:
            works = reserve_range(descriptor, 0, nbytes)
            taken = os.fstat(descriptor).st_blocks * 512  # stat(2)
    except OSError as error:
        found = f"Not even {nbytes} bytes can be reserved ({error.strerror})."
        yield Finding("reservation", "trouble", found, _ROOM)
        return
    costs = "so that a full disk may show only while segments are filled"
    remedy = "Keep the space of the target free, or choose a folder on another file system."
    if not works:
        found = f"Without fallocate(2) flowmap compares with the free space only, {costs}."
        yield Finding("reservation", "note", found, remedy)
    elif taken < nbytes:
        found = f"fallocate(2) says that it works, and takes no space, {costs}."
        yield Finding("reservation", "note", found, remedy)
    else:
        yield Finding("reservation", "ok", "fallocate(2) works: a target has its space.")


def _links(private: Path) -> Iterator[Finding]:
    """Give a file a second name, in another folder, as a target gets its own."""
    records = private / "records"
    records.mkdir()
    first, second, third = records / "first", private / "second", records / "third"
    for file in (first, third):
        with created(file):
            pass
    try:
        link(first, second)
    except OSError as error:
        found = f"Neither link(2) nor rename(2) gives a file its name ({error.strerror})."
        yield Finding("links", "trouble", found, _ANOTHER)
        return
    with contextlib.suppress(FileExistsError):
        link(third, second)
        found = "A name that is taken is given to another file all the same."
        yield Finding("links", "trouble", found, _ANOTHER)
        return
    if first.exists():
        yield Finding("links", "ok", "Hard links work: a target gets its name by link(2).")
    else:
        yield Finding("links", "ok", "Without hard links, a rename gives a target its name.")


def _attributes(private: Path) -> Iterator[Finding]:
    """Mark a file as a target is marked."""
    mark = secrets.token_hex(16)
    with created(private / "marked") as descriptor:
        mark_job(descriptor, mark)
        works = job_mark(descriptor) == mark
    if works:
        yield Finding("attributes", "ok", "Extended attributes work: targets are marked.")
        return
    yield Finding(
        "attributes",
        "note",
        "There are no extended attributes: a target mixed up with another may be believed.",
        "Move a target with its folder of records, and validate it then.",
    )


_CHECKS: Final[dict[str, Callable[[Path], Iterator[Finding]]]] = {
    "lock": _lock,
    "reservation": _reservation,
    "links": _links,
    "attributes": _attributes,
}
"""What is done in the private folder."""


def _space(folder: Path) -> Iterator[Finding]:
    free = free_bytes(os.statvfs(folder))
    if free is None:
        found = "The free space is unknown: the file system does not say it."
        yield Finding("space", "note", found, "See the quota or the space by its own tools.")
    elif free < _LEAST:
        found = f"{human.size(free)} are free in {folder}."
        yield Finding("space", "trouble", found, _ROOM)
    else:
        yield Finding("space", "ok", f"{human.size(free)} are free.")


def _inodes(folder: Path) -> Iterator[Finding]:
    found = os.statvfs(folder)
    if found.f_files and found.f_favail < _FILES:  # those without a table of them say 0
        yield Finding(
            "inodes",
            "trouble",
            f"{found.f_favail} more files can be made here, and a job has about {_FILES}.",
            "Remove some files there, or choose another disk.",
        )
    else:
        yield Finding("inodes", "ok", "There is room for the files of a job.")
