"""The target: the file being filled, opened, looked at and mapped."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from flowmap import handing, human, markup
from flowmap.arguments import seconds
from flowmap.errors import (
    FlowmapError,
    InvalidArgumentError,
    NotDoneTimeoutError,
    printable,
    short,
)
from flowmap.job import Job, opened_again, opened_target, read_job, refuse_replaced, replaced
from flowmap.kernel import again_if_stale
from flowmap.masking import masked_window
from flowmap.records import count_states, status_of
from flowmap.sidecar import absolute

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from dask.array import Array
    from numpy.typing import DTypeLike, NDArray

    from flowmap.segments import Segment

_PAUSE: Final = 10
"""Whoever looks at the ledger again and again rests so many times as long as a look takes."""


def open_target(path: str | os.PathLike[str]) -> Target:
    """Open a target that was allocated before.

    Args:
        path: Of the `.npy` file, or the target.

    Returns:
        The target.

    Raises:
        OtherJobError: It is a target, and was allocated anew since it was opened.
        NotFoundError: There is no such file.
        ForeignFileError: It was not allocated by flowmap.
        DamagedJobError: Its size, its header or its records are not what was allocated.
        StorageError: It cannot be read.
    """
    if isinstance(path, Target):
        with opened_again(path.path, path.id) as (job, _):
            return Target(job)
    with opened_target(absolute(path)) as (job, _):
        return Target(job)


def job_of(path: str | os.PathLike[str]) -> Job:
    """Read the job at a path; of a target only its own.

    Raises:
        OtherJobError: It is a target, and was allocated anew since it was opened.
        NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `read_job`.
    """
    job = read_job(absolute(path))
    if isinstance(path, Target) and path.id != job.id:
        raise replaced(job.path)
    return job


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
            f"<flowmap.Target {printable(str(self.path))} {self.shape} {self.dtype}{order}, "
            f"{len(self.job.plan)} segments>"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what it is, and how far it is at this moment."""
        order = ", Fortran order" if self.fortran_order else ""
        rows = [
            ("path", str(self.path)),
            ("shape", f"{self.shape}{order}"),
            ("dtype", str(self.dtype)),
            ("size", human.size(self.nbytes)),
        ]
        try:
            table = self.status()
        except FlowmapError as error:
            return markup.table("flowmap.Target", [*rows, ("state", str(error))])
        counts = count_states(table)
        states = reversed(counts.items())
        told = ", ".join(f"{number:,} {state}" for state, number in states if number)
        rows.append(("segments", f"{len(table):,}: {told}" if told else "0"))
        return markup.table("flowmap.Target", rows) + markup.bar(counts)

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

    @again_if_stale
    def status(self) -> NDArray[Any]:
        """Read the ledger.

        Returns:
            Shape (segments,), dtype `flowmap.records.STATUS`: index, start, stop, state
            ("pending", "running", "written", "failed", "damaged" or "done"), rows_done,
            attempt, digest, started, finished, host, pid, work, source, reason. A segment whose
            process died on this host is pending; its rows are kept.

        Raises:
            OtherJobError: The target was allocated anew since it was opened.
            NotFoundError, ForeignFileError: It was removed since, or its records were.
            DamagedJobError: The job or the ledger cannot be read.
        """
        try:
            with self.job.ledger() as ledger:  # of so many segments, before they are listed
                bounds = np.array(list(self.job.plan.bounds()), np.int64).reshape(-1, 2)
                slots = ledger.read_all(bounds)
        finally:  # not before: an overwrite removes job.json first, and the ledger then
            refuse_replaced(self.job)
        return status_of(slots)

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
        with opened_again(self.path, self.id) as (job, descriptor):
            return job.map(descriptor, mode)

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        """Return the whole array for NumPy's functions: mapped as by `asarray`, read-only.

        `np.array(target)` copies it into memory, and so does another dtype.
        """
        return np.asarray(self.asarray(), dtype, copy=copy)

    def masked(self) -> np.ma.MaskedArray[Any, Any]:
        """Map the whole array for reading, with the rows masked that are not done yet.

        What the ledger says at this moment counts, and only segments that are done: a row that
        is not masked is on the disk. The mask does not follow what is done later: call this
        again, or go through `as_completed`. The values are those in the file at each look, also
        where a segment is reset and filled again; `load(path, masked=True)` reads them once
        instead. A sector that cannot be read ends a process that looks at it (SIGBUS).

        Nothing is read but the ledger. The mask takes a byte for each row, in a record one for
        each element of its fields; of a record array with several axes `numpy.ma` asks for one
        of each element, which is not touched. Methods that compute, `mean` and `filled` among
        them, make arrays of the full size: of a big target take windows,
        `flowmap.load(path, "r", masked=True, offset=, shape=)`.

        Returns:
            The array, of the target's shape and dtype, not to be written to; likewise its mask.

        Raises:
            OtherJobError: The target was allocated anew since it was opened.
            NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `open_target`.
        """
        return masked_window(self.job, self.status, "r")

    def as_completed(
        self, timeout: float | None = None, *, poll_seconds: float = 1.0
    ) -> Iterator[Segment]:
        """Yield each segment once it is done, at first those that are, until all are.

        For those who work on the rows while others fill: the rows of a segment that came are on
        the disk. A segment that fails is waited for, since a retry may fill it; with
        `durability="end"` none is done before `validate`.

        Args:
            timeout: Seconds to wait in all, from the call on; None for as long as it takes.
            poll_seconds: Seconds between two looks at the ledger; more where a look takes long.

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
            pause = max(poll_seconds, _PAUSE * (time.monotonic() - now))
            for index in news:
                yield self.segments[index]
            left[news] = False
            if left.any() and now >= until:
                raise NotDoneTimeoutError(
                    f"{left.sum()} of {len(left)} segments of {self.path} were not done in "
                    "time. See status() for their states, and whether a run is filling them.",
                    path=str(self.path),
                )
            if left.any():
                time.sleep(max(0, min(now + pause, until) - time.monotonic()))

    def to_dask(self) -> Array:
        """Hand it to Dask: a lazy array whose chunks are the segments, cut along the rows.

        Nothing is read now, and the graph holds no data: the task of a chunk opens the file,
        which its worker must see, with its records, under the same path. `rows[5:10]` reads
        those rows only (of a slice of a slice, Dask hands down the first). Rows not done yet
        are whatever is there when a task reads them. The name of the array changes with the
        records of the job and the time the file was last written, so that no scheduler takes
        an old chunk for a new one: call it again after a change. A task fails with
        `OtherJobError` where the target was allocated anew since.

        Returns:
            A `dask.array.Array` of the target's shape and dtype.

        Raises:
            MissingExtraError: Dask is not installed.
            OtherJobError: The target was allocated anew since it was opened.
            NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `open_target`.
        """
        return handing.to_dask(self.job, self.status())

    def zarr_references(self) -> dict[str, Any]:
        """Hand it to Zarr 3 by reference: nothing is read or copied, now or into the result.

        zarr opens it, with fsspec, for reading:

            zarr.open_array("reference://", storage_options={"fo": references}, mode="r")

        where `"fo"` may also be the name of a file, ending in ".json", that `json.dump` wrote
        them to. Always say `mode="r"`: whatever is written goes into a copy of the references
        in memory, never to the file. Texts, bytes and records are zarr's own dtypes, not yet in
        Zarr's specification: other readers of Zarr may not know them.

        What is there when a chunk is read is taken as it is: rows not done yet, and another job
        in the same place, so make the references of a target that is done, and anew for each
        job. A file that is gone or cut short is an error of fsspec or zarr.

        Zarr's chunks are all of one length, and those of a `.npy` file end where it ends, so
        that the length divides the number of rows: the one that makes about as many chunks as
        there are segments.

        Returns:
            A reference set in kerchunk's format, version 1, as JSON has it: `{"version": 1,
            "refs": {"zarr.json": metadata, "c/0/0": [path, first byte, bytes], ...}}`.

        Raises:
            MissingExtraError: zarr is not installed.
            InvalidArgumentError: zarr has no such dtype; or no sensible length of a chunk
                divides the number of rows.
            OtherJobError: The target was allocated anew since it was opened.
            NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `open_target`.
        """
        return handing.zarr_references(self.job)
