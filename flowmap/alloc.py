"""Allocating: make the target and its job, once, or attach to them."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flowmap import retries
from flowmap._version import __version__
from flowmap.documents import publish_json
from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    LockTimeoutError,
    NotFoundError,
    OtherJobError,
    StorageError,
    told,
)
from flowmap.importing import check_not_importing
from flowmap.job import Durability, Job
from flowmap.locks import header_lock
from flowmap.machine import host_name, this_user
from flowmap.npy import Layout, header_digest
from flowmap.publication import check_folder, make_folder, publish, remove_stale
from flowmap.sidecar import Sidecar, output_path
from flowmap.storage import PAGE
from flowmap.target import Target
from flowmap.wanted import Exist, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike

    from flowmap.fillers import Filler

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
    path: str | os.PathLike[str],
    shape: object,
    dtype: DTypeLike,
    *,
    runs: Mapping[str, str] | None = None,
    **asked: Any,
) -> tuple[Target, bool]:
    """Do what `allocate` does, given all of its options; return also whether it is new.

    Args:
        path: Path of the `.npy` file.
        shape: Elements along each axis.
        dtype: Type of one element.
        runs: The attempt of each run that calls, by its id. A later attempt attaches to the job
            that an earlier one allocated, also with `exist="overwrite"` and "error".
        **asked: The other options of `allocate`.

    Raises:
        OtherJobError: Also where another run has replaced the job of an earlier attempt.
    """
    check_not_importing("runs allocate()")
    place, layout = output_path(path), Layout.of(shape, dtype, asked.pop("fortran_order"))
    check_folder(place)
    wanted = Wanted.of(place, layout, runs=runs or {}, **asked)
    for _ in range(1, _TRIES):
        with contextlib.suppress(NotFoundError):
            return _allocated(wanted)
    return _allocated(wanted)


def _allocated(wanted: Wanted) -> tuple[Target, bool]:
    """Attach to the job that is there, or make it: then it is new."""
    sidecar = Sidecar.of(wanted.path)
    try:
        target = None if wanted.tried_before() else wanted.attach()
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


def _attached_or_made(wanted: Wanted) -> tuple[Target, bool]:
    target = _attached_again(wanted) or wanted.attach()
    return (Target(_make(wanted)), True) if target is None else (target, False)


def _attached_again(wanted: Wanted) -> Target | None:
    """Attach to the job that an earlier attempt of the run allocated, if it is the same one.

    The job then names this attempt: a second allocation in it is meant, and replaces the job.
    """
    if not wanted.tried_before():
        return None
    with contextlib.suppress(OtherJobError, DamagedJobError, ForeignFileError):
        target = replace(wanted, exist="resume").attach()
        if target is not None:
            job = replace(target.job, made=retries.attached(target.job, wanted.runs))
            place = Sidecar.of(job.path).job
            with told("cannot record the attempt that attached to the job", place):
                publish_json(place, job.document())
            return Target(job)
    return None


def _made_meanwhile(wanted: Wanted, sidecar: Sidecar) -> Target | None:
    """Return the job that another user may just be allocating in a folder of theirs, if any."""
    why_not = (StorageError, LockTimeoutError, OtherJobError)
    if os.path.lexists(sidecar.lock) and not sidecar.folder.is_symlink():
        with contextlib.suppress(*why_not), header_lock(sidecar.folder):
            return wanted.attach()
    return None


def _make(wanted: Wanted) -> Job:
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
        work=None if wanted.work is None else wanted.work.describe(),
        made={
            "flowmap": __version__,
            "numpy": np.__version__,
            "python": sys.version.split()[0],
            "host": host_name(),
            "pid": os.getpid(),
            "user": this_user(),
            "time": time.time(),
            "align": wanted.align,
            **retries.replacing(wanted.last_job(), wanted.runs),
        },
    )
    publish(job, header, replace=wanted.exist == "overwrite")
    return job
