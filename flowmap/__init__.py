"""Fill one big NumPy `.npy` file from many workers, under Prefect 3 or without it.

`allocate` makes the file once; `fill`, or Prefect's mapped tasks, fill its segments without
locks; `validate` proves that every byte is there. What comes out is a plain `.npy`.

The Prefect names (`alloc_task`, `pending_task`, `fill_task`, `write_task`, `validate_task`,
`fill_array`) load Prefect when they are first used; nothing else does. Every error that flowmap
raises is a `FlowmapError`, and each of their kinds is a name of this package.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from flowmap._version import __version__

if sys.platform == "win32":
    raise ImportError(
        "flowmap does not run on Windows: it needs pwrite, flock and link as POSIX has them. "
        "Use it on Linux, in WSL 2 for one, or on macOS."
    )

# The server that Prefect embeds in a flow records in batches if the process of the flow has
# imported flowmap (see `flowmap.recording`). The server imports it too: it must keep the mark.
if "PREFECT__SERVER_EPHEMERAL" not in os.environ:
    os.environ["FLOWMAP_IMPORTED_BY"] = str(os.getpid())

if TYPE_CHECKING:
    from flowmap.alloc import allocate
    from flowmap.changes import FillerChangedWarning
    from flowmap.errors import (
        AccessDeniedError,
        ClaimLostError,
        ClusterError,
        DamagedJobError,
        FillerError,
        FillerNotFoundError,
        FillerRefusedError,
        FlowmapError,
        ForeignFileError,
        InvalidArgumentError,
        JobBusyError,
        LockTimeoutError,
        MissingExtraError,
        NotDoneTimeoutError,
        NotFoundError,
        NotValidatedError,
        OtherJobError,
        OtherWorkError,
        SegmentDoneError,
        SegmentsFailedError,
        StoppedError,
        StorageError,
        TargetExistsError,
        ValidationFailed,
        WorkerDiedError,
        WrongTypeError,
    )
    from flowmap.examination import validate
    from flowmap.executors import executor, fill
    from flowmap.flow import fill_array
    from flowmap.loading import load
    from flowmap.mapping import open_memmap
    from flowmap.marks import filler
    from flowmap.progress import Progress
    from flowmap.records import SegmentRecord
    from flowmap.report import ValidationReport
    from flowmap.resetting import reset
    from flowmap.segments import Block, Segment
    from flowmap.shares import fill_share
    from flowmap.target import Target, open_target
    from flowmap.tasks import alloc_task, fill_task, pending_task, validate_task, write_task
    from flowmap.write import fill_segment, open_segment, write_segment

_HOMES: Final = {
    "AccessDeniedError": "errors",
    "Block": "segments",
    "ClaimLostError": "errors",
    "ClusterError": "errors",
    "DamagedJobError": "errors",
    "FillerChangedWarning": "changes",
    "FillerError": "errors",
    "FillerNotFoundError": "errors",
    "FillerRefusedError": "errors",
    "FlowmapError": "errors",
    "ForeignFileError": "errors",
    "InvalidArgumentError": "errors",
    "JobBusyError": "errors",
    "LockTimeoutError": "errors",
    "MissingExtraError": "errors",
    "NotDoneTimeoutError": "errors",
    "NotFoundError": "errors",
    "NotValidatedError": "errors",
    "OtherJobError": "errors",
    "OtherWorkError": "errors",
    "Progress": "progress",
    "Segment": "segments",
    "SegmentDoneError": "errors",
    "SegmentRecord": "records",
    "SegmentsFailedError": "errors",
    "StoppedError": "errors",
    "StorageError": "errors",
    "Target": "target",
    "TargetExistsError": "errors",
    "ValidationFailed": "errors",
    "ValidationReport": "report",
    "WorkerDiedError": "errors",
    "WrongTypeError": "errors",
    "alloc_task": "tasks",
    "allocate": "alloc",
    "executor": "executors",
    "fill": "executors",
    "fill_array": "flow",
    "fill_segment": "write",
    "fill_share": "shares",
    "fill_task": "tasks",
    "filler": "marks",
    "load": "loading",
    "open_memmap": "mapping",
    "open_segment": "write",
    "open_target": "target",
    "pending_task": "tasks",
    "reset": "resetting",
    "validate": "examination",
    "validate_task": "tasks",
    "write_segment": "write",
    "write_task": "tasks",
}
"""Where each public name lives; loaded on first use, so that `import flowmap` stays cheap."""

__all__ = [
    "AccessDeniedError",
    "Block",
    "ClaimLostError",
    "ClusterError",
    "DamagedJobError",
    "FillerChangedWarning",
    "FillerError",
    "FillerNotFoundError",
    "FillerRefusedError",
    "FlowmapError",
    "ForeignFileError",
    "InvalidArgumentError",
    "JobBusyError",
    "LockTimeoutError",
    "MissingExtraError",
    "NotDoneTimeoutError",
    "NotFoundError",
    "NotValidatedError",
    "OtherJobError",
    "OtherWorkError",
    "Progress",
    "Segment",
    "SegmentDoneError",
    "SegmentRecord",
    "SegmentsFailedError",
    "StoppedError",
    "StorageError",
    "Target",
    "TargetExistsError",
    "ValidationFailed",
    "ValidationReport",
    "WorkerDiedError",
    "WrongTypeError",
    "__version__",
    "alloc_task",
    "allocate",
    "executor",
    "fill",
    "fill_array",
    "fill_segment",
    "fill_share",
    "fill_task",
    "filler",
    "load",
    "open_memmap",
    "open_segment",
    "open_target",
    "pending_task",
    "reset",
    "validate",
    "validate_task",
    "write_segment",
    "write_task",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'flowmap' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"flowmap.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
