"""The job: what `job.json` says was allocated."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from flowmap.arguments import flag, seconds, whole
from flowmap.documents import json_text, parsed_json, read_json
from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    NotFoundError,
    OtherJobError,
    storage_error,
    told,
)
from flowmap.kernel import again_if_stale, job_mark
from flowmap.ledger import Ledger
from flowmap.npy import Layout, header_digest
from flowmap.segments import Plan, Segment
from flowmap.sidecar import FORMAT, Sidecar, check_records, leads_to_records, not_regular
from flowmap.storage import NotRegularError, opened
from flowmap.texts import ParsedTexts
from flowmap.windows import Window
from flowmap.wording import call, overwriting
from flowmap.work import describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

    from flowmap.windows import MapMode

Durability = Literal["segment", "end"]
DURABILITIES: Final = get_args(Durability)

_ID: Final = re.compile("[0-9a-f]{32}")

_LOOKS: Final = 3
"""How often `job.json` must be missing: an overwrite may end before its intent is seen."""


@dataclass(frozen=True, slots=True)
class Job:
    """One allocation of a target, as `job.json` holds it.

    Attributes:
        path: Of the target, absolute.
        id: 32 random hexadecimal digits.
        layout: Shape, dtype and order.
        plan: The segmentation.
        block_rows: Rows that a filler computes at once.
        data_offset: The byte at which the data begins.
        header: The digest of the header's bytes.
        durability: "segment" or "end".
        checkpoint_seconds: Seconds between checkpoints within a segment.
        reserve: Whether the space was reserved.
        work: What the job is pinned to, as `Work.describe` gives it, or None.
        made: Who made it with what versions, and when.
    """

    path: Path
    id: str
    layout: Layout
    plan: Plan
    block_rows: int
    data_offset: int
    header: str
    durability: Durability
    checkpoint_seconds: float
    reserve: bool
    work: dict[str, Any] | None
    made: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.data_offset + self.layout.nbytes

    def document(self) -> dict[str, Any]:
        """Return the JSON values of `job.json`; the path is where it lies, not in it."""
        return {
            "format": FORMAT,
            "id": self.id,
            "shape": list(self.layout.shape),
            "dtype": self.layout.descr,
            "fortran_order": self.layout.fortran_order,
            "segments": [list(run) for run in self.plan.runs],
            "block_rows": self.block_rows,
            "data_offset": self.data_offset,
            "header": self.header,
            "durability": self.durability,
            "checkpoint_seconds": self.checkpoint_seconds,
            "reserve": self.reserve,
            "work": self.work,
            "made": self.made,
        }

    @classmethod
    def of_document(cls, path: Path, document: dict[str, Any]) -> Job:
        """Return the job of a `job.json`, whose checksum has been compared.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: It was made by another version of
                flowmap, or says what no job can be.
        """
        if whole("format", document["format"]) != FORMAT:
            raise ValueError(f"format {document['format']} instead of {FORMAT}")
        runs = tuple((count, rows) for count, rows in document["segments"])
        if set(map(type, itertools.chain(*runs))) - {int}:
            raise TypeError("segments are no whole numbers")
        job = cls(
            path=path,
            id=document["id"],
            layout=Layout.recorded(
                document["shape"], document["dtype"], document["fortran_order"]
            ),
            plan=Plan(runs),
            block_rows=whole("block_rows", document["block_rows"]),
            data_offset=whole("data_offset", document["data_offset"]),
            header=document["header"],
            durability=document["durability"],
            checkpoint_seconds=seconds("checkpoint_seconds", document["checkpoint_seconds"]),
            reserve=flag("reserve", document["reserve"]),
            work=document["work"],
            made=document["made"],
        )
        job._refuse_odd()
        return job

    def _refuse_odd(self) -> None:
        """Refuse what does not fit together: no such job was ever allocated.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: It does not.
        """
        header = self.layout.header()
        fitting = {
            "id": _ID.fullmatch(self.id) is not None,
            "segments": self.plan.rows == self.layout.rows,
            "block_rows": self.block_rows >= 1,
            # A target with this header, and no other, is opened: the data begin after it.
            "data_offset": self.data_offset == len(header),
            "header": self.header == header_digest(header),
            "durability": self.durability in DURABILITIES,
            "work": self.work is None or isinstance(self.work["fingerprint"], str),
            "made": isinstance(self.made, dict),
        }
        for name, fits in fitting.items():
            if not fits:
                raise ValueError(f"no job has the {name} that it names")
        if self.work is not None:
            describe(self.work)

    def segments(self) -> tuple[Segment, ...]:
        """Return every segment in order."""
        return tuple(
            Segment(self.path, self.id, index, start, stop)
            for index, (start, stop) in enumerate(self.plan.bounds())
        )

    def window(self, offset: Any = 0, shape: Any = None) -> Window:
        """Return a window of the target, as `Window.asked` does."""
        return Window.asked(self.layout, self.data_offset, offset, shape, self.path)

    def map(
        self, descriptor: int, mode: MapMode, window: Window | None = None
    ) -> np.memmap[Any, Any]:
        """Map the open target, or a window of it, as `Window.map` does.

        Raises:
            StorageError: It cannot be mapped.
            InvalidArgumentError: It became shorter since it was opened.
        """
        with told("cannot map the target", self.path):
            return (window or self.window()).map(descriptor, mode, self.path)

    @again_if_stale
    def ledger(self, *, write: bool = False) -> Ledger:
        """Open the ledger, for a `with` block.

        Raises:
            OtherJobError: It is not the ledger of this job any more, but of the next.
            DamagedJobError: It is missing, or is not the ledger of such a job.
            StorageError: It cannot be opened.
        """
        path = Sidecar.of(self.path).ledger
        try:
            return Ledger(path, self.id, len(self.plan), write=write)
        except DamagedJobError:
            refuse_replaced(self)
        # The job is there: so is its ledger, where `clean` had it away for a moment.
        return Ledger(path, self.id, len(self.plan), write=write)

    def recorded_work(self, fingerprint: str) -> dict[str, Any] | None:
        """Return what a fingerprint stands for, as `Work.describe` gave it; None if unknown."""
        try:
            recorded = read_json(Sidecar.of(self.path).work(fingerprint))
            describe(recorded)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return recorded

    def describe_work(self, fingerprint: str) -> str:
        """Name the work of a fingerprint for a message, as far as it was recorded."""
        recorded = self.recorded_work(fingerprint)
        if recorded is None:
            return "another filler, version or other arguments"
        return describe(recorded)

    def problem_with(self, descriptor: int) -> str | None:
        """Say what is wrong with size, header or mark of the open target, if anything.

        Raises:
            StorageError: The header cannot be read.
        """
        try:
            size = os.fstat(descriptor).st_size
            header = os.pread(descriptor, self.data_offset, 0)
            mark = job_mark(descriptor)
        except OSError as error:
            raise storage_error(error, "cannot read the target's header", self.path) from error
        if size != self.size:
            return f"has {size} bytes, where {self.size} were allocated"
        if header_digest(header) != self.header:
            return "has another header than was written"
        if mark not in (None, self.id):
            return (
                "is marked as the target of another job (if it is the right file all the same, "
                "remove the mark: setfattr -x user.flowmap.job)"
            )
        return None


def _job_of(path: Path, text: bytes) -> Job:
    return Job.of_document(path, parsed_json(text))


_parsed = ParsedTexts(_job_of)
"""A worker reads the same text twice for each segment: before and after it opens the ledger."""


def read_job(path: Path) -> Job:
    """Read what was allocated at an absolute path, without looking at the target itself.

    Raises:
        NotFoundError: There is no target.
        ForeignFileError: What is there was not allocated by flowmap, or another user put the
            records beside it.
        DamagedJobError: An overwrite was cut short, or `job.json` is damaged.
        StorageError: It cannot be read.
    """
    sidecar = Sidecar.of(path)
    try:
        if not os.path.lexists(path):
            sidecar.look_afresh()  # another host may have made it
        found = path.lstat()
    except FileNotFoundError as error:
        message = f"there is no target here; {call('allocate')} makes it"
        raise NotFoundError(error.errno or 2, message, str(path)) from error
    except OSError as error:
        raise storage_error(error, "cannot look for the target", path) from error
    if stat.S_ISDIR(found.st_mode) or (stat.S_ISLNK(found.st_mode) and leads_to_records(path)):
        raise not_regular(path)
    check_records(path, found)
    for _ in range(_LOOKS):
        try:
            return _parsed(path, json_text(sidecar.job))
        except (FileNotFoundError, NotADirectoryError) as error:
            if os.path.lexists(sidecar.intent):
                raise DamagedJobError(
                    f"{path}: an overwrite of this target was cut short, and what is there is "
                    f"not whole. Allocate it again with {overwriting()}.",
                    path=str(path),
                ) from error
            missing = error
            sidecar.look_afresh()
        except (NotRegularError, ValueError, TypeError, AttributeError, KeyError) as error:
            missed = isinstance(error, KeyError)
            why = f"{error} is missing" if missed else str(error).rstrip(".")
            raise _damaged_job(sidecar, path, why) from error
        except OSError as error:
            raise storage_error(error, "cannot read the job", sidecar.job) from error
    raise ForeignFileError(
        f"{path} was not allocated by flowmap (there is no {sidecar.job}), or its records were "
        f"deleted. NumPy opens it; only {call('allocate', exist='overwrite')} replaces it.",
        path=str(path),
    ) from missing


@contextlib.contextmanager
def opened_target(path: Path) -> Iterator[tuple[Job, int]]:
    """Open the target at an absolute path for reading, for a `with` block.

    Yields:
        Its job, and the descriptor of the file, whose size and header are those of the job.

    Raises:
        NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `read_job`; or
            the file itself is not regular, is not what was allocated, or cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        yield _open_target(path, stack)


@again_if_stale
def _open_target(path: Path, stack: contextlib.ExitStack) -> tuple[Job, int]:
    job = read_job(path)
    while True:
        try:
            descriptor = stack.enter_context(opened(path))
            problem = job.problem_with(descriptor)
        except NotRegularError as error:
            raise not_regular(path) from error
        except OSError as error:
            Sidecar.of(path).look_afresh()
            raise storage_error(error, "cannot open the target", path) from error
        if problem is None:
            return job, descriptor
        before, job = job, read_job(path)
        if job.id == before.id:  # no overwrite came between the looks at the two
            raise DamagedJobError(
                f"{path} {problem}: something else wrote to it, or it is another file. "
                f"Restore it from a copy, or begin anew with {overwriting()}.",
                path=str(path),
            )


@contextlib.contextmanager
def opened_again(path: Path, job_id: str) -> Iterator[tuple[Job, int]]:
    """Like `opened_target`, for one job only: what the block reads was never another's.

    Raises:
        OtherJobError: The target was allocated anew since.
        NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `opened_target`.
    """
    with opened_target(path) as (job, descriptor):
        if job.id != job_id:
            raise replaced(path)
        yield job, descriptor
    # An overwrite removes `job.json` first: what is still there vouches for what was opened.
    refuse_replaced(job)


def refuse_replaced(job: Job) -> None:
    """Refuse a job that is not the one at its path any more.

    Raises:
        OtherJobError: The target was allocated anew since the job was read.
        NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in `read_job`.
    """
    if read_job(job.path).id != job.id:
        raise replaced(job.path)


def replaced(path: Path) -> OtherJobError:
    """Return the error for a job that an overwrite has replaced."""
    return OtherJobError(
        f"{path} was allocated anew since it was opened here; open it again.", path=str(path)
    )


def _damaged_job(sidecar: Sidecar, path: Path, why: str) -> DamagedJobError:
    return DamagedJobError(
        f"{sidecar.job} is damaged, or of another version of flowmap: {why}. Restore it from a "
        f"copy, or begin anew with {overwriting()}.",
        path=str(path),
    )
