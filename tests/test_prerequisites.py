"""What a process must have to start workers is looked at before any segment is claimed."""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING

import pytest
from support import forked, ramp, states

import flowmap
from flowmap.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def limited(target: flowmap.Target, executor: str, files: int, workers: int) -> str:
    """Fill on so many workers in a process that may open so many files more."""

    def act() -> str:
        limit = len(os.listdir("/proc/self/fd")) - 1 + files  # noqa: PTH208 -- one is the list
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            flowmap.fill(target, ramp, executor=executor, workers=workers)
        except StorageError as error:
            return f"{errno.errorcode[error.errno or 0]} {error}"
        return "filled"

    return forked(act)


@pytest.mark.parametrize(("executor", "most"), [("processes", 8), ("threads", 9)])
def test_few_open_files(tmp_path: Path, executor: str, most: int) -> None:
    """More workers than there is room for are refused with the limit; what it says works."""
    target = flowmap.allocate(tmp_path / "a.npy", 200, "<f8", segments=20)
    refused = limited(target, executor, 33, most + 1)
    assert f"pass workers={most}" in refused
    assert refused.startswith("EMFILE")
    assert "(its limit is " in refused
    assert "ulimit -n 1024" in refused
    assert states(target) == ["pending"] * 20
    assert target.status()["attempt"].max() == 0
    assert limited(target, executor, 33, most) == "filled"
    assert states(target) == ["done"] * 20


def test_too_few_open_files_for_a_process(tmp_path: Path) -> None:
    """Then threads are left."""
    target = flowmap.allocate(tmp_path / "a.npy", 20, "<f8", segments=2)
    assert "executor='threads', workers=1" in limited(target, "processes", 8, 1)
