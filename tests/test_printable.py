"""Nothing that other users have written is obeyed by a terminal, a notebook or Markdown."""

from __future__ import annotations

import contextlib
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from markdown_it import MarkdownIt
from support import HOSTILE, obeyed, poison, written

import flowmap
from flowmap import lease, stall
from flowmap.errors import (
    FlowmapError,
    InvalidArgumentError,
    JobBusyError,
    OtherWorkError,
    StorageError,
    cut,
    printable,
    said,
)
from flowmap.failures import failure_of
from flowmap.fillers import arange
from flowmap.lease import leased

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.target import Target


UNTOUCHED = ["", "plain", "a\tb\n", r"\x1b", "Ærø 東京 \u00a0", "\u200d\u200f", "\U0001f52c"]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_is_shown_stays(text: str) -> None:
    """Texts of all languages, tabs and newlines stay, and so does what was written out."""
    assert printable(text) == text


def test_what_is_obeyed_is_written_out() -> None:
    """Each control character, and each that reorders a line, becomes what Python writes."""
    for number in (
        *range(0xA0),
        *range(0x2028, 0x2030),
        *range(0x2060, 0x2070),
        0xD800,
        0xDC9B,
    ):
        text = printable(f"a{chr(number)}b")
        assert obeyed(text) == []
        if obeyed(chr(number)):
            assert text == f"a{ascii(chr(number))[1:-1]}b"


@pytest.mark.parametrize(
    "error", [InvalidArgumentError(HOSTILE), StorageError(5, HOSTILE, HOSTILE)]
)
def test_errors(error: FlowmapError) -> None:
    """Whatever a message quotes, it can be shown; a pickled one as well."""
    again = pickle.loads(pickle.dumps(error))
    for each in (error, again):
        assert obeyed(str(each) + repr(each)) == []
        assert r"\x1b]0;owned\x07" in str(each)
    if isinstance(error, StorageError):  # the path itself is for programs
        assert again.path == error.path == HOSTILE
        assert obeyed(str(error.strerror)) == []


def test_other_peoples_errors() -> None:
    """What is said of an error goes to logs, and to the states of task runs."""
    assert obeyed(said(ValueError(HOSTILE)) + cut(HOSTILE)) == []


@pytest.fixture
def hostile(tmp_path: Path) -> Target:
    """Return a target whose name and records are all hostile."""
    target = written(tmp_path / f"a{HOSTILE}.npy", np.arange(9.0))
    poison(target)
    return flowmap.open_target(target.path)


def test_records(hostile: Target) -> None:
    """What is read from the ledger and of failures can be printed as it is."""
    status = hostile.status()
    assert status["reason"][1].startswith(r"\x1b]0;owned")
    assert status["host"][0].startswith(r"\x1b]0;owned")
    kept = failure_of(hostile.job, 1, int(status["attempt"][1]))
    assert kept is not None
    assert "\n\t" in kept["traceback"]
    work = hostile.job.describe_work(status["work"][0])
    for text in (*status["reason"], *status["host"], *kept.values(), work):
        assert obeyed(text) == []


def test_what_objects_show(hostile: Target) -> None:
    """Neither text nor HTML of what people look at is obeyed."""
    report = flowmap.validate(hostile, mark=False)
    assert not report.ok
    shown: list[object] = [hostile, hostile.segments[0], report]
    for each in shown:
        page: str = each._repr_html_()  # type: ignore[attr-defined]
        assert obeyed(f"{each!r}{each}{page}") == []
        assert "<b>" not in page
        assert "&lt;b&gt;" in page


def test_refusals(hostile: Target) -> None:
    """Errors quote the lease and the pinned work of others as text."""
    with pytest.raises(OtherWorkError) as other:
        flowmap.fill(hostile, arange, executor="threads")
    with pytest.raises(FileExistsError) as job:
        flowmap.allocate(hostile.path, 9, "f8", segments=3, filler=arange)
    with pytest.raises(JobBusyError) as busy, leased(hostile.job, "another"):
        pass
    for error in (other.value, job.value, busy.value):
        assert obeyed(str(error)) == []
        assert r"\x1b]0;owned" in str(error)


def test_markdown_of_artifacts() -> None:
    """A file name in an artifact is shown as it is, in one cell of the table."""
    from flowmap.artifacts import code  # noqa: PLC0415 -- loads Prefect, for this test only

    names = [f"a{HOSTILE}.npy", "``", "`", "a|b", "a\nb", "<img src=x onerror=alert(1)>", "*a*"]
    for name in names:
        page = (
            MarkdownIt().enable("table").render(f"| a | b |\n|---|---|\n| x | {code(name)} |\n")
        )
        assert page.count("<td>") == 2
        shown = page.split("<td><code>")[1].split("</code></td>")[0]
        wanted = printable(name).replace("\n", r"\n")
        for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
            wanted = wanted.replace(plain, escaped)
        assert shown == wanted


def test_logs_of_prefect(
    hostile: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the name of a target nor a dead run that a lease names is obeyed in a log."""
    from flowmap import closing, tasks  # noqa: PLC0415 -- loads Prefect, for this test only
    from flowmap.cli.run import _Brief  # noqa: PLC0415 -- likewise

    logger = logging.getLogger("tests.printable")
    for module in (closing, tasks):
        monkeypatch.setattr(module, "get_run_logger", lambda: logger)
    monkeypatch.setattr(closing, "get_client", lambda **_: contextlib.nullcontext())
    with caplog.at_level(logging.INFO, logger.name):
        tasks.alloc_task.fn(hostile.path, 9, "f8", segments=3)
        closing.close_dead_run(hostile, HOSTILE)
        logger.info("what another library says: %s", HOSTILE)
    *ours, other = caplog.records
    assert [record.levelname for record in ours] == ["INFO", "WARNING"]
    for record in ours:
        assert obeyed(record.getMessage()) == []
        assert r"\x1b]0;owned" in record.getMessage()
    assert obeyed(_Brief(logging.Formatter()).format(other)) == []


def test_logs_of_a_lease(
    hostile: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The name of another user's run is logged as text."""
    monkeypatch.setattr(lease, "LOOKS", 0)
    lease._watch(hostile.job, {"name": "\x1b]0;pwned\x07"})
    assert "\\x1b]0;pwned\\x07" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_warning_of_a_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a target is shown as text."""
    target = flowmap.allocate(tmp_path / "\x1b[2J.npy", 4, "<f8")
    warned = list[str]()
    monkeypatch.setattr(stall, "PATIENCE_SECONDS", 0)
    with ThreadPoolExecutor(1) as executor:
        stall.StallWatch(target, executor, 1, warned.append).look()
    (warning,) = warned
    assert "\\x1b[2J.npy" in warning
    assert "\x1b" not in warning
