"""The target and its job: what `job.json` says, and the file that it says it of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    InvalidArgumentError,
    NotFoundError,
    WrongTypeError,
    storage_error,
)
from flowmap.ledger import Ledger
from flowmap.npy import Layout, dtype_from_descr, header_digest
from flowmap.records import STATUS
from flowmap.segments import Plan, Segment
from flowmap.storage import NotRegularError, opened, publish_json, read_json, sync_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flowmap.fillers import Work

FORMAT: Final = 1
"""Version of the sidecar's files; a later one is refused."""

Durability = Literal["segment", "end"]
DURABILITIES: Final = get_args(Durability)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The names in the folder beside a target.

    Attributes:
        folder: The folder, "out.npy.flowmap".
    """

    folder: Path

    @classmethod
    def of(cls, path: Path) -> Sidecar:
        """Return the sidecar of a target."""
        return cls(path.with_name(f"{path.name}.flowmap"))

    @property
    def job(self) -> Path:
        """What was allocated."""
        return self.folder / "job.json"

    @property
    def ledger(self) -> Path:
        """What is done."""
        return self.folder / "ledger.npy"

    @property
    def run(self) -> Path:
        """Who is filling."""
        return self.folder / "run.json"

    @property
    def seal(self) -> Path:
        """The validation that passed."""
        return self.folder / "seal.json"

    @property
    def intent(self) -> Path:
        """An overwrite that has begun."""
        return self.folder / "overwrite.json"

    def work(self, fingerprint: str) -> Path:
        """What a fingerprint stands for."""
        return self.folder / f"work-{fingerprint}.json"


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
            ValueError, TypeError, KeyError: It was made by another version of flowmap.
        """
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']} instead of {FORMAT}")
        shape, dtype = tuple(document["shape"]), dtype_from_descr(document["dtype"])
        return cls(
            path=path,
            layout=Layout(shape, dtype, document["fortran_order"]),
            plan=Plan(tuple((count, rows) for count, rows in document["segments"])),
            **{
                name: document[name]
                for name in (
                    "id",
                    "block_rows",
                    "data_offset",
                    "header",
                    "durability",
                    "checkpoint_seconds",
                    "reserve",
                    "work",
                    "made",
                )
            },
        )

    def segments(self) -> tuple[Segment, ...]:
        """Return every segment in order."""
        return tuple(
            Segment(self.path, self.id, index, start, stop)
            for index, (start, stop) in enumerate(self.plan.bounds())
        )

    def ledger(self, *, write: bool = False) -> Ledger:
        """Open the ledger, for a `with` block."""
        path = Sidecar.of(self.path).ledger
        return Ledger(path, self.id, len(self.plan), write=write)

    def record_work(self, work: Work) -> None:
        """Keep what the fingerprint of a work stands for, once."""
        path = Sidecar.of(self.path).work(work.fingerprint)
        if not path.exists():
            publish_json(path, work.describe())

    def lift_seal(self) -> None:
        """Remove the seal, durably, before a segment that it covers is changed."""
        seal = Sidecar.of(self.path).seal
        if seal.exists():
            seal.unlink(missing_ok=True)
            sync_folder(seal.parent)

    def problem_with(self, descriptor: int) -> str | None:
        """Say what is wrong with the size or the header of the open target, if anything."""
        size = os.fstat(descriptor).st_size
        if size != self.size:
            return f"has {size} bytes, where {self.size} were allocated"
        if header_digest(os.pread(descriptor, self.data_offset, 0)) != self.header:
            return "has another header than was written"
        return None


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a target, its folder's links resolved, its own name not.

    Raises:
        WrongTypeError: It is no path.
        InvalidArgumentError: No file can have this path.
    """
    if not isinstance(path, str | os.PathLike):
        raise WrongTypeError(f"path is {path!r}; it takes the name of a .npy file.")
    text = os.fsdecode(path)
    if not text or "\0" in text or Path(text).name in ("", ".."):
        raise InvalidArgumentError(f"path is {path!r}; it takes the name of a .npy file.")
    given = Path(text)
    return Path(os.path.realpath(given.parent)) / given.name


def read_job(path: Path) -> Job:
    """Read what was allocated at an absolute path, without looking at the target itself.

    Raises:
        NotFoundError: There is no target.
        ForeignFileError: What is there was not allocated by flowmap.
        DamagedJobError: An overwrite was cut short, or `job.json` is damaged.
        StorageError: It cannot be read.
    """
    sidecar = Sidecar.of(path)
    if not os.path.lexists(path):
        raise NotFoundError(2, "there is no target here; allocate() makes it", str(path))
    try:
        return Job.of_document(path, read_json(sidecar.job))
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.lexists(sidecar.intent):
            raise DamagedJobError(
                f"{path}: an overwrite of this target was cut short, and what is there is not "
                'whole. Allocate it again with exist="overwrite".',
                path=str(path),
            ) from error
        raise ForeignFileError(
            f"{path} was not allocated by flowmap (there is no {sidecar.job}). Choose another "
            'path, or replace what is there with exist="overwrite".',
            path=str(path),
        ) from error
    except OSError as error:
        raise storage_error(error, "cannot read the job", sidecar.job) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedJobError(
            f"{sidecar.job} is damaged, or of another version of flowmap: {error}. Restore it "
            'from a copy, or begin anew with exist="overwrite".',
            path=str(path),
        ) from error


def open_target(path: str | os.PathLike[str]) -> Target:
    """Open a target that was allocated before.

    Args:
        path: Of the `.npy` file.

    Returns:
        The target.

    Raises:
        NotFoundError: There is no such file.
        ForeignFileError: It was not allocated by flowmap.
        DamagedJobError: Its size, its header or its records are not what was allocated.
        StorageError: It cannot be read.
    """
    job = read_job(absolute(path))
    try:
        with opened(job.path) as descriptor:
            problem = job.problem_with(descriptor)
    except NotRegularError as error:
        raise ForeignFileError(
            f"{job.path} is not a regular file; flowmap opens no links, folders, pipes or "
            "devices. Give the path of the .npy file itself.",
            path=str(job.path),
        ) from error
    except OSError as error:
        raise storage_error(error, "cannot open the target", job.path) from error
    if problem is not None:
        raise DamagedJobError(
            f"{job.path} {problem}: something else wrote to it, or it is another file. Restore "
            'it from a copy, or begin anew with exist="overwrite".',
            path=str(job.path),
        )
    return Target(job)


class Target:
    """The `.npy` file being filled.

    Neither iterable nor a dataclass, so that Prefect's `.map` and its walk through
    parameters leave it alone. It holds no open file, and pickles.

    Args:
        job: What was allocated. Users get a target from `allocate` or `open_target`.
    """

    __slots__ = ("_segments", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        self._segments: tuple[Segment, ...] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Target, (self.job,)

    def __fspath__(self) -> str:
        return str(self.job.path)

    def __repr__(self) -> str:
        order = ", Fortran order" if self.fortran_order else ""
        return (
            f"<flowmap.Target {self.path} {self.shape} {self.dtype}{order}, "
            f"{len(self.job.plan)} segments>"
        )

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        return self.job.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return self.job.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one element."""
        return self.job.layout.dtype

    @property
    def fortran_order(self) -> bool:
        """Whether the last axis is the slow one."""
        return self.job.layout.fortran_order

    @property
    def nbytes(self) -> int:
        """Bytes of the data, the header not counted."""
        return self.job.layout.nbytes

    @property
    def id(self) -> str:
        """The id of the job: 32 hexadecimal digits, new at each allocation."""
        return self.job.id

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every segment, in order."""
        if self._segments is None:
            self._segments = self.job.segments()
        return self._segments

    def status(self) -> NDArray[Any]:
        """Read the ledger.

        Returns:
            Shape (segments,), dtype `flowmap.records.STATUS`: index, start, stop, state
            ("pending", "running", "written", "failed", "damaged" or "done"), rows_done,
            attempt, digest, started, finished, host, pid, work, reason.

        Raises:
            DamagedJobError: The ledger cannot be read.
        """
        bounds = np.array(list(self.job.plan.bounds()), np.int64).reshape(-1, 2)
        with self.job.ledger() as ledger:
            slots = ledger.read_all(bounds)
        table = np.zeros(len(slots), STATUS)
        table["index"] = slots["segment"]
        for name in ("start", "stop", "state", "rows_done", "attempt"):
            table[name] = slots[name]
        for name in ("started", "finished", "host", "pid", "reason"):
            table[name] = slots[name]
        for name in ("digest", "work"):
            table[name] = [mark.hex() if any(mark) else "" for mark in slots[name].tolist()]
        return table

    def pending(self) -> list[Segment]:
        """Return the segments that are not done yet: what a run has to fill."""
        (left,) = np.nonzero(self.status()["state"] != "done")
        return [self.segments[index] for index in left]

    def asarray(self, mode: Literal["r", "c"] = "r") -> NDArray[Any]:
        """Map the whole array for reading: rows not done yet are whatever is there.

        Args:
            mode: "r", or "c" for a copy on write that never reaches the file.

        Returns:
            The array, of the target's shape, dtype and order.

        Raises:
            InvalidArgumentError: Another mode: writing goes through segments.
            DamagedJobError: The file is not what was allocated.
        """
        if mode not in ("r", "c"):
            raise InvalidArgumentError(
                f"mode is {mode!r}; it takes 'r' or 'c'. To write, fill or write segments."
            )
        job = open_target(self.path).job
        if job.id != self.id:
            raise DamagedJobError(
                f"{self.path} was allocated anew since this target was opened; open it again.",
                path=str(self.path),
            )
        if not self.nbytes:
            return np.zeros(self.shape, self.dtype)
        order: Literal["F", "C"] = "F" if self.fortran_order else "C"
        return np.memmap(self.path, self.dtype, mode, job.data_offset, self.shape, order)
