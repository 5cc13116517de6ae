"""The way to an attempt at a segment: what is opened, in which order, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, TypeVar

from flowmap.attempt import Attempt
from flowmap.errors import (
    AccessDeniedError,
    DamagedJobError,
    InvalidArgumentError,
    NotFoundError,
    OtherJobError,
    OtherWorkError,
    StorageError,
    WrongTypeError,
    storage_error,
    told,
)
from flowmap.importing import check_not_importing
from flowmap.job import read_job
from flowmap.kernel import again_if_stale
from flowmap.segments import Segment
from flowmap.storage import NotRegularError, open_existing
from flowmap.wording import call, overwriting, segments_anew
from flowmap.work import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowmap.job import Job
    from flowmap.ledger import Ledger
    from flowmap.work import Work

A = TypeVar("A", bound=Attempt)


@contextlib.contextmanager
def attempting(segment: Segment, work: Work, kind: type[A]) -> Iterator[A]:
    """Open what an attempt at a segment needs, and check it; record a failure of the block.

    Args:
        segment: The segment.
        work: What fills it.
        kind: `Attempt`, or `MappedAttempt`.

    Raises:
        WrongTypeError: `segment` is no segment.
        NotFoundError: The target is gone.
        OtherJobError: The segment belongs to another allocation of the path.
        OtherWorkError: The job is pinned to other work.
        DamagedJobError: The target or the ledger is not what was allocated.
        StorageError: One of them cannot be opened.
    """
    check_not_importing("fills a segment")
    if not isinstance(segment, Segment):
        raise WrongTypeError(
            f"segment is {segment!r}; it takes one of target.segments or target.pending()."
        )
    attempt, files = _admitted(segment, work, kind)
    with files:
        try:
            yield attempt
        except BaseException as error:
            attempt.fail(error)
            if isinstance(error, StorageError) and error.errno == errno.ESTALE:
                raise attempt.replaced() from error  # by another host, on NFS
            raise


@again_if_stale
def _admitted(segment: Segment, work: Work, kind: type[A]) -> tuple[A, contextlib.ExitStack]:
    """Open the files of an attempt that may begin; the caller closes them."""
    with contextlib.ExitStack() as files:
        target, writable = files.enter_context(_opened(segment))
        # After the target: an overwrite removes job.json before it replaces the target, so
        # that a job that is still there vouches for the file that was opened.
        job = read_job(segment.path)
        _check(job, segment, work, target)
        ledger = files.enter_context(_ledger(job, segment))
        attempt = kind(job, segment, work, target, ledger, writable=writable)
        # The ledger was opened by its name: an overwrite since may have put its own there.
        attempt.refuse_if_replaced()
        _refuse_other_job(read_job(segment.path), segment)
        return attempt, files.pop_all()


@contextlib.contextmanager
def _opened(segment: Segment) -> Iterator[tuple[int, bool]]:
    """Open the target, for writing unless it is sealed and so read-only."""
    with contextlib.ExitStack() as stack:
        try:
            try:
                descriptor, writable = open_existing(segment.path, write=True), True
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                descriptor, writable = open_existing(segment.path), False
        except FileNotFoundError as error:
            message = f"{segment.name}: there is no target here; {call('allocate')} makes it"
            raise NotFoundError(2, message, str(segment.path)) from error
        except NotRegularError as error:
            raise DamagedJobError(
                f"{segment.name}: {segment.path} is no regular file any more; somebody put "
                "something else there. Put the target back, or allocate another.",
                path=str(segment.path),
            ) from error
        except OSError as error:
            doing = f"{segment.name}: cannot open the target"
            raise storage_error(error, doing, segment.path) from error
        stack.callback(os.close, descriptor)
        yield descriptor, writable


def _ledger(job: Job, segment: Segment) -> Ledger:
    """Open the ledger, for reading only where nothing can be written and nothing is to be.

    Raises:
        StorageError: It cannot be opened for writing, and the segment is not done.
        OtherJobError, DamagedJobError: As in `Job.ledger`.
    """
    try:
        return job.ledger(write=True)
    except AccessDeniedError:
        with job.ledger() as ledger:
            record = ledger.read(segment.index, segment.start, segment.stop)
        if record.state == "done":
            return job.ledger()
        raise


def _check(job: Job, segment: Segment, work: Work, target: int) -> None:
    _refuse_other_job(job, segment)
    bounds = job.plan.bounds_of(segment.index) if segment.index < len(job.plan) else None
    if bounds != (segment.start, segment.stop):
        raise InvalidArgumentError(
            f"{segment.name} is not one of the segments of {job.path}. Take them from "
            "target.segments; do not make them."
        )
    if job.work is not None and job.work["fingerprint"] != work.fingerprint:
        raise OtherWorkError(
            f"{job.path} is pinned to {describe(job.work)}; for {segment.name} you gave "
            f"{describe(work.describe())}.{work.hint_at_name(job.work)} Fill it by the same "
            f"work, or allocate another target, or this one anew with {overwriting()}.",
            segment=segment.name,
        )
    with told(f"{segment.name}: cannot read the target; look at the disk", segment.path):
        problem = job.problem_with(target)
    if problem is not None:
        raise DamagedJobError(
            f"{segment.name}: {job.path} {problem}: something else wrote to it. Restore it "
            f"from a copy, or begin anew with {overwriting()}.",
            path=str(job.path),
        )


def _refuse_other_job(job: Job, segment: Segment) -> None:
    if segment.job != job.id:
        raise OtherJobError(
            f"{segment.name} belongs to another allocation of {job.path}, which was allocated "
            f"anew since. {segments_anew()}",
            path=str(job.path),
        )
