"""All that is known of a job in one JSON document, which outlives the folder of its records."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flowmap._version import __version__
from flowmap.documents import OUTPUT, read_json, staged_json, without_nan
from flowmap.errors import ForeignFileError, InvalidArgumentError, storage_error
from flowmap.job import refuse_replaced
from flowmap.records import rows_kept
from flowmap.sealing import digest_if_done, seal_of, state_of
from flowmap.sidecar import Sidecar, absolute, output_path
from flowmap.sources import changes_in, sources_in
from flowmap.storage import NotRegularError, put_in_place
from flowmap.target import open_target
from flowmap.wording import either

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.target import Target

FORMAT: Final = 1
"""Version of the document; a later one is refused."""

_FIELDS: Final[dict[str, type]] = {
    "flowmap": str,
    "path": str,
    "job": dict,
    "works": dict,
    "segments": list,
    "summary": dict,
}
"""What an export must say to be one."""


def record_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return all that is known of a job, as JSON values.

    Volatile arguments are not among it, since they are recorded nowhere. Numbers that JSON does
    not have are texts: "NaN", "Infinity", "-Infinity".

    Args:
        path: Of the target, or the target.

    Returns:
        The document:

        - "format": 1; "flowmap": the version that made the document; "exported": when, in
          seconds since 1970; "path": of the target, absolute.
        - "job": what `job.json` says: shape, dtype, order, segmentation, the pinned work, and
          under "made" by whom it was allocated, when, and with what versions.
        - "works": by fingerprint what was recorded of each work: filler, version, arguments,
          source; null where that is lost.
        - "sources": by fingerprint, then by the "source" of the segments that it filled, each
          source of the filler, with its file, and when it was recorded.
        - "changes": the segments that were filled by an earlier source of their filler, an
          entry for each work that has some: "filler", "segments", "count" of all, "path".
        - "segments": for each what `Target.status` says of it, by the names of its fields.
        - "seal": what the seal says; null where there is none.
        - "summary": "state": "valid" (sealed), "done", "incomplete", or "damaged" (a segment
          is, or the seal is of other digests); "segments_done", "segments_failed",
          "rows_done", "rows", "nbytes"; "attempts" at all segments; "hosts", sorted; "began"
          and "finished": the first start and the last record of an attempt, or null; "seconds"
          that the attempts took by which segments were done, added up; "digest" of the whole,
          null unless all are done.

    Raises:
        OtherJobError, NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in
            `open_target` and `Target.status`.
    """
    target = open_target(path)
    job = target.job
    before, status, seal = _looks(target)
    while seal != before:  # sealed or reset meanwhile: they must be of one moment
        before, status, seal = _looks(target)
    works = _works(job, status)
    sources, changes = sources_in(job, works), changes_in(job)
    refuse_replaced(job)
    names = status.dtype.names or ()
    document = {
        "format": FORMAT,
        "flowmap": __version__,
        "exported": time.time(),
        "path": str(job.path),
        "job": job.document(),
        "works": works,
        "sources": sources,
        "changes": [change.document() for change in changes],
        "segments": [dict(zip(names, row, strict=True)) for row in status.tolist()],
        "seal": seal,
        "summary": _summary(job, status, seal),
    }
    return dict(without_nan(document))


def _looks(target: Target) -> tuple[dict[str, Any] | None, NDArray[Any], dict[str, Any] | None]:
    """Return the ledger, and the seal before and after it was read."""
    return seal_of(target.job), target.status(), seal_of(target.job)


def _works(job: Job, status: NDArray[Any]) -> dict[str, Any]:
    """Return what was recorded of each work that the ledger, or a file, names."""
    sidecar = Sidecar.of(job.path)
    recorded = {
        entry.stem.removeprefix("work-") for entry in sidecar.folder.glob("work-*.json")
    }
    named = set(status["work"].tolist()) - {""}
    return {name: _work(sidecar.work(name)) for name in sorted(recorded | named)}


def _work(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _summary(job: Job, status: NDArray[Any], seal: dict[str, Any] | None) -> dict[str, Any]:
    states = status["state"]
    done = status[states == "done"]
    tried = status[status["attempt"] > 0]
    return {
        "state": state_of(status, seal),
        "segments_done": len(done),
        "segments_failed": int(np.sum(states == "failed")),
        "rows_done": rows_kept(status),
        "rows": job.layout.rows,
        "nbytes": job.layout.nbytes,
        "attempts": int(np.sum(status["attempt"])),
        "hosts": sorted(set(status["host"].tolist()) - {""}),
        "began": float(tried["started"].min()) if len(tried) else None,
        "finished": float(tried["finished"].max()) if len(tried) else None,
        "seconds": float(np.sum(done["finished"] - done["started"])),
        "digest": digest_if_done(status),
    }


def export(path: str | os.PathLike[str], file: str | os.PathLike[str]) -> dict[str, Any]:
    """Write all that is known of a job to one JSON file, durably, whole or not at all.

    An earlier export is replaced, and nothing else is.

    Args:
        path: Of the target, or the target.
        file: Where; its folder must exist, and not be one of records.

    Returns:
        What was written, as `record_of` describes it.

    Raises:
        WrongTypeError, InvalidArgumentError: No export can have such a name.
        ForeignFileError: Something else has it already; or the target was not allocated by
            flowmap.
        OtherJobError, NotFoundError, DamagedJobError, StorageError: As in `record_of`; or the
            file cannot be written.
    """
    name = either("file", "--export")
    place = output_path(file, name, ".json")
    if place == absolute(path):
        raise InvalidArgumentError(
            f"{name} is {place}, which is the target. Choose another name."
        )
    document = record_of(path)
    earlier = _earlier(place)
    try:
        with staged_json(place, document, mode=OUTPUT, end="\n") as private:
            put_in_place(private, place, replace=earlier)
    except FileExistsError as error:
        raise _foreign(place, "it appeared meanwhile") from error
    except OSError as error:
        raise storage_error(error, "cannot write the export", place) from error
    return document


def _earlier(place: Path) -> bool:
    """Return whether an export is there; refuse anything else.

    Raises:
        ForeignFileError: Something else is.
        StorageError: It cannot be looked at.
    """
    try:
        read_export(place)
    except FileNotFoundError:
        return False
    return True


def read_export(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `export` wrote.

    Args:
        file: Its name.

    Returns:
        The document, as `record_of` describes it.

    Raises:
        WrongTypeError, InvalidArgumentError: No file can have such a name.
        NotFoundError: There is none.
        ForeignFileError: It is no export, or was changed since it was written.
        StorageError: It cannot be read.
    """
    place = absolute(file, "file", ".json")
    try:
        document = read_json(place)
    except (NotRegularError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise _foreign(place, str(why)) from error
    except OSError as error:
        raise storage_error(error, "cannot read the export", place) from error
    for name, kind in _FIELDS.items():
        if not isinstance(document.get(name), kind):
            raise _foreign(place, f"it has no {name!r}")
    if document.get("format") != FORMAT:
        raise _foreign(place, f"its format is {document.get('format')!r}, not {FORMAT}")
    return document


def _foreign(place: Path, why: str) -> ForeignFileError:
    return ForeignFileError(
        f"{place} is no export of a job that this version of flowmap can read, or was changed "
        f"since: {why}. Choose another file.",
        path=str(place),
    )
