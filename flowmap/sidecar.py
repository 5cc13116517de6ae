"""The names of a target and of what is in the folder beside it."""

from __future__ import annotations

import errno
import functools
import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowmap.errors import (
    DamagedJobError,
    FlowmapError,
    ForeignFileError,
    InvalidArgumentError,
    short,
    storage_error,
)
from flowmap.filenames import check_filename
from flowmap.machine import user_name
from flowmap.root import check_within, rooted
from flowmap.storage import look_afresh
from flowmap.wording import call

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT: Final = 1
"""Version of the sidecar's files; a later one is refused."""

_FOR_RECORDS: Final = re.compile(
    r".+\.flowmap|\..+\.flowmap\.cleaned\.[0-9a-f]{32}", re.DOTALL | re.IGNORECASE
)
"""Names of folders of records: beside a target, and while `clean` removes them."""


@dataclass(frozen=True)
class Sidecar:
    """The names in the folder beside a target.

    Attributes:
        folder: The folder, "out.npy.flowmap".
    """

    folder: Path

    @classmethod
    def of(cls, path: Path) -> Sidecar:
        """Return the sidecar of a target."""
        return _sidecar_of(path)

    @functools.cached_property
    def job(self) -> Path:
        """What was allocated."""
        return self.folder / "job.json"

    @functools.cached_property
    def ledger(self) -> Path:
        """What is done."""
        return self.folder / "ledger.npy"

    @functools.cached_property
    def run(self) -> Path:
        """Who is filling."""
        return self.folder / "run.json"

    @functools.cached_property
    def seal(self) -> Path:
        """The validation that passed."""
        return self.folder / "seal.json"

    @functools.cached_property
    def lock(self) -> Path:
        """What is locked while the job is made."""
        return self.folder / "header.lock"

    @functools.cached_property
    def intent(self) -> Path:
        """An overwrite that has begun."""
        return self.folder / "overwrite.json"

    def failure(self, index: int) -> Path:
        """Why an attempt at a segment failed."""
        return self.folder / f"failure-{index}.json"

    def look_afresh(self) -> None:
        """Let this host see the names of the target and its records as the server has them.

        Without it a host notices a name that another one made, renamed or removed up to a
        minute late.
        """
        look_afresh(self.folder.parent)  # first: it holds the name of the other
        look_afresh(self.folder)

    def work(self, fingerprint: str) -> Path:
        """What a fingerprint stands for."""
        return self.folder / f"work-{fingerprint}.json"

    def source(self, fingerprint: str, digest: str) -> Path:
        """Return the file with one source of a work's filler, named by its digest."""
        return self.folder / f"source-{fingerprint}-{digest}.json"


@functools.lru_cache(maxsize=16)
def _sidecar_of(path: Path) -> Sidecar:
    """Return the sidecar of a target: an attempt at a segment asks for it seven times."""
    return Sidecar(path.with_name(f"{path.name}.flowmap"))


def absolute(path: str | os.PathLike[str], name: str = "path", suffix: str = ".npy") -> Path:
    """Return the absolute path of a file, its folder's links resolved, its own name not.

    Args:
        path: Of a target, or of another file.
        name: Of the argument, for messages.
        suffix: Of the file, for messages.

    Raises:
        WrongTypeError, InvalidArgumentError: As in `check_filename`; or it names a file in
            `FLOWMAP_ROOT` and leads out of it.
    """
    given = Path(check_filename(path, name, suffix))
    try:
        real = Path(os.path.realpath(given.parent)) / given.name
        check_within(given.absolute(), real)
    except OSError as error:  # the working directory is gone
        raise storage_error(error, "cannot tell where a relative path leads", given) from error
    return real


def argument_naming(path: Path, arguments: Mapping[str, Any]) -> str | None:
    """Return which of the arguments, or which within a list of one, names a file, if any."""
    left: list[tuple[str, Any]] = [(repr(name), value) for name, value in arguments.items()]
    while left:
        name, value = left.pop()
        if isinstance(value, list | tuple):
            left += [(f"{name}[{i}]", each) for i, each in enumerate(value)]
        elif isinstance(value, dict):
            left += [(f"{name}[{key!r}]", each) for key, each in value.items()]
        elif isinstance(value, str | os.PathLike) and _names(value, path):
            return name
    return None


def _names(value: str | os.PathLike[str], path: Path) -> bool:
    """Say whether a text, which may be no path, leads to a file, through links or not."""
    try:
        named = rooted(value)
        return path in (absolute(named), Path(os.path.realpath(named)))
    except (FlowmapError, OSError, ValueError):
        return False


def output_path(path: str | os.PathLike[str], name: str = "path", suffix: str = ".npy") -> Path:
    """Return the absolute path of a file to be written, as `absolute` does.

    Args:
        path: Of the file.
        name: Of the argument, for messages.
        suffix: Of the file, for messages.

    Raises:
        WrongTypeError, InvalidArgumentError: As in `absolute` and `check_outside_records`.
    """
    place = absolute(path, name, suffix)
    check_outside_records(place, name)
    return place


def leads_to_records(path: Path) -> bool:
    """Tell whether a path is a link that has no records beside it, to a file that has."""
    if not path.is_symlink() or os.path.lexists(Sidecar.of(path).folder):
        return False
    return os.path.lexists(Sidecar.of(Path(os.path.realpath(path))).job)


def not_regular(path: Path) -> ForeignFileError:
    """Return the error for a link, a folder, a pipe or a device in the place of a target."""
    kind, remedy = "a pipe, socket or device", "Give the path of a .npy file"
    if path.is_symlink():
        kind = f"a link to {short(os.path.realpath(path))}"
        remedy = (
            "Give that path: the records are beside it"
            if leads_to_records(path)
            else f"Only {call('validate')} and numpy.load read through a link. To fill the "
            "file, put it in place of the link (git annex unlock, dvc unprotect)"
        )
    elif path.is_dir():
        kind = "a folder"
    return ForeignFileError(
        f"{path} is not a regular file but {kind}. {remedy}.", path=str(path)
    )


def check_records(path: Path, target: os.stat_result) -> None:
    """Refuse records that are a link, or that another user has put beside a file.

    In a folder such as /tmp anybody can make the folder of the records beside a file of yours,
    and say in it what is done. Beside their own file they may: that is a job of theirs.

    Args:
        path: The absolute path of the file.
        target: What lstat(2) says of the file.

    Raises:
        DamagedJobError: The folder of the records is a link.
        ForeignFileError: The owner of the records is not that of the file, nor root, nor the
            user who runs this process.
    """
    folder = Sidecar.of(path).folder
    try:
        records = folder.lstat()
    except OSError:  # whoever reads them says what is wrong
        return
    if stat.S_ISLNK(records.st_mode):
        raise DamagedJobError(
            f"{folder}, where the records are, is a link; flowmap follows none. Put the folder "
            "itself there.",
            path=str(path),
        )
    if records.st_uid not in (0, os.geteuid(), target.st_uid):
        raise ForeignFileError(
            f"{folder}, with the records of {path}, belongs to {user_name(records.st_uid)}, "
            f"but the file to {user_name(target.st_uid)}. If you trust these records, give "
            "both to one user (chown -R); otherwise remove the folder.",
            path=str(path),
        )


def why_not_writable(error: OSError, path: Path) -> str | None:
    """Say why a file or folder cannot be written, and what to do; None where that is not it.

    Args:
        error: What the system said.
        path: Of the file or folder.
    """
    if error.errno == errno.EROFS:
        return (
            "the file system is read-only; mount it for writing, or copy the target and the "
            "folder of its records elsewhere"
        )
    if error.errno not in (errno.EACCES, errno.EPERM):
        return None
    me = user_name(os.geteuid())
    try:
        found = path.lstat()
    except OSError:
        return f"{me} has no permission for {path}; see who has (ls -l)"
    mine = found.st_uid == os.geteuid()
    whose = "is yours" if mine else f"belongs to {user_name(found.st_uid)}"
    if mine or (error.errno == errno.EPERM and not os.geteuid()):
        needed = stat.S_IWUSR | (stat.S_IXUSR if stat.S_ISDIR(found.st_mode) else 0)
        if error.errno == errno.EACCES and found.st_mode & needed != needed:
            return (
                f"{path.name} {whose}, and closed to you: chmod u+rwX {shlex.quote(str(path))}"
            )
        return (
            f"{path.name} {whose}, and the system protects it; see its attributes (lsattr, "
            "chattr -i), and the rules of a sandbox"
        )
    return (
        f"{path.name} {whose}, and {me} may not write there; ask its owner for the permission, "
        "or choose another folder"
    )


def check_outside_records(place: Path, name: str) -> None:
    """Refuse to write a file among the records of a job, which that would destroy.

    Args:
        place: The absolute path of the file, its links resolved.
        name: Of the argument, for messages.

    Raises:
        InvalidArgumentError: A folder that it is in, or the file itself, has a name that is
            for records; or its folder holds some under another name.
    """
    reserved = any(_FOR_RECORDS.fullmatch(part.name) for part in (place, *place.parents))
    records = Sidecar(place.parent)
    if reserved or all(os.path.lexists(each) for each in (records.job, records.ledger)):
        raise InvalidArgumentError(
            f"{name} is {short(str(place))}, which is among the records of a job: names that "
            "end in .flowmap are for these alone. Choose another path."
        )
