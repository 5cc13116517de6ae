"""Making segments pending again, to compute them anew on purpose: `reset`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flowmap import sealing
from flowmap.claims import NO_ROWS, Claim
from flowmap.errors import (
    FlowmapError,
    InvalidArgumentError,
    WrongTypeError,
    storage_error,
)
from flowmap.job import Job, refuse_replaced
from flowmap.segments import Segment
from flowmap.sidecar import Sidecar
from flowmap.target import job_of
from flowmap.wording import segments_anew

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable


def reset(
    path: str | os.PathLike[str], segments: Segment | int | Iterable[Segment | int]
) -> None:
    """Make segments pending again, on purpose: the next run computes them anew.

    Their bytes stay until then. An attempt that is at one of them stops.

    Args:
        path: Of the target, or the target.
        segments: Segments, or their numbers; one or several.

    Raises:
        WrongTypeError, InvalidArgumentError: Not segments of this target; nothing is reset.
        OtherJobError, NotFoundError, ForeignFileError, DamagedJobError: There is no such job.
        ClaimLostError: An attempt claimed a segment at the same moment; those before it are
            reset.
        StorageError: The ledger cannot be written.
    """
    job = job_of(path)
    with job.ledger():  # it is that of so many segments, before they are listed
        known = job.segments()
    # Whatever is no collection is one segment, or refused as none.
    several = segments if np.iterable(segments) else [segments]
    chosen = [_segment_of(one, known, job) for one in several]
    if not chosen:
        return
    sidecar = Sidecar.of(job.path)
    try:
        # Before, since a kill in between must not leave a seal on what is pending; and after,
        # since a validation that seals meanwhile may not have seen the claims.
        sidecar.look_afresh()
        sealing.lift(job)
        with job.ledger(write=True) as ledger:
            # It was opened by its name: an overwrite since may have put its own there.
            refuse_replaced(job)
            try:
                for segment in chosen:
                    record = ledger.read(segment.index, segment.start, segment.stop)
                    Claim(ledger, record, "", state="pending", **NO_ROWS)
            finally:
                sidecar.look_afresh()
                sealing.lift(job)
                ledger.sync()
        # `clean` takes the records away, and looks for a claim then: one sees the other.
        refuse_replaced(job)
    except OSError as error:
        if isinstance(error, FlowmapError):
            raise
        raise storage_error(error, "cannot reset the segments", job.path) from error


def _segment_of(one: Segment | int, known: tuple[Segment, ...], job: Job) -> Segment:
    index = one.index if isinstance(one, Segment) else one
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise WrongTypeError(f"segments holds {one!r}; it takes segments or their numbers.")
    if not 0 <= index < len(known):
        raise InvalidArgumentError(
            f"segments holds {index}; {job.path} has segments 0 to {len(known) - 1}."
        )
    if isinstance(one, Segment) and one != known[index]:
        raise InvalidArgumentError(
            f"{one.name} is no segment of the job at {job.path} as it is now. {segments_anew()}"
        )
    return known[index]
