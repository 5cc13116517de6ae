"""Validating a target, and comparing the sources of its filler: the public `validate`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from flowmap import validation
from flowmap.errors import FlowmapError
from flowmap.sources import changes_in
from flowmap.target import job_of

if TYPE_CHECKING:
    import os

    from flowmap.changes import Change
    from flowmap.checks import Check
    from flowmap.report import ValidationReport


def validate(
    path: str | os.PathLike[str],
    *,
    check: Check | None = None,
    finite: bool = False,
    mark: bool = True,
    mixed: bool = False,
) -> ValidationReport:
    """Prove that the target is whole: header, size, and every segment's bytes.

    The bytes are read once, through a fresh descriptor, and hashed in threads. Segments that
    were left for validation to sync (`durability="end"`) are synced and become done, unless
    `mark` is false: then nothing is synced, and a note counts them. Where a digest does not
    match, the segment is marked damaged, so that running the job again repairs just it.
    Success seals the job.

    Args:
        path: Path of the target, or the target. A link is read through, as git-annex and DVC
            make them, and nothing is marked or sealed then.
        check: Called as `check(values, block)` for each block of rows, in order and in this
            thread; `values` are read-only, in the target's dtype and order. False, or an
            exception, is a problem; it marks nothing, since a wrong check must not cost the
            compute. Each byte is read once, so a block comes before the digest of its segment
            is known: what a check says of a damaged segment is not reported. Two or more
            blocks are in memory at a time.
        finite: Whether NaNs and infinities are a problem; they mark nothing either.
        mark: Whether to record anything of what is found.
        mixed: Whether segments may have been filled by different work.

    Returns:
        What was found; `report.raise_if_bad()` makes an error of it.

    Warns:
        FillerChangedWarning: Segments were filled by an earlier source of the filler. The
            filler is not imported: its file is read, as far as the records name one.

    Raises:
        NotFoundError: There is no such file.
        ForeignFileError: It was not allocated by flowmap, or is not a regular file.
        DamagedJobError: `job.json` cannot be read.
        OtherJobError: The target was allocated anew since it was opened, or meanwhile.
        StorageError: The target cannot be read, what was left unsynced cannot be synced, or
            there is no memory for a block.
    """
    report, changes = examine(path, check=check, finite=finite, mark=mark, mixed=mixed)
    for change in changes:
        change.warn(stacklevel=2)
    return report


def examine(
    path: str | os.PathLike[str],
    *,
    check: Check | None = None,
    finite: bool = False,
    mark: bool = True,
    mixed: bool = False,
) -> tuple[ValidationReport, list[Change]]:
    """Validate a target, and return the changes of its filler instead of warning of them.

    Arguments and errors are those of `validation.validate`.
    """
    report = validation.validate(path, check=check, finite=finite, mark=mark, mixed=mixed)
    changes: list[Change] = []
    with contextlib.suppress(FlowmapError):  # overwritten meanwhile: the report still holds
        changes = changes_in(job_of(path))
    return replace(report, warnings=tuple(map(str, changes))), changes
