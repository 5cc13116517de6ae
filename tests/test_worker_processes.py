"""Where no worker process can be started: one error, before anything is filled."""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support import environment, ramp, script, states

import flowmap
from flowmap.errors import InvalidArgumentError, StorageError
from flowmap.sidecar import Sidecar
from flowmap.worker_processes import new_pool

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.target import Target

SEMAPHORES = importlib.import_module("loky.backend.synchronize")
"""Of loky: the package has another module of that name as its attribute."""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Allocate a job of eight segments."""
    return flowmap.allocate(tmp_path / "a.npy", 16, "f8", segments=8)


def check_untouched(target: Target) -> None:
    """Check that nothing was begun; and that threads fill it all the same."""
    assert not target.status()["attempt"].any()
    assert not Sidecar.of(target.path).run.exists()
    flowmap.fill(target, ramp, executor="threads")
    assert states(target) == ["done"] * 8
    assert flowmap.fill(target, ramp) == []  # which needs no process


FILL = """
import sys
import flowmap
try:
    flowmap.fill(sys.argv[1], "arange", workers=2)
except flowmap.FlowmapError as error:
    print(error)
"""


@pytest.mark.system("unshare", packages="util-linux", root=True)
def test_a_read_only_shared_memory(target: Target) -> None:
    """As containers have it: workers need none."""
    line = 'mount -t tmpfs -o ro none /dev/shm || exit 9; exec "$0" "$@"'
    child = subprocess.run(
        ["unshare", "--mount", "sh", "-c", line, *script(FILL, target.path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if child.returncode == 9:
        pytest.skip("cannot mount; needs docker run --privileged")
    assert child.returncode == 0, child.stderr
    assert not child.stdout
    assert states(target) == ["done"] * 8


def test_a_daemonic_process(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's workers and those of a DataLoader may fill, too: workers end with them."""
    current: Any = multiprocessing.current_process()
    monkeypatch.setitem(current._config, "daemon", 1)
    flowmap.fill(target, ramp, executor="processes", workers=2)
    assert states(target) == ["done"] * 8
