"""Sweeps the 1952 squid axon over injected current and temperature, as a Prefect flow.

The model, and what the fields of a row are, is in `squid_axon.py`.

`python flows/parameter_sweep.py` runs it into `results/`; again, it computes what is missing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from prefect import flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.urls import url_for
from squid_axon import ROW, squid_axon

import flowmap
from flowmap.machine import available_cpus

if TYPE_CHECKING:
    from uuid import UUID

# 240 currents at 104 temperatures: 24,960 rows, to beyond where the spikes fail.
# The step, measured on 300 random rows against SciPy's DOP853 with rtol 1e-10: latency within
# 0.0014 ms, trace within 0.02 mV, rate within 0.006 spikes/s, minimum within 0.005 mV; the
# maximum up to 0.5 mV low, since a warm peak is narrow and falls between two steps. Every
# count was equal but one, of a row with a peak that grazes SPIKE_MV. The whole sweep took
# 62 s of CPU, 31 s on two cores. A power of two, so that step times are exact.
ARGUMENTS: dict[str, Any] = {
    "current_min": 0.0,
    "current_max": 119.5,
    "current_count": 240,
    "temperature_min": 0.0,
    "temperature_max": 30.9,
    "temperature_count": 104,
    "duration_ms": 100.0,
    "step_ms": 1 / 64,
}

# A few threads more than workers, so that a task run is Running only when its turn is near.
THREADS: Any = ThreadPoolTaskRunner(max_workers=available_cpus() + 2)

RESULT = Path(__file__).resolve().parents[1] / "results" / "parameter_sweep.npy"

# Two temperatures make a segment, and one block: some 500 rows are where NumPy's cost per
# call no longer outweighs the arithmetic.
SEGMENTS = 52


def plot_rates(path_npy: str | Path, picture_path: str | Path) -> None:
    """Draw the firing rate over current and temperature, from the array into a picture.

    Args:
        path_npy: The sweep: dtype ROW, temperatures slow and currents fast.
        picture_path: What to write, in the format that its ending names.
    """
    rows = np.load(path_npy, mmap_mode="r")
    current, temperature = np.unique(rows["current"]), np.unique(rows["temperature"])
    rate = np.ma.masked_equal(rows["rate"].reshape(len(temperature), len(current)), 0.0)
    axes = (figure := Figure(figsize=(8.0, 5.2), layout="constrained")).subplots()
    axes.set_facecolor("0.92")
    mesh = axes.pcolormesh(current, temperature, rate, cmap="viridis", rasterized=True)
    figure.colorbar(mesh, ax=axes, pad=0.02).set_label("firing rate (spikes/s)")
    axes.set_xlabel("injected current density (µA/cm²)")
    axes.set_ylabel("temperature (°C)")
    axes.set_title("Hodgkin-Huxley squid axon: repetitive firing under a current step")
    style: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "color": "0.35"}
    axes.text(0.98, 0.95, "grey: no repetitive firing", **style)
    figure.savefig(picture_path, dpi=150)


@flow(name="parameter-sweep", task_runner=THREADS)
def parameter_sweep(path: str, workers: int | None = None) -> flowmap.ValidationReport:
    """Sweep the squid axon into one record array, and prove that it is whole.

    Args:
        path: The .npy file. One that this flow began is completed, one that is done kept.
        workers: How many processes compute; one a core if not given.
    """
    target = flowmap.alloc_task(
        path,
        shape=ARGUMENTS["current_count"] * ARGUMENTS["temperature_count"],
        dtype=ROW,
        segments=SEGMENTS,
        block_rows=2 * ARGUMENTS["current_count"],
        filler=squid_axon,
        arguments=ARGUMENTS,
    )
    pending = target.pending()
    print(f"{len(pending)} of {len(target.segments)} segments to compute in {target.path}")
    if pending:
        with flowmap.executor("processes", workers=workers) as pool:
            filled = flowmap.fill_task.map(
                pending,
                filler=unmapped(squid_axon),
                arguments=unmapped(ARGUMENTS),
                executor=unmapped(pool),
            )
            filled.wait()
    return flowmap.validate_task(target)


def main() -> None:
    """Run the flow from the command line and say where everything is."""
    parser = argparse.ArgumentParser(description=parameter_sweep.__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--workers", type=int, default=None, help="default: one a core")
    options = parser.parse_args()
    path = options.out.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    state = parameter_sweep(str(path), workers=options.workers, return_state=True)
    digest = state.result().digest
    plot_rates(path, picture := path.with_suffix(".png"))
    print_summary(path, digest, picture, state.state_details.flow_run_id)


def print_summary(path: Path, digest: str | None, picture: Path, run_id: UUID | None) -> None:
    """Say where the array, its picture and the record of the run are."""
    rows = np.load(path, mmap_mode="r")
    served = url_for("flow-run", obj_id=run_id)
    url = served or f"http://127.0.0.1:4200/runs/flow-run/{run_id}"
    print(f"\narray    {path}")
    print(
        f"shape    {rows.shape}, {np.count_nonzero(rows['rate'])} of them firing repetitively"
    )
    print(f"dtype    {rows.dtype}")
    print(f"digest   {digest}")
    print(f"picture  {picture}")
    home = os.environ.get("PREFECT_HOME")  # the record of the run is in there
    start = f"{os.path.relpath(Path(sys.executable).with_name('prefect'))} server start"
    start = f"PREFECT_HOME={shlex.quote(home)} {start}" if home else start
    print(f"run      {url}" + ("" if served else f"  (after: {start})"))


if __name__ == "__main__":
    main()
