"""The checksum of a whole target in a file that `sha256sum -c` reads."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from typing import TYPE_CHECKING

from flowmap.errors import ForeignFileError, NotValidatedError, storage_error, told
from flowmap.job import opened_again
from flowmap.sealing import proven
from flowmap.sidecar import output_path
from flowmap.storage import NotRegularError, created, opened, put_in_place, write_all
from flowmap.target import open_target

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.target import Target


def write_checksum(path: str | os.PathLike[str]) -> Path:
    """Write the SHA-256 of a validated target beside it: `out.npy.sha256`.

    The file is in the format of `sha256sum`, which checks it in the folder of the target:
    `sha256sum -c out.npy.sha256`. It is of the whole `.npy`, header and all, and is written
    durably, whole or not at all. An earlier one is replaced, and nothing else is.

    Args:
        path: Of the target, or the target.

    Returns:
        The name of the file.

    Raises:
        NotValidatedError: The target is not sealed, or was changed while it was read; nothing
            was written.
        ForeignFileError: Something else has the name of the file; or the target was not
            allocated by flowmap.
        OtherJobError, NotFoundError, DamagedJobError, StorageError: As in `open_target`; or
            the target cannot be read, or the file not be written.
    """
    target = open_target(path)
    seal = proven(target)
    place = output_path(target.path.with_name(f"{target.path.name}.sha256"))
    escape, name = _escaped(os.fsencode(target.path.name))
    earlier = _earlier(place, re.escape(escape) + rb"[0-9a-f]{64}  " + re.escape(name) + b"\n")
    digest = _sha256(target)
    if proven(open_target(target)) != seal:
        raise NotValidatedError(
            f"{target.path} was validated anew while its checksum was computed; some of it may "
            "have been filled again meanwhile. Compute the checksum again.",
            path=str(target.path),
        )
    _publish(place, escape + digest.encode() + b"  " + name + b"\n", replace=earlier)
    return place


def _escaped(name: bytes) -> tuple[bytes, bytes]:
    """Return what begins the line of a file, and its name in there.

    Source: GNU coreutils manual, "md5sum invocation": a line begins with a backslash where the
    name has backslashes, newlines or carriage returns, which are escaped then.
    """
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"" if escaped == name else b"\\"), escaped


def _earlier(place: Path, line: bytes) -> bool:
    """Return whether a checksum of the target is there; refuse anything else.

    Args:
        place: Where it would be.
        line: What it matches.

    Raises:
        ForeignFileError: Something else is there.
        StorageError: It cannot be read.
    """
    try:
        with opened(place) as descriptor:
            text = os.read(descriptor, 4096)  # a line is shorter: NAME_MAX is 255
    except FileNotFoundError:
        return False
    except NotRegularError:
        text = b""
    except OSError as error:
        raise storage_error(error, "cannot read the checksum that is there", place) from error
    if not re.fullmatch(line, text):
        raise _foreign(place)
    return True


def _foreign(place: Path) -> ForeignFileError:
    return ForeignFileError(
        f"{place} is there, and is no checksum of the target. Move it away.", path=str(place)
    )


def _sha256(target: Target) -> str:
    """Return the digest of the whole file, in hexadecimal, read through a fresh descriptor."""
    with opened_again(target.path, target.id) as (_, descriptor):
        doing = "cannot read the target for its checksum; look at the disk"
        with told(doing, target.path), os.fdopen(descriptor, "rb", 0, closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(place: Path, line: bytes, *, replace: bool) -> None:
    private = place.with_name(f".sha256.{secrets.token_hex(8)}")
    try:
        with created(private) as descriptor:
            write_all(descriptor, line, 0)
            os.fsync(descriptor)
            put_in_place(private, place, replace=replace)
    except FileExistsError as error:
        raise _foreign(place) from error
    except OSError as error:
        raise storage_error(error, "cannot write the checksum", place) from error
