"""What an allocation was asked for, checked, and compared with what is at the path."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from flowmap import retries
from flowmap.arguments import check_one_of, flag, seconds, whole
from flowmap.errors import (
    FlowmapError,
    ForeignFileError,
    InvalidArgumentError,
    OtherJobError,
    TargetExistsError,
    cut,
    short,
    storage_error,
)
from flowmap.job import DURABILITIES, Durability, Job, read_job
from flowmap.machine import NETWORK_FILE_SYSTEMS, file_system_type
from flowmap.segments import Plan, plan_blocks, plan_segments
from flowmap.sidecar import argument_naming, not_regular, why_not_writable
from flowmap.storage import PAGE, created, opened, unlink
from flowmap.target import Target, open_target
from flowmap.wording import either, option, setting
from flowmap.work import Work, describe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flowmap.npy import Layout

Exist = Literal["resume", "error", "overwrite", "renew"]
EXISTS: Final = get_args(Exist)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for, checked."""

    path: Path
    layout: Layout
    plan: Plan
    planned: bool  # by `segments`, and not chosen here
    block_rows: int | None
    exist: Exist
    reserve: bool
    align: int
    durability: Durability
    checkpoint_seconds: float
    work: Work | None
    reads: str | None  # the argument of the work that names the target itself
    runs: Mapping[str, str]  # the attempt of each run that calls

    @classmethod
    def of(cls, path: Path, layout: Layout, **asked: Any) -> Wanted:
        """Check every argument, before the disk is touched."""
        check_one_of(option("exist"), asked["exist"], EXISTS)
        check_one_of(option("durability"), asked["durability"], DURABILITIES)
        align = whole(option("align"), asked["align"])
        if not 64 <= align <= 2**62 or align & (align - 1):  # noqa: PLR2004 -- 64: the format's
            raise InvalidArgumentError(
                f"{option('align')} is {short(align)}; it takes a power of two from 64 to "
                "2**62."
            )
        reserve = flag(option("reserve"), asked["reserve"])
        if asked["filler"] is None and asked["arguments"] is not None:
            raise InvalidArgumentError(
                f"{option('arguments')} are given but no filler; they pin it only with one."
            )
        rows, segments, block_rows = layout.rows, asked["segments"], asked["block_rows"]
        apart = file_system_type(path.parent) in NETWORK_FILE_SYSTEMS
        work = None if asked["filler"] is None else Work.of(asked["filler"], asked["arguments"])
        return cls(
            path=path,
            layout=layout,
            plan=plan_segments(
                rows, layout.row_bytes, segments, align, block_rows, apart=apart
            ),
            planned=segments is not None,
            block_rows=block_rows,
            exist=asked["exist"],
            reserve=reserve,
            align=align,
            durability=asked["durability"],
            checkpoint_seconds=seconds(
                option("checkpoint_seconds"), asked["checkpoint_seconds"]
            ),
            work=work,
            reads=None if work is None else argument_naming(path, work.arguments),
            runs=asked["runs"],
        )

    def blocks_in(self, plan: Plan) -> int:
        """Return the rows of a block in segments of a plan."""
        return plan_blocks(self.layout.row_bytes, plan.longest, self.block_rows, self.align)

    def last_job(self) -> Job | None:
        """Return the job at the path, None where it cannot be read: this decides no refusal."""
        with contextlib.suppress(FlowmapError):
            return read_job(self.path)
        return None

    def tried_before(self) -> bool:
        """Say whether an earlier attempt of the run made what would be replaced or refused.

        Raises:
            OtherJobError: Another run has replaced it since; this attempt must not undo that.
        """
        if not self.runs or self.exist not in ("overwrite", "error"):
            return False
        job = self.last_job()
        if job is None:
            return False
        if retries.was_replaced(job, self.runs):
            raise OtherJobError(
                f"{self.path} was replaced by another run since an earlier attempt of this run "
                "allocated it. This attempt leaves the other run's job there. Choose another "
                "path, or start a new run to replace that job.",
                path=str(self.path),
            )
        return retries.allocated_before(job, self.runs)

    def attach(self) -> Target | None:
        """Return the job that exists, None if one must be made, or refuse what is there."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, "cannot look at the target", self.path) from error
        if self.exist == "error":
            raise TargetExistsError(
                f"{self.path} exists already. Choose another path, or pass "
                f"{setting(exist='resume')} to attach to the job there, or "
                f"{setting(exist='overwrite')} to replace it.",
                path=str(self.path),
            )
        if self.exist == "overwrite":
            if stat.S_ISDIR(found.st_mode):
                raise ForeignFileError(
                    f"{self.path} is a folder, which is never replaced. Choose another path.",
                    path=str(self.path),
                )
            if self.reads is not None:
                raise InvalidArgumentError(
                    f"The filler's argument {self.reads} names {self.path}, which would be "
                    "replaced before the filler could read it. Choose another path for the "
                    "target."
                )
            _check_replaceable(self.path, found)
            return None
        if not stat.S_ISREG(found.st_mode):
            raise not_regular(self.path)
        target = open_target(self.path)
        self._compare(target.job)
        return target

    def _compare(self, job: Job) -> None:
        """Refuse a job that is not the one wanted; what was left to a default may differ."""
        pairs = {
            "shape": (job.layout.shape, self.layout.shape),
            "dtype": (job.layout.dtype, self.layout.dtype),
            "fortran_order": (job.layout.fortran_order, self.layout.fortran_order),
            "durability": (job.durability, self.durability),
        }
        if self.planned:
            pairs["segments"] = job.plan, self.plan
        if self.block_rows is not None:
            pairs["block_rows"] = job.block_rows, self.blocks_in(job.plan)
        for name, (there, wanted) in pairs.items():
            if there != wanted:
                words = either(name, name.replace("_", " "))
                self._refuse(f"{words} {cut(str(there))}", f"{words} {cut(str(wanted))}")
        if self.work is not None:
            wanted = f"the work {describe(self.work.describe())}"
            if job.work is None:
                self._refuse("no work pinned", wanted)
            elif job.work["fingerprint"] != self.work.fingerprint:
                hint = self.work.hint_at_name(job.work)
                self._refuse(f"the work {describe(job.work)}", wanted, hint)

    def _refuse(self, there: str, wanted: str, hint: str = "") -> None:
        raise OtherJobError(
            f"{self.path} holds another job: it has {there}, and {wanted} was asked for.{hint} "
            f"Ask for the same, choose another path, or replace it with "
            f"{setting(exist='overwrite')}.",
            path=str(self.path),
        )

    def check_file_system(self) -> None:
        """Refuse segments that share pages where that loses data."""
        kind = file_system_type(self.path.parent)
        if kind not in NETWORK_FILE_SYSTEMS:
            return
        offset = len(self.layout.header())
        remedy = self.plan.keeping_apart(self.layout.row_bytes, PAGE, offset)
        if remedy is None:
            return
        raise InvalidArgumentError(
            f"{self.path} is on {kind}, where two hosts that write to one page of {PAGE} "
            f"bytes lose data, and these segments share pages. {remedy}."
        )


def _check_replaceable(path: Path, found: os.stat_result) -> None:
    """Check that a file can be replaced: else its records would be removed before that shows.

    Args:
        path: Path of the file.
        found: What `lstat` says of it.

    Raises:
        StorageError: Its folder is closed to this user, or the file is protected.
    """
    at = path.parent
    try:
        folder, me = at.stat(), os.geteuid()
        if not os.access(at, os.W_OK | os.X_OK):  # which does not say why
            probe = path.with_name(f".flowmap-owner.{secrets.token_hex(8)}")
            with created(probe):
                unlink(probe)
        at = path
        if folder.st_mode & stat.S_ISVTX and me not in (0, folder.st_uid, found.st_uid):
            raise PermissionError(errno.EPERM, "")
        if stat.S_ISREG(found.st_mode):
            with opened(path, write=True):
                pass
    except OSError as error:
        # One that is only closed to writing can be replaced; where the system permits it not
        # even to root (chattr +i, +a), a rename over it fails, too.
        if at == path and error.errno != errno.EPERM:
            return
        why = why_not_writable(error, at)
        doing = "cannot replace the target"
        raise storage_error(error, f"{doing}: {why}" if why else doing, path) from error
