"""One flow, with a Prefect server of its own: `python -m benchmarks.orchestrating.run FLOW`.

Its figures, all of one run:

- `seconds` inside the flow's function; it includes the start of the workers, but for Dask's;
- `whole`: seconds that the call of the flow takes, in which Prefect registers the run, starts a
  Dask cluster, and sends much of what it owes the server;
- `recorded`: seconds from then until the server has recorded every task run as Completed, or
  the last of those that it ever does;
- `lost`: task runs that it never records as Completed: it drops events when more than 10,000 of
  them wait, and tells nobody but its log;
- `server_cpu`: processor time of the server from before the flow's process until then;
- `flow_cpu`, `flow_mib`: processor time and peak memory of the flow's process;
- `segment_ms`: milliseconds inside the flow for each segment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks.clock import arguments, say
from benchmarks.orchestrating.servers import Server, environment, serving

if TYPE_CHECKING:
    from pathlib import Path

_LOOK_SECONDS: Final = 0.25  # sparse: each look costs the server some milliseconds
_PATIENCE_SECONDS: Final = 60  # without anything new
_OWN_TASK_RUNS: Final = 2  # of flowmap's flow: it allocates and validates


def main() -> None:
    """Measure one flow."""
    asked = arguments(segments=1000, stock=False)
    segments = max(10, round(asked.segments * asked.scale))
    with serving(asked.folder, recommended=not asked.stock) as server:
        say(**measure(asked.contestant, segments, server, asked.folder))


def measure(name: str, segments: int, server: Server, folder: Path) -> dict[str, float]:
    """Run a flow against a server that has not seen any, and return its figures."""
    before = server.cpu_seconds()
    log = folder / "flow.log"
    command = [sys.executable, "-m", "benchmarks.orchestrating.flows", name]
    command += ["--segments", str(segments), "--folder", str(folder)]
    with (
        log.open("w") as file,
        subprocess.Popen(  # noqa: S603 -- our own program
            command,
            env=environment(folder / "prefect", server.url),
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} failed: {log.read_text()[-4000:]}")
        flow: dict[str, Any] = json.loads(line)
        expected = segments + _OWN_TASK_RUNS * name.startswith("flowmap")
        recorded_at, lost = _wait_until_recorded(server, flow["flow_run"], expected)
        server_cpu = server.cpu_seconds() - before
    return {
        "seconds": flow["seconds"],
        "whole": flow["whole"],
        "recorded": recorded_at - flow["began"],
        "lost": lost,
        "server_cpu": server_cpu,
        "flow_cpu": flow["cpu_seconds"],
        "flow_mib": flow["peak_bytes"] / 2**20,
        "segment_ms": 1000 * flow["seconds"] / segments,
    }


def _wait_until_recorded(server: Server, flow_run: str, expected: int) -> tuple[float, int]:
    """Return when the server has recorded the last task run as Completed, and how many not."""
    count, changed = 0, time.monotonic()
    while count < expected and time.monotonic() - changed < _PATIENCE_SECONDS:
        time.sleep(_LOOK_SECONDS)
        found = server.completed(flow_run)
        if found != count:
            count, changed = found, time.monotonic()
    return changed, expected - count


if __name__ == "__main__":
    main()
