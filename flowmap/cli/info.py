"""`flowmap info`."""

import contextlib
from typing import Any

from rich.table import Table

from flowmap import human
from flowmap.changes import Change
from flowmap.cli.changes import say_changes
from flowmap.cli.exits import Exit
from flowmap.cli.output import Text, say, say_json
from flowmap.cli.parameters import AsJson, FilePath, TargetPath
from flowmap.cli.picture import date
from flowmap.dtypes import dtype_from_descr
from flowmap.errors import FlowmapError, ForeignFileError
from flowmap.exporting import export as export_record
from flowmap.exporting import read_export, record_of


def info(
    path: TargetPath, /, *, export: FilePath | None = None, as_json: AsJson = False
) -> Exit:
    """Show what the job of an array was: who filled it, with what, where and when.

    With --export all of it, each segment included, is written to one JSON file, which survives
    the deletion of the records, and which `flowmap info` shows as well.

    Args:
        path: Of the .npy file, or of a file that --export wrote.
        export: The JSON file to write.
    """
    record = _read(path) if export is None else export_record(path, export)
    changes = [Change.of_document(each) for each in record.get("changes", [])]
    warnings = say_changes(path, changes, as_json=as_json)
    if as_json:
        say_json(record | warnings)
    else:
        say(Text(path, "bold"), _table(record))
        if export is not None:
            say(f"Written to {export}.")
    return Exit.DONE


def _read(path: str) -> dict[str, Any]:
    """Return the record of a job, or what an export under any name says."""
    if path.endswith(".json"):
        return read_export(path)
    try:
        return record_of(path)
    except ForeignFileError:
        with contextlib.suppress(FlowmapError):
            return read_export(path)
        raise


def _table(record: dict[str, Any]) -> Table:
    job, summary, seal = record["job"], record["summary"], record["seal"]
    made, work = job["made"], _work(record)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    segments = human.count(len(record["segments"]))
    order = ", Fortran order" if job["fortran_order"] else ""
    rows: list[tuple[str, str]] = [
        (
            "state",
            f"{summary['state']}, {summary['segments_done']} of {segments} segments done",
        ),
        ("shape", f"{tuple(job['shape'])}{order}"),
        ("dtype", str(dtype_from_descr(job["dtype"]))),
        ("size", f"{human.size(summary['nbytes'])} in {segments} segments"),
        ("block", f"{human.count(job['block_rows'])} rows"),
        ("durability", job["durability"]),
        ("job", job["id"]),
        ("allocated", f"{date(made['time'])} by {made['user']} on {made['host']}"),
        (
            "versions",
            f"flowmap {made['flowmap']}, NumPy {made['numpy']}, Python {made['python']}",
        ),
    ]
    for index, each in enumerate(work):
        rows.append(
            ("filler" if not index else "", f"{each['filler']} version {each['version']}")
        )
        arguments = ", ".join(f"{name}={text}" for name, text in each["arguments"].items())
        rows += [("arguments", arguments)] if arguments else []
    if summary["began"]:
        between = f"{date(summary['began'])} to {date(summary['finished'])}"
        rows += [
            ("filled", f"{between}, {human.count(summary['attempts'])} attempts"),
            ("compute", f"{human.seconds(summary['seconds'])} in all segments together"),
            ("hosts", ", ".join(summary["hosts"])),
        ]
    if summary["digest"]:
        rows.append(("digest", f"{summary['digest']} (xxh3_128)"))
    if seal is not None:
        rows.append(("validated", f"{date(seal['time'])} on {seal['host']}"))
    for name, text in rows:
        table.add_row(name, Text(text))
    return table


def _work(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the works that a job is pinned to or was filled by, each once."""
    works = {**record["works"]}
    pinned = record["job"]["work"]
    if pinned is not None:
        works[pinned["fingerprint"]] = pinned
    return [work for work in works.values() if work is not None]  # one may be lost
