"""The errors of flowmap: each is a `FlowmapError` and also the built-in it resembles.

They keep their fields and survive pickling, since workers send them across processes. Their
messages quote file names and records that other users may have written, and are shown on
terminals: `printable` makes every message safe for that.
"""

from __future__ import annotations

import errno as errno_module
import os
import re
from typing import Any, Final, Self

from flowmap import tracebacks

_SHOWN: Final = 200  # characters of a user's value that a message has room for

_CONTROLS: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys instead of showing it, but for tab and newline: the control characters
C0 and C1, those that reorder a line (Unicode's embeddings, overrides and isolates), and bytes
of a file name that are not UTF-8, since one of them may be C1."""


def printable(text: str) -> str:
    """Return a text with its control characters written out, as in the repr of a text."""
    if text.isprintable():
        return text
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def short(value: object, most: int = _SHOWN) -> str:
    """Return the repr of a user's value, cut where it would drown the message."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 -- a message must not fail over the value it is about
        text = f"<{type(value).__name__}>"
    return cut(text, most)


def said(error: BaseException) -> str:
    """Return the type of an error and what it says, if anything: "ValueError: too small"."""
    try:
        text = str(error).strip()
    except Exception:  # noqa: BLE001 -- likewise
        text = ""
    name = type(error).__name__
    return cut(f"{name}: {text}" if text else name, 5 * _SHOWN)


def cut(text: str, most: int = _SHOWN) -> str:
    """Return a printable text of `most` characters at most, with an ellipsis if it was cut."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _rebuild(cls: type[FlowmapError], args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
    """Make an unpickled error again without calling its constructor."""
    error = cls.__new__(cls, *args)
    if not error.args:  # StorageError has them already, without the file's name
        error.args = args
    error.__dict__.update(fields)
    if text := fields.get("remote_traceback"):
        error.__cause__ = tracebacks.RemoteTraceback(text)
    return error


class FlowmapError(Exception):
    """Whatever flowmap raises on purpose.

    Args:
        message: What is wrong, where, and what to do.
        **fields: Kept as attributes of the error (`path`, `segment`, ...).
    """

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(printable(message))
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self._fields())

    def _fields(self) -> dict[str, Any]:
        """Return what a pickle keeps besides the arguments: the cause, too, as text."""
        if self.__cause__ is None or "remote_traceback" in self.__dict__:
            return self.__dict__
        return self.__dict__ | {"remote_traceback": tracebacks.traceback_text(self.__cause__)}


class InvalidArgumentError(FlowmapError, ValueError):
    """An argument has a value that cannot be."""


class WrongTypeError(FlowmapError, TypeError):
    """An argument has the wrong type."""


class FillerNotFoundError(InvalidArgumentError):
    """No filler is under this name, or it is not marked, or this process cannot load it."""


class FillerRefusedError(InvalidArgumentError):
    """This filler is not imported.

    The worker of a deployed run does not allow it; or only the records of the job name it, and
    another user may have written them, or it comes from another file or source by now.
    """


class MissingExtraError(FlowmapError, ImportError):
    """What hands a target on needs a library that is not installed."""


class ClusterError(FlowmapError, ConnectionError):
    """A cluster cannot be reached, or is gone."""


class TargetExistsError(FlowmapError, FileExistsError):
    """Something is at the path already.

    Attributes:
        errno: EEXIST, as whoever handles a `FileExistsError` may expect.
    """

    errno = errno_module.EEXIST


class ForeignFileError(TargetExistsError, ValueError):
    """What is at the path was not allocated by flowmap."""


class OtherJobError(TargetExistsError, ValueError):
    """Another job, or the same one pinned to other work, has the path."""


class OtherWorkError(FlowmapError, ValueError):
    """Rows were computed by another filler, or with other arguments."""


class DamagedJobError(FlowmapError, ValueError):
    """The target, its header or its records are not what was allocated."""


class NotValidatedError(FlowmapError, ValueError):
    """The target was not validated, or something of it was changed since."""


class SegmentDoneError(FlowmapError, ValueError):
    """The segment is done, with other bytes than those given."""


class ClaimLostError(FlowmapError, RuntimeError):
    """Another attempt has claimed the segment; this one stopped without committing."""


class StoppedError(FlowmapError, RuntimeError):
    """The run was ended while the segment was being filled; what was done is kept."""


class FillerError(FlowmapError, RuntimeError):
    """The filler raised, returned something, or changed its buffer.

    Attributes:
        segment: The name of the segment.
        cause_type: The name of the type that the filler raised, or None.
        transient: Whether trying again may help: the filler met an `OSError`.
    """

    segment: str
    cause_type: str | None
    transient: bool


class WorkerDiedError(FlowmapError, RuntimeError):
    """The worker process died while it had the segment in hand, each time it was tried."""


class SegmentsFailedError(FlowmapError, RuntimeError):
    """Some segments of a job failed. The cause is the error of the first of them.

    Attributes:
        failures: The error of each failed segment, by the segment's index.
    """

    failures: dict[int, BaseException]


class ValidationFailed(FlowmapError, ValueError):  # noqa: N818 -- the public name is settled
    """The target is not what it should be.

    Attributes:
        report: The `ValidationReport`.
    """

    report: Any


class JobBusyError(FlowmapError, RuntimeError):
    """Another run is filling the job, or took it over from this one."""


class LockTimeoutError(FlowmapError, TimeoutError):
    """The header lock could not be had in time.

    Attributes:
        errno: ETIMEDOUT, as whoever handles a `TimeoutError` may expect.
    """

    errno = errno_module.ETIMEDOUT


class NotDoneTimeoutError(FlowmapError, TimeoutError):
    """Segments were not done in time.

    Attributes:
        errno: ETIMEDOUT, as whoever handles a `TimeoutError` may expect.
    """

    errno = errno_module.ETIMEDOUT


class StorageError(FlowmapError, OSError):
    """The operating system refused; `errno` says why.

    Args:
        number: The error number, as in `errno`.
        message: What was tried, why it failed, and what to do.
        path: The file it happened to.
    """

    def __new__(cls, number: int, message: str, path: str | None = None) -> Self:
        """Let `OSError` fill its own fields: errno, strerror and filename."""
        return super().__new__(cls, number, printable(message), path)

    def __init__(self, number: int, message: str, path: str | None = None) -> None:
        OSError.__init__(self, number, printable(message), path)
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError keeps the file name apart from args; without it str() would differ.
        return _rebuild, (
            type(self),
            (self.errno, self.strerror, self.filename),
            self._fields(),
        )


class NotFoundError(StorageError, FileNotFoundError):
    """There is no such file or folder."""


class AccessDeniedError(StorageError, PermissionError):
    """The file or folder may not be read or written."""


def storage_error(
    error: OSError | MemoryError, doing: str, path: str | os.PathLike[str]
) -> StorageError:
    """Return flowmap's error for one of the operating system, or for the lack of memory.

    Args:
        error: What was raised.
        doing: What was being done, and after a semicolon what to do about it:
            "cannot reserve 8 GiB; free some space". Where the disk is full that is added, and
            another advice given where nothing can be renamed.
        path: The file it happened to.

    Returns:
        An error with the same errno (ENOMEM for the lack of memory), for the caller to raise
        from `error`.
    """
    if isinstance(error, MemoryError):
        what = doing.partition(";")[0]
        message = f"{what}: there is no memory for so much; take less at once"
        return StorageError(errno_module.ENOMEM, message, os.fspath(path))
    number = error.errno or errno_module.EIO
    full = number in (errno_module.ENOSPC, errno_module.EDQUOT)
    if full and "free some" not in doing:
        doing = f"{doing}; free some space"
    if number == errno_module.EXDEV:  # an image of a container (overlayfs), or a sandbox
        doing = (
            f"{doing.partition(';')[0]}: the system does not rename what is there; put a copy "
            "(cp -a) in its place, or choose another file system"
        )
    kinds: dict[int, type[StorageError]] = {
        errno_module.ENOENT: NotFoundError,
        errno_module.EACCES: AccessDeniedError,
        errno_module.EPERM: AccessDeniedError,
        errno_module.EROFS: AccessDeniedError,
    }
    message = f"{doing} ({os.strerror(number)})"
    return kinds.get(number, StorageError)(number, message, os.fspath(path))


class told:  # noqa: N801 -- read as the verb that it is: with told("cannot ...", path)
    """Turn an `OSError` of a `with` block into flowmap's, and a `MemoryError` into ENOMEM.

    A class, since each block of a segment enters several: a generator takes five times as long.

    Args:
        doing: As in `storage_error`.
        path: The file it happens to.

    Raises:
        StorageError: The block raised one of them.
    """

    __slots__ = ("_doing", "_path")

    def __init__(self, doing: str, path: str | os.PathLike[str]) -> None:
        self._doing, self._path = doing, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError | MemoryError):
            raise storage_error(error, self._doing, self._path) from error
