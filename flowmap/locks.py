"""The header lock, the only lock there is: held for milliseconds, never while filling."""

from __future__ import annotations

import contextlib
import errno
import stat
from typing import TYPE_CHECKING, Final

from flowmap.errors import LockTimeoutError, StorageError, storage_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT: Final = 60.0
"""Seconds to wait: reserving a large file on a slow disk takes some of them."""


@contextlib.contextmanager
def header_lock(sidecar: Path, timeout: float = TIMEOUT) -> Iterator[None]:
    """Hold the header lock of a job for a `with` block.

    It is `flock(2)` on `header.lock`, a file that stays: it goes with its process, however
    that ends. It does not stop a program that does not ask for it.

    Args:
        sidecar: The folder beside the target, which must exist.
        timeout: Seconds to wait for it.

    Raises:
        LockTimeoutError: Somebody else held it all that time.
        StorageError: The lock cannot be made here, something else has its name, or the file
            system has none.
    """
    # Imported late: filelock brings asyncio, which would double the time of import flowmap.
    from filelock import FileLock, Timeout  # noqa: PLC0415

    path = sidecar / "header.lock"
    _refuse_odd(path)
    lock = FileLock(path, timeout=timeout, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockTimeoutError(
            f"The header lock {path} was held by another process for {timeout:g} s. It is "
            "held for milliseconds while a target is allocated or a run begins: see which "
            f"process has it (fuser {path}), and try again.",
            path=str(path),
        ) from error
    except (OSError, NotImplementedError) as error:
        cause = error if isinstance(error, OSError) else OSError(errno.ENOLCK, str(error))
        doing = "cannot take the header lock"
        if cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            doing = f"{doing}; the file system must support flock(2)"
        raise storage_error(cause, doing, path) from error
    try:
        yield
    finally:
        lock.release()


def _refuse_odd(path: Path) -> None:
    """Refuse a link, pipe or device in the place of the lock, which are not even opened."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # taking the lock makes it, or tells why not
        return
    if not stat.S_ISREG(mode):
        message = "the header lock is no regular file; remove what is there"
        raise StorageError(errno.EINVAL, message, str(path))
