"""Calls that not every system has, nor Python, and files that another host has replaced.

Every function raises `OSError` as it comes; callers say what it means for their user.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import sys
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

_SYNC_FILE_RANGE_WRITE: Final = 2  # linux/fs.h
_SYNC_FILE_RANGE_AND_WAIT: Final = 7  # likewise: WAIT_BEFORE, WRITE and WAIT_AFTER
_MADV_POPULATE_WRITE: Final = 23  # linux/mman.h, since Linux 5.14
_MARK: Final = "user.flowmap.job"
_AT_ONCE: Final = 1 << 20
"""Bytes of a mapping to prepare in one call: Python's other threads wait meanwhile."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

UNSUPPORTED: Final = frozenset(
    {
        *(errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL),
        *(errno.EPERM, errno.EACCES),  # FAT has no links (EPERM); a sandbox forbids the call
        errno.EXDEV,  # no links from one folder to another: AFS, BeeGFS
        errno.EMLINK,  # no file has two names
    }
)
"""What a system says of a call that it, its file system or a sandbox (seccomp) lacks.

It may be a permission that is missing after all: the other way that is taken then shows that.
"""

_LOOKS: Final = 5
"""How often to look at files that other hosts keep replacing."""


def again_if_stale(look: Callable[P, R]) -> Callable[P, R]:
    """Let a function that opens files and reads do so again where one is stale (ESTALE).

    So is a file that another host has replaced, on NFS, to whoever has it open or opens it.
    """

    @functools.wraps(look)
    def look_again(*arguments: P.args, **options: P.kwargs) -> R:
        for _ in range(1, _LOOKS):
            try:
                return look(*arguments, **options)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
        return look(*arguments, **options)

    return look_again


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
    return done("sync_file_range", descriptor, first, length, _SYNC_FILE_RANGE_AND_WAIT)


def drop_cached(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the kernel forget the pages of a range that it need not write: a hint.

    After a failed write-back ext4 takes a reserved block for written as long as its page is
    cached: what is written to it then is synced without an error, and reads as zeros at the
    next mount (measured, Linux 6.18). Pages that are dirty, or that somebody maps, stay.
    """
    first = offset - offset % mmap.PAGESIZE  # part of a page is kept
    last = -(-(offset + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    _drop(descriptor, first, last - first)


def forget_cached(descriptor: int) -> None:
    """Let the next read of a file show what other hosts wrote, not what this one remembers.

    Of the whole file: the kernel keeps a large folio of which only a part is to go (measured,
    Linux 6.18).
    """
    _drop(descriptor, 0, 0)


def _drop(descriptor: int, offset: int, nbytes: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a hint: nothing is lost but what it hints at
            os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)


def reserve(descriptor: int, nbytes: int) -> None:
    """Give the file its size and the space for it, or raise `OSError` (ENOSPC).

    `fallocate(2)` where the file system has it. `posix_fallocate` is not used: where it
    must emulate, it writes into every block, which is not safe beside other writers.
    Elsewhere the size is set and compared with the free space, if the file system says it: a
    check, no reservation.
    """
    if reserve_range(descriptor, 0, nbytes):
        return
    free = free_bytes(os.fstatvfs(descriptor))
    if free is not None and nbytes > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, nbytes)


def free_bytes(space: os.statvfs_result) -> int | None:
    """Return how many bytes an ordinary user may still take; None if that is unknown.

    A file system of FUSE may say nothing: it has no blocks at all, and need not be full.
    """
    return space.f_bavail * space.f_frsize if space.f_blocks else None


def reserve_range(descriptor: int, offset: int, nbytes: int) -> bool:
    """Give `nbytes` of the file from byte `offset` on their space, or raise `OSError` (ENOSPC).

    What is there stays; the file becomes longer where the range ends beyond it.

    Returns:
        Whether the file system can do that.
    """
    if nbytes == 0:
        return True
    first, length = ctypes.c_int64(offset), ctypes.c_int64(nbytes)
    return done("fallocate", descriptor, 0, first, length)


def take_pages(mapping: mmap.mmap) -> bool:
    """Prepare every page of a shared mapping for a store, as a store would, and change no byte.

    They are dirty then, so that the next sync covers them, and have space of their own.

    Returns:
        Whether the system can do that.

    Raises:
        OSError: A store into one of them would end the process (SIGBUS).
    """
    try:
        for first in range(0, len(mapping), _AT_ONCE):
            mapping.madvise(_MADV_POPULATE_WRITE, first, min(_AT_ONCE, len(mapping) - first))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        if error.errno == errno.EFAULT:  # madvise(2): where there would be a SIGBUS
            raise OSError(errno.ENOSPC, "No space left, or a bad sector") from error
        raise
    return True


def done(name: str, *arguments: Any) -> bool:
    """Call what Linux has and Python has not; return False where the system lacks it."""
    function = getattr(_LIBC, name, None) if sys.platform == "linux" else None
    number = errno.ENOSYS if function is None else errno.EINTR
    while function is not None and number == errno.EINTR:  # Python runs the signal's handler
        if function(*arguments) == 0:
            return True
        number = ctypes.get_errno()
    if number not in UNSUPPORTED:
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
