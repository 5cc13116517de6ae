"""How far a job is, in a few numbers: what status, progress and exit codes are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from flowmap import sealing
from flowmap.lease import holder
from flowmap.records import count_states, rows_kept

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flowmap.target import Target


@dataclass(frozen=True, slots=True)
class Summary:
    """How far a job is.

    Attributes:
        path: Of the target, absolute.
        id: Of the job.
        shape: Elements along each axis.
        dtype: As a header writes it, in JSON values.
        fortran_order: Whether the last axis is the slow one.
        state: "valid": done and sealed by a validation; "done"; "running": a run has the job;
            "incomplete"; "damaged": a validation found segments that are not as recorded.
        segments: How many there are.
        counts: How many are "pending", "running", "written", "failed", "damaged" and "done".
        rows: Of the target.
        rows_done: Rows written so far, those of unfinished segments included.
        nbytes: Bytes of the data.
        bytes_done: Bytes of `rows_done`.
        digest: Of the whole, where a validation sealed it.
        run: What the lease says of the run that has the job, if one has.
    """

    path: str
    id: str
    shape: tuple[int, ...]
    dtype: Any
    fortran_order: bool
    state: sealing.JobState | Literal["running"]
    segments: int
    counts: dict[str, int]
    rows: int
    rows_done: int
    nbytes: int
    bytes_done: int
    digest: str | None
    run: dict[str, Any] | None

    @classmethod
    def of(cls, target: Target, status: NDArray[Any] | None = None) -> Summary:
        """Look at a job.

        Args:
            target: The target.
            status: What `target.status()` just said, if it was asked.

        Raises:
            OtherJobError, NotFoundError, ForeignFileError, DamagedJobError, StorageError: As in
                `Target.status`.
        """
        table = target.status() if status is None else status
        layout = target.job.layout
        rows_done = rows_kept(table)
        seal = sealing.seal_of(target.job)
        lease = holder(target.job)
        run = lease if lease is not None and lease["live"] else None
        return cls(
            path=str(target.path),
            id=target.id,
            shape=target.shape,
            dtype=layout.descr,
            fortran_order=target.fortran_order,
            state="running" if run is not None else sealing.state_of(table, seal),
            segments=len(table),
            counts=count_states(table),
            rows=layout.rows,
            rows_done=rows_done,
            nbytes=layout.nbytes,
            bytes_done=rows_done * layout.row_bytes,
            digest=None if seal is None else seal["digest"],
            run=run,
        )

    @property
    def is_filled(self) -> bool:
        """Whether nothing is left to compute; what is written, validation syncs."""
        return self.counts["done"] + self.counts["written"] == self.segments

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)
