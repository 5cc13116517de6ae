"""Recalling the work of a job from its records, for a run that does not say it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flowmap.errors import InvalidArgumentError
from flowmap.work import Work, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowmap.fillers import Filler
    from flowmap.target import Target


def work_of(
    target: Target, filler: Filler | str | None, arguments: Mapping[str, Any] | None
) -> Work:
    """Return the work that is asked for, the recalled one where no filler is named.

    Args:
        target: The target.
        filler: The filler, or its name.
        arguments: The filler's arguments by name.

    Raises:
        InvalidArgumentError: Arguments are given but no filler.
        FlowmapError: As in `Work.of`, and in `recalled`.
    """
    if filler is not None:
        return Work.of(filler, arguments)
    if arguments is not None:
        raise InvalidArgumentError("Arguments are given but no filler; give both, or neither.")
    return recalled(target)


def recalled(target: Target) -> Work:
    """Return the work that a job is pinned to, or else the one that has filled it so far.

    Args:
        target: The target.

    Raises:
        InvalidArgumentError: There is none yet, or there are several; or its arguments cannot
            be told from the records.
        FillerNotFoundError: The filler is not to be found any more.
        WrongTypeError: It takes other arguments by now.
        OtherJobError, NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in
            `Target.status`.
    """
    job = target.job
    recorded = job.work
    if recorded is None:
        works = np.unique(target.status()["work"])
        fingerprints = works[works != ""].tolist()
        if len(fingerprints) != 1:
            filled = f"was filled by {len(fingerprints)} works" if fingerprints else "has none"
            raise InvalidArgumentError(
                f"No filler is given, and the job of {target.path} {filled}. Name one, such as "
                "'package.module:function'."
            )
        recorded = job.recorded_work(fingerprints[0])
    if recorded is None or recorded.get("values") is None:
        what = "the filler" if recorded is None else f"the arguments of {describe(recorded)}"
        raise InvalidArgumentError(
            f"{target.path}: {what} cannot be told from the records. Give filler and arguments "
            "as they were given first."
        )
    return Work.of(recorded["filler"], recorded["values"])
