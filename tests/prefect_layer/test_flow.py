"""The flow `fill-array`, against a real Prefect server."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import prefect
import pytest
from prefect.exceptions import ParameterTypeError
from support import read_only, run, script

import flowmap
from flowmap import fillers
from flowmap.errors import JobBusyError, OtherJobError, SegmentsFailedError, WrongTypeError
from flowmap.lease import leased
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from servers import Server


@flowmap.filler(name="a name")
def with_a_name(out: np.ndarray[Any, Any], block: flowmap.Block) -> None:
    """Fill with ones."""
    out[...] = 1


@flowmap.filler
def halves(
    out: np.ndarray[Any, Any], block: flowmap.Block, fail: list[int] | None = None
) -> None:
    """Fill rows with half their number; raise at the rows in `fail`."""
    if fail and any(block.start <= row < block.stop for row in fail):
        raise ArithmeticError("diverged")
    out[...] = np.arange(block.start, block.stop) / 2


def test_defaults_fill_an_array(server: Server, tmp_path: Path) -> None:
    """Nothing but a path is needed; every task run completes under its segment's name."""
    path = tmp_path / "out.npy"
    report = flowmap.fill_array(str(path))
    assert report.ok
    assert report.sealed
    assert np.array_equal(np.load(path), np.arange(1_000_000.0))
    run = server.newest_run()
    segments = flowmap.open_target(path).segments
    runs = server.task_runs(run["id"], len(segments) + 2)
    assert {r["state_name"] for r in runs.values()} == {"Completed"}
    assert {name for name in runs if "segment" in name} == {s.name for s in segments}
    assert run["state_name"] == "Completed"


@pytest.mark.parametrize("executor", ["threads", "processes", "dask"])
def test_every_parameter_reaches_the_job(server: Server, tmp_path: Path, executor: str) -> None:
    """Shape, dtype, order, segments, blocks and arguments are those that were asked for."""
    path = tmp_path / "out.npy"
    flowmap.fill_array(
        str(path),
        shape=[4, 300],
        dtype=[["t", "<f8"], ["v", "<f4", [3]]],
        arguments={"start": 2.0, "step": 0.5},
        segments=3,
        block_rows=7,
        durability="end",
        executor=executor,
        workers=1,
        fortran_order=True,
        reserve=False,
        finite=True,
    )
    target = flowmap.open_target(path)
    assert target.fortran_order
    assert [s.rows for s in target.segments] == [100, 100, 100]
    assert target.job.block_rows == 7
    assert not target.pending()
    values = np.load(path)
    assert values.flags.f_contiguous
    assert np.array_equal(values["t"], np.tile(2 + 0.5 * np.arange(300), (4, 1)))


def test_a_published_filler_is_named_by_one_word(server: Server, tmp_path: Path) -> None:
    """A filler that a distribution publishes needs no module in its name."""
    path = tmp_path / "out.npy"
    asked: dict[str, Any] = {"filler": "linspace", "arguments": {"num": 50}, "segments": 2}
    flowmap.fill_array(str(path), shape=50, executor="threads", **asked)
    assert np.array_equal(np.load(path), np.linspace(0, 1, 50))
    work = flowmap.open_target(path).job.work
    assert work is not None
    assert work["filler"] == "flowmap.fillers:linspace"


def test_padding_stays_padding(server: Server, tmp_path: Path) -> None:
    """A dtype with padding, whose name in JSON has a field for it, is not given that field."""
    path, dtype = tmp_path / "out.npy", np.dtype([("a", "u1"), ("b", "<f8")], align=True)
    flowmap.fill_array(str(path), shape=50, dtype=dtype, executor="threads")
    assert np.load(path).dtype == dtype


def test_failed_segments_are_named_and_only_they_run_again(
    server: Server, tmp_path: Path
) -> None:
    """One failing segment does not stop the others; the message says how to go on."""
    path = tmp_path / "out.npy"
    asked = {
        "shape": 100,
        "filler": f"{__name__}:halves",
        "segments": 10,
        "executor": "threads",
    }
    with pytest.raises(SegmentsFailedError) as caught:
        flowmap.fill_array(str(path), **asked, arguments={"fail": [55]})
    message = str(caught.value)
    assert "1 of 10 segments" in message
    assert "segment 0005 [50:60]" in message
    assert "ArithmeticError: diverged" in message
    assert "fills only those that are missing" in message
    run = server.newest_run()
    assert run["state_type"] == "FAILED"
    assert "segment 0005 [50:60]" in run["state"]["message"]
    runs = server.task_runs(run["id"], 11)
    assert [n for n, r in runs.items() if r["state_type"] == "FAILED"] == [
        "segment 0005 [50:60]"
    ]
    assert len(flowmap.open_target(path).pending()) == 1

    with pytest.raises(OtherJobError, match=r"fail=\[55\]"):
        flowmap.fill_array(str(path), **asked)
    with pytest.raises(SegmentsFailedError):
        flowmap.fill_array(str(path), **asked, arguments={"fail": [55]})
    again = server.task_runs(server.newest_run()["id"], 2)
    assert set(again) == {"allocate", "segment 0005 [50:60]"}


def test_cancelled_segments_are_not_taken_for_filled(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task run that ends Cancelled, whoever cancelled it, leaves its segment missing."""

    @contextlib.contextmanager
    def ended(*_: object) -> Iterator[Executor]:
        with contextlib.suppress(KeyboardInterrupt), flowmap.executor("threads", 1) as pool:
            raise KeyboardInterrupt
        yield pool

    monkeypatch.setattr("flowmap.flow.open_executor", ended)
    path = tmp_path / "out.npy"
    with pytest.raises(SegmentsFailedError, match="2 of 2 segments") as caught:
        flowmap.fill_array(str(path), shape=100, segments=2)
    assert "2 segments (0-1): was cancelled." in str(caught.value)
    assert len(flowmap.open_target(path).pending()) == 2


def test_finished_job_computes_nothing(server: Server, tmp_path: Path) -> None:
    """Running a job that is done validates it, and that is all."""
    path = str(tmp_path / "out.npy")
    flowmap.fill_array(path, shape=100, executor="threads")
    assert flowmap.fill_array(path, shape=100, executor="threads").ok
    assert set(server.task_runs(server.newest_run()["id"], 2)) == {"allocate", "validate"}


def test_finished_job_on_a_read_only_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is validated and nothing is written, also where a dead run left its lease."""
    path = tmp_path / "out.npy"
    flowmap.fill_array(str(path), shape=100, executor="threads")
    lease = Sidecar.of(path).run
    for _ in range(2):
        with monkeypatch.context() as frozen:
            read_only(tmp_path, frozen)
            report = flowmap.fill_array(str(path), shape=100, executor="threads")
        assert report.ok
        assert not report.sealed
        with leased(flowmap.open_target(path).job, "a run that dies", "0" * 32):
            left = lease.read_bytes()
        lease.write_bytes(left)


def test_objects_are_turned_into_their_names(server: Server, tmp_path: Path) -> None:
    """A filler that can be imported and a dtype are shown as what names them."""
    flowmap.fill_array(
        str(tmp_path / "out.npy"),
        shape=10,
        filler=fillers.arange,
        dtype=np.dtype([("a", "<f8"), ("b", "<i2", (2,))]),
        executor="threads",
    )
    shown = server.newest_run()["parameters"]
    assert shown["filler"] == "flowmap.fillers:arange"
    assert shown["dtype"] == [["a", "<f8"], ["b", "<i2", [2]]]


def test_partial_is_a_filler_with_arguments(server: Server, tmp_path: Path) -> None:
    """A partial becomes the name of its function, and what it binds is among the arguments."""
    path, bound = tmp_path / "out.npy", functools.partial(fillers.arange, start=1, step=2)
    asked: dict[str, Any] = {"shape": 5, "segments": 1, "executor": "threads"}
    flowmap.fill_array(path, **asked, filler=bound, arguments={"start": 2.5})
    assert np.load(path).tolist() == [2.5, 4.5, 6.5, 8.5, 10.5]
    shown = flowmap.fill_array.serialize_parameters({"filler": bound, "arguments": None})
    assert shown == {"filler": "flowmap.fillers:arange", "arguments": {"start": 1, "step": 2}}
    plain = functools.partial(fillers.arange)
    assert flowmap.fill_array.serialize_parameters({"filler": plain})["filler"] == (
        "flowmap.fillers:arange"
    )
    with pytest.raises(ParameterTypeError, match="arguments"):
        flowmap.fill_array(path, **asked, filler=bound, arguments=[1])


def test_named_filler_is_imported_by_its_place() -> None:
    """The flow takes "module:function", whatever name the work has."""
    shown = flowmap.fill_array.serialize_parameters({"filler": with_a_name})
    assert shown == {"filler": f"{__name__}:with_a_name"}


def test_task_and_flow_are_not_fillers(tmp_path: Path) -> None:
    """A task or a flow of Prefect is refused as a filler: each block would be a run."""
    for decorate in (prefect.task, prefect.flow):
        with pytest.raises(WrongTypeError, match=r"halves\.fn"):
            flowmap.allocate(tmp_path / "out.npy", 5, "f8", filler=decorate(halves))
    assert not list(tmp_path.iterdir())


def test_filler_without_a_name_is_refused(server: Server, tmp_path: Path) -> None:
    """What cannot be imported by its name is refused, and no file is made."""
    nameless = flowmap.filler(lambda out, block: None)
    with pytest.raises((ValueError, ParameterTypeError), match="cannot be imported"):
        flowmap.fill_array(str(tmp_path / "out.npy"), filler=nameless)
    assert not list(tmp_path.iterdir())


def test_second_run_is_told_who_has_the_job(server: Server, tmp_path: Path) -> None:
    """While one run fills a job another is refused, with the name of the first."""
    path = tmp_path / "out.npy"
    target = flowmap.allocate(path, 100, "<f8", filler="flowmap.fillers:arange")
    with (
        leased(target.job, "busy-bee"),
        pytest.raises(JobBusyError, match="busy-bee is filling"),
    ):
        flowmap.fill_array(str(path), shape=100, executor="threads")
    assert flowmap.fill_array(str(path), shape=100, executor="threads").ok


ODD = """
import flowmap

@flowmap.filler
def odd(out, block):
    if block.start == 50:
        raise ArithmeticError("diverged")
"""


def test_log_tells_of_segments_that_failed_alone(server: Server, tmp_path: Path) -> None:
    """A thousand lines of what went well would drown them."""
    (tmp_path / "odd.py").write_text(ODD)
    what = f"{str(tmp_path / 'out.npy')!r}, 90, filler='odd:odd', segments=9"
    child = run(script(f"import flowmap; flowmap.fill_array({what})"), cwd=tmp_path)
    assert child.returncode == 1
    log = child.stderr.splitlines()
    of_segments = [line for line in log if "Task run 'segment" in line]
    assert of_segments
    assert not [line for line in of_segments if "0005" not in line]
    assert [line for line in of_segments if "ArithmeticError: diverged" in line]
    assert [line for line in log if "Task run 'alloc" in line and "Completed" in line]


SLOW = """
import time
import flowmap

@flowmap.filler
def slow(out, block):
    print("filling", flush=True)
    time.sleep(2)
"""


@pytest.mark.parametrize(
    ("how", "executor"),
    [
        (signal.SIGINT, "processes"),
        (signal.SIGTERM, "processes"),
        (signal.SIGTERM, "dask"),
    ],
)
def test_interrupted_flow_leaves_nothing_running(
    server: Server, tmp_path: Path, how: signal.Signals, executor: str
) -> None:
    """Ctrl-C ends the workers too, what ends a job lets them end their blocks; it can go on."""
    (tmp_path / "slow.py").write_text(SLOW)
    path = tmp_path / "out.npy"
    what = f"{str(path)!r}, 100, filler='slow:slow', segments=9, executor={executor!r}"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import flowmap; flowmap.fill_array({what})"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != b"filling\n":
        assert process.poll() is None
    # Ctrl-C reaches the whole foreground group, kill(1) the process alone.
    (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
    code = process.wait(60)
    assert code not in (0, os.EX_TEMPFAIL) if how == signal.SIGINT else code == os.EX_TEMPFAIL
    process.stdout.read()  # ends when the last worker has closed its end
    process.stdout.close()
    target = flowmap.open_target(path)
    left = len(target.pending())
    assert left == 9 if how == signal.SIGINT else left < 9
    with leased(target.job, "the next run"):
        pass


def test_ui_gets_a_progress_bar_and_a_summary(server: Server, tmp_path: Path) -> None:
    """One progress artifact, full at the end, and one table that says how to open the file."""
    path = tmp_path / "My Out.npy"
    report = flowmap.fill_array(str(path), shape=1000, segments=4, executor="threads")
    run = {"flow_runs": {"id": {"any_": [server.newest_run()["id"]]}}}
    artifacts = {a["key"]: a for a in server.ask("artifacts/filter", **run)}
    assert artifacts["flowmap-progress-my-out-npy"]["data"] == 100
    summary = artifacts["flowmap-summary-my-out-npy"]["data"]
    assert str(path) in summary
    assert report.digest is not None
    assert report.digest in summary


def test_what_the_ui_refuses_costs_no_more_than_itself(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An artifact that cannot be made is told in the log, and the array is filled."""

    def refuse(*_: object) -> None:
        raise OSError("no such artifact")

    monkeypatch.setattr("flowmap.artifacts.create_progress_artifact", refuse)
    assert flowmap.fill_array(
        str(tmp_path / "out.npy"), 1000, segments=4, executor="threads"
    ).ok
    assert "Not shown in the UI: OSError: no such artifact" in caplog.text


def test_artifact_of_a_server_that_hangs(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run does not wait for the answer longer than it has patience, and says so."""
    answer = threading.Event()
    monkeypatch.setattr("flowmap.artifacts.create_progress_artifact", lambda *_: answer.wait())
    monkeypatch.setattr("flowmap.artifacts._PATIENCE", 0.2)
    try:
        flowmap.fill_array(str(tmp_path / "out.npy"), 10, segments=1, executor="threads")
    finally:
        answer.set()
    assert "Not shown in the UI: the server does not answer" in caplog.text


def test_form_describes_every_parameter() -> None:
    """The form has a text for each parameter, defaults for all but the path, and choices."""
    schema = flowmap.fill_array.parameters.model_dump()
    assert schema["required"] == ["path"]
    for name, field in schema["properties"].items():
        assert field.get("description"), name
        assert name == "path" or "default" in field, name
    assert schema["properties"]["executor"]["enum"] == ["processes", "threads", "dask"]
    assert schema["properties"]["durability"]["enum"] == ["segment", "end"]
    assert schema["properties"]["exist"]["enum"] == ["resume", "error", "overwrite"]
