"""Why segments failed, kept whole: the ledger has room for a line."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from flowmap.claims import Claim
from flowmap.documents import publish_json, read_json
from flowmap.errors import (
    FillerError,
    FlowmapError,
    WorkerDiedError,
    cut,
    printable,
    said,
)
from flowmap.job import read_job
from flowmap.liveness import find_dead
from flowmap.records import REASON_BYTES, SLOT
from flowmap.sidecar import FORMAT, Sidecar
from flowmap.tracebacks import RemoteTraceback, from_filler, traceback_text

if TYPE_CHECKING:
    from flowmap.job import Job
    from flowmap.segments import Segment


def record_failure(job: Job, index: int, attempt: int, error: BaseException) -> None:
    """Keep why an attempt at a segment failed, in place of what was kept of earlier ones.

    Args:
        job: The job.
        index: Of the segment.
        attempt: Its number.
        error: What ended it.

    Raises:
        OSError: It cannot be written.
    """
    document = {
        "format": FORMAT,
        "job": job.id,
        "attempt": attempt,
        "reason": said(error),
        "traceback": printable(traceback_text(error)),
    }
    publish_json(Sidecar.of(job.path).failure(index), document)


def record_death(segment: Segment, error: BaseException) -> None:
    """Record that a segment failed whose worker died: the worker left it running, or untouched.

    Nothing is recorded where the process that has the segment may live, or cannot be seen.

    Args:
        segment: The segment.
        error: Why it failed, as the executor says.
    """
    died = isinstance(error, WorkerDiedError)
    with contextlib.suppress(FlowmapError, OSError):
        job = read_job(segment.path)
        if job.id != segment.job:
            return
        with job.ledger(write=True) as ledger:
            record = ledger.read(segment.index, segment.start, segment.stop)
            slot = np.frombuffer(record.pack(job.id), SLOT)
            if find_dead(slot)[0] or (died and record.state in ("pending", "failed")):
                what = str(error) if died else said(error)
                why = what.removeprefix(f"{segment.name}: ").partition(" (")[0]
                claim = Claim(ledger, record, record.work, state="failed")
                claim.note(reason=cut(why, REASON_BYTES))
                clean_traceback(error)
                record_failure(job, segment.index, claim.record.attempt, error)


def failure_of(job: Job, index: int, attempt: int) -> dict[str, Any] | None:
    """Return what was kept of an attempt at a segment: "reason" and "traceback", or None.

    Args:
        job: The job.
        index: Of the segment.
        attempt: Its number.
    """
    try:
        found = read_json(Sidecar.of(job.path).failure(index))
    except (OSError, ValueError):
        return None
    known = {"job": job.id, "attempt": attempt}
    ours = all(found.get(name) == value for name, value in known.items())
    texts = {name: found.get(name) for name in ("reason", "traceback")}
    if not (ours and all(isinstance(text, str) for text in texts.values())):
        return None
    return {name: printable(str(text)) for name, text in texts.items()}


def clean_traceback(error: BaseException) -> None:
    """Leave the frames of the user's code of an error that ended a segment.

    Those of flowmap and of executors say nothing to a user. An error that flowmap did not raise
    on purpose keeps them: it is a fault of flowmap, or of an executor.

    Args:
        error: The error, from this process or a worker; nothing must need its frames any more.
    """
    if not isinstance(error, FlowmapError):
        return
    error.__traceback__ = None
    text = getattr(error, "remote_traceback", None)
    if text is not None:  # executors put the whole of theirs in its place
        error.__cause__ = RemoteTraceback(text)
    elif isinstance(error, FillerError) and error.cause_type is None:
        error.__cause__ = None
    elif error.__cause__ is not None:
        error.__cause__.__traceback__ = from_filler(error.__cause__.__traceback__)
