"""How many processors a process may use: by its affinity, its cgroups, and variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import environment

from flowmap import machine
from flowmap.machine import available_cpus, thread_limits


@pytest.fixture(autouse=True)
def _sixty_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine have 64 processors, no cgroup, and nothing in the environment."""
    for name in machine._CPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("cpu_count", "process_cpu_count"):
        monkeypatch.setattr(os, name, lambda: 64, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_CGROUPS_OF_PROCESS", tmp_path / "of process")


@pytest.mark.parametrize(
    ("cgroup", "quotas", "count"),
    [
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "200000 100000"}, 2),  # docker run --cpus 2
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "1000 100000"}, 1),
        ("0::/", {"cpu.max": "9999900000 100000"}, 64),
        ("0::/a.slice/b.scope", {"a.slice/b.scope/cpu.max": "300000 100000"}, 3),
        (
            "0::/a.slice/b.scope",
            {"a.slice/b.scope/cpu.max": "max 100000", "a.slice/cpu.max": "400000 50000"},
            8,
        ),
        ("0::/seen/on/the/host", {"cpu.max": "500000 100000"}, 5),
        ("0::/../other", {"cpu.max": "500000 100000"}, 5),
        ("0::/a", {"b/cpu.max": "100000 100000"}, 64),  # another's
        ("1:cpu:/\n0::/", {"unified/cpu.max": "200000 100000"}, 2),
        ("1:name=systemd:/a:b\n0::/a:b", {"a:b/cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1"}, 64),
        (
            "4:cpu,cpuacct:/docker/1",
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "4:cpuset:/\n5:cpuacct,cpu:/a",
            {
                "cpuacct,cpu/a/cpu.cfs_quota_us": "600000",
                "cpuacct,cpu/a/cpu.cfs_period_us": "100000",
                "cpuset/cpu.cfs_quota_us": "100000",
                "cpuset/cpu.cfs_period_us": "100000",
            },
            6,
        ),
        ("0::/", {"cpu.max": "nonsense"}, 64),
    ],
)
def test_quotas_of_cgroups(
    tmp_path: Path, cgroup: str, quotas: dict[str, str], count: int
) -> None:
    """The least of this cgroup and those above it, of both versions, rounded up."""
    (tmp_path / "of process").write_text(cgroup + "\n")
    for name, quota in quotas.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(quota + "\n")
    assert available_cpus() == count


@pytest.mark.parametrize("name", machine._CPU_VARIABLES)
def test_variables_of_batch_systems(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count where they say less than the affinity does, and are numbers."""
    for text, count in (("3", 3), ("100", 64), ("0", 64), ("default", 64), ("2(x3)", 64)):
        monkeypatch.setenv(name, text)
        assert available_cpus() == count


def test_the_least_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cgroup within a job within an affinity."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    assert available_cpus() == 5
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert available_cpus() == 4
    (tmp_path / "of process").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("210000 100000\n")
    assert available_cpus() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert available_cpus() == 1


def test_threads_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers times threads is the processors; what the user has set stays."""
    for name in machine._THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert thread_limits(1) == dict.fromkeys(machine._THREAD_VARIABLES, "64")
    assert set(thread_limits(24).values()) == {"2"}
    assert set(thread_limits(65).values()) == {"1"}
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    limits = thread_limits(16)
    assert (limits["OMP_NUM_THREADS"], limits.get("MKL_NUM_THREADS")) == ("4", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # which OpenBLAS obeys, if nothing else is set
    limits = thread_limits(16)
    assert (limits["OPENBLAS_NUM_THREADS"], limits.get("OMP_NUM_THREADS")) == ("5", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert thread_limits(32)["NUMBA_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "200")
    assert thread_limits(1)["NUMEXPR_NUM_THREADS"] == "64"


COUNTING = "from flowmap.machine import available_cpus; print(available_cpus())"


@pytest.mark.system(packages="", root=True)
def test_a_real_cgroup() -> None:
    """A process counts one processor in a cgroup whose parent has the quota of one."""
    for root, file, text in (
        ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "100000"),  # version 1
        ("/sys/fs/cgroup", "cpu.max", "100000 100000"),
    ):
        outer = Path(root, f"flowmap-{os.getpid()}")
        if not Path(root).is_dir():
            continue
        (outer / "inner").mkdir(parents=True)
        try:
            if not (outer / file).exists():
                continue
            (outer / file).write_text(text)
            script = (
                f"echo $$ > {outer}/inner/cgroup.procs; exec {sys.executable} -c '{COUNTING}'"
            )
            counted = subprocess.check_output(
                ["sh", "-ec", script], env=environment(), text=True
            )
            assert counted == "1\n"
            return
        finally:
            (outer / "inner").rmdir()
            outer.rmdir()
    pytest.skip("no cgroup of this machine limits processors")


def test_affinity_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may forbid to ask for it; then it limits nothing."""

    def forbid(_: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", forbid)
    assert available_cpus() >= 1
