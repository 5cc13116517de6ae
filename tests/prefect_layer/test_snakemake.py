"""The Snakefile, the wrapper and the scripts of `workflows/`, with the real Snakemake.

All of it runs as an ordinary user, for whom a read-only file is read-only.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import parameter_sweep
import pytest
import squid_axon
from markdown_it import MarkdownIt
from prefect_layer.conftest import ROOT
from servers import BIN, until
from support import ORDINARY, damage

import flowmap

if TYPE_CHECKING:
    from servers import Server

SNAKEMAKE = Path(sys.prefix) / "snakemake" / "bin" / "snakemake"
"""In an environment of its own, as users have it."""

AS_USER = ORDINARY if os.geteuid() == 0 else []

pytestmark = [
    pytest.mark.skipif(
        not SNAKEMAKE.exists(), reason="needs Snakemake: make .venv/snakemake.ready"
    ),
    pytest.mark.system(*AS_USER[:1], packages="util-linux"),
]

PLANE = {"current_max": 60.0, "temperature_min": 3.0, "duration_ms": 1.0}
"""A sweep that takes no time, but for as many rows as the real one has."""

FINAL = "results/parameter_sweep.npy"
ITEMS = 4
"""Fewer than the Snakefile has, of thirteen segments each."""

UNTRACKED = shutil.ignore_patterns("results", "logs", "benchmarks", ".snakemake", "__pycache__")


class Workflow:
    """A copy of the Snakefile and of the fillers beside it, to be run with other arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "workflows"

    @classmethod
    def made(cls, folder: Path, **plane: float) -> Workflow:
        """Copy what is in the project into a folder that exists."""
        for name in ("workflows", "flows"):
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=UNTRACKED,
            )
        workflow = cls(folder)
        workflow.configure(**PLANE | plane)
        return workflow

    def configure(self, **plane: float) -> None:
        """Set arguments of the filler, those of the configuration being the others."""
        lines = "".join(f"  {name}: {value}\n" for name, value in plane.items())
        (self.folder / "other.yaml").write_text(f"arguments:\n{lines}")

    def command(self, *words: str, items: int | None = ITEMS) -> list[str]:
        """Return the command that runs it on two cores, in so many items or its own number."""
        scattered = ["--set-scatter", f"sweep={items}"] if items else []
        options = ["--cores", "2", "--configfile", "other.yaml", *scattered]
        return [*AS_USER, str(SNAKEMAKE), *words, *options]

    def run(
        self, *words: str, items: int | None = ITEMS, code: int = 0, **variables: str
    ) -> str:
        """Run it to its end, and return what Snakemake said."""
        done = subprocess.run(
            self.command(*words, items=items),
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            umask=0o002,
        )
        said = done.stdout + done.stderr
        logs = "".join(log.read_text() for log in self.folder.glob("logs/**/*.log"))
        assert done.returncode == code, said + logs
        return said

    @property
    def environment(self) -> dict[str, str]:
        """With `flowmap` on the PATH, and a home that an ordinary user can write to."""
        mine = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        path = f"{BIN}{os.pathsep}{mine['PATH']}"
        return mine | {"PATH": path, "HOME": str(self.folder.parent)}

    @property
    def targets(self) -> list[flowmap.Target]:
        """The arrays of all configurations, the one that was begun last at the end."""
        arrays = (self.folder / "results").glob("*/parameter_sweep.npy")
        targets = map(flowmap.open_target, arrays)
        return sorted(targets, key=lambda target: float(target.job.made["time"]))

    def sentinels(self) -> set[str]:
        """Return the items that have a sentinel."""
        return {file.stem for file in self.folder.glob("results/*/sentinels/*-of-*.json")}


def jobs_of(said: str) -> dict[str, int]:
    """Return how many jobs of each rule Snakemake says it has to do."""
    table = said.partition("Job stats:")[2].partition("total")[0]
    return {
        rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)
    }


@functools.cache
def expected(**plane: float) -> bytes:
    """Return the rows that the filler gives, computed here."""
    arguments = parameter_sweep.ARGUMENTS | PLANE | plane
    rows = np.zeros(24_960, squid_axon.ROW)
    for start in range(0, len(rows), 480):
        block = flowmap.Block(start, start + 480)
        squid_axon.squid_axon(rows[start : start + 480], block, **arguments)
    return rows.tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the workflow once, from its own folder; return the folder that has all of it."""
    folder = tmp_path_factory.mktemp("whole")
    workflow = Workflow.made(folder)
    planned = jobs_of(workflow.run("--dry-run", items=None))
    assert planned == {"all": 1, "allocate": 1, "fill": 13, "validate": 1}
    assert jobs_of(workflow.run()) == planned | {"fill": ITEMS}
    return folder


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Workflow:
    """Return a copy of the workflow that has run, times and links and all."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", whole, folder], check=True)
    return Workflow(folder)


def test_whole_run(done: Workflow) -> None:
    """The array appears under its name, right and read-only, and each job leaves its traces."""
    final, [target] = done.folder / FINAL, done.targets
    assert np.load(final).tobytes() == expected()
    assert not final.readlink().is_absolute()
    assert final.resolve() == target.path
    assert stat.S_IMODE(final.stat().st_mode) == 0o444
    assert done.sentinels() == {f"{item}-of-4" for item in range(1, 5)}
    for item in done.sentinels():
        log = (done.folder / "logs" / "fill" / f"{item}.log").read_text()
        assert log.startswith("6,240 rows were filled"), log
        assert "\x1b" not in log
        timed = (done.folder / "benchmarks" / "fill" / f"{item}.tsv").read_text()
        assert timed.startswith("s\th:m:s")
    assert "is valid: digest" in (done.folder / "logs" / "validate.log").read_text()


def test_nothing_is_left_to_be_done(done: Workflow) -> None:
    """A dry run says so, also after a change that matters to nobody.

    That is other text of the filler of the same version, and another order of the arguments.
    """
    with (done.folder.parent / "flows" / "squid_axon.py").open("a") as file:
        file.write("\n# A comment.\n")
    head, arguments = (done.folder / "config.yaml").read_text().split("arguments:\n")
    reversed_ = "\n".join(reversed(arguments.splitlines()))
    (done.folder / "config.yaml").write_text(f"{head}arguments:\n{reversed_}\n")
    done.configure(**dict(reversed(PLANE.items())))
    assert "Nothing to be done" in done.run("--dry-run")


def test_other_number_of_items(done: Workflow) -> None:
    """The new items have their sentinels, and none of them computes anything."""
    job, before = done.targets[0].job.id, (done.folder / FINAL).read_bytes()
    said = done.run(items=5)
    assert jobs_of(said) == {"all": 1, "fill": 5, "validate": 1}
    [target] = done.targets
    assert target.job.id == job
    assert (target.status()["attempt"] == 1).all()
    assert {f"{item}-of-5" for item in range(1, 6)} < done.sentinels()
    assert (done.folder / FINAL).read_bytes() == before


def test_other_parameters(done: Workflow) -> None:
    """They have an array of their own, and the old one has the name until that is valid."""
    done.configure(**PLANE | {"temperature_min": 4.0})
    done.run("--until", "allocate")
    assert len(done.targets[1].pending()) == 52
    assert np.load(done.folder / FINAL).tobytes() == expected()
    said = done.run()
    assert jobs_of(said) == {"all": 1, "fill": ITEMS, "validate": 1}
    assert np.load(done.folder / FINAL).tobytes() == expected(temperature_min=4.0)
    done.configure(**PLANE)
    assert jobs_of(done.run()) == {"all": 1, "validate": 1}, "back, the old one is there"
    assert np.load(done.folder / FINAL).tobytes() == expected()


def test_again(done: Workflow) -> None:
    """Forced, or without its outputs, all rules run and find everything done."""
    [before] = done.targets
    rules = {"all": 1, "allocate": 1, "fill": ITEMS, "validate": 1}
    done.run("--forceall")
    done.run("--delete-all-output")
    assert not done.sentinels()
    assert not os.path.lexists(done.folder / FINAL)
    assert jobs_of(done.run()) == rules
    assert np.load(done.folder / FINAL).tobytes() == expected()
    [target] = done.targets
    assert target.job.id == before.job.id
    assert (target.status()["attempt"] == 1).all()
    assert "Nothing to be done" in done.run("--dry-run")


def test_array_that_was_deleted(done: Workflow) -> None:
    """What its sentinels say is not believed, and its name is no hindrance."""
    done.targets[0].path.unlink()
    assert jobs_of(done.run()) == {"all": 1, "allocate": 1, "fill": ITEMS, "validate": 1}
    assert np.load(done.folder / FINAL).tobytes() == expected()


def test_damage_is_mended(done: Workflow) -> None:
    """A validation that finds it fails; what fills computes that and nothing else."""
    [target] = done.targets
    target.path.chmod(0o644)
    damage(target, 20)
    target.path.chmod(0o444)
    said = done.run("--forcerun", "validate", code=1)
    assert "Error in rule validate" in said
    assert not os.path.lexists(done.folder / FINAL), "nothing that is damaged has the name"
    assert "segment 0020" in (done.folder / "logs" / "validate.log").read_text()
    done.run("--forcerun", "fill")
    assert np.flatnonzero(target.status()["attempt"] > 1).tolist() == [20]
    assert np.load(done.folder / FINAL).tobytes() == expected()


@pytest.mark.system("setpriv", packages="util-linux", root=True)
def test_another_user_of_the_group(done: Workflow) -> None:
    """In a shared folder one user runs again what another made, as it is and changed."""
    other, shared = 65534, done.folder.parent
    for path in (shared, *shared.rglob("*")):
        os.chown(path, other, os.getegid(), follow_symlinks=False)
    for path in (shared, done.folder):
        path.chmod(0o2770)
    done.run("--forceall")
    assert np.load(done.folder / FINAL).tobytes() == expected()
    done.configure(**PLANE | {"temperature_min": 4.0})
    done.run()
    assert np.load(done.folder / FINAL).tobytes() == expected(temperature_min=4.0)
    assert [target.path.stat().st_uid for target in done.targets] == [other, os.geteuid()]
    assert (done.targets[0].status()["attempt"] == 1).all()


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """After kill -9 of everything the same command computes only what is missing."""
    workflow = Workflow.made(tmp_path)
    items = 8
    process = subprocess.Popen(
        workflow.command(items=items),
        cwd=workflow.folder,
        env=workflow.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: len(workflow.sentinels()) > 1, "two items are filled")
    finally:
        session = subprocess.run(
            ["pgrep", "--session", str(process.pid)], capture_output=True, text=True, check=True
        )
        for pid in map(int, session.stdout.split()):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    [target] = workflow.targets
    status = target.status()
    done = np.flatnonzero(status["state"] == "done")
    assert 12 <= len(done) < 52
    vouched = len(workflow.sentinels())
    assert "Unlocked" in workflow.run("--unlock", items=items)
    said = workflow.run("--rerun-incomplete", items=items)
    assert 0 <= jobs_of(said)["fill"] - (items - vouched) <= 2, "what it did not note"
    again = target.status()
    assert (again["attempt"][done] == 1).all()
    assert (again["finished"][done] == status["finished"][done]).all()
    assert np.load(workflow.folder / FINAL).tobytes() == expected()


def test_failing_segment(tmp_path: Path) -> None:
    """With --keep-going all others are filled; it is tried again, and mended by itself."""
    workflow = Workflow.made(tmp_path)
    filler = tmp_path / "flows" / "squid_axon.py"
    right = filler.read_text()
    broken = (
        "    if block.start == 9600:\n        raise ValueError('no such membrane')\n    t, c ="
    )
    filler.write_text(right.replace("    t, c =", broken, 1))
    said = workflow.run("--keep-going", code=1)
    assert "Error in rule fill" in said
    assert jobs_of(said)["fill"] == 4
    assert workflow.sentinels() == {"1-of-4", "3-of-4", "4-of-4"}
    log = (workflow.folder / "logs" / "fill" / "2-of-4.log").read_text()
    assert "segment 0020" in log
    assert "no such membrane" in log
    attempts = workflow.targets[0].status()["attempt"].tolist()
    assert attempts[20] == 3, "tried again twice"
    assert attempts[:20] + attempts[21:] == [1] * 51
    assert not (workflow.folder / FINAL).exists()
    filler.write_text(right)
    assert jobs_of(workflow.run())["fill"] == 1
    assert np.load(workflow.folder / FINAL).tobytes() == expected()


SUBMIT = """#!/bin/sh
# As a batch system does: it takes the script of a job and tells its number at once.
setsid "$1" >"jobs/$$" 2>&1 &
echo $!
"""


def test_on_a_cluster(tmp_path: Path) -> None:
    """Each job of the batch system has several items."""
    workflow = Workflow.made(tmp_path)
    (workflow.folder / "jobs").mkdir()
    submit = workflow.folder / "submit.sh"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    workflow.run(
        *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "./submit.sh"),
        *("--jobs", "2", "--seconds-between-status-checks", "1", "--latency-wait", "30"),
        *("--group-components", "fill=2"),
    )
    jobs = list((workflow.folder / "jobs").iterdir())
    assert len(jobs) == 4, "allocate, two groups, validate"
    assert np.load(workflow.folder / FINAL).tobytes() == expected()


def test_same_bytes_from_prefect(
    done: Workflow, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the flow of `flows/parameter_sweep.py`, and by the rule that hands over to Prefect."""
    said = done.run("results/by_prefect.npy", PREFECT_API_URL=server.url)
    assert jobs_of(said) == {"prefect": 1}
    other = done.folder / "by_flow.npy"
    monkeypatch.setattr(parameter_sweep, "ARGUMENTS", parameter_sweep.ARGUMENTS | PLANE)
    parameter_sweep.parameter_sweep(str(other), workers=2)
    snakemakes = (done.folder / FINAL).read_bytes()
    assert (done.folder / "results" / "by_prefect.npy").read_bytes() == snakemakes
    assert other.read_bytes() == snakemakes
    runs = [
        server.newest_run(),
        server.ask("flow_runs/filter", sort="START_TIME_DESC", limit=2)[1],
    ]
    assert [run["state_type"] for run in runs] == ["COMPLETED"] * 2


def test_threads_of_the_workers(tmp_path: Path) -> None:
    """A rule that starts workers unsets each number of threads that Snakemake sets."""
    (unset,) = re.findall(r'"(unset [^&]*)', (ROOT / "workflows" / "Snakefile").read_text())
    unset = " ".join(re.findall(r"\w+", unset))
    rule = "rule all:\n    output: 'set'\n    threads: 2\n    shell: '{}env > {{output}}'\n"
    environments = []
    for first in ("", f"{unset}; "):
        workflow = Workflow(tmp_path / str(len(first)))
        workflow.folder.mkdir(parents=True)
        workflow.configure()
        (workflow.folder / "Snakefile").write_text(rule.format(first))
        workflow.run(items=None)
        lines = (workflow.folder / "set").read_text().splitlines()
        environments.append([line for line in lines if "_THREADS=" in line])
    assert "OPENBLAS_NUM_THREADS=2" in environments[0]
    assert not environments[1]


def test_script_of_the_how_to(tmp_path: Path) -> None:
    """What it shows, pasted: a filler that is the script of a rule."""
    parsed = MarkdownIt().parse((ROOT / "docs" / "snakemake.md").read_text())
    shown = {token.info: token.content for token in parsed if token.type == "fence"}
    assert shown.keys() == {"python", "snakemake"}
    workflow = Workflow(tmp_path)
    workflow.folder.mkdir()
    workflow.configure()
    (workflow.folder / "roots.py").write_text(shown["python"])
    (workflow.folder / "Snakefile").write_text(shown["snakemake"])
    workflow.run(items=None)
    rows = np.load(workflow.folder / "roots.npy")
    np.testing.assert_array_equal(rows, np.sqrt(np.arange(1000.0)))
    assert "Nothing to be done" in workflow.run("--dry-run", items=None)


def test_commands_of_the_readme() -> None:
    """They are those that are tried here."""
    for page in ("README.md", "docs/snakemake.md"):
        assert "\n    cd workflows\n    snakemake --cores 2\n" in (ROOT / page).read_text()


def test_rules_are_drawn() -> None:
    """The picture has the rules that the Snakefile has for the array."""
    drawn = (ROOT / "docs" / "rulegraph.svg").read_text()
    for rule in ("allocate", "fill", "validate", "all"):
        assert f">{rule}</text>" in drawn


def test_wrapper(tmp_path: Path) -> None:
    """Its own test, as the repository of Snakemake's wrappers runs it."""
    folder = ROOT / "workflows" / "wrappers" / "utils" / "flowmap"
    assert {file.name for file in folder.iterdir()} == {
        *("wrapper.py", "meta.yaml", "environment.yaml", "test"),
    }
    shutil.copytree(folder, tmp_path / "prefix" / "master" / "utils" / "flowmap")
    shutil.copytree(folder / "test", tmp_path / "run")
    workflow = Workflow(tmp_path)
    workflow.folder = tmp_path / "run"
    workflow.configure()
    prefix = ("--wrapper-prefix", f"file://{tmp_path}/prefix/")
    workflow.run(*prefix, items=None)
    rows = np.load(tmp_path / "run" / "out.npy")
    assert np.array_equal(rows, np.repeat(np.arange(5, 1005, dtype="<f4")[:, None], 3, axis=1))
    assert "Nothing to be done" in workflow.run("--dry-run", *prefix, items=None)
