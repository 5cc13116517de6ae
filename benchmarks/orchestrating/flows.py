"""Flows of so many task runs that do nothing: `python -m benchmarks.orchestrating.flows`.

Runs one of them against the server that the environment names, and prints one line of JSON as
soon as it is over: its id, when it began and how long it took as its own function sees it, how
long as its caller does, and the memory and processor time of the process.
"""

from __future__ import annotations

import functools
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect_dask.task_runners import DaskTaskRunner

import flowmap
from benchmarks.clock import arguments, peak_bytes
from benchmarks.orchestrating.nothing import nothing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

P = ParamSpec("P")
T = TypeVar("T")

WORKERS: Final = 2
THREADS: Final = WORKERS + 4
"""As many as flowmap's flow has."""

CLOCKED: Final[dict[str, Any]] = {}
"""What was clocked: the id of the run, when it began, seconds."""


def clocked(function: Callable[P, T]) -> Callable[P, T]:
    """Have the function of a flow tell `CLOCKED` how long it takes."""

    @functools.wraps(function)
    def timed(*args: P.args, **kwargs: P.kwargs) -> T:
        CLOCKED["flow_run"] = str(runtime.flow_run.id)
        CLOCKED["began"] = time.monotonic()
        result = function(*args, **kwargs)
        CLOCKED["seconds"] = time.monotonic() - CLOCKED["began"]
        return result

    return timed


@task(persist_result=False, cache_policy=NO_CACHE)
def do_nothing(index: int) -> None:
    """Do nothing, as cheaply as Prefect can: no result is kept, no cache is asked."""


@clocked
def do_nothings(count: int) -> None:
    """Map the task that does nothing on the task runner of the flow."""
    do_nothing.map(range(count)).wait()


def in_threads(segments: int, _: Path) -> None:
    """Prefect's own map in threads."""
    _on(ThreadPoolTaskRunner(max_workers=THREADS), segments)


def in_process_pool(segments: int, _: Path) -> None:
    """Prefect's own map in processes, which start when they are needed: inside the flow."""
    _on(ProcessPoolTaskRunner(max_workers=WORKERS), segments)


def in_dask(segments: int, _: Path) -> None:
    """prefect-dask's map on a local cluster, which starts before the flow's function."""
    cluster = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": None}
    _on(DaskTaskRunner(cluster_kwargs=cluster), segments)


def _on(runner: Any, segments: int) -> None:
    flow(task_runner=runner)(do_nothings)(segments)


def fill(segments: int, folder: Path, **options: Any) -> None:
    """Flowmap's flow: allocation, start of the workers and validation are inside, too."""
    path = folder / "nothing.npy"
    flowmap.fill_array.fn = clocked(flowmap.fill_array.fn)
    flowmap.fill_array(
        path, segments, "u1", filler=nothing, segments=segments, workers=WORKERS, **options
    )
    states = flowmap.open_target(path).status()["state"]
    assert len(states) == segments
    assert (states == "done").all()


FLOWS: Final[dict[str, Callable[[int, Path], None]]] = {
    "threads": in_threads,
    "process-pool": in_process_pool,
    "dask": in_dask,
    **{
        f"flowmap-{executor}-{durability}": functools.partial(
            fill, executor=executor, durability=durability
        )
        for executor in ("processes", "threads")
        for durability in ("segment", "end")
    },
}


def main() -> None:
    """Run one of the flows."""
    asked = arguments(segments=1000)
    called = time.monotonic()
    FLOWS[asked.contestant](asked.segments, asked.folder)
    CLOCKED["whole"] = time.monotonic() - called
    times = os.times()
    own = {"peak_bytes": peak_bytes(), "cpu_seconds": times.user + times.system}
    print(json.dumps(CLOCKED | own), flush=True)  # noqa: T201 -- what it is run for


if __name__ == "__main__":
    main()
