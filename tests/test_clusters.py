"""Filling on Dask clusters: one of its own, and one that runs already."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pytest
from distributed import Client
from support import (
    Unloadable,
    environment,
    logged,
    logged_rows,
    nested,
    ramp,
    rows,
    run,
    script,
    states,
)

import flowmap
from flowmap import clusters, dask_connection
from flowmap.clusters import _RUNS, Dask
from flowmap.errors import (
    ClusterError,
    FillerError,
    FillerNotFoundError,
    InvalidArgumentError,
    MissingExtraError,
    SegmentsFailedError,
    StoppedError,
    WorkerDiedError,
)
from flowmap.executors import width
from flowmap.root import Limits
from flowmap.work import Work
from flowmap.write import fill_work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from flowmap.segments import Block
    from flowmap.target import Target


@pytest.fixture(scope="module")
def own() -> Iterator[Dask]:
    """Open a cluster of two processes of this machine."""
    with flowmap.executor("dask", workers=2) as pool:
        assert isinstance(pool, Dask)
        yield pool


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a cluster as somebody else does: a scheduler, and a worker with three threads."""
    file = folder / "scheduler.json"
    each = ["--scheduler-file", str(file), "--no-dashboard", "--host", "127.0.0.1"]
    commands = [
        ["scheduler", *each, "--port", "0", "--dashboard-address", ":0"],
        ["worker", *each, "--nthreads", "3", "--nworkers", "1", "--memory-limit", "0"],
    ]
    quiet = {
        "DASK_LOGGING__DISTRIBUTED": "critical",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }
    processes = []
    try:
        for command in commands:
            line = [sys.executable, "-m", "dask", *command]
            processes.append(
                subprocess.Popen(
                    line, env=environment() | quiet, cwd=folder, start_new_session=True
                )
            )
            while not (file.exists() and file.read_text().rstrip().endswith("}")):
                time.sleep(0.01)
        address = json.loads(file.read_text())["address"]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(1)
        yield address, processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start somebody else's cluster; return where it is."""
    with cluster(tmp_path_factory.mktemp("cluster")) as (address, _):
        yield address


def make(folder: Path, segments: int = 10) -> Target:
    """Allocate a job whose segments have four rows."""
    return flowmap.allocate(folder / "a.npy", 4 * segments, "f8", segments=segments)


def check_whole(target: Target) -> None:
    """Compare with what `ramp` fills."""
    assert flowmap.validate(target).sealed
    np.testing.assert_array_equal(np.load(target.path), np.sqrt(np.arange(target.shape[0])))


def test_workers_are_other_processes(tmp_path: Path, own: Dask) -> None:
    """Their closures travel, and they import no Prefect."""
    target = make(tmp_path)
    scale, here, log = 1.0, os.getpid(), tmp_path / "log"

    def closure(out: NDArray[Any], block: Block) -> None:
        assert os.getpid() != here
        with log.open("a") as file:
            file.write(f"{int('prefect' in sys.modules)}\n")
        out[...] = scale * rows(block)

    flowmap.fill(target, closure, executor=own)
    check_whole(target)
    assert logged_rows(log) == [0] * 10


def test_programs_of_a_filler_have_their_path(tmp_path: Path, own: Dask) -> None:
    """What protects a worker while it starts is not inherited by what the filler starts."""
    target = make(tmp_path, 2)

    def fill(out: NDArray[Any], block: Block) -> None:
        out[...] = "PYTHONSAFEPATH" in os.environ

    flowmap.fill(target, fill, executor=own)
    assert not np.load(target.path).any()


@flowmap.filler(volatile=("deaths", "mark"))
def deadly(out: NDArray[Any], block: Block, *, deaths: list[int], mark: str) -> None:
    """Kill the process in which some rows are computed, until there is a file that saves it."""
    if block.start in deaths:
        saving = Path(mark.format(row=block.start))
        if not saving.exists():
            saving.with_suffix(".killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    out[...] = rows(block)


def test_a_killed_worker_costs_a_retry(tmp_path: Path, own: Dask) -> None:
    """What was in hand is tried again, and nothing else is."""
    target = make(tmp_path, segments=20)
    mark = str(tmp_path / "{row}.killed")  # its own mark saves it the second time
    flowmap.fill(target, deadly, {"deaths": [20, 24], "mark": mark}, executor=own)
    check_whole(target)
    assert target.status()["attempt"].tolist() == [1] * 5 + [2, 2] + [1] * 13


@pytest.mark.parametrize("whose", ["own", "address"])
def test_what_kills_its_worker_fails_alone(
    tmp_path: Path, whose: str, request: pytest.FixtureRequest
) -> None:
    """The others are done, also those that were in hand in the same process; so it goes on."""
    target = make(tmp_path, segments=12)
    arguments = {"deaths": [8, 12, 40], "mark": str(tmp_path / "mended")}
    pool = request.getfixturevalue(whose)
    with pytest.raises(
        SegmentsFailedError, match=r"3 segments \(2-3, 10\): the worker"
    ) as caught:
        flowmap.fill(target, deadly, arguments, executor=pool)
    assert list(caught.value.failures) == [2, 3, 10]
    assert {type(error) for error in caught.value.failures.values()} == {WorkerDiedError}
    assert [segment.index for segment in target.pending()] == [2, 3, 10]
    assert np.nonzero(target.status()["state"] == "failed")[0].tolist() == [2, 3, 10]
    (tmp_path / "mended").touch()
    records = flowmap.fill(target, deadly, arguments, executor=pool)
    assert {record.index for record in records} == {2, 3, 10}
    check_whole(target)


BESIDE = """
import flowmap
from flowmap import clusters, dask_connection

with flowmap.executor("dask", workers=1) as pool:
    print(pool.submit(abs, -1).result())
"""


@pytest.mark.usefixtures("own")
def test_two_clusters_of_one_machine() -> None:
    """The second finds ports of its own, and has nothing to say."""
    child = run(script(BESIDE))
    assert (child.returncode, child.stdout, child.stderr) == (0, "1\n", "")


class Lost:
    """What kills its worker when it is fetched from there."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        self.mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def lost(mark: Path) -> Lost:
    """Return what is lost on its way, once; then die at once."""
    if mark.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return Lost(mark)


def test_a_worker_that_dies_with_its_result(tmp_path: Path, own: Dask) -> None:
    """Dask computes it again, of itself; when that fails, it is no secret."""
    future = own.submit(lost, tmp_path / "mark")
    with pytest.raises(WorkerDiedError, match="lost: the worker died"):
        future.result(timeout=100)


def test_what_a_worker_cannot_load_is_no_death(own: Dask) -> None:
    """It is told at once, with the reason, and the next task finds a worker."""
    with pytest.raises(FillerNotFoundError, match=r"cannot load.*only where"):
        own.submit(print, Unloadable()).result()
    assert own.submit(abs, -1).result() == 1


def test_what_cannot_be_pickled_fails_its_task(own: Dask) -> None:
    """It does not leave this process."""
    with pytest.raises(TypeError, match="pickle"):
        own.submit(print, threading.Lock()).result()


def test_what_a_signal_cut_short_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exception may come while a task is being submitted: such a task never ends."""
    with flowmap.executor("dask", workers=1) as pool:
        assert isinstance(pool, Dask)

        def interrupted(*_: object, **__: object) -> None:
            raise StoppedError("a signal")

        with monkeypatch.context() as patch:
            patch.setattr(pool._client, "submit", interrupted)
            with pytest.raises(StoppedError) as held:  # and its frames, and what these hold
                pool.submit(abs, -1)
        assert pool.submit(abs, -1).result() == 1
        pool.stop()
    assert held.type is StoppedError


def test_errors_keep_their_type_and_line(tmp_path: Path, own: Dask) -> None:
    """As in every executor."""
    target = make(tmp_path, segments=1)
    with pytest.raises(SegmentsFailedError, match="raised ZeroDivisionError"):
        flowmap.fill(target, lambda out, block: out / 1 // 0 + 1 // 0, executor=own)
    assert states(target) == ["failed"]


def known() -> int:
    """Return of how many runs this worker knows."""
    return len(_RUNS)


def test_a_cluster_that_runs(tmp_path: Path, address: str) -> None:
    """It is found by its address, has workers of its own, and is left as it is."""
    log = tmp_path / "log"
    target = make(tmp_path)
    assert width(address, None) == 3
    for _ in range(2):
        flowmap.fill(target, logged, {"log": str(log)}, executor=address)
    assert sorted(logged_rows(log)) == list(range(0, 40, 4))
    check_whole(target)
    with Client(address, set_as_default=False) as client:
        assert sum(client.nthreads().values()) == 3
        assert set(client.run(known).values()) == {0}
    with pytest.raises(InvalidArgumentError, match="workers is 2, but the cluster at tcp:"):
        flowmap.fill(target, logged, {"log": str(log)}, executor=address, workers=2)


def test_dasks_own_configuration_says_where(tmp_path: Path, address: str) -> None:
    """The variable that every client of Dask obeys, without another word."""
    target = make(tmp_path)
    with dask.config.set({"scheduler-address": address}):
        assert width("dask", None) == 3
        flowmap.fill(target, ramp, executor="dask")
        with pytest.raises(InvalidArgumentError, match="workers is 2, but the cluster at tcp:"):
            flowmap.fill(target, ramp, executor="dask", workers=2)
    check_whole(target)


@flowmap.filler(volatile=("gate",))
def waiting(out: NDArray[Any], block: Block, *, gate: str) -> None:
    """Say that it has begun, and wait for a file that says it may go on."""
    Path(f"{gate}-{block.start}").touch()
    while not Path(gate).exists():
        time.sleep(0.01)
    out[...] = rows(block)


def told() -> bool:
    """Say whether this worker knows of a run that is to stop."""
    return any(here.stop.is_set() for here in _RUNS.values())


@pytest.mark.parametrize("way", ["stop", "end"])
def test_others_workers_stop_before_the_next_block(
    tmp_path: Path, address: str, way: str
) -> None:
    """They cannot be killed. What waits is cancelled, and what comes is refused."""
    target = flowmap.allocate(tmp_path / "a.npy", 40, "f8", segments=5, block_rows=2)
    gate = tmp_path / "gate"
    pool = Dask(0, address)
    futures = [
        pool.submit(flowmap.fill_segment, segment, waiting, {"gate": str(gate)})
        for segment in target.segments
    ]
    while len(list(tmp_path.glob("gate-*"))) < 3:
        time.sleep(0.01)
    ending = threading.Thread(target=getattr(pool, way))
    ending.start()
    while not pool.ended:
        time.sleep(0.01)
    with pytest.raises(CancelledError):
        pool.submit(abs, -1)
    if way == "end":
        ending.join()  # it does not wait for them
    else:
        with Client(address, set_as_default=False) as client:
            while not any(client.run(told).values()):
                time.sleep(0.01)
    gate.touch()
    ending.join()
    for future in futures:
        with pytest.raises((StoppedError, CancelledError)):
            future.result(timeout=0)
    deadline = time.monotonic() + 60
    while "running" in states(target) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(states(target)) == {"pending"}
    assert set(target.status()["rows_done"].tolist()) == {0, 2}
    flowmap.fill(target, waiting, {"gate": str(gate)}, executor="threads")
    check_whole(target)


def test_there_is_no_cluster(tmp_path: Path) -> None:
    """The error says where it was looked for, and leaves no run behind."""
    target = make(tmp_path)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "100ms"}),
        pytest.raises(ClusterError, match=r"cluster at tcp://127\.0\.0\.1:9: .*dask sch"),
    ):
        flowmap.fill(target, ramp, executor="tcp://127.0.0.1:9")
    flowmap.fill(target, ramp, executor="threads")


def test_a_cluster_that_goes_away(tmp_path: Path) -> None:
    """Each segment that it had is told so, and the job goes on elsewhere."""
    target = make(tmp_path)
    gate = tmp_path / "gate"
    soon = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with soon, cluster(tmp_path) as (address, processes):

        def kill() -> None:
            while not list(tmp_path.glob("gate-*")):
                time.sleep(0.01)
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        with pytest.raises(SegmentsFailedError, match=r"the Dask cluster is gone\. Run again"):
            flowmap.fill(target, waiting, {"gate": str(gate)}, executor=address)
        killing.join()
    gate.touch()
    flowmap.fill(target, waiting, {"gate": str(gate)}, executor="threads")
    check_whole(target)


class Unplugged:
    """What kills processes when it is fetched from its worker."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = pids

    def __reduce__(self) -> Any:
        for pid in self.pids:
            os.killpg(pid, signal.SIGKILL)


def test_a_cluster_that_goes_with_a_result(tmp_path: Path) -> None:
    """It is not told as a fault of the function, which has ended."""
    soon = dask.config.set({"distributed.comm.timeouts.connect": "3s"})
    with soon, cluster(tmp_path) as (address, processes):
        pids = [process.pid for process in processes]
        with flowmap.executor(address) as pool:
            future = pool.submit(Unplugged, pids)
            with pytest.raises(ClusterError, match="Unplugged: the Dask cluster is gone"):
                future.result(timeout=100)


def test_without_dask(tmp_path: Path) -> None:
    """The error says what to install, and nothing else of flowmap needs it."""
    text = """
        import sys
        sys.modules["dask.config"] = sys.modules["distributed"] = None
        import flowmap
        target = flowmap.allocate(sys.argv[1], 4, "f8")
        flowmap.fill(target, "arange", executor="processes")
        try:
            flowmap.fill(target, "arange", executor="dask")
        except flowmap.errors.MissingExtraError as error:
            print(error)
    """
    child = run(script(text, tmp_path / "a.npy"))
    assert child.returncode == 0, child.stderr
    assert "Install what it takes: pip install" in child.stdout
    assert "[dask]" in child.stdout
    assert issubclass(MissingExtraError, ImportError)


def test_limits_travel_with_the_work(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that somebody else started, with another environment, keep those of the run."""
    (tmp_path / "root").mkdir()
    target = make(tmp_path / "root", 2)
    np.save(tmp_path / "secret.npy", np.ones(8))
    monkeypatch.setenv("FLOWMAP_ROOT", str(tmp_path / "root"))
    with pytest.raises(SegmentsFailedError, match="which leads out of"):
        flowmap.fill(target, "copy", {"source": str(tmp_path / "secret.npy")}, executor=address)
    work = replace(
        Work.of(nested, {"named": "antigravity:fly"}), limits=Limits(fillers=("support",))
    )
    with (
        flowmap.executor(address) as pool,
        pytest.raises(FillerError, match="export FLOWMAP_FILLERS=support,antigravity"),
    ):
        pool.submit(fill_work, target.segments[0], work).result()
    assert states(target) == ["failed", "failed"]


@pytest.mark.parametrize("way", ["stop", "end"])
def test_a_scheduler_that_does_not_answer(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left all the same: what waits for it has an end."""
    monkeypatch.setattr(clusters, "_ANSWER_SECONDS", 1)
    monkeypatch.setattr(dask_connection, "CLOSE_SECONDS", 1)
    with cluster(tmp_path) as (address, processes):
        pool = Dask(0, address)
        future = pool.submit(time.sleep, 600)
        processes[0].send_signal(signal.SIGSTOP)
        ending = threading.Thread(target=getattr(pool, way), daemon=True)
        ending.start()
        ending.join(timeout=60)
        assert not ending.is_alive()
        assert future.cancelled()
