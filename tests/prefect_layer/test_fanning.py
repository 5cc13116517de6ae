"""The task runs of the flow's segments, as a real Prefect server knows them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prefect import flow
from servers import until
from support import ramp

import flowmap
from flowmap.errors import JobBusyError, SegmentsFailedError, WorkerDiedError
from flowmap.fanning import FanOut
from flowmap.sidecar import Sidecar
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from servers import Server

RETRIED = "flowmap.fanning.RETRY_SECONDS"


@flowmap.filler
def slow_at_first(out: np.ndarray[Any, Any], block: flowmap.Block, folder: str) -> None:
    """Take for the first row until it has been seen that its segment runs."""
    if not block.start:
        until((Path(folder) / "seen").exists, "word that it was seen")
    out[...] = 1


@flowmap.filler
def passing_fault(out: np.ndarray[Any, Any], block: flowmap.Block, folder: str) -> None:
    """Raise an error of the system the first time that row 10 is asked for."""
    if block.start == 10:
        with contextlib.suppress(FileExistsError), (Path(folder) / "tried").open("x"):
            raise ConnectionResetError("the file server went away")
    out[...] = 1


@flowmap.filler
def lasting_fault(out: np.ndarray[Any, Any], block: flowmap.Block) -> None:
    """Raise an error of the system each time."""
    raise ConnectionResetError("the file server went away")


@flowmap.filler
def overtaken(out: np.ndarray[Any, Any], block: flowmap.Block, folder: str) -> None:
    """Let another run take the job over and finish it, as while this one is suspended."""
    target = flowmap.open_target(Path(folder) / "a.npy")
    if target.pending() and Sidecar.of(target.path).run.exists():
        Sidecar.of(target.path).run.unlink()
        for segment in target.segments:
            flowmap.fill_segment(segment, overtaken, {"folder": folder})
    out[...] = 1


def history(server: Server, run: dict[str, Any]) -> list[str]:
    """Return the names of the states that a task run has had, in order."""
    answer = httpx.get(f"{server.url}/task_run_states/", params={"task_run_id": run["id"]})
    states = sorted(answer.raise_for_status().json(), key=lambda state: state["timestamp"])
    return [state["name"] for state in states]


def fill(path: Path, filler: str, **options: Any) -> flowmap.ValidationReport:
    """Fill thirty bytes in three segments."""
    name = f"{__name__}:{filler}"
    report: flowmap.ValidationReport = flowmap.fill_array(
        str(path), 30, "u1", filler=name, segments=3, executor="threads", **options
    )
    return report


def test_server_is_told_what_can_be_seen(server: Server, tmp_path: Path) -> None:
    """A segment that takes a while is shown running; one that does not is told of once."""
    path = tmp_path / "out.npy"
    thread = threading.Thread(
        target=fill,
        args=(path, "slow_at_first"),
        kwargs={"arguments": {"folder": str(tmp_path)}},
    )
    thread.start()

    def begun() -> str | None:
        runs = server.ask("flow_runs/filter", sort="START_TIME_DESC", limit=5)
        ours = (run["id"] for run in runs if run["parameters"].get("path") == str(path))
        return next(ours, None)

    def is_shown_running() -> bool:
        shown = server.task_runs(flow_run, 0).get("segment 0000 [0:10]")
        return shown is not None and shown["state_type"] == "RUNNING"

    try:
        flow_run = until(begun, "the flow run")
        until(is_shown_running, "the first segment is running")
    finally:
        (tmp_path / "seen").touch()
        thread.join()
    runs = server.task_runs(flow_run, 5)
    first, *others = [run for name, run in sorted(runs.items()) if "segment" in name]
    assert history(server, first) == ["Running", "Completed"]
    assert [history(server, other) for other in others] == [["Completed"]] * 2
    for run in (first, *others):
        assert run["start_time"] <= run["end_time"]
        assert run["expected_start_time"] == run["start_time"]
        assert run["run_count"] == run["flow_run_run_count"] == 1
        assert run["task_key"] == flowmap.fill_task.task_key


def test_passing_fault_is_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some time later, as another try of the same task run."""
    monkeypatch.setattr(RETRIED, (0.1, 0.1))
    assert fill(tmp_path / "out.npy", "passing_fault", arguments={"folder": str(tmp_path)}).ok
    runs = server.task_runs(server.newest_run()["id"], 5)
    run = runs["segment 0001 [10:20]"]
    assert history(server, run) == ["AwaitingRetry", "Retrying", "Completed"]
    assert run["run_count"] == 2
    assert run["end_time"] > run["start_time"]


def test_lasting_fault_fails_in_the_end(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The state says why, and so does the log that the UI shows with the task run."""
    monkeypatch.setattr(RETRIED, (0.1, 0.1))
    with pytest.raises(SegmentsFailedError, match="3 of 3 segments"):
        fill(tmp_path / "out.npy", "lasting_fault")
    runs = server.task_runs(server.newest_run()["id"], 4)
    run = runs["segment 0001 [10:20]"]
    tries = ["AwaitingRetry", "Retrying"] * 2
    assert history(server, run) == [*tries, "Failed"]
    assert run["run_count"] == 3
    assert "ConnectionResetError: the file server went away" in run["state"]["message"]
    logs = {
        vars(record)["task_run_id"]: logging.Formatter().format(record)
        for record in caplog.records
        if record.name == "prefect.task_runs" and record.exc_info
    }
    assert 'raise ConnectionResetError("the file server went away")' in logs[run["id"]]
    assert logs[run["id"]].count('File "') == 1, "nothing of flowmap"


def test_ends_where_no_worker_can_load_the_filler(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segments that are left would fail alike."""
    (tmp_path / "of_this_process.py").write_text(
        "import os, flowmap\n"
        f"if os.getpid() != {os.getpid()}: raise ImportError('no licence here')\n"
        "@flowmap.filler\ndef f(out, block): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options: Any = {"filler": "of_this_process:f", "segments": 40, "workers": 1}
    with pytest.raises(SegmentsFailedError, match="No worker can load the filler") as caught:
        flowmap.fill_array(str(tmp_path / "out.npy"), 400, "u1", **options)
    assert len(caught.value.failures) < 40
    assert "ImportError: no licence here" in str(caught.value)
    assert server.newest_run()["state_type"] == "FAILED"


class Held(Executor):
    """Begins nothing until it is let go, one by one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.most = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Keep a call."""
        future: Future[Any] = Future()
        self.calls.append((future, lambda: fn(*args, **kwargs)))
        self.most = max(self.most, len(self.calls))
        if len(self.calls) == 7:
            self.let_go()
        return future

    def let_go(self) -> None:
        """Do what was kept first."""
        future, call = self.calls.pop(0)
        future.set_result(call())


def test_few_are_under_way_and_told_of_when_the_run_is_cut_short(
    server: Server, tmp_path: Path
) -> None:
    """As many as there are workers and a few; none of the others has a task run."""
    target = flowmap.allocate(tmp_path / "out.npy", 100, "u1", segments=100)
    pool = Held()

    @flow
    def cut_short() -> None:
        with FanOut(Work.of(ramp), 3) as fan_out:
            for segment, error in fan_out.fill(pool, target.segments):
                assert error is None
                if segment.index == 2:
                    pool.let_go()
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    assert pool.most == 7
    runs = server.task_runs(server.newest_run()["id"], 9)
    states = [run["state_name"] for _, run in sorted(runs.items())]
    assert states == ["Completed"] * 4 + ["Cancelled"] * 5
    assert runs["segment 0005 [5:6]"]["state"]["message"].startswith("The run was ended")


def test_an_executor_that_does_not_begin_is_told_of(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the log of the flow, which goes on waiting for it."""
    pool, told = Held(), list[str]()

    @contextlib.contextmanager
    def opened(*_: object) -> Iterator[Executor]:
        yield pool

    def let_all_go() -> None:
        while pool.calls:
            pool.let_go()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.WARNING:
                told.append(record.getMessage())
                let_all_go()

    monkeypatch.setattr("flowmap.flow.open_executor", opened)
    monkeypatch.setattr("flowmap.stall.PATIENCE_SECONDS", 0)
    handler, late = Seen(), threading.Timer(60, let_all_go)
    logging.getLogger("prefect.flow_runs").addHandler(handler)
    late.start()
    try:
        report = flowmap.fill_array(
            str(tmp_path / "out.npy"), 30, "u1", "constant", {"value": 1}, 3, executor="threads"
        )
    finally:
        late.cancel()
        logging.getLogger("prefect.flow_runs").removeHandler(handler)
    assert report.ok
    (text,) = told
    assert text.startswith("None of the 3 segments")
    assert "executor (Held)" in text


def test_a_run_that_was_overtaken_is_told_so(server: Server, tmp_path: Path) -> None:
    """Its segments did not fail: another run has finished the job."""
    with pytest.raises(JobBusyError, match="nothing is left to do"):
        fill(tmp_path / "a.npy", "overtaken", arguments={"folder": str(tmp_path)}, workers=1)
    assert flowmap.validate(tmp_path / "a.npy").ok


class Deadly(Executor):
    """An executor whose workers die before they record anything."""

    def submit(self, _call: Any, /, segment: Any, *_: Any) -> Future[Any]:  # type: ignore[override]
        """Return a future whose worker has died."""
        future: Future[Any] = Future()
        future.set_exception(WorkerDiedError(f"{segment.name}: the worker process died"))
        return future


def test_a_segment_whose_worker_died_has_failed(server: Server, tmp_path: Path) -> None:
    """The records say so and why, for `status` on any host, in this flow and in one's own."""
    target = flowmap.allocate(tmp_path / "a.npy", 30, "u1", segments=3)

    @flow
    def filled() -> None:
        list(FanOut(Work.of(ramp), 1).fill(Deadly(), target.segments[:1]))
        flowmap.fill_task(target.segments[1], ramp, None, Deadly(), return_state=True)

    filled()
    status = target.status()
    assert status["state"].tolist() == ["failed", "failed", "pending"]
    assert status["reason"].tolist() == ["the worker process died"] * 2 + [""]
