"""`flowmap fill`."""

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter

from flowmap import human, sentinels
from flowmap.changes import FillerChangedWarning
from flowmap.choosing import segments_of
from flowmap.cli.advice import note_lines, note_traceback
from flowmap.cli.changes import say_changes
from flowmap.cli.display import Display
from flowmap.cli.exits import Exit
from flowmap.cli.output import err, quoted, say, say_json
from flowmap.cli.parameters import (
    Arguments,
    AsJson,
    FillerName,
    Flag,
    Quiet,
    SegmentNames,
    SentinelPath,
    TargetPath,
    WholeNumber,
)
from flowmap.errors import FillerError, FlowmapError
from flowmap.executors import fill as fill_job
from flowmap.executors import refuse_other_work
from flowmap.recalling import work_of
from flowmap.segments import Segment
from flowmap.shares import fill_here
from flowmap.sources import changed_by
from flowmap.summary import Summary
from flowmap.target import Target, open_target

Executor = Annotated[
    str,
    Parameter(help="processes, threads, dask, or the address of a Dask scheduler."),
]


def fill(
    path: TargetPath,
    /,
    *,
    filler: FillerName = None,
    arguments: Arguments = None,
    segment: SegmentNames = None,
    executor: Executor = "processes",
    workers: WholeNumber | None = None,
    sentinel: SentinelPath = None,
    pilot: Flag = False,
    trust: Flag = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> Exit:
    """Fill the segments of an array that are not done yet.

    What was done is kept, whatever ended the run: the same again goes on. Once the job has a
    filler, by `flowmap alloc` or an earlier `flowmap fill`, it need not be named again.

    With --segment this process fills these segments, one after the other: what another engine
    calls for each. It takes no lock; whoever calls sees to it that each segment is filled once.

    Args:
        path: Of the .npy file, allocated before.
        segment: Fill these only, in this process.
        pilot: Compute one block and keep nothing of it; say how long all of it will take, what
            it needs, and which sizes of blocks and segments would do better.
        trust: Import the filler that the records name even if another user may have written
            them. That user then decides what runs as you.
        workers: How many processes or threads; one for each processor if left out.
        quiet: Show no progress, also on a terminal.
    """
    target = open_target(path)
    place = None if sentinel is None else sentinels.place_of(sentinel, path)
    work = work_of(target, filler, arguments, trust=trust, here=True)
    if pilot:
        from flowmap.pilot import pilot as pilot_job  # noqa: PLC0415 -- for this alone

        refuse_other_work(target, work)
        try:
            estimate = pilot_job(target, work, workers)
        except FillerError as error:  # a pilot records nothing that `status` could show
            note_lines(error)
            raise
        if as_json:
            say_json(estimate.document())
        else:
            say(str(estimate))
        return Exit.DONE
    before, began = target.status(), time.monotonic()
    chosen = None if segment is None else segments_of(target, segment)
    change = changed_by(target.job, work)
    warned = say_changes(path, [] if change is None else [change], as_json=as_json)
    try:
        with _shown(target, quiet=quiet or as_json), warnings.catch_warnings():
            warnings.simplefilter("ignore", FillerChangedWarning)  # said already
            if chosen is None:
                fill_job(
                    target,
                    work.function,
                    work.arguments,
                    executor=executor,
                    workers=workers,
                    name="flowmap fill",
                )
            else:
                fill_here(target, chosen, work)
    except FlowmapError as error:
        note_traceback(error, path, target, chosen)
        raise
    except KeyboardInterrupt:
        _tell_of_interrupt(target)
        raise
    if place is not None:
        sentinels.write(place, target, target.segments if chosen is None else chosen)
    result = _Result(target, before, chosen, time.monotonic() - began)
    if as_json:
        say_json(result.document() | warned)
    elif not (quiet and chosen is not None):
        result.tell(path)
    return Exit.DONE


@contextlib.contextmanager
def _shown(target: Target, *, quiet: bool) -> Iterator[None]:
    """Show progress for a `with` block, where somebody looks."""
    console = err()
    if quiet or not console.is_terminal:
        yield
        return
    with Display(target):
        yield


def _tell_of_interrupt(target: Target) -> None:
    summary = Summary.of(target)
    err().print(
        f"Stopped. {summary.counts['done']} of {summary.segments} segments are done, and what "
        "others have is kept; the same command goes on from there."
    )


@dataclass(frozen=True)
class _Result:
    """What a fill came to."""

    target: Target
    before: Any
    chosen: list[Segment] | None
    seconds: float

    def document(self) -> dict[str, Any]:
        summary, rows = Summary.of(self.target), self._rows_filled()
        return summary.document() | {"rows_filled": rows, "seconds": self.seconds}

    def _rows_filled(self) -> int:
        now = self.target.status()
        damaged = self.before["state"] == "damaged"  # whose rows were computed anew
        kept = np.where(damaged, 0, self.before["rows_done"])
        filled = (now["rows_done"] - kept).clip(0)
        if self.chosen is not None:  # others may have filled what is not in this share
            filled = filled[[segment.index for segment in self.chosen]]
        return int(filled.sum())

    def tell(self, path: Any) -> None:
        summary, rows = Summary.of(self.target), self._rows_filled()
        ready = summary.counts["done"] + summary.counts["written"]
        nbytes = rows * self.target.job.layout.row_bytes
        if rows:
            rate = f", {human.size(int(nbytes / self.seconds))}/s" if self.seconds else ""
            say(
                f"{human.count(rows)} rows were filled, {human.size(nbytes)} in "
                f"{human.seconds(self.seconds)}{rate}."
            )
        state = "" if rows else "Nothing to do: "
        say(f"{state}{ready} of {summary.segments} segments of {path} are done.")
        if self.chosen is None and summary.state != "valid":
            say(f"Next: flowmap validate {quoted(path)}")
