"""Handing a target on to other libraries, which read the file themselves when they need it.

dask and zarr are optional, and imported only inside the functions that need them.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flowmap import boxes
from flowmap.errors import InvalidArgumentError, said, told
from flowmap.extras import extra
from flowmap.job import opened_again

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dask.array import Array
    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.npy import Layout

_CHUNK_BYTES: Final = 256 << 20  # zarr reads and holds a whole chunk for a single element
_MOST_CHUNKS: Final = 100_000  # references take about a hundred bytes each, in JSON too
_ENDIANS: Final = {"<": "little", ">": "big"}


@dataclass(frozen=True, slots=True)
class LazyRows:
    """What dask slices: the shape of a target, and where it is, but none of its data.

    It is small, since it goes into the task of each chunk.

    Attributes:
        path: Of the target.
        job: The id of the job.
        layout: Shape, dtype and order.
    """

    path: Path
    job: str
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self.layout.shape

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.layout.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one element."""
        return self.layout.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        with (
            opened_again(self.path, self.job) as (job, descriptor),
            told("cannot read the target; look at the disk", job.path),
        ):
            return boxes.read_part(job.layout, job.data_offset, descriptor, index)


def to_dask(job: Job, status: NDArray[Any]) -> Array:
    """Return a lazy array whose chunks are the segments.

    Args:
        job: Of the target.
        status: What `Target.status` returns.

    Raises:
        MissingExtraError: Dask is not installed.
        OtherJobError: The target was allocated anew since it was opened.
        NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `opened_target`.
    """
    array, base = extra("dask.array", "dask"), extra("dask.base", "dask")
    with opened_again(job.path, job.id) as (_, descriptor):
        # The records tell of all that flowmap writes once it is done; the time, of blocks in
        # hand and of whoever writes past flowmap as well.
        written = os.fstat(descriptor).st_mtime_ns
    rows = LazyRows(job.path, job.id, job.layout)
    # Not of the mapped array: dask would copy it (its issue 5985 for one), and pickle all.
    lazy: Array = array.from_array(
        rows,
        chunks=_chunks(job),
        name=f"flowmap-{base.tokenize(str(job.path), job.id, written, status)}",
        inline_array=True,  # a task of its own would hold up those of all chunks
        meta=np.empty((0,) * rows.ndim, rows.dtype),
    )
    return lazy


def _chunks(job: Job) -> tuple[tuple[int, ...], ...]:
    """Return the lengths of the chunks along each axis: those of the segments, and whole."""
    chunks: list[tuple[int, ...]] = [(length,) for length in job.layout.shape]
    if chunks:
        lengths = tuple(stop - start for start, stop in job.plan.bounds())
        chunks[job.layout.axis] = lengths or (0,)
    return tuple(chunks)


def zarr_references(job: Job) -> dict[str, Any]:
    """Return a reference set, version 1, by which zarr reads the target as it lies.

    Args:
        job: Of the target.

    Raises:
        MissingExtraError: zarr is not installed.
        InvalidArgumentError: zarr has no such dtype; or no sensible length of a chunk divides
            the number of rows.
        OtherJobError: The target was allocated anew since it was opened.
        NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `opened_target`.
    """
    zarr = extra("zarr", "zarr")
    with opened_again(job.path, job.id):
        layout = job.layout
    count = _chunk_count(job) if layout.nbytes else 0
    rows = layout.rows // count if count else layout.rows
    metadata, key_of = _zarr_metadata(zarr, layout, layout.block_shape(rows))
    references: dict[str, Any] = {"zarr.json": metadata}
    size = rows * layout.row_bytes
    for number in range(count):
        place = [0] * len(layout.shape)
        if place:
            place[layout.axis] = number
        references[key_of(tuple(place))] = [
            str(job.path),
            job.data_offset + number * size,
            size,
        ]
    return {"version": 1, "refs": references}


def _chunk_count(job: Job) -> int:
    """Return how many chunks the rows are cut into for Zarr.

    Its grid is regular (the rectilinear one is in no release yet): also the last chunk takes
    the bytes of a whole one, and the file ends with the last row. So the count divides the
    rows; of those that do, the one nearest to the number of segments, as a ratio.

    Raises:
        InvalidArgumentError: Chunks would be too big or too many.
    """
    rows, wanted = job.layout.rows, len(job.plan)
    longest = max(length for _, length in job.plan.runs)
    # Segments are the user's word: no fewer chunks, and none smaller, are too many or too big.
    most = max(_MOST_CHUNKS, wanted)
    fewest = -(-job.layout.nbytes // max(_CHUNK_BYTES, longest * job.layout.row_bytes))
    counts = [n for n in range(fewest, min(rows, most) + 1) if rows % n == 0]
    if counts:
        return min(counts, key=lambda n: max(n / wanted, wanted / n))
    raise InvalidArgumentError(
        f"{job.path} has {rows} rows, which cannot be cut into {fewest} to {most} chunks of "
        f"one length, as Zarr wants them. Allocate {-(-rows // wanted) * wanted} rows, which "
        f"make {wanted} chunks, or take to_dask(), whose chunks may differ.",
        path=str(job.path),
    )


def _zarr_metadata(
    zarr: Any, layout: Layout, chunk: tuple[int, ...]
) -> tuple[str, Callable[[tuple[int, ...]], str]]:
    """Let zarr write the metadata of an array that has such chunks, and read them again.

    Returns:
        The text of `zarr.json`, and the function that gives a chunk's key for its place.

    Raises:
        InvalidArgumentError: zarr has no such dtype, or another in place of it.
    """
    codecs, errors = extra("zarr.codecs", "zarr"), extra("zarr.errors", "zarr")
    store: dict[str, Any] = {}
    axes = range(len(layout.shape))
    transposed = [codecs.TransposeCodec(order=tuple(reversed(axes)))] if len(axes) > 1 else []
    with warnings.catch_warnings():
        # Zarr's specification lacks texts, bytes and records: said in `Target.zarr_references`,
        # and for a store that others read a reason to warn; here zarr itself opens it.
        warnings.simplefilter("ignore", errors.UnstableSpecificationWarning)
        try:
            zarr.create_array(
                store,
                shape=layout.shape,
                dtype=layout.dtype,
                chunks=tuple(max(1, length) for length in chunk),
                filters=transposed if layout.fortran_order else [],
                serializer=codecs.BytesCodec(endian=_ENDIANS.get(layout.dtype.str[0])),
                compressors=[],
                zarr_format=3,
            )
            opened = zarr.open_array(store, mode="r")
        except (TypeError, ValueError, NotImplementedError) as error:
            raise _no_zarr_dtype(layout.dtype, said(error)) from error
    if not _holds(opened.dtype, layout.dtype):
        raise _no_zarr_dtype(layout.dtype, f"it makes {opened.dtype} of it")
    return store["zarr.json"].to_bytes().decode(), opened.metadata.encode_chunk_key


def _holds(theirs: np.dtype[Any], ours: np.dtype[Any]) -> bool:
    """Return whether elements of our dtype can be read as elements of theirs.

    The order of the bytes of a plain dtype is in the codec, and may be another in memory;
    that of the fields of a record is nowhere, nor is padding between them.
    """
    if ours.names is not None:
        return theirs == ours
    return theirs.newbyteorder("=") == ours.newbyteorder("=")


def _no_zarr_dtype(dtype: np.dtype[Any], why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"zarr cannot read dtype {dtype} where it lies: {why.rstrip('.')}. It can read "
        "numbers but long doubles, dates with a unit, texts and bytes, and records of them "
        "without padding, inner arrays, titles or foreign byte order. Take to_dask(), which "
        "has every dtype."
    )
