"""What limits a run limits its fillers, in whatever process or thread they run."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import nested

import flowmap
from flowmap.errors import (
    FillerError,
    FillerRefusedError,
    InvalidArgumentError,
    SegmentsFailedError,
)
from flowmap.root import LIMITS, Limits, root, rooted
from flowmap.work import Work
from flowmap.write import fill_work

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from flowmap.target import Target


@pytest.fixture(autouse=True)
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without a root."""
    monkeypatch.delenv("FLOWMAP_ROOT", raising=False)


@pytest.fixture(params=["spawn", "processes", "threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Open an executor whose worker has started, so that it has no root in its environment."""
    pools: dict[str, Any] = {
        "spawn": lambda: ProcessPoolExecutor(1, get_context("spawn")),
        "processes": lambda: flowmap.executor("processes", 1),
        "threads": lambda: ThreadPoolExecutor(1),
    }
    with pools[request.param]() as pool:
        assert pool.submit(os.getenv, "FLOWMAP_ROOT").result() is None
        yield pool


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Allocate a target of one segment in a folder that is to be the root."""
    (tmp_path / "root").mkdir()
    return flowmap.allocate(tmp_path / "root" / "a.npy", 4, "<f8", segments=1)


def test_root_of_the_run(
    tmp_path: Path, target: Target, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without a root copies nothing from beyond that of the run."""
    np.save(tmp_path / "secret.npy", np.ones(4))
    np.save(tmp_path / "root" / "in.npy", np.full(4, 2.0))
    monkeypatch.setenv("FLOWMAP_ROOT", str(tmp_path / "root"))
    for source in (str(tmp_path / "secret.npy"), "../secret.npy"):
        with pytest.raises(SegmentsFailedError, match="which leads out of"):
            flowmap.fill(target, "copy", {"source": source}, executor=executor)
    flowmap.fill(target, "copy", {"source": "in.npy"}, executor=executor)
    np.testing.assert_array_equal(np.load(target.path), np.full(4, 2.0))


def test_fillers_of_the_run(target: Target, executor: Executor) -> None:
    """A filler imports no module that its run may not have, to look up another filler."""
    work = Work.of(nested, {"named": "antigravity:fly"})
    held = replace(work, limits=Limits(fillers=("my.fillers",)))
    with pytest.raises(FillerError, match=r"FillerRefusedError: .*FLOWMAP_FILLERS=my\.fillers"):
        executor.submit(fill_work, target.segments[0], held).result()
    assert "antigravity" not in sys.modules
    allowed = replace(Work.of(nested, {"named": "arange"}), limits=held.limits)
    assert executor.submit(fill_work, target.segments[0], allowed).result().state == "done"


def test_worker_with_a_root_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a path must lie within both; relative ones are taken from that of the run."""
    run, own = tmp_path / "run", tmp_path / "run" / "own"
    own.mkdir(parents=True)
    monkeypatch.setenv("FLOWMAP_ROOT", str(own))
    token = LIMITS.set(Limits((str(run),)))
    try:
        assert root() == run
        assert rooted("own/a.npy") == own / "a.npy"
        for path in ("a.npy", run / "a.npy", tmp_path / "a.npy"):
            with pytest.raises(InvalidArgumentError, match="leads out of"):
                rooted(path)
        assert Limits.current().roots == (str(run), str(own))
    finally:
        LIMITS.reset(token)


def test_limits_end_with_the_filler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A thread that has run a filler of one run has no limits of it for the next."""
    monkeypatch.setenv("FLOWMAP_ROOT", str(tmp_path))
    work = replace(Work.of(nested, {"named": "arange"}), limits=Limits((str(tmp_path),), ()))
    monkeypatch.delenv("FLOWMAP_ROOT")
    out: Any = np.zeros(1)
    work(out, flowmap.Block(0, 1))
    with pytest.raises(FillerRefusedError):
        replace(work, arguments={"named": "antigravity:fly"})(out, flowmap.Block(0, 1))
    assert Limits.current() == Limits()
