"""The header lock, the only lock there is: held for milliseconds, never while filling."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from flowmap.errors import LockTimeoutError, NotFoundError, StorageError, storage_error
from flowmap.kernel import UNSUPPORTED, again_if_stale
from flowmap.sidecar import Sidecar, why_not_writable
from flowmap.storage import anchored, open_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT: Final = 60.0
"""Seconds to wait: reserving a large file on a slow disk takes some of them."""

_PAUSE: Final = 0.05
"""Seconds between two tries."""

_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextlib.contextmanager
def header_lock(sidecar: Path, timeout: float = TIMEOUT) -> Iterator[None]:
    """Hold the header lock of a job for a `with` block.

    It is `flock(2)` on `header.lock`, a file that stays: it goes with its process, however
    that ends. It does not stop a program that does not ask for it.

    Cleaning takes the folder away with the lock in it. So the lock counts only if its file is
    still at its name: whoever waited meanwhile must not work beside the holder of the next one.
    The folder is never made here. Within the block, names in the folder of the target and in
    this one are as the server has them, where another host may have changed them.

    Args:
        sidecar: The folder beside the target, which must exist.
        timeout: Seconds to wait for it.

    Raises:
        LockTimeoutError: Somebody else held it all that time.
        NotFoundError: There is no such folder, or not any more.
        StorageError: The lock cannot be made here, something else has its name, or the file
            system has none.
    """
    path = sidecar / "header.lock"
    until = time.monotonic() + timeout
    _refuse_odd(path)
    while True:
        with _held(path) as held:
            if held:
                yield
                return
        if time.monotonic() >= until:
            raise LockTimeoutError(
                f"The header lock {path} was held by another process for {timeout:g} s. It is "
                "held for milliseconds while a target is allocated or a run begins: see which "
                f"process has it (fuser {path}), and try again.",
                path=str(path),
            )
        time.sleep(min(_PAUSE, max(until - time.monotonic(), 0)))


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Try to lock a file, which is made if need be, for a `with` block.

    Yields:
        Whether it is locked, and still at its name.
    """
    with contextlib.ExitStack() as stack:
        try:
            held = _locked(path, stack)
        except FileNotFoundError as error:
            message = "the folder of the records is gone; see whether the target was cleaned"
            raise NotFoundError(errno.ENOENT, message, str(path.parent)) from error
        except OSError as error:
            if error.filename is None and error.errno in {*UNSUPPORTED, errno.ENOLCK}:
                why: str | None = "the file system, and any sandbox, must support flock(2)"
            else:
                why = why_not_writable(error, path if os.path.lexists(path) else path.parent)
            doing = "cannot take the header lock"
            raise storage_error(error, f"{doing}: {why}" if why else doing, path) from error
        yield held


@again_if_stale
def _locked(path: Path, stack: contextlib.ExitStack) -> bool:
    # Imported late: filelock brings asyncio, which would double the time of import flowmap.
    from filelock import lock_descriptor, unlock_descriptor  # noqa: PLC0415

    descriptor = _open(path)
    stack.callback(os.close, descriptor)
    if not lock_descriptor(descriptor, blocking=False):
        return False
    # Given back by name: a child forked meanwhile has the descriptor, too.
    stack.callback(unlock_descriptor, descriptor)
    # What the last holder changed from another host must be seen by this one.
    Sidecar(path.parent).look_afresh()
    return os.path.samestat(os.fstat(descriptor), path.lstat())


def _open(path: Path) -> int:
    with anchored(path) as (name, folder):
        try:
            return open_file(name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
        except FileExistsError:  # a sticky folder refuses O_CREAT to all but the file's owner
            return open_file(name, _FLAGS, dir_fd=folder)


def _refuse_odd(path: Path) -> None:
    """Refuse a link, pipe or device in the place of the lock, which are not even opened."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # taking the lock makes it, or tells why not
        return
    if not stat.S_ISREG(mode):
        message = "the header lock is no regular file; remove what is there"
        raise StorageError(errno.EINVAL, message, str(path))
