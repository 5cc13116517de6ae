"""Allocating: make the target and its job, once, or attach to them."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from flowmap._version import __version__
from flowmap.arguments import check_one_of, flag, seconds, whole
from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    InvalidArgumentError,
    LockTimeoutError,
    NotFoundError,
    OtherJobError,
    StorageError,
    TargetExistsError,
    cut,
    short,
    storage_error,
)
from flowmap.importing import check_not_importing
from flowmap.job import DURABILITIES, Durability, Job
from flowmap.locks import header_lock
from flowmap.machine import NETWORK_FILE_SYSTEMS, file_system_type, this_user
from flowmap.npy import Layout, header_digest
from flowmap.publication import check_folder, make_folder, publish, remove_stale
from flowmap.segments import Plan, plan_blocks, plan_segments
from flowmap.sidecar import Sidecar, argument_naming, not_regular, output_path
from flowmap.storage import PAGE
from flowmap.target import Target, open_target
from flowmap.wording import either, option, setting
from flowmap.work import Work, describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike

    from flowmap.fillers import Filler

Exist = Literal["resume", "error", "overwrite", "renew"]
EXISTS = get_args(Exist)

_TRIES = 3
"""The folder of the records may be gone once it is locked, since `clean` removes it."""


def allocate(
    path: str | os.PathLike[str],
    shape: int | Sequence[int],
    dtype: DTypeLike,
    *,
    fortran_order: bool = False,
    segments: int | Sequence[int] | None = None,
    block_rows: int | None = None,
    exist: Exist = "resume",
    reserve: bool = True,
    align: int = PAGE,
    durability: Durability = "segment",
    checkpoint_seconds: float = 30,
    filler: Filler | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Target:
    """Allocate a target: one `.npy` file of its final size, and the records beside it.

    Everything is checked before the disk is touched. The file appears under its name whole
    or not at all; of any number of racing calls one makes it and the others attach to it.

    Args:
        path: Of the `.npy` file. Its folder must exist.
        shape: Elements along each axis; () for a 0-d array.
        dtype: Of one element: any but object.
        fortran_order: Whether the last axis is the slow one, whose indices are the rows.
        segments: How many; or the rows of each, in order; or None, chosen from the size,
            in multiples of `block_rows` if it is given. Rounded to pages for None, and for a
            count that leaves at least 100 alignment units in a segment.
        block_rows: Rows that a filler computes at once; None for about a mebibyte. Give a
            few, or one, where a row takes seconds or more.
        exist: "resume" attaches to the same job and refuses anything else at the path,
            "error" refuses whatever is there, "overwrite" replaces it, "renew" attaches to
            the same job and replaces any other job, but nothing else. Whoever attaches
            gets the job as it was first allocated: its reservation, alignment and
            checkpoints stay, whatever `reserve`, `align` and `checkpoint_seconds` say now, and
            so do segments and blocks where `segments` and `block_rows` are None.
        reserve: Whether to reserve the space now, so that a full disk shows here. False
            leaves a sparse file, whose filling may run out of space.
        align: Bytes that segment boundaries are rounded to: a power of two, at least 64.
        durability: "segment" syncs each segment before it is done; "end" leaves that to
            validation, for very many small segments.
        checkpoint_seconds: Seconds between syncs within a segment: what a power cut costs.
        filler: Pins the job to this filler, by object or name: other work is refused.
        arguments: The filler's arguments, pinned with it.

    Returns:
        The target, new or attached to.

    Raises:
        InvalidArgumentError, WrongTypeError: An argument that cannot be.
        FillerNotFoundError: The filler's name leads to none.
        TargetExistsError: Something is there, and `exist="error"`.
        ForeignFileError: What is there was not allocated by flowmap, or the folder for the
            records is there and another user owns it.
        OtherJobError: Another job has the path, or the same one pinned to other work, and
            `exist="resume"`.
        DamagedJobError: The job at the path is damaged.
        LockTimeoutError: Another process held the header lock too long.
        StorageError: There is no such folder, no space, no permission.
    """
    return allocate_or_attach(
        path,
        shape,
        dtype,
        fortran_order=fortran_order,
        segments=segments,
        block_rows=block_rows,
        exist=exist,
        reserve=reserve,
        align=align,
        durability=durability,
        checkpoint_seconds=checkpoint_seconds,
        filler=filler,
        arguments=arguments,
    )[0]


def allocate_or_attach(
    path: str | os.PathLike[str], shape: object, dtype: DTypeLike, **asked: Any
) -> tuple[Target, bool]:
    """Do what `allocate` does, given all of its options; return also whether it is new."""
    check_not_importing("runs allocate()")
    place, layout = output_path(path), Layout.of(shape, dtype, asked.pop("fortran_order"))
    check_folder(place)
    wanted = _Wanted.of(place, layout, **asked)
    for _ in range(1, _TRIES):
        with contextlib.suppress(NotFoundError):
            return _allocated(wanted)
    return _allocated(wanted)


def _allocated(wanted: _Wanted) -> tuple[Target, bool]:
    """Attach to the job that is there, or make it: then it is new."""
    sidecar = Sidecar.of(wanted.path)
    try:
        target = wanted.attach()
    except (DamagedJobError, ForeignFileError):
        sidecar.look_afresh()
        if not os.path.lexists(sidecar.lock):
            raise
        target = None  # an overwrite may be at it: look again under the lock
    except OtherJobError:
        if wanted.exist != "renew":
            raise
        target = None
    if target is not None:
        return target, False
    wanted.layout.check_loadable()
    wanted.check_file_system()
    try:
        make_folder(sidecar.folder)
    except ForeignFileError:
        target = _made_meanwhile(wanted, sidecar)
        if target is None:
            raise
        return target, False
    with header_lock(sidecar.folder):
        remove_stale(sidecar)
        try:
            return _attached_or_made(wanted)
        except OtherJobError:
            if wanted.exist != "renew":
                raise
            return _attached_or_made(replace(wanted, exist="overwrite"))


def _attached_or_made(wanted: _Wanted) -> tuple[Target, bool]:
    target = wanted.attach()
    return (Target(_make(wanted)), True) if target is None else (target, False)


def _made_meanwhile(wanted: _Wanted, sidecar: Sidecar) -> Target | None:
    """Return the job that another user may just be allocating in a folder of theirs, if any."""
    why_not = (StorageError, LockTimeoutError, OtherJobError)
    if os.path.lexists(sidecar.lock) and not sidecar.folder.is_symlink():
        with contextlib.suppress(*why_not), header_lock(sidecar.folder):
            return wanted.attach()
    return None


@dataclass(frozen=True, slots=True)
class _Wanted:
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
    work: dict[str, Any] | None
    reads: str | None  # the argument of the work that names the target itself

    @classmethod
    def of(cls, path: Path, layout: Layout, **asked: Any) -> _Wanted:
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
            work=None if work is None else work.describe(),
            reads=None if work is None else argument_naming(path, work.arguments),
        )

    def blocks_in(self, plan: Plan) -> int:
        """Return the rows of a block in segments of a plan."""
        return plan_blocks(self.layout.row_bytes, plan.longest, self.block_rows, self.align)

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
            if job.work is None:
                self._refuse("no work pinned", f"the work {describe(self.work)}")
            elif job.work["fingerprint"] != self.work["fingerprint"]:
                self._refuse(
                    f"the work {describe(job.work)}", f"the work {describe(self.work)}"
                )

    def _refuse(self, there: str, wanted: str) -> None:
        raise OtherJobError(
            f"{self.path} holds another job: it has {there}, and {wanted} was asked for. Ask "
            f"for the same, choose another path, or replace it with "
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


def _make(wanted: _Wanted) -> Job:
    header = wanted.layout.header()
    job = Job(
        path=wanted.path,
        id=secrets.token_hex(16),
        layout=wanted.layout,
        plan=wanted.plan,
        block_rows=wanted.blocks_in(wanted.plan),
        data_offset=len(header),
        header=header_digest(header),
        durability=wanted.durability,
        checkpoint_seconds=wanted.checkpoint_seconds,
        reserve=wanted.reserve,
        work=wanted.work,
        made={
            "flowmap": __version__,
            "numpy": np.__version__,
            "python": sys.version.split()[0],
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "user": this_user(),
            "time": time.time(),
            "align": wanted.align,
        },
    )
    publish(job, header, replace=wanted.exist == "overwrite")
    return job
