"""Recalling the work of a job from its records, for a run that does not say it again.

Whoever may write to the folder of the records decides what they say. So this is the only place
where a name from the records leads to an import, and it asks first who wrote them, as git asks
for the owner of a repository.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flowmap.documents import parsed_json, read_text
from flowmap.errors import (
    FillerNotFoundError,
    FillerRefusedError,
    InvalidArgumentError,
    cut,
)
from flowmap.job import replaced
from flowmap.machine import user_name
from flowmap.origin import (
    differs,
    found_elsewhere,
    is_same_source,
    look_in_folder_of,
    look_in_working_directory,
    source_in,
)
from flowmap.sidecar import Sidecar
from flowmap.storage import opened
from flowmap.wording import either
from flowmap.work import Work, describe, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flowmap.fillers import Filler
    from flowmap.target import Target

_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def work_of(
    target: Target,
    filler: Filler | str | None,
    arguments: Mapping[str, Any] | None,
    *,
    trust: bool = False,
    here: bool = False,
) -> Work:
    """Return the work that is asked for, the recalled one where no filler is named.

    Args:
        target: The target.
        filler: The filler, or its name.
        arguments: The filler's arguments by name.
        trust: Whether to recall work that another user may have recorded.
        here: Whether to look for a recalled filler in the working directory, too.

    Raises:
        InvalidArgumentError: Arguments are given but no filler.
        FlowmapError: As in `Work.of`, and in `recalled`.
    """
    if filler is not None:
        return Work.of(filler, arguments)
    if arguments is not None:
        raise InvalidArgumentError(
            either("Arguments are given but no filler", "--arguments is given but no --filler")
            + "; give both, or neither."
        )
    return recalled(target, trust=trust, here=here)


def recalled(target: Target, *, trust: bool = False, here: bool = False) -> Work:
    """Return the work that a job is pinned to, or else the one that has filled it so far.

    Args:
        target: The target.
        trust: Whether to recall work that another user may have recorded.
        here: Whether to look for the filler in the working directory, too.

    Raises:
        InvalidArgumentError: There is none yet, or there are several; or its arguments cannot
            be told from the records.
        FillerRefusedError: Another user may have written the records; or the filler is in
            another file, or has another source, than the one that is recorded.
        FillerNotFoundError: The filler is not to be found any more.
        WrongTypeError: It takes other arguments by now.
        OtherJobError, NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in
            `Target.status`.
    """
    place = _place(target)
    recorded, status = _read(target, place)
    if not trust:
        _check_owner(target, place, recorded, status)
    if recorded.get("values") is None:
        raise _unknown(target, f"all arguments of {describe(recorded)}")
    file, source = (_text(recorded.get(name)) for name in ("file", "source"))
    function = place_of(recorded)
    module = function.partition(":")[0]
    if file is not None:
        look_in_folder_of(file, module)
    if here:
        look_in_working_directory(module)
    elsewhere = None if file is None else found_elsewhere(module, file)
    if elsewhere is not None:  # not even imported: it may be another user's
        raise _changed(target, recorded, f"comes from {elsewhere}")
    try:
        work = Work.of(function, recorded["values"])
    except FillerNotFoundError as error:
        raise _gone(target, recorded, error) from error.__cause__
    difference = differs(work.origin, file, source, module)
    if difference is None and work.fingerprint != recorded.get("fingerprint"):
        difference = "has another name, version or other volatile arguments"
    if difference is not None:
        raise _changed(target, recorded, difference)
    return work


def recorded_filler(target: Target) -> str | None:
    """Return the name of the filler that `recalled` would import, without importing it.

    Args:
        target: The target.

    Returns:
        None if it would find none, or refuse one whose source was edited.
    """
    try:
        recorded, _ = _read(target, _place(target))
    except InvalidArgumentError:
        return None
    name = place_of(recorded)
    file, source = (_text(recorded.get(each)) for each in ("file", "source"))
    now = None if file is None else source_in(file, name.partition(":")[2])
    edited = None not in (source, now) and not is_same_source(str(source), str(now))
    return None if edited or recorded.get("values") is None else name


def _place(target: Target) -> Path:
    """Return the document that says what fills a job."""
    sidecar = Sidecar.of(target.path)
    if target.job.work is not None:
        return sidecar.job
    works = np.unique(target.status()["work"])
    fingerprints = works[works != ""].tolist()
    if len(fingerprints) != 1:
        filled = f"was filled by {len(fingerprints)} works" if fingerprints else "has none"
        raise InvalidArgumentError(
            f"No filler is given, and the job of {target.path} {filled}. Name one, such as "
            + either("'package.module:function'.", "--filler FILE.py:FUNCTION.")
        )
    return sidecar.work(fingerprints[0])


def _read(target: Target, place: Path) -> tuple[dict[str, Any], os.stat_result]:
    """Return the recorded work, and what the system says of the very file that was read."""
    pinned = target.job.work is not None
    try:
        with opened(place) as descriptor:
            status = os.fstat(descriptor)
            document = parsed_json(read_text(descriptor))
        job = document["id"] if pinned else target.job.id
        recorded: dict[str, Any] = document["work"] if pinned else document
        describe(recorded)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unknown(target, "which filler was used") from error
    if job != target.job.id:
        raise replaced(target.path)
    if not isinstance(recorded["filler"], str):
        raise _unknown(target, "which filler was used")
    return recorded, status


def _unknown(target: Target, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{target.path}: the records do not say {what}. Pass filler and arguments again, as at "
        "first."
    )


def _text(value: object) -> str | None:
    """Return a recorded text; None where it is unknown, as in records of earlier versions."""
    return value if isinstance(value, str) else None


def _check_owner(
    target: Target, place: Path, recorded: dict[str, Any], status: os.stat_result
) -> None:
    """Refuse a document that another user may have written.

    Only the owner of a file and root can give it away. Another user can replace the file, which
    then is the other user's.

    Raises:
        FillerRefusedError: Another user may have written it.
    """
    if status.st_uid not in (os.geteuid(), 0):
        whose = f"belongs to {user_name(status.st_uid)}, not to you ({user_name(os.geteuid())})"
    elif status.st_mode & _OTHERS_MAY_WRITE:
        mode = stat.filemode(status.st_mode)
        mend = f"chmod go-w {shlex.quote(str(place))}"
        whose = f"can be written by other users ({mode}; if only you ever did: {mend})"
    else:
        return
    filler, arguments = _quoted(recorded)
    fill = f"flowmap fill {shlex.quote(str(target.path))}"
    raise FillerRefusedError(
        f"{place} {whose}, and names the filler {filler}, which would run as you. It was not "
        "imported. If you trust it, name it yourself, "
        + either("or pass trust=True. On the command line: ", "or pass --trust: ")
        + f"{fill} --filler {filler}{arguments}, or {fill} --trust"
    )


def _changed(target: Target, recorded: dict[str, Any], how: str) -> FillerRefusedError:
    filler, arguments = _quoted(recorded)
    file = _text(recorded.get("file"))
    where = "" if file is None else f" from {_printable(file)}"
    return FillerRefusedError(
        f"The records of {target.path} name the filler {filler}{where}. The filler of that "
        f"name here {how}, and may compute other values. Work in the folder of the recorded "
        "filler; or, to use this one nevertheless, name it yourself: "
        f"flowmap fill {shlex.quote(str(target.path))} --filler {filler}{arguments}"
    )


def _gone(
    target: Target, recorded: dict[str, Any], error: FillerNotFoundError
) -> FillerNotFoundError:
    """Return the error of a filler that is not found, with what its missing file says of it."""
    file, module = _text(recorded.get("file")), place_of(recorded).partition(":")[0]
    if module == "__main__" or module.startswith("<"):
        where = "a notebook or a session that has ended. Save it in a file, and name that"
    elif file is not None and not os.path.exists(file):  # noqa: PTH110 -- any text is a path to it
        where = f"{_printable(file)}, which is gone. If it has moved, name its new file"
    else:
        return error
    _, arguments = _quoted(recorded)
    return FillerNotFoundError(
        f"{error} The filler of {target.path} was in {where}: flowmap fill "
        f"{shlex.quote(str(target.path))} --filler FILE.py:FUNCTION{arguments}"
    )


def _quoted(recorded: dict[str, Any]) -> tuple[str, str]:
    """Return the recorded filler, and the option with its arguments, as a shell takes them."""
    values = recorded.get("values")
    arguments = f" --arguments {shlex.quote(cut(json.dumps(values)))}" if values else ""
    return _printable(place_of(recorded)), _printable(arguments, quote=False)


def _printable(text: str, *, quote: bool = True) -> str:
    """Return a recorded text for a shell, or as Python writes it if it is not printable."""
    if not text.isprintable():
        return ascii(text)
    return shlex.quote(text) if quote else text
