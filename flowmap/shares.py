"""Filling a share of a job's segments, as an engine that has its own jobs calls for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowmap import sentinels
from flowmap.arguments import flag
from flowmap.choosing import segments_of
from flowmap.errors import FlowmapError, StoppedError
from flowmap.importing import check_not_importing
from flowmap.recalling import work_of
from flowmap.run_errors import failed
from flowmap.sources import warn_if_changed
from flowmap.stopping import refuse_if_asked, stoppable
from flowmap.target import open_target
from flowmap.write import fill_work

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from flowmap.fillers import Filler
    from flowmap.records import SegmentRecord
    from flowmap.segments import Segment
    from flowmap.target import Target
    from flowmap.work import Work


def fill_share(
    target: Target | str | os.PathLike[str],
    share: str,
    filler: Filler | str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    sentinel: str | os.PathLike[str] | None = None,
    trust: bool = False,
) -> list[SegmentRecord]:
    """Fill a share of a job's segments in this process, one after the other.

    What an engine calls in each of its own jobs: Snakemake, or the array of a batch system.
    What is done computes nothing; one that fails does not stop the others. No lock is taken, as
    in `fill_segment`, which also says what a batch system's signal does; it begins no more.

    Args:
        target: The target, or its path.
        share: "3-of-64": the third of 64 shares of all segments, counted from 1 as Snakemake
            names a scattered item. Any number of shares will do: with fewer than there are
            segments each is some neighbours, with more some are none. Or "7", the segment with
            that number, counted from 0; "10-19"; "all".
        filler: Called as `filler(out, block, **arguments)` for each block; None for the filler
            and the arguments that the records of the job name.
        arguments: The filler's arguments by name.
        sentinel: A file that is written, whole, once all of them are done; see
            `flowmap.sentinels`. Its folder must exist.
        trust: Whether to import the filler that the records name even if another user may
            have written them.

    Returns:
        What the ledger says of each of them now.

    Warns:
        FillerChangedWarning: Segments were filled by an earlier source of the filler.

    Raises:
        InvalidArgumentError: The share stands for no segments of this target; or no filler is
            given, and none recorded.
        FillerRefusedError: No filler is given, and the recorded one is not imported: another
            user may have written the records, or it comes from another file or source by now.
        ForeignFileError: Something that is no sentinel has its name.
        SegmentsFailedError: Several failed; its `failures` say why.
        FlowmapError: As `open_target`; of one that failed, as `fill_segment`.
    """
    check_not_importing("runs fill_share()")
    opened = open_target(target)
    place = None if sentinel is None else sentinels.place_of(sentinel, opened.path)
    segments = segments_of(opened, [share])
    work = work_of(opened, filler, arguments, trust=flag("trust", trust))
    warn_if_changed(opened.job, work)
    records = fill_here(opened, segments, work)
    if place is not None:
        sentinels.write(place, opened, segments)
    return records


def fill_here(target: Target, segments: Sequence[Segment], work: Work) -> list[SegmentRecord]:
    """Fill segments in this process; one that fails does not stop the others.

    Raises:
        StoppedError: The process was asked to stop: no further segment is claimed.
        FlowmapError: The one that failed; a `SegmentsFailedError` of several.
    """
    records: list[SegmentRecord] = []
    failures: dict[Segment, BaseException] = {}
    with stoppable():
        for segment in segments:
            refuse_if_asked()
            try:
                records.append(fill_work(segment, work))
            except StoppedError:
                raise
            except FlowmapError as error:
                failures[segment] = error
                if len(segments) == 1:
                    raise
    if failures:
        raise failed(target, failures)
    return records
