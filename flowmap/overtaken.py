"""What a run finds at its path when it was suspended while another run had the job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowmap.errors import FlowmapError
from flowmap.target import open_target

if TYPE_CHECKING:
    from flowmap.job import Job


def what_is_there(job: Job) -> str:
    """Say what the other run did, and what is left to do."""
    try:
        target = open_target(job.path)
        left, count = len(target.pending()), len(target.segments)
    except FlowmapError as error:
        return str(error)
    same = target.id == job.id
    done = "took the job over" if same else "replaced the job"
    if not left:
        return (
            f"Another run {done} and finished it: all {count} segments are done, and nothing "
            "is left to do. Use the values that are in the file."
        )
    kept = "kept" if same else "gone"
    return (
        f"Another run {done} and has ended, or the lease was removed; {left} of {count} "
        f"segments are left. What this run finished is {kept}. Run the job again."
    )
