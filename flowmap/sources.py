"""Sources: which segments of a job were filled by an earlier source of its filler.

The fingerprint of a work leaves the source out, so that a bug can be mended. Instead each
record in the ledger has a digest of the source, whose text is in a file of its own beside the
ledger. A digest only names a text. Sources are compared by their texts, since no form of a
source without its comments is the same for every version of Python.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from flowmap.changes import Change
from flowmap.documents import publish_json, read_json
from flowmap.errors import FlowmapError
from flowmap.job import read_job
from flowmap.kernel import again_if_stale
from flowmap.marks import is_own
from flowmap.origin import is_same_source, source_in
from flowmap.records import FINISHED, status_of
from flowmap.sidecar import Sidecar
from flowmap.work import place_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment
    from flowmap.work import Work

_SEVERAL: Final = "ffffffff"
"""Stands for several sources: one filled the first rows of a segment, another the rest."""

_KINDS: Final = {"filler": str, "function": str, "file": str, "source": str, "time": float}
"""What is recorded of a source, and of which type it is."""

_RECORDED: Final[set[tuple[str, str, str]]] = set()
"""What this process has recorded, or has found recorded: job, fingerprint, digest."""

_WARNED: Final[set[tuple[str, str, str]]] = set()
"""What `warn_if_older` has compared in this process: job, fingerprint, digest of the source."""


def digest_of(source: str | None) -> str:
    """Return the digest of a source: 8 hexadecimal digits; of None if there is no source."""
    digest = xxhash.xxh32_hexdigest((source or "").encode(errors="surrogatepass"))
    return "00000001" if digest in ("00000000", _SEVERAL) else digest


def source_of(work: Work) -> str | None:
    """Return the source of a work's filler; None if there is none, or it is flowmap's own.

    What flowmap's own fillers compute depends on their version, not on how they are written.
    """
    return None if is_own(work.name) else work.origin.source


def record_work(job: Job, work: Work) -> None:
    """Keep what the fingerprint of a work stands for, and the source of its filler, once.

    The first source is in the file of the work. Each other has a file of its own, since workers
    take no lock to change one.

    Raises:
        OSError: It cannot be written.
    """
    path = Sidecar.of(job.path).work(work.fingerprint)
    if not path.exists():
        publish_json(path, work.describe())
    source = source_of(work)
    which = job.id, work.fingerprint, digest_of(source)
    if source is None or which in _RECORDED:
        return
    if _text(job, work.fingerprint, which[2]) is None:
        _publish(_place(job, work), work)
    _RECORDED.add(which)


def _place(job: Job, work: Work) -> Path:
    return Sidecar.of(job.path).source(work.fingerprint, digest_of(source_of(work)))


def _publish(path: Path, work: Work) -> None:
    described = {name: value for name, value in work.describe().items() if name in _KINDS}
    publish_json(path, described | {"time": time.time()})


def digest_for(job: Job, work: Work, before: SegmentRecord | None) -> str:
    """Return the digest that stands for the source of a segment in the record of an attempt.

    Args:
        job: The job.
        work: The work of the attempt.
        before: The record of an earlier attempt at the same work, whose rows it takes over.
    """
    source = source_of(work)
    mine = digest_of(source)
    if before is None or not before.rows_done:
        return mine
    if before.source in (mine, _SEVERAL):
        return before.source
    earlier = _text(job, work.fingerprint, before.source)
    if earlier is None:
        return mine
    if source is None:
        return before.source
    return mine if is_same_source(earlier, source) else _SEVERAL


def _text(job: Job, fingerprint: str, digest: str) -> str | None:
    """Return the source of a digest; where a record has none, the one that came first."""
    sidecar = Sidecar.of(job.path)
    found: str | None = None
    if digest:
        found = _read(sidecar.source(fingerprint, digest)).get("source")
    if found is not None:
        return found
    first: str | None = _read(sidecar.work(fingerprint)).get("source")
    return first if digest in ("", digest_of(first)) else None


def _read(path: Path) -> dict[str, Any]:
    """Return what is recorded of a source: texts, and "time"; nothing where it is unknown."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return {
        name: found[name] for name, kind in _KINDS.items() if isinstance(found.get(name), kind)
    }


def changed_by(job: Job, work: Work) -> Change | None:
    """Return the segments that another source of a work's filler has filled; None if none are.

    The source counts as the newest from then on, so that `changes_in` finds the same. A filler
    without a source, as one of a prompt, is not compared.

    Args:
        job: The job.
        work: The work that is about to fill it.
    """
    source = source_of(work)
    if source is None:
        return None
    rows = _filled(job)
    rows = rows[rows["work"] == work.fingerprint]
    if not len(rows):
        return None
    newest = _newest(job, work.fingerprint, rows)
    if newest.get("source") != source:
        with contextlib.suppress(OSError):  # the folder may be read-only
            _publish(_place(job, work), work)
    return _change(job, work.fingerprint, rows, work.name, source)


def warn_if_changed(job: Job, work: Work, stacklevel: int = 3) -> None:
    """Warn if another source of a work's filler has filled segments.

    Args:
        job: The job.
        work: The work that is about to fill it.
        stacklevel: As in `warnings.warn`: 2 for the caller of this function, 3 for its caller.
    """
    change = changed_by(job, work)
    if change is not None:
        change.warn(stacklevel)


def warn_if_older(segment: Segment, record: SegmentRecord, work: Work) -> None:
    """Warn the caller's caller if an earlier source filled a segment; once for all segments.

    Args:
        segment: The segment, which is done.
        record: Its record.
        work: The work that it was to be filled by.
    """
    mine = digest_of(source_of(work))
    which = segment.job, work.fingerprint, mine
    if record.source == mine or which in _WARNED:
        return
    _WARNED.add(which)
    with contextlib.suppress(FlowmapError):  # overwritten since
        warn_if_changed(read_job(segment.path), work, stacklevel=4)


def changes_in(job: Job) -> list[Change]:
    """Return the segments that are older than the source of their filler, one entry a work.

    The filler is neither given nor imported. Its source is what the file of the newest recorded
    source has now, or else that source.

    Args:
        job: The job. If its ledger cannot be read, nothing is returned.
    """
    try:
        rows = _filled(job)
    except (OSError, FlowmapError):
        return []
    found = []
    for fingerprint in sorted(set(rows["work"].tolist())):
        own = rows[rows["work"] == fingerprint]
        newest = _newest(job, fingerprint, own)
        name, source = newest.get("filler"), newest.get("source")
        if name is None or source is None or is_own(name):
            continue
        if "file" in newest:
            source = source_in(newest["file"], place_of(newest).partition(":")[2]) or source
        change = _change(job, fingerprint, own, name, source)
        found += [] if change is None else [change]
    return found


@again_if_stale
def _filled(job: Job) -> NDArray[Any]:
    """Return the status of the segments that have rows, to be kept or gone on with."""
    with job.ledger() as ledger:
        bounds = np.array(list(job.plan.bounds()), np.int64).reshape(-1, 2)
        status = status_of(ledger.read_all(bounds))
    kept = (status["rows_done"] > 0) & (status["state"] != "damaged")
    kept |= np.isin(status["state"], list(FINISHED))
    filled: NDArray[Any] = status[kept & (status["work"] != "")]
    return filled


def _newest(job: Job, fingerprint: str, rows: NDArray[Any]) -> dict[str, Any]:
    """Return what is recorded of the source that a work was filled by last, or began with last.

    Args:
        job: The job.
        fingerprint: The fingerprint of the work.
        rows: The status of the segments that it has filled.
    """
    began: dict[str, float] = {"": 0.0}
    for digest, started in zip(rows["source"].tolist(), rows["started"].tolist(), strict=True):
        began[digest] = max(started, began.get(digest, started))
    found = _sources(job, fingerprint)
    for digest, source in found.items():
        source["time"] = max(source.get("time", 0.0), began.get(digest, 0.0))
    return max(found.values(), key=lambda source: source["time"], default={})


def _sources(job: Job, fingerprint: str) -> dict[str, dict[str, Any]]:
    """Return what is recorded of each source of a work's filler, by digest."""
    sidecar = Sidecar.of(job.path)
    first = _read(sidecar.work(fingerprint))
    found = {digest_of(first.get("source")): first}
    with contextlib.suppress(OSError):  # the folder was removed meanwhile
        for path in sorted(sidecar.folder.glob(sidecar.source(fingerprint, "*").name)):
            found[path.stem.rpartition("-")[2]] = _read(path)
    return {digest: source for digest, source in found.items() if "source" in source}


def _change(
    job: Job, fingerprint: str, rows: NDArray[Any], filler: str, source: str
) -> Change | None:
    older = []
    for digest in sorted(set(rows["source"].tolist())):
        text = None if digest == _SEVERAL else _text(job, fingerprint, digest)
        if digest == _SEVERAL or not (text is None or is_same_source(text, source)):
            older.append(digest)
    segments = rows["index"][np.isin(rows["source"], older)].tolist()
    if not segments:
        return None
    return Change(filler, tuple(segments), len(job.plan), str(job.path))


def sources_in(job: Job, works: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return all recorded sources: by fingerprint, then by digest.

    Args:
        job: The job.
        works: The fingerprints.
    """
    found = {work: _sources(job, work) for work in works}
    return {work: sources for work, sources in found.items() if sources}
