"""The tasks in flows of one's own, against a real Prefect server."""

from __future__ import annotations

import logging
import os
import signal
import threading
from concurrent.futures import Executor, Future
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dask.base import is_dask_collection
from prefect import flow, unmapped
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect.utilities.collections import isiterable, visit_collection

import flowmap
from flowmap.errors import FillerError, StoppedError, ValidationFailed, WrongTypeError
from flowmap.machine import available_cpus

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

# As Any: Prefect's annotation of `flow` takes no task runner but its base class.
MANY_THREADS: Any = ThreadPoolTaskRunner(max_workers=16)
PROCESSES: Any = ProcessPoolTaskRunner(max_workers=2)

ROW = np.dtype([("t", "<f8"), ("v", "<f4", (3,))])


def simulate(out: np.ndarray[Any, Any], block: flowmap.Block, scale: float = 1.0) -> None:
    """Fill rows with their number, scaled."""
    out["t"] = np.arange(block.start, block.stop) * scale
    out["v"] = 1


def expected(rows: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
    """Return what `simulate` makes of all rows."""
    values = np.zeros(rows, ROW)
    values["t"] = np.arange(rows) * scale
    values["v"] = 1
    return values


def test_a_target_is_one_value(tmp_path: Path) -> None:
    """Prefect's map and walk through parameters, and Dask, leave a target alone."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "<f8")
    assert not isiterable(target)
    assert not is_dataclass(target)
    assert (
        visit_collection({"a": [target]}, lambda each: each, return_data=True)["a"][0] is target
    )
    assert not is_dask_collection(target)


def test_own_flow_reads_like_the_idea(server: Server, tmp_path: Path) -> None:
    """Allocate, map, validate; every segment is a task run that can be found by its name."""
    path = tmp_path / "sweep.npy"

    @flow
    def sweep() -> flowmap.ValidationReport:
        target = flowmap.alloc_task(path, shape=1000, dtype=ROW, segments=10)
        filled = flowmap.fill_task.map(target.pending(), filler=unmapped(simulate))
        filled.wait()
        return flowmap.validate_task(target)

    report = sweep()
    assert report.ok
    assert np.array_equal(np.load(path), expected(1000))
    runs = server.task_runs(server.newest_run()["id"], 12)
    assert {run["state_name"] for run in runs.values()} == {"Completed"}
    names = {f"segment {i:04d} [{100 * i}:{100 * i + 100}]" for i in range(10)}
    assert set(runs) == names | {"allocate", "validate"}


def test_arguments_and_an_executor_are_shared_by_unmapped(
    server: Server, tmp_path: Path
) -> None:
    """An executor of flowmap's computes elsewhere; the control plane stays in threads."""
    path = tmp_path / "sweep.npy"

    def note_pid(out: np.ndarray[Any, Any], block: flowmap.Block, scale: float) -> None:
        out["t"] = os.getpid()
        out["v"] = scale

    @flow
    def sweep() -> None:
        target = flowmap.alloc_task(path, shape=100, dtype=ROW, segments=10)
        with flowmap.executor("processes", workers=2) as pool:
            flowmap.fill_task.map(
                target.pending(),
                filler=unmapped(note_pid),
                arguments=unmapped({"scale": 3.0}),
                executor=unmapped(pool),
            ).wait()
        flowmap.validate_task(target)

    sweep()
    values = np.load(path)
    assert (values["v"] == 3).all()
    assert os.getpid() not in values["t"]


def test_tasks_run_under_the_process_pool_of_prefect(server: Server, tmp_path: Path) -> None:
    """The tasks stay ordinary tasks: any task runner takes them, and fills in place."""
    path = tmp_path / "sweep.npy"

    @flow(task_runner=PROCESSES)
    def sweep() -> None:
        target = flowmap.alloc_task(path, shape=100, dtype="<f8", segments=3)
        filled = flowmap.fill_task.map(
            target.pending(), filler=unmapped("flowmap.fillers:arange")
        )
        filled.wait()
        flowmap.validate_task(target)

    sweep()
    assert np.array_equal(np.load(path), np.arange(100.0))


def test_submitted_allocation_goes_with_pending_task(server: Server, tmp_path: Path) -> None:
    """Who submits `alloc_task` asks for the segments by a task, and maps its future."""
    path = tmp_path / "sweep.npy"

    @flow
    def sweep() -> None:
        target = flowmap.alloc_task.submit(path, 100, ROW, segments=4)
        pending = flowmap.pending_task.submit(target, return_state=False)
        filled = flowmap.fill_task.map(pending, filler=unmapped(simulate))
        filled.wait()
        flowmap.validate_task.submit(target, wait_for=[filled], return_state=False).result()

    sweep()
    assert np.array_equal(np.load(path), expected(100))


def test_write_task_writes_values_at_hand(server: Server, tmp_path: Path) -> None:
    """Each mapped run writes its own slice, and is named after its segment."""
    path = tmp_path / "sweep.npy"
    values = np.random.default_rng(0).random((40, 3))

    @flow
    def sweep() -> None:
        target = flowmap.alloc_task(path, (40, 3), "<f8", segments=4)
        segments = target.pending()
        slices = [values[s.start : s.stop] for s in segments]
        flowmap.write_task.map(segments, slices).wait()
        flowmap.validate_task(target)

    sweep()
    assert np.array_equal(np.load(path), values)
    assert "segment 0003 [30:40]" in server.task_runs(server.newest_run()["id"], 6)


def test_failed_segment_does_not_stop_the_others(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Validation names what is missing; running again computes only that."""
    path = tmp_path / "sweep.npy"
    broken = [True]
    calls: list[int] = []

    def fragile(out: np.ndarray[Any, Any], block: flowmap.Block) -> None:
        calls.append(block.start)
        if block.start == 50 and broken[0]:
            raise ValueError("no convergence")
        simulate(out, block)

    @flow
    def sweep() -> flowmap.ValidationReport:
        target = flowmap.alloc_task(path, shape=100, dtype=ROW, segments=10)
        flowmap.fill_task.map(target.pending(), filler=unmapped(fragile)).wait()
        return flowmap.validate_task(target)

    with pytest.raises(ValidationFailed, match=r"segment 0005 \[50:60\].*no convergence") as e:
        sweep()
    assert [s.index for s in e.value.report.bad_segments] == [5]
    runs = server.task_runs(server.newest_run()["id"], 12)
    assert runs["segment 0005 [50:60]"]["state_type"] == "FAILED"
    assert runs["segment 0005 [50:60]"]["run_count"] == 1, "no retry can help a ValueError"
    own = runs["segment 0005 [50:60]"]["id"]
    (log,) = [r for r in caplog.records if r.exc_info and vars(r).get("task_run_id") == own]
    assert 'raise ValueError("no convergence")' in logging.Formatter().format(log)
    assert sum(run["state_type"] == "COMPLETED" for run in runs.values()) == 10
    assert len(calls) == 10

    broken[0] = False
    assert sweep().ok
    assert calls[10:] == [50]
    assert np.array_equal(np.load(path), expected(100))


def test_passing_fault_is_tried_again(server: Server, tmp_path: Path) -> None:
    """A filler that met an OSError runs again within its task run."""
    path = tmp_path / "sweep.npy"
    faults = [OSError("connection reset")]

    def flaky(out: np.ndarray[Any, Any], block: flowmap.Block) -> None:
        if faults:
            raise faults.pop()
        simulate(out, block)

    @flow
    def sweep() -> None:
        target = flowmap.alloc_task(path, shape=10, dtype=ROW, segments=1)
        flowmap.fill_task.map(target.pending(), filler=unmapped(flaky)).wait()
        flowmap.validate_task(target)

    sweep()
    runs = server.task_runs(server.newest_run()["id"], 3)
    assert runs["segment 0000 [0:10]"]["run_count"] == 2


def test_killed_worker_costs_nothing_but_its_block(server: Server, tmp_path: Path) -> None:
    """A worker that dies is replaced, and its segment goes on there."""
    path, killed = tmp_path / "sweep.npy", tmp_path / "killed"

    def die_once(out: np.ndarray[Any, Any], block: flowmap.Block) -> None:
        if block.start == 30 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        out["t"] = np.arange(block.start, block.stop)
        out["v"] = 1

    @flow
    def sweep() -> None:
        target = flowmap.alloc_task(path, shape=100, dtype=ROW, segments=5, block_rows=5)
        with flowmap.executor("processes", workers=2) as pool:
            flowmap.fill_task.map(
                target.pending(), filler=unmapped(die_once), executor=unmapped(pool)
            ).wait()
        flowmap.validate_task(target)

    sweep()
    assert killed.exists()
    assert np.array_equal(np.load(path), expected(100))
    assert sorted(flowmap.open_target(path).status()["attempt"]) == [1, 1, 1, 1, 2]


def test_arguments_without_unmapped_say_so(server: Server, tmp_path: Path) -> None:
    """A dict that was mapped over gives the hint, before anything is written."""
    target = flowmap.allocate(tmp_path / "sweep.npy", 10, ROW, segments=1)

    @flow
    def sweep() -> None:
        filled = flowmap.fill_task.map(
            target.pending(),
            filler=unmapped(simulate),
            arguments={"scale": 3.0},  # the mistake itself
        )
        filled.wait()
        filled.result()

    with pytest.raises(WrongTypeError, match="unmapped"):
        sweep()
    assert (target.status()["state"] == "pending").all()


def test_in_place_fills_take_one_processor_each(server: Server, tmp_path: Path) -> None:
    """However many threads a runner has, no more fillers run at once than processors."""
    guard, running, most = threading.Lock(), [0], [0]

    def busy(out: np.ndarray[Any, Any], block: flowmap.Block) -> None:
        with guard:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.02)
        with guard:
            running[0] -= 1

    @flow(task_runner=MANY_THREADS)
    def sweep() -> None:
        target = flowmap.alloc_task(tmp_path / "sweep.npy", 64, "<f8", segments=32)
        flowmap.fill_task.map(target.pending(), filler=unmapped(busy)).wait()

    sweep()
    assert 1 <= most[0] <= available_cpus()


def test_executor_by_name_is_refused(tmp_path: Path) -> None:
    """A task takes an open executor, and the message shows how to open one."""
    target = flowmap.allocate(tmp_path / "sweep.npy", 10, "<f8")
    with pytest.raises(WrongTypeError, match=r'flowmap.executor\("processes"\)'):
        flowmap.fill_task.fn(target.segments[0], simulate, executor="processes")  # type: ignore[arg-type]  # the mistake itself


def test_filler_error_says_where(tmp_path: Path) -> None:
    """The error of a segment names it, its rows, the filler and what that raised."""
    target = flowmap.allocate(tmp_path / "sweep.npy", 10, "<f8")
    with pytest.raises(FillerError, match=r"segment 0000 \[0:10\], rows 0 to 10: .*simulate"):
        flowmap.fill_task.fn(target.segments[0], simulate)


@pytest.mark.parametrize(
    "task", ["alloc_task", "pending_task", "fill_task", "write_task", "validate_task"]
)
def test_tasks_cost_no_more_than_they_must(task: str) -> None:
    """No result is persisted, no cache asked and no tag set: each costs API calls."""
    found = getattr(flowmap, task)
    assert found.persist_result is False
    assert found.cache_policy.__class__.__name__ == "_None"
    assert not found.tags


class Cancelling(Executor):
    """Cancels whatever it is given, as a cluster does that loses its scheduler."""

    def submit(self, *_args: Any, **_options: Any) -> Future[Any]:
        """Return a future that is cancelled already."""
        future: Future[Any] = Future()
        future.cancel()
        return future


def test_cancelled_by_an_executor_that_goes_on(server: Server, tmp_path: Path) -> None:
    """A flow that calls the task, and looks at no more, does not end as if all were done."""

    @flow
    def sweep() -> None:
        target = flowmap.alloc_task(tmp_path / "out.npy", 100, "<f8", segments=4)
        for segment in target.pending():
            flowmap.fill_task(segment, "arange", executor=Cancelling())

    with pytest.raises(StoppedError, match="segment 0000 "):
        sweep()


def test_cancelled_by_a_pool_that_was_ended(tmp_path: Path) -> None:
    """Then the run is being ended, and the segment did not fail."""
    target = flowmap.allocate(tmp_path / "out.npy", 10, "<f8")
    with pytest.raises(KeyboardInterrupt), flowmap.executor("threads", 1) as pool:
        raise KeyboardInterrupt
    ended: Any = flowmap.fill_task.fn(target.segments[0], "arange", executor=pool)
    assert ended.is_cancelled()
