"""Files: opened without following links, written whole, named and synced durably.

Every function raises `OSError` as it comes; callers say what it means for their user.
Nothing here is retried after a failed sync: a second `fdatasync` on the same descriptor
may report success for data that is gone (Rebello et al., USENIX ATC 2020).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flowmap.kernel import UNSUPPORTED, again_if_stale, done
from flowmap.machine import is_on_network
from flowmap.root import names_in_root
from flowmap.streams import fill_closed_streams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

PAGE: Final = 4096
"""Bytes in the unit that two hosts must not share on NFS: the page of x86-64 and most arm64."""

CHUNK: Final = 1 << 20
"""Bytes read or computed at once where the choice is free: stays in the cache (measured)."""

_AT_FDCWD: Final = -100  # linux/fcntl.h
_RENAME_NOREPLACE: Final = 1  # linux/fs.h
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FOLDER_FLAGS: Final = (
    getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)


class NotRegularError(OSError):
    """What was opened is a folder, a link, a pipe or a device."""


class EndedError(OSError):
    """The file ends before the last byte that was to be read."""


def open_file(
    name: str | os.PathLike[str], flags: int, mode: int = 0o777, *, dir_fd: int | None = None
) -> int:
    """Open a file or folder as `os.open` does, but never in place of a standard stream."""
    fill_closed_streams()
    return os.open(name, flags, mode, dir_fd=dir_fd)  # noqa: TID251 -- here it may


@contextlib.contextmanager
def anchored(path: str | os.PathLike[str]) -> Iterator[tuple[Any, int | None]]:
    """Open the folder of a file in a root, for a `with` block that works on the file.

    The path was checked before, and another user who may rename folders in the root can put a
    link in the place of one since. So the folders are opened one in the other, from the root
    on, and no link is followed; what the block does, it does in the folder that is open.

    Yields:
        The name of the file in the folder, and the descriptor of the folder: for `dir_fd`. The
        path itself and None where it is in no root.
    """
    found = names_in_root(path)
    if found is None:
        yield path, None
        return
    root, names = found
    folder = open_file(root, _FOLDER_FLAGS)
    try:
        for name in names[:-1]:
            inner = open_file(name, _FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield names[-1], folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, write: bool = False) -> Iterator[int]:
    """Open an existing regular file for a `with` block; never create, truncate or follow.

    Args:
        path: The file.
        write: Whether it will be written as well as read.

    Yields:
        The descriptor.
    """
    descriptor = open_existing(path, write=write)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@again_if_stale
def open_existing(
    path: str | os.PathLike[str], *, write: bool = False, follow: bool = False
) -> int:
    """Like `opened`, for a descriptor that outlives the block; the caller closes it.

    On a network file system each write then goes to the server before it returns, and takes no
    byte along that another host may have changed: a buffered write there sends the whole page
    as this host remembers it, and a host that was cut off sends all that it had buffered when
    its link returns, over what others have written since.

    Args:
        path: The file.
        write: Whether it will be written as well as read.
        follow: Whether a link leads to its file, and is not refused: by its name and by those
            of its folders, in a root, too.
    """
    flags = _WRITE_FLAGS if write else _READ_FLAGS
    if write and is_on_network(path):
        flags |= os.O_DSYNC
    try:
        if follow:
            descriptor = open_file(path, flags & ~os.O_NOFOLLOW)
        else:
            with anchored(path) as (name, folder):
                descriptor = open_file(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise NotRegularError(
                errno.EINVAL, "not a regular file", os.fspath(path)
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(errno.EINVAL, "not a regular file", os.fspath(path))
    return descriptor


@contextlib.contextmanager
def created(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[int]:
    """Create a file that must not exist yet, for a `with` block; remove it on failure."""
    with anchored(path) as (name, folder):
        flags = _WRITE_FLAGS | os.O_CREAT | os.O_EXCL
        descriptor = open_file(name, flags, mode, dir_fd=folder)
        try:
            yield descriptor
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # it may have its final name already
                os.unlink(name, dir_fd=folder)
            raise
        finally:
            os.close(descriptor)


def unlink(path: Path, *, missing_ok: bool = False) -> None:
    """Remove a name, as `Path.unlink` does."""
    with anchored(path) as (name, folder):
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            if not missing_ok:
                raise


def rename(old: Path, new: Path) -> None:
    """Rename a file, in place of what has the new name."""
    with anchored(old) as (name, folder), anchored(new) as (new_name, new_folder):
        os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)


def make_folder(path: Path) -> None:
    """Make a folder, unless there is one, as `Path.mkdir(exist_ok=True)` does."""
    with anchored(path) as (name, folder):
        try:
            os.mkdir(name, dir_fd=folder)
        except FileExistsError:
            if not path.is_dir():
                raise


def look_afresh(folder: Path) -> None:
    """Make an NFS client ask its server which names a folder has; elsewhere do nothing.

    A client remembers for up to a minute which names are free, and where a name leads, also
    under a lock that it holds: `lstat` then misses a file that another host has made. It asks
    when it opens the folder, so that a file that was closed on one host is seen by the next one
    (close-to-open consistency, nfs(5); measured with two clients of Linux 6.1, NFS 4.1 and
    4.2). `O_PATH` is not enough, nor is a mount with `nocto`.
    """
    with contextlib.suppress(OSError):  # there is no such folder, or it is not this user's
        os.close(open_file(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


@again_if_stale
def file_system_time(folder: Path) -> float:
    """Return a file system's own time, by which `st_mtime` of new files goes.

    On a network file system it can differ from this host's clock. A kill leaves the empty file
    behind that this makes.

    Args:
        folder: A folder that this user can write to.

    Returns:
        Seconds since the epoch.
    """
    private = folder / f".flowmap-probe.{secrets.token_hex(16)}"
    try:
        with created(private) as descriptor:
            return os.fstat(descriptor).st_mtime
    finally:
        unlink(private, missing_ok=True)


def buffer_of(nbytes: int) -> NDArray[np.uint8]:
    """Return `nbytes` of zeroed memory that starts on a page: shape (nbytes,), uint8."""
    memory = np.zeros(nbytes + PAGE, np.uint8)
    first = -memory.ctypes.data % PAGE
    return memory[first : first + nbytes]


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at byte `offset`, in as many `pwrite` calls as it takes."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        if not written:
            raise OSError(errno.EIO, "pwrite wrote nothing")
        left = left[written:]
        offset += written


def read_into(descriptor: int, buffer: NDArray[np.uint8], offset: int) -> int:
    """Fill `buffer` from byte `offset`; return how many bytes there were before the end."""
    view = buffer.data
    filled = 0
    while filled < len(view):
        count = os.preadv(descriptor, [view[filled:]], offset + filled)
        if not count:
            break
        filled += count
    return filled


def sync_data(descriptor: int) -> None:
    """Return only when what was written through the file is on the disk."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Return only when the names in the folder are on the disk."""
    descriptor = open_file(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # AFS syncs no folder
            raise
    finally:
        os.close(descriptor)


def link(private: Path, path: Path) -> None:
    """Give a file a name that must be free: `link(2)`, which never replaces.

    Where there are no hard links, or none to another folder, `renameat2(2)` without replacing.
    Where that is missing too (FUSE, AFS, BeeGFS), an empty file is created at the name, which
    fails if it is taken, and replaced; a kill in between leaves it there. Either way `private`
    is gone then.

    Raises:
        FileExistsError: The name is taken.
    """
    with anchored(private) as (old, source), anchored(path) as (new, into):
        try:
            os.link(old, new, src_dir_fd=source, dst_dir_fd=into, follow_symlinks=False)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        else:
            return
        names = [
            _AT_FDCWD if source is None else source,
            os.fsencode(old),
            _AT_FDCWD if into is None else into,
            os.fsencode(new),
        ]
        if not done("renameat2", *names, _RENAME_NOREPLACE):
            with created(path):
                rename(private, path)


def put_in_place(private: Path, path: Path, *, replace: bool) -> None:
    """Give a file that was written under a private name its own, durably.

    Args:
        private: The private name, in the same folder.
        path: The file's own.
        replace: Whether what has it is replaced; else not even what appeared meanwhile is.

    Raises:
        FileExistsError: Something has the name.
        OSError: It cannot be given.
    """
    if replace:
        rename(private, path)
    else:
        link(private, path)
        unlink(private, missing_ok=True)
    sync_folder(path.parent)
