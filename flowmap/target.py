"""The target: the file being filled, opened, looked at and mapped."""

from __future__ import annotations

import contextlib
import math
import os
import time
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from flowmap.arguments import seconds
from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    InvalidArgumentError,
    NotDoneTimeoutError,
    short,
    storage_error,
)
from flowmap.job import Job, absolute, read_job, refuse_replaced, replaced
from flowmap.masking import with_mask
from flowmap.records import STATUS
from flowmap.storage import NotRegularError, open_existing
from flowmap.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.segments import Segment

# What the upper floors take from here: a target comes with the job it was allocated for.


def open_target(path: str | os.PathLike[str]) -> Target:
    """Open a target that was allocated before.

    Args:
        path: Of the `.npy` file.

    Returns:
        The target.

    Raises:
        NotFoundError: There is no such file.
        ForeignFileError: It was not allocated by flowmap.
        DamagedJobError: Its size, its header or its records are not what was allocated.
        StorageError: It cannot be read.
    """
    with _opened(absolute(path)) as (job, _):
        return Target(job)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Job, int]]:
    """Open a target for reading, for a `with` block that gets its job and the descriptor.

    Raises:
        NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `open_target`.
    """
    job = read_job(path)
    try:
        descriptor = open_existing(path)
    except NotRegularError as error:
        raise ForeignFileError(
            f"{path} is not a regular file; flowmap opens no links, folders, pipes or "
            "devices. Give the path of the .npy file itself.",
            path=str(path),
        ) from error
    except OSError as error:
        raise storage_error(error, "cannot open the target", path) from error
    try:
        problem = job.problem_with(descriptor)
        if problem is not None:
            raise DamagedJobError(
                f"{path} {problem}: something else wrote to it, or it is another file. Restore "
                'it from a copy, or begin anew with exist="overwrite".',
                path=str(path),
            )
        yield job, descriptor
    finally:
        os.close(descriptor)


class Target:
    """The `.npy` file being filled.

    Neither iterable nor a dataclass, so that Prefect's `.map` and its walk through
    parameters leave it alone. It holds no open file, and pickles.

    Args:
        job: What was allocated. Users get a target from `allocate` or `open_target`.
    """

    __slots__ = ("_segments", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        self._segments: tuple[Segment, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Target, (self.job,)

    def __fspath__(self) -> str:
        return str(self.job.path)

    def __repr__(self) -> str:
        order = ", Fortran order" if self.fortran_order else ""
        return (
            f"<flowmap.Target {self.path} {self.shape} {self.dtype}{order}, "
            f"{len(self.job.plan)} segments>"
        )

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        return self.job.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self.job.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one element."""
        return self.job.layout.dtype

    @property
    def fortran_order(self) -> bool:
        """Whether the last axis is the slow one."""
        return self.job.layout.fortran_order

    @property
    def nbytes(self) -> int:
        """Bytes of the data, the header not counted."""
        return self.job.layout.nbytes

    @property
    def id(self) -> str:
        """The id of the job: 32 hexadecimal digits, new at each allocation."""
        return self.job.id

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every segment, in order."""
        if self._segments is None:
            self._segments = self.job.segments()
        return self._segments

    def status(self) -> NDArray[Any]:
        """Read the ledger.

        Returns:
            Shape (segments,), dtype `flowmap.records.STATUS`: index, start, stop, state
            ("pending", "running", "written", "failed", "damaged" or "done"), rows_done,
            attempt, digest, started, finished, host, pid, work, reason.

        Raises:
            OtherJobError: The target was allocated anew since it was opened.
            NotFoundError, ForeignFileError: It was removed since, or its records were.
            DamagedJobError: The job or the ledger cannot be read.
        """
        bounds = np.array(list(self.job.plan.bounds()), np.int64).reshape(-1, 2)
        try:
            with self.job.ledger() as ledger:
                slots = ledger.read_all(bounds)
        finally:  # not before: an overwrite removes job.json first, and the ledger then
            refuse_replaced(self.job)
        table = np.zeros(len(slots), STATUS)
        table["index"] = slots["segment"]
        for name in ("start", "stop", "state", "rows_done", "attempt"):
            table[name] = slots[name]
        for name in ("started", "finished", "host", "pid", "reason"):
            table[name] = slots[name]
        for name in ("digest", "work"):
            table[name] = [mark.hex() if any(mark) else "" for mark in slots[name].tolist()]
        return table

    def pending(self) -> list[Segment]:
        """Return the segments that are not done yet: what a run has to fill.

        Raises:
            OtherJobError, NotFoundError, ForeignFileError, DamagedJobError: As in `status`.
        """
        (left,) = np.nonzero(self.status()["state"] != "done")
        return [self.segments[index] for index in left]

    def asarray(self, mode: Literal["r", "c"] = "r") -> NDArray[Any]:
        """Map the whole array for reading: rows not done yet are whatever is there.

        Args:
            mode: "r", or "c" for a copy on write that never reaches the file.

        Returns:
            The array, of the target's shape, dtype and order.

        Raises:
            InvalidArgumentError: Another mode: writing goes through segments.
            OtherJobError: The target was allocated anew since it was opened.
            NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `open_target`.
        """
        asked: object = mode
        if not isinstance(asked, str) or asked not in ("r", "c"):
            raise InvalidArgumentError(
                f"mode is {short(mode)}; it takes 'r' or 'c'. To write, fill or write segments."
            )
        with _opened_again(self.job) as descriptor:
            return _window(self.job).map(descriptor, mode, self.path)

    def masked(self) -> np.ma.MaskedArray[Any, Any]:
        """Map the whole array for reading, with the rows masked that are not done yet.

        What the ledger says at this moment counts, and only segments that are done: a row that
        is not masked is on the disk. Nothing is read but the ledger; the mask takes a byte for
        each row of a plain dtype, and one for each field of a record. It does not follow what
        is done later: call this again, or go through `as_completed`.

        Returns:
            The array, of the target's shape and dtype, not to be written to; likewise its mask.

        Raises:
            OtherJobError: The target was allocated anew since it was opened.
            NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `open_target`.
        """
        return masked_window(self, "r")

    def as_completed(
        self, timeout: float | None = None, *, poll_seconds: float = 1.0
    ) -> Iterator[Segment]:
        """Yield each segment once it is done, at first those that are, until all are.

        For those who work on the rows while others fill: the rows of a segment that came are on
        the disk. A segment that fails is waited for, since a retry may fill it.

        Args:
            timeout: Seconds to wait in all, from the call on; None for as long as it takes.
            poll_seconds: Seconds between two looks at the ledger.

        Returns:
            An iterator. It raises what `status` raises, and `NotDoneTimeoutError`, a
            `TimeoutError`, when the time is up and segments are left.

        Raises:
            WrongTypeError, InvalidArgumentError: An argument is no number, or negative.
        """
        wait = math.inf if timeout is None else seconds("timeout", timeout)
        return self._as_completed(
            time.monotonic() + wait, seconds("poll_seconds", poll_seconds)
        )

    def _as_completed(self, until: float, poll_seconds: float) -> Iterator[Segment]:
        left = np.ones(len(self.segments), bool)
        while left.any():
            now = time.monotonic()
            (news,) = np.nonzero(left & (self.status()["state"] == "done"))
            for index in news:
                yield self.segments[index]
            left[news] = False
            if left.any() and now >= until:
                raise NotDoneTimeoutError(
                    f"{left.sum()} of {len(left)} segments of {self.path} were not done in "
                    "time. See status() for their states, and whether a run is filling them.",
                    path=str(self.path),
                )
            if not news.size:
                time.sleep(max(0, min(poll_seconds, until - now)))


@contextlib.contextmanager
def _opened_again(job: Job) -> Iterator[int]:
    """Open the target of a job for reading, for a `with` block; refuse another job's."""
    with _opened(job.path) as (found, descriptor):
        if found.id != job.id:
            raise replaced(job.path)
        yield descriptor


def _window(job: Job, offset: Any = 0, shape: Any = None) -> Window:
    return Window.asked(job.layout, job.data_offset, offset, shape, job.path)


def masked_window(
    target: Target,
    mode: Literal["r"] | None,
    offset: SupportsIndex = 0,
    shape: SupportsIndex | Sequence[SupportsIndex] | None = None,
) -> np.ma.MaskedArray[Any, Any]:
    """Return a window of a target, with the rows masked that are not done yet.

    Args:
        target: The target.
        mode: "r" to map it; None to read the rows that are done into memory.
        offset: The first index along the first axis.
        shape: Of the window, or None for all that follows.

    Raises:
        InvalidArgumentError, WrongTypeError: There is no such window.
        OtherJobError, NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in
            `Target.masked`.
    """
    window, layout = _window(target.job, offset, shape), target.job.layout
    # The file before the ledger: the job that the ledger is of then vouches for the file.
    with _opened_again(target.job) as descriptor:
        mapped = window.map(descriptor, "r", target.path)
        status = target.status()
    first, last = (window.start, window.stop) if window.contiguous else (0, layout.rows)
    starts, stops = (np.clip(status[name], first, last) for name in ("start", "stop"))
    done = np.repeat(status["state"] == "done", stops - starts)
    return with_mask(mapped, done, layout.axis, copy=mode is None)
