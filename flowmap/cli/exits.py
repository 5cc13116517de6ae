"""What the command's exit codes say."""

from __future__ import annotations

import os
from enum import IntEnum

from flowmap.errors import (
    AccessDeniedError,
    DamagedJobError,
    FlowmapError,
    InvalidArgumentError,
    JobBusyError,
    LockTimeoutError,
    MissingExtraError,
    NotFoundError,
    NotValidatedError,
    OtherWorkError,
    SegmentDoneError,
    TargetExistsError,
    WrongTypeError,
)


class Exit(IntEnum):
    """The exit codes of `flowmap`."""

    DONE = 0
    """It did what was asked; of `status` and `validate`: everything is done."""

    FAILED = 1
    """Something failed: segments, the disk, a check."""

    REFUSED = 2
    """What was asked cannot be, or would harm what is there: nothing was changed."""

    INCOMPLETE = 3
    """Segments are not done yet."""

    DAMAGED = 4
    """Something is not as it was written."""

    LATER = os.EX_TEMPFAIL
    """Not now: a signal asked to stop, or another run has the job. The same again goes on."""

    INTERRUPTED = 130
    """Ctrl-C."""


_LATER = (JobBusyError, LockTimeoutError)
_REFUSED = (
    *(InvalidArgumentError, WrongTypeError, MissingExtraError),
    *(TargetExistsError, NotFoundError, AccessDeniedError),
    *(OtherWorkError, SegmentDoneError, NotValidatedError),
)


def code_of(error: FlowmapError) -> Exit:
    """Return the exit code of a command that an error ended."""
    if isinstance(error, _LATER):
        return Exit.LATER
    if isinstance(error, DamagedJobError):
        return Exit.DAMAGED
    return Exit.REFUSED if isinstance(error, _REFUSED) else Exit.FAILED
