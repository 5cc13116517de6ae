"""`flowmap validate`."""

from dataclasses import replace
from typing import Any

from flowmap.cli.advice import how_to_fill
from flowmap.cli.changes import say_changes
from flowmap.cli.exits import Exit
from flowmap.cli.output import say, say_json
from flowmap.cli.parameters import AsJson, Flag, TargetPath
from flowmap.examination import examine
from flowmap.report import ValidationReport
from flowmap.summary import Summary
from flowmap.target import Target, job_of, open_target


def validate(
    path: TargetPath,
    /,
    *,
    finite: Flag = False,
    mixed: Flag = False,
    mark: bool = True,
    as_json: AsJson = False,
) -> Exit:
    """Prove that every byte of an array is there, and seal it.

    Header, size and each segment are compared with the records, and every byte is read. What is
    damaged is marked, so that `flowmap fill` computes just that again. A sealed array is
    read-only. The exit code is 0 where all is well, 3 where segments are missing, 4 where
    something is not as it was written, 1 where a value is not finite.

    Args:
        path: Of the .npy file.
        finite: Whether NaNs and infinities are a fault.
        mixed: Whether segments may have been filled by different fillers or arguments.
        mark: Whether to record what is found.
    """
    report, changes = examine(path, finite=finite, mixed=mixed, mark=mark)
    code = _code_of(report)
    warnings = say_changes(path, changes, as_json=as_json)
    if as_json:
        say_json(_document(report, code) | warnings)
    else:
        say(str(replace(report, warnings=())))
        if report.marked or (code == Exit.INCOMPLETE and not report.path.is_symlink()):
            say(f"To fill what is missing: {how_to_fill(path, open_target(path))}")
    return code


def _code_of(report: ValidationReport) -> Exit:
    """Return the exit code: the worst of what was found."""
    if report.ok:
        return Exit.DONE
    if report.damaged or not report.bad_segments:
        return Exit.DAMAGED
    counts = Summary.of(Target(job_of(report.path))).counts  # it may be a link
    if counts["damaged"]:
        return Exit.DAMAGED
    missing = {"pending", "running", "failed"}
    return Exit.INCOMPLETE if any(counts[state] for state in missing) else Exit.FAILED


def _document(report: ValidationReport, code: Exit) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "ok": report.ok,
        "code": int(code),
        "problems": list(report.problems),
        "bad_segments": [segment.index for segment in report.bad_segments],
        "damaged": [segment.index for segment in report.damaged],
        "marked": [segment.index for segment in report.marked],
        "digest": report.digest,
        "sealed": report.sealed,
        "notes": list(report.notes),
    }
