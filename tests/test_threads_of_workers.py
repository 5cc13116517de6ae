"""How many threads the libraries of a worker process use, such as NumPy's for matrices."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import flowmap
from flowmap import machine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flowmap.segments import Block


def openblas() -> Any:
    """Return the function of NumPy's wheels that says how many threads a product takes."""
    found = re.search(r"\S+/numpy\.libs/\S*openblas\S*", Path("/proc/self/maps").read_text())
    return found and ctypes.CDLL(found[0]).scipy_openblas_get_num_threads64_


@flowmap.filler
def count(out: NDArray[Any], block: Block) -> None:
    """Fill with the numbers of threads: of the variable, and of the library."""
    function = openblas()
    out[:, 0] = int(os.environ["OMP_NUM_THREADS"])
    out[:, 1] = function() if function else out[0, 0]


@pytest.fixture
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody have set a number of threads, on a machine with two processors."""
    for name in machine._THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "available_cpus", lambda: 2)


@pytest.mark.usefixtures("_unset")
def test_workers_share_the_processors(tmp_path: Path) -> None:
    """Two workers on two processors have one thread each, before NumPy is loaded there."""
    target = flowmap.allocate(tmp_path / "a.npy", (4, 2), "i8", segments=4)
    flowmap.fill(target, count, executor="processes", workers=2)
    assert np.load(target.path).tolist() == [[1, 1]] * 4


@pytest.mark.usefixtures("_unset")
def test_one_worker_has_all_processors(tmp_path: Path) -> None:
    """As one of Dask's has, whose own configuration says that one thread is to do."""
    for executor in ("processes", "dask"):
        target = flowmap.allocate(tmp_path / f"{executor}.npy", (1, 2), "i8", segments=1)
        flowmap.fill(target, count, executor=executor, workers=1)
        assert np.load(target.path)[0, 0] == 2


@pytest.mark.usefixtures("_unset")
def test_what_the_user_sets_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have it, however many they are."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    target = flowmap.allocate(tmp_path / "a.npy", (2, 2), "i8", segments=2)
    flowmap.fill(target, count, executor="processes", workers=2)
    assert np.load(target.path)[:, 0].tolist() == [7, 7]
