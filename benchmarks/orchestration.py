"""The cases of orchestration: what a segment costs beside its work, in flowmap and in Prefect.

Every run has a server of its own, with the settings that flowmap recommends unless it is called
stock. What each figure is stands in `benchmarks.orchestrating.run`.
"""

from __future__ import annotations

from typing import Final

from benchmarks.case import Case, Contestant, Goal, share

_COLUMNS: Final = {
    "seconds": "seconds",
    "whole": "whole call",
    "recorded": "recorded",
    "lost": "never recorded",
    "server_cpu": "server CPU",
    "flow_cpu": "flow CPU",
    "flow_mib": "flow MiB",
}


def _flow(name: str, flow: str, *options: str, peer: bool = False) -> Contestant:
    return Contestant(name, ("benchmarks.orchestrating.run", flow, *options), peer=peer)


_THREADS: Final = _flow("Prefect's threads", "threads", peer=True)
_STOCK: Final = _flow("Prefect's threads, stock server", "threads", "--stock", peer=True)
_PROCESSES: Final = _flow("flowmap, processes", "flowmap-processes-segment")
_PROCESSES_END: Final = _flow('flowmap, processes, "end"', "flowmap-processes-end")


def _at_most(limit: float, text: str, one: Contestant, of: Contestant, figure: str) -> Goal:
    """Return the goal that one takes at most so much of what another takes."""
    measure = share(of.name, figure)
    noise = share(_THREADS.name, figure)
    return Goal(text, limit, measure, at_most=True, contestant=one.name, noise=noise)


SEGMENTS: Final = Case(
    name="orchestration",
    title="1,000 segments that do nothing, each a task run",
    contestants=(
        _THREADS,
        _STOCK,
        _PROCESSES_END,
        _PROCESSES,
        _flow('flowmap, threads, "end"', "flowmap-threads-end"),
        _flow("flowmap, threads", "flowmap-threads-segment"),
    ),
    reference=_THREADS.name,
    goals=(
        _at_most(
            1.15,
            'processes, "end": time of Prefect\'s map in threads',
            _PROCESSES_END,
            _THREADS,
            "seconds",
        ),
        _at_most(
            1.3, "processes: time of Prefect's map in threads", _PROCESSES, _THREADS, "seconds"
        ),
        _at_most(
            0.35,
            "processes: time until all are recorded, of a stock server",
            _PROCESSES,
            _STOCK,
            "recorded",
        ),
    ),
    columns=_COLUMNS,
)

RUNNERS: Final = Case(
    name="task-runners",
    title="1,000 segments that do nothing, in Prefect's task runners of processes",
    contestants=(
        _PROCESSES,
        _flow("Prefect's process pool", "process-pool", peer=True),
        _flow("prefect-dask, local cluster", "dask", peer=True),
    ),
    reference=_PROCESSES.name,
    goals=(
        Goal(
            "processes: time of Prefect's process pool",
            0.1,
            share("Prefect's process pool"),
            at_most=True,
            contestant=_PROCESSES.name,
            noise=share(_PROCESSES.name),
        ),
    ),
    columns=_COLUMNS,
    most=3,
)

_COUNTS: Final = (100, 1_000, 10_000)
_GROWING: Final = {
    "Prefect's threads": "threads",
    'flowmap, processes, "end"': "flowmap-processes-end",
    'flowmap, threads, "end"': "flowmap-threads-end",
}

GROWTH: Final = Case(
    name="many-segments",
    title="How the cost grows from 100 segments that do nothing to 10,000",
    contestants=tuple(
        _flow(f"{count:,}: {name}", flow, "--segments", str(count))
        for count in _COUNTS
        for name, flow in _GROWING.items()
    ),
    reference=f"{_COUNTS[0]:,}: Prefect's threads",
    compared=False,
    columns={"segment_ms": "ms/segment"} | _COLUMNS,
    most=3,
)

CASES: Final = (SEGMENTS, RUNNERS, GROWTH)
