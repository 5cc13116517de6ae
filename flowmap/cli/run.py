"""`flowmap run`."""

import contextlib
import copy
import logging
import os
import re
from dataclasses import replace
from typing import Literal

from flowmap.cli.advice import note_traceback
from flowmap.cli.exits import Exit
from flowmap.cli.output import say, say_json
from flowmap.cli.parameters import (
    Arguments,
    AsJson,
    DType,
    FillerName,
    Flag,
    Seconds,
    Shape,
    TargetPath,
    WholeNumber,
)
from flowmap.cli.serving import needing_server
from flowmap.errors import (
    FlowmapError,
    InvalidArgumentError,
    SegmentsFailedError,
    printable,
    short,
)
from flowmap.executors import ExecutorName
from flowmap.job import Durability
from flowmap.prerequisites import check_working_directory
from flowmap.target import open_target
from flowmap.wording import option


def run(
    path: TargetPath,
    /,
    *,
    shape: Shape = 1_000_000,
    dtype: DType = "<f8",
    filler: FillerName = "arange",
    arguments: Arguments = None,
    segments: WholeNumber | None = None,
    block_rows: WholeNumber | None = None,
    durability: Durability = "segment",
    executor: ExecutorName = "processes",
    workers: WholeNumber | None = None,
    exist: Literal["resume", "error", "overwrite"] = "resume",
    fortran_order: Flag = False,
    reserve: bool = True,
    checkpoint_seconds: Seconds = 30,
    finite: Flag = False,
    as_json: AsJson = False,
) -> Exit:
    """Run the flow fill-array here: allocate, fill and validate, under Prefect.

    The Prefect server that is set shows each segment; where none is set, Prefect starts one for
    as long as the run takes. Running it again fills only what is missing.

    Args:
        path: Of the .npy file. Its folder must exist.
        segments: How many; chosen from the size if left out.
        block_rows: Rows that a filler computes at once; about a mebibyte if left out.
        durability: When data is safe from a power cut.
        executor: Where the filler runs.
        workers: How many processes or threads; one for each processor if left out.
        exist: If the file exists already: go on with the same job, report an error, or replace.
        fortran_order: Whether the last axis is the slow one, whose indices are the rows.
        reserve: Whether to reserve the disk space now, so that it cannot run out later.
        checkpoint_seconds: Seconds between syncs within a segment.
        finite: Whether NaNs and infinities are a fault.
    """
    # Of all commands this and `deploy` alone load Prefect.
    from prefect.exceptions import ParameterTypeError  # noqa: PLC0415

    from flowmap.deployed import place  # noqa: PLC0415
    from flowmap.flow import fill_array  # noqa: PLC0415

    check_working_directory()
    _check_text(path)
    _tell_mistakes_briefly()
    try:
        with needing_server():
            report = fill_array(
                path,
                shape,
                dtype,
                filler or "arange",
                arguments,
                segments=segments,
                block_rows=block_rows,
                durability=durability,
                executor=executor,
                workers=workers,
                exist=exist,
                fortran_order=fortran_order,
                reserve=reserve,
                checkpoint_seconds=checkpoint_seconds,
                finite=finite,
            )
    except SegmentsFailedError as error:
        with contextlib.suppress(FlowmapError):
            note_traceback(error, path, open_target(place(path)), None)
        raise
    except ParameterTypeError as error:
        raise InvalidArgumentError(_by_options(str(error))) from error
    if as_json:
        document = {"path": str(report.path), "ok": report.ok, "digest": report.digest}
        say_json(document | {"warnings": list(report.warnings)})
    else:
        say(str(replace(report, warnings=())))  # they are in the log of the flow run
    return Exit.DONE


def _check_text(path: str) -> None:
    """Refuse a path that Prefect, which records it, cannot send to its server."""
    try:
        os.path.abspath(path).encode()  # noqa: PTH100 -- a text
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"path is {short(path)}, with bytes that are not letters in this locale, and "
            "Prefect records a path as text. Rename the file or folder, or set LC_ALL=C.UTF-8; "
            "`flowmap alloc` and `flowmap fill` take it as it is."
        ) from error


def _by_options(text: str) -> str:
    """Return what Prefect says of parameters, each named as the option that it is."""
    _, *faults = re.split(r"^ - (\w+): ", text, flags=re.MULTILINE)
    pairs = zip(faults[::2], faults[1::2], strict=True)
    named = [f"{option(name)}: {fault.strip().rstrip('.')}." for name, fault in pairs]
    return " ".join(named) or text


class _Brief(logging.Formatter):
    """Formats like another formatter, without controls or tracebacks of flowmap's errors."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, FlowmapError):
            record = copy.copy(record)
            record.exc_info = record.exc_text = None
        return printable(self._formatter.format(record))


def _tell_mistakes_briefly() -> None:
    """Keep tracebacks of flowmap's own errors to the log that the server has."""
    from prefect.logging.configuration import ensure_logging_setup  # noqa: PLC0415 -- as above
    from prefect.logging.handlers import PrefectConsoleHandler  # noqa: PLC0415 -- as above

    ensure_logging_setup()

    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler) and handler.formatter is not None:
            handler.setFormatter(_Brief(handler.formatter))
