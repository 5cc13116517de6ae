"""What flowmap asks of the operating system: whole writes, reserved space, durable files.

Every function raises `OSError` as it comes; callers say what it means for their user.
Nothing here is retried after a failed sync: a second `fdatasync` on the same descriptor
may report success for data that is gone (Rebello et al., USENIX ATC 2020).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from flowmap.machine import is_on_network
from flowmap.root import names_in_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

PAGE: Final = 4096
"""Bytes in the unit that two hosts must not share on NFS: the page of x86-64 and most arm64."""

CHUNK: Final = 1 << 20
"""Bytes read or computed at once where the choice is free: stays in the cache (measured)."""

STALE_LOOKS: Final = 5
"""How often to open a file that another host keeps replacing: each makes the last one stale."""

_LONGEST_JSON: Final = 1 << 28  # a job of ten million segments, no two of which are equal
_SYNC_FILE_RANGE_WRITE: Final = 2  # linux/fs.h
_SYNC_FILE_RANGE_AND_WAIT: Final = 7  # likewise: WAIT_BEFORE, WRITE and WAIT_AFTER
_MADV_POPULATE_WRITE: Final = 23  # linux/mman.h, since Linux 5.14
_MARK: Final = "user.flowmap.job"
_AT_FDCWD: Final = -100  # linux/fcntl.h
_RENAME_NOREPLACE: Final = 1  # linux/fs.h
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


_FOLDER_FLAGS: Final = (
    getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)


class NotRegularError(OSError):
    """What was opened is a folder, a link, a pipe or a device."""


class EndedError(OSError):
    """The file ends before the last byte that was to be read."""


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
    folder = os.open(root, _FOLDER_FLAGS)
    try:
        for name in names[:-1]:
            inner = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
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
            descriptor = os.open(path, flags & ~os.O_NOFOLLOW)
        else:
            with anchored(path) as (name, folder):
                descriptor = os.open(name, flags, dir_fd=folder)
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
        descriptor = os.open(name, _WRITE_FLAGS | os.O_CREAT | os.O_EXCL, mode, dir_fd=folder)
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
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


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


def start_writeback(descriptor: int, offset: int, nbytes: int) -> None:
    """Ask the kernel to begin writing a range to disk: a hint, which promises nothing."""
    if sys.platform == "linux":
        _LIBC.sync_file_range(
            descriptor, ctypes.c_int64(offset), ctypes.c_int64(nbytes), _SYNC_FILE_RANGE_WRITE
        )


def write_back(descriptor: int, offset: int, nbytes: int) -> bool:
    """Write a range of the file to the disk and wait for it: its bytes, but no metadata.

    It is durable after a later sync of whatever range of the file (sync_file_range(2)).

    Returns:
        Whether the system can do that.
    """
    first, length = ctypes.c_int64(offset), ctypes.c_int64(nbytes)
    return _done("sync_file_range", descriptor, first, length, _SYNC_FILE_RANGE_AND_WAIT)


def drop_cached(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the kernel forget the pages of a range that it need not write: a hint.

    After a failed write-back ext4 takes a reserved block for written as long as its page is
    cached: what is written to it then is synced without an error, and reads as zeros at the
    next mount (measured, Linux 6.18). Pages that are dirty, or that somebody maps, stay.
    """
    if hasattr(os, "posix_fadvise"):
        first = offset - offset % mmap.PAGESIZE  # part of a page is kept
        last = -(-(offset + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        os.posix_fadvise(descriptor, first, last - first, os.POSIX_FADV_DONTNEED)


def sync_data(descriptor: int) -> None:
    """Return only when what was written through the file is on the disk."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Return only when the names in the folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(descriptor: int, nbytes: int) -> None:
    """Give the file its size and the space for it, or raise `OSError` (ENOSPC).

    `fallocate(2)` where the file system has it. `posix_fallocate` is not used: where it
    must emulate, it writes into every block, which is not safe beside other writers.
    Elsewhere the size is set and compared with the free space: a check, no reservation.
    """
    if reserve_range(descriptor, 0, nbytes):
        return
    space = os.fstatvfs(descriptor)
    if nbytes > space.f_bavail * space.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, nbytes)


def reserve_range(descriptor: int, offset: int, nbytes: int) -> bool:
    """Give `nbytes` of the file from byte `offset` on their space, or raise `OSError` (ENOSPC).

    What is there stays; the file becomes longer where the range ends beyond it.

    Returns:
        Whether the file system can do that.
    """
    if nbytes == 0:
        return True
    first, length = ctypes.c_int64(offset), ctypes.c_int64(nbytes)
    return _done("fallocate", descriptor, 0, first, length)


def take_pages(mapping: mmap.mmap) -> bool:
    """Prepare every page of a shared mapping for a store, as a store would, and change no byte.

    They are dirty then, so that the next sync covers them, and have space of their own.

    Returns:
        Whether the system can do that.

    Raises:
        OSError: A store into one of them would end the process (SIGBUS).
    """
    try:
        for first in range(0, len(mapping), CHUNK):  # Python's other threads wait meanwhile
            mapping.madvise(_MADV_POPULATE_WRITE, first, min(CHUNK, len(mapping) - first))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno == errno.EFAULT:  # madvise(2): where there would be a SIGBUS
            raise OSError(errno.ENOSPC, "No space left, or a bad sector") from error
        raise
    return True


def _done(name: str, *arguments: Any) -> bool:
    """Call what Linux has and Python has not; return False where the system lacks it."""
    number = errno.ENOSYS if sys.platform != "linux" else errno.EINTR
    while number == errno.EINTR:  # Python runs the signal's handler in between
        if getattr(_LIBC, name)(*arguments) == 0:
            return True
        number = ctypes.get_errno()
    if number not in _UNSUPPORTED:
        raise OSError(number, os.strerror(number))
    return False


def mark_job(descriptor: int, job: str | None) -> None:
    """Note the id of a file's job, or that it has none, in its extended attributes."""
    if hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):
            if job is None:
                os.removexattr(descriptor, _MARK)
            else:
                os.setxattr(descriptor, _MARK, job.encode())


def job_mark(descriptor: int) -> str | None:
    """Return the id of the job that a file was made for; None where that is not known."""
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            return os.getxattr(descriptor, _MARK).decode("ascii", "replace")
    return None


def link(private: Path, path: Path) -> None:
    """Give a file a name that must be free: `link(2)`, which never replaces.

    Where there are no hard links, `renameat2(2)` without replacing; `private` is gone then.

    Raises:
        FileExistsError: The name is taken.
    """
    with anchored(private) as (old, source), anchored(path) as (new, into):
        try:
            os.link(old, new, src_dir_fd=source, dst_dir_fd=into, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if sys.platform != "linux":
                raise
            names = [
                _AT_FDCWD if source is None else source,
                os.fsencode(old),
                _AT_FDCWD if into is None else into,
                os.fsencode(new),
            ]
            if _LIBC.renameat2(*names, _RENAME_NOREPLACE) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), os.fspath(path)) from error


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


@contextlib.contextmanager
def staged_json(path: Path, document: dict[str, Any], end: str = "") -> Iterator[Path]:
    """Write a document durably under a private name, for a `with` block to rename.

    Args:
        path: What the block renames it to; its folder must exist.
        document: JSON values; a checksum is added.
        end: What follows it in the file.

    Yields:
        The private name, in the same folder. It is removed if the block fails.
    """
    text = json.dumps(document | {"checksum": _checksum(document)}, indent=1) + end
    if len(text) > _LONGEST_JSON:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    private = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # It is replaced, never written in place. So no group may write to it, whatever the umask:
    # the owner of a document is the user who wrote it.
    with created(private, 0o644) as descriptor:
        write_all(descriptor, text.encode(), 0)
        os.fsync(descriptor)
        yield private


def publish_json(path: Path, document: dict[str, Any]) -> None:
    """Put a document at `path` durably, all of it or nothing, in place of what is there.

    Args:
        path: Where; its folder must exist.
        document: JSON values; a checksum is added.
    """
    with staged_json(path, document) as private:
        put_in_place(private, path, replace=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the document that `publish_json` wrote.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    return parsed_json(json_text(path))


def json_text(path: Path) -> bytes:
    """Return the text of a document, for `parsed_json`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is longer than any.
    """
    looks = 0
    while True:
        looks += 1
        try:
            return _text(path)
        except OSError as error:
            if error.errno != errno.ESTALE or looks == STALE_LOOKS:
                raise


def _text(path: Path) -> bytes:
    with opened(path) as descriptor:
        return read_text(descriptor)


def read_text(descriptor: int) -> bytes:
    """Like `json_text`, of a file that is open."""
    if os.fstat(descriptor).st_size > _LONGEST_JSON:
        raise ValueError("longer than any document that was written")
    return b"".join(iter(lambda: os.read(descriptor, CHUNK), b""))


def parsed_json(text: bytes) -> dict[str, Any]:
    """Return the document of a text.

    Raises:
        ValueError: It is damaged.
    """
    try:
        document = json.loads(text)
        same = document.pop("checksum") == _checksum(document)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError("not the document that was written") from error
    if not same:
        raise ValueError("its checksum does not match")
    return dict(document)


def _checksum(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(canonical.encode())
