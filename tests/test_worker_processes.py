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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT, errno.ENOSYS])
def test_no_semaphores(target: Target, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The error names /dev/shm, and what needs none; its errno stays."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(SEMAPHORES, "_SemLock", refuse)
    with pytest.raises(StorageError, match=r"/dev/shm.*executor='threads'") as caught:
        flowmap.fill(target, ramp, executor="processes", workers=2)
    assert caught.value.errno == number
    check_untouched(target)


def test_too_many_open_files_are_no_fault_of_semaphores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What else the system refuses is not blamed on /dev/shm."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(SEMAPHORES, "_SemLock", refuse)
    with pytest.raises(OSError, match="too many") as caught:
        new_pool({})
    assert type(caught.value) is OSError


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
    """As containers have it: the same in a mount namespace that has no other."""
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
    assert "writable /dev/shm" in child.stdout
    assert os.strerror(errno.EROFS) in child.stdout
    check_untouched(target)


def test_a_daemonic_process(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's workers and those of a DataLoader may start no processes."""
    current: Any = multiprocessing.current_process()
    with monkeypatch.context() as patch:
        patch.setitem(current._config, "daemon", 1)
        with pytest.raises(InvalidArgumentError, match=r"daemonic.*executor='threads'"):
            flowmap.fill(target, ramp, executor="processes", workers=2)
        check_untouched(target)
