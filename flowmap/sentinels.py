"""Sentinels: small files that tell an engine which goes by files that something is done.

Snakemake, Make and their kind look at the files of a rule, and delete them before the rule
runs again. The target must not be one of these while it grows; a sentinel is. It appears whole,
and only once the records say that what it stands for is done. Nothing in it differs from one
run to the next, so that an engine which compares contents sees no change where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowmap.documents import OUTPUT, publish_json, read_json
from flowmap.errors import (
    ClaimLostError,
    ForeignFileError,
    InvalidArgumentError,
    storage_error,
    told,
)
from flowmap.records import FINISHED
from flowmap.sidecar import absolute, output_path
from flowmap.storage import NotRegularError
from flowmap.wording import option

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from flowmap.segments import Segment
    from flowmap.target import Target

FORMAT: Final = 1

_KIND: Final = "flowmap sentinel"


def place_of(sentinel: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Return where a sentinel is to be, for `write`; only an earlier one is ever replaced.

    Args:
        sentinel: Its name; its folder must exist.
        target: The path of the target.

    Raises:
        WrongTypeError, InvalidArgumentError: It can have no such name.
        ForeignFileError: Something else has it.
        NotFoundError, StorageError: Its folder does not exist, or cannot be looked at.
    """
    place = output_path(sentinel, option("sentinel"), ".json")
    if place == absolute(target):
        raise InvalidArgumentError(
            f"{option('sentinel')} is {place}, which is the target. Choose another name."
        )
    with told("the folder of the sentinel cannot be looked at; make it first", place.parent):
        place.parent.stat()
    try:
        earlier = read_json(place).get("kind") == _KIND
    except FileNotFoundError:
        return place
    except (ValueError, NotRegularError):
        earlier = False
    except OSError as error:
        raise storage_error(error, "cannot read the earlier sentinel", place) from error
    if not earlier:
        raise ForeignFileError(
            f"{place} is there and is no sentinel of flowmap's. Choose another name, or remove "
            "it.",
            path=str(place),
        )
    return place


def write(place: Path, target: Target, segments: Sequence[Segment] = ()) -> None:
    """Write that a job is there, and that some of its segments are done.

    Args:
        place: Where, as `place_of` returned it.
        target: The target.
        segments: Those that it vouches for.

    Raises:
        ClaimLostError: One of them is not done any more.
        OtherJobError, NotFoundError, DamagedJobError, StorageError: As in `Target.status`; or
            it cannot be written.
    """
    document = _document(target, segments)
    with told("cannot write the sentinel", place):
        publish_json(place, document, mode=OUTPUT)


def _document(target: Target, segments: Sequence[Segment]) -> dict[str, Any]:
    status = target.status()
    undone = [s.name for s in segments if status["state"][s.index] not in FINISHED]
    if undone:
        raise ClaimLostError(
            f"{target.path}: {undone[0]} was done, and opened again meanwhile. Fill it again."
        )
    return {
        "kind": _KIND,
        "format": FORMAT,
        "job": target.job.id,
        "segments": {str(s.index): str(status["digest"][s.index]) for s in segments},
    }
