"""`flowmap reset`."""

import numpy as np

from flowmap.choosing import segments_of
from flowmap.cli.advice import how_to_fill
from flowmap.cli.asking import ask
from flowmap.cli.exits import Exit
from flowmap.cli.output import say, say_json
from flowmap.cli.parameters import All, AsJson, Flag, SegmentNames, TargetPath, Yes
from flowmap.errors import InvalidArgumentError
from flowmap.resetting import reset as reset_segments
from flowmap.target import open_target


def reset(
    path: TargetPath,
    segments: SegmentNames = None,
    /,
    *,
    segment: SegmentNames = None,
    everything: All = False,
    failed: Flag = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> Exit:
    """Make segments pending again, on purpose: the next fill computes them anew.

    Their bytes stay until then. Where rows that are done would be given up it asks first, and
    off a terminal wants --yes.

    Args:
        path: Of the .npy file.
        segments: Which: 7, 10-19, 3-of-64, or all.
        segment: The same as an option, as in the other commands.
        failed: All that failed or are damaged, so that nothing of what they have is taken over.
    """
    target = open_target(path)
    table = target.status()
    names = [*(segments or []), *(segment or []), *(["all"] if everything else [])]
    chosen = segments_of(target, names)
    if failed:
        (bad,) = np.nonzero(np.isin(table["state"], ["failed", "damaged"]))
        indices = {segment.index for segment in chosen} | set(bad.tolist())
        chosen = [target.segments[index] for index in sorted(indices)]
    elif not chosen:
        raise InvalidArgumentError("No segments are named; write 7, 10-19, all or --failed.")
    rows = int(table["rows_done"][[segment.index for segment in chosen]].sum())
    if rows:
        ask(
            f"{len(chosen)} segments of {path} with {rows:,} rows that are written would be "
            "computed anew.",
            yes=yes,
        )
    reset_segments(target, chosen)
    indices_reset = [segment.index for segment in chosen]
    if as_json:
        say_json({"path": str(target.path), "reset": indices_reset})
    elif chosen:
        say(f"{len(chosen)} segments are pending again. Next: {how_to_fill(path, target)}")
    else:
        say("No segments have failed or are damaged.")
    return Exit.DONE
