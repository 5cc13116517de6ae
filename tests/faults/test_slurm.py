"""The scripts of `workflows/slurm` on a real Slurm: signals, time limits, nodes that fail."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from servers import until
from slurm_cluster import PACKAGES, PROGRAMS, Cluster, running

import flowmap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from campaign import Figures

pytestmark = pytest.mark.system(*PROGRAMS, packages=PACKAGES, root=True)

ROWS: Final = 400
SWEEP: Final = '''
import time
from pathlib import Path

import flowmap


@flowmap.filler
def slow(out, block, rows, slowly):
    """Note the rows in a file; take half a second for each of `slowly`, until it is there."""
    if block.start >= slowly and not Path("fast").exists():
        time.sleep(0.5)
    with Path(rows).open("a") as file:
        file.write(f"{block.start}\\n")
    out[...] = block.start
'''

SCRIPT: Final = '''#!/usr/bin/env python
import sys

import flowmap


@flowmap.filler(MARK)
def simulate(out, block):
    """Fill with ones."""
    out[...] = 1


if __name__ == "__main__":
    target = flowmap.allocate("NAME.npy", shape=4, dtype="<f8", segments=2)
    flowmap.fill_share(target, sys.argv[1], simulate)
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run a cluster of one node."""
    with running() as cluster:
        cluster.write("sweep.py", SWEEP)
        yield cluster


class Job:
    """An array that one of the scripts fills, slowly from some row on."""

    def __init__(self, cluster: Cluster, script: str, name: str, slowly: int = 150) -> None:
        self.cluster = cluster
        self.array = cluster.home / f"{name}.npy"
        self.rows = cluster.home / f"{name}.rows"
        work = (
            f"--filler sweep.py:slow --arguments rows={name}.rows --arguments slowly={slowly}"
        )
        job = f"(--shape {ROWS} --dtype '<f8' --segments 4 --block-rows 1 {work})"
        more = {"shares": "3"} if script == "array-job.sh" else {}
        self.script = cluster.script(script, array=self.array.name, job=job, **more)

    def submit(self, *options: str) -> str:
        """Submit the script of one job; return its number."""
        return self.cluster.submit("--cpus-per-task=2", *options, self.script)

    def until_rows(self, count: int) -> None:
        """Wait until some rows are computed."""
        until(lambda: len(self.noted()) >= count, f"{count} rows of {self.array}")

    def noted(self) -> list[int]:
        """Return the rows that were computed, each as often as it was."""
        return list(map(int, self.rows.read_text().split())) if self.rows.exists() else []

    def check(self) -> None:
        """See that the array is valid, and what it should be."""
        assert flowmap.open_target(self.array).status()["state"].tolist() == ["done"] * 4
        assert (self.array.parent / f"{self.array.name}.flowmap" / "seal.json").exists()
        np.testing.assert_array_equal(np.load(self.array), np.arange(float(ROWS)))


def until_requeued(cluster: Cluster, number: str, seconds: float = 90) -> None:
    """Wait until Slurm has queued a job again."""
    until(lambda: cluster.job(number)["Restarts"] == "1", f"{number} is requeued", seconds)


def completed(cluster: Cluster, number: str) -> bool:
    """Wait until a job has ended; return whether it ended well."""
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    return cluster.until_state(number, *ends)["JobState"] == "COMPLETED"


@pytest.fixture
def slowly(cluster: Cluster) -> Iterator[None]:
    """Let no filler be fast before the test says so."""
    (cluster.home / "fast").unlink(missing_ok=True)
    yield
    cluster.run("scancel", "--full", f"--user={cluster.user}")


@pytest.mark.usefixtures("slowly")
def test_scripts(cluster: Cluster) -> None:
    """The signal before the limit requeues a job, or one task; `scancel` requeues nothing."""
    one = Job(cluster, "requeue.sh", "one")
    cancelled = Job(cluster, "requeue.sh", "cancelled")
    shares = Job(cluster, "array-job.sh", "shares", slowly=350)  # the last share, and no other
    number, ended = one.submit(), cancelled.submit()
    said = cluster.run("bash", shares.script)
    tasks, validation = re.findall(r"[jJ]ob (\d+)", said)
    for job, rows in ((one, 160), (cancelled, 160), (shares, 360)):
        job.until_rows(rows)
    last = f"{tasks}_3"
    assert cluster.job(last)["JobId"] == tasks  # why the script does not use SLURM_JOB_ID
    cluster.run("scancel", ended)
    for each in (number, last):
        cluster.run("scancel", "--signal=USR1", "--batch", each)
    for each in (number, last):
        until_requeued(cluster, each)
    cluster.until_state(ended, "CANCELLED")
    assert cluster.job(ended)["Restarts"] == "0"
    cluster.write("fast", "")
    again = cancelled.submit()
    for each in (number, again, validation):
        assert completed(cluster, each), each
    assert cluster.job(f"{tasks}_1")["Restarts"] == "0"
    for job in (one, cancelled, shares):
        job.check()
        assert sorted(job.noted()) == list(range(ROWS)), "each row is computed once"


def test_script_of_python(cluster: Cluster) -> None:
    """Slurm runs a copy, `slurm_script`: a filler with a name is the same, another is told."""
    for name, mark in (("named", 'name="simulate"'), ("plain", "")):
        cluster.write(f"{name}.py", SCRIPT.replace("MARK", mark).replace("NAME", name))
        cluster.run("python", f"{name}.py", "0")
    named = cluster.submit("named.py", "1")
    plain = cluster.submit("--output=plain.out", "plain.py", "0")
    assert completed(cluster, named)
    np.testing.assert_array_equal(np.load(cluster.home / "named.npy"), np.ones(4))
    assert not completed(cluster, plain)
    assert '@flowmap.filler(name="plain:simulate")' in (cluster.home / "plain.out").read_text()


@pytest.mark.campaign
@pytest.mark.usefixtures("slowly")
@pytest.mark.timeout(600)
def test_time_limits(cluster: Cluster, figures: Figures) -> None:
    """A limit of a minute requeues the job; with the signal for job steps only it ends it."""
    # Slow enough to go on for minutes: Slurm looks at its limits every half a minute.
    warned, unwarned = (
        Job(cluster, "requeue.sh", name, slowly=20) for name in ("warned", "unwarned")
    )
    file = cluster.home / unwarned.script  # an option of the command line keeps the B:
    file.write_text(file.read_text().replace("--signal=B:USR1@300", "--signal=USR1@20"))
    requeued, ended = (
        warned.submit("--time=1", "--signal=B:USR1@20"),
        unwarned.submit("--time=1"),
    )
    until_requeued(cluster, requeued, seconds=180)
    until(lambda: cluster.job(ended)["JobState"] == "TIMEOUT", "the limit", seconds=180)
    assert cluster.job(ended)["Restarts"] == "0"
    cluster.write("fast", "")
    assert completed(cluster, requeued)
    assert completed(cluster, unwarned.submit())
    for job in (warned, unwarned):
        job.check()
        assert sorted(job.noted()) == list(range(ROWS)), "each row is computed once"
        figures.add("Slurm", "time limits")


@pytest.mark.campaign
@pytest.mark.usefixtures("slowly")
@pytest.mark.timeout(600)
def test_exit_code_alone_requeues_nothing(cluster: Cluster) -> None:
    """Where the site has no RequeueExit, 75 is a failure like any other."""
    number = cluster.submit("--requeue", "--wrap", "exit 75")
    assert not completed(cluster, number)
    assert cluster.job(number)["Restarts"] == "0"


@pytest.mark.campaign
@pytest.mark.usefixtures("slowly")
@pytest.mark.timeout(600)
def test_node_that_fails(cluster: Cluster, figures: Figures) -> None:
    """All its processes die. Slurm requeues the jobs, tasks of an array too; they continue."""
    one, shares = Job(cluster, "requeue.sh", "node"), Job(cluster, "array-job.sh", "nodes")
    number = one.submit()
    tasks, validation = re.findall(r"[jJ]ob (\d+)", cluster.run("bash", shares.script))
    one.until_rows(160)
    shares.until_rows(160)
    cluster.crash()
    cluster.set_node("DOWN")  # as Slurm does after SlurmdTimeout, five minutes
    until_requeued(cluster, number)
    cluster.write("fast", "")
    cluster.set_node("RESUME")
    assert completed(cluster, number)
    assert completed(cluster, validation), tasks
    for job in (one, shares):
        job.check()
        figures.add("Slurm", "nodes that fail")


@pytest.mark.campaign
@pytest.mark.usefixtures("slowly")
@pytest.mark.timeout(600)
def test_killed(cluster: Cluster, figures: Figures) -> None:
    """After `kill -9` of the fill the job has failed, and the same script continues."""
    job = Job(cluster, "requeue.sh", "killed")
    number = job.submit()
    job.until_rows(160)
    os.kill(cluster.process("/flowmap\0fill\0"), signal.SIGKILL)
    assert not completed(cluster, number)
    cluster.write("fast", "")
    assert completed(cluster, job.submit())
    job.check()
    figures.add("Slurm", "kill -9 of flowmap")
