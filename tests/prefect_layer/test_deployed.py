"""The rules for deployed runs: where files lie, which fillers may be imported."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from prefect import flow
from prefect.context import _deployment_id
from support import ramp

import flowmap
from flowmap.deployed import check_filler, is_deployed, place
from flowmap.errors import FillerError, FillerRefusedError, InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without anything that an administrator may set."""
    for name in ("FLOWMAP_ROOT", "FLOWMAP_FILLERS", "PREFECT__FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like one that a worker started."""
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "00000000-0000-0000-0000-000000000000")


def test_outside_deployed_runs_all_is_allowed() -> None:
    """A relative path is what it is, and any filler may be named."""
    assert not is_deployed()
    assert str(place("sub/out.npy")) == "sub/out.npy"
    check_filler("anything:at_all")


def test_subflow_of_a_deployed_run() -> None:
    """It has no deployment of its own, wherever it runs: the outermost run's counts."""
    token = _deployment_id.set(uuid4())
    try:
        assert is_deployed()
    finally:
        _deployment_id.reset(token)


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize("module", ["$(id)", "lab; id", " lab", "", ".."])
def test_what_no_module_is_called_is_put_in_no_line(module: str) -> None:
    """A line that an administrator may paste into a shell holds no parameter but a name."""
    with pytest.raises(FillerRefusedError) as refused:
        check_filler(f"{module}:function")
    assert "export" not in str(refused.value)


@pytest.mark.usefixtures("deployed")
def test_absolute_paths_need_no_root() -> None:
    """An absolute path says where the file is to be."""
    assert is_deployed()
    assert str(place("/data/out.npy")) == "/data/out.npy"


@pytest.mark.usefixtures("deployed")
def test_relative_path_needs_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it is refused with the line that sets it; with one it lies beneath."""
    with pytest.raises(InvalidArgumentError, match="export FLOWMAP_ROOT=/"):
        place("out.npy")
    monkeypatch.setenv("FLOWMAP_ROOT", str(tmp_path))
    assert place("out.npy") == tmp_path / "out.npy"


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize(
    "prefixes", ["lab.fillers", "lab", " other , lab.fillers ,", "lab.fillers.deep"]
)
def test_fillers_beneath_a_prefix(monkeypatch: pytest.MonkeyPatch, prefixes: str) -> None:
    """A prefix allows the module of that name and those beneath it."""
    monkeypatch.setenv("FLOWMAP_FILLERS", prefixes)
    check_filler("lab.fillers.deep:function")


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize(
    "prefixes", ["", ",", "labour", "lab.fillers.deeper", "lab.fillers.dee", "*", "."]
)
def test_fillers_elsewhere(monkeypatch: pytest.MonkeyPatch, prefixes: str) -> None:
    """Neither a part of a name nor an empty prefix allows it; the message says what would."""
    monkeypatch.setenv("FLOWMAP_FILLERS", prefixes)
    with pytest.raises(
        FillerRefusedError, match=r"export FLOWMAP_FILLERS=\S*\blab\.fillers\.deep'? "
    ):
        check_filler("lab.fillers.deep:function")


@pytest.mark.usefixtures("deployed")
def test_the_line_that_allows_a_filler_keeps_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever runs it as it stands takes nothing from anyone."""
    monkeypatch.setenv("FLOWMAP_FILLERS", "orbits, my.fillers")
    with pytest.raises(
        FillerRefusedError, match=r"=orbits,my\.fillers,lab\.fillers "
    ) as caught:
        check_filler("lab.fillers:function")
    line = re.search(r"export FLOWMAP_FILLERS=(\S+)", str(caught.value))
    assert line is not None
    monkeypatch.setenv("FLOWMAP_FILLERS", line[1])
    check_filler("lab.fillers:function")
    check_filler("orbits:kepler")


@pytest.mark.usefixtures("deployed")
def test_published_fillers_are_allowed() -> None:
    """By their short name, and by the name of what is published under it."""
    check_filler("arange")
    check_filler("flowmap.fillers:arange")
    with pytest.raises(FillerRefusedError):
        check_filler("flowmap.fillers:find_filler")


@pytest.mark.usefixtures("deployed")
def test_functions_are_allowed() -> None:
    """A function was given by the code of the flow itself."""
    check_filler(ramp)


class TestTasks:
    """The tasks of a flow of one's own keep the same rules."""

    @pytest.fixture
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Set a root."""
        folder = tmp_path / "root"
        folder.mkdir()
        monkeypatch.setenv("FLOWMAP_ROOT", str(folder))
        return folder

    def test_paths_are_taken_from_the_root(self, server: Server, root: Path) -> None:
        """Allocating, listing and validating take a relative path from the root."""

        @flow
        def sweep() -> None:
            flowmap.alloc_task("out.npy", 10, "<f8")
            for segment in flowmap.pending_task("out.npy"):
                flowmap.fill_task(segment, ramp)
            flowmap.validate_task("out.npy")

        sweep()
        assert not flowmap.open_target(root / "out.npy").pending()

    def test_nothing_outside_of_the_root(self, root: Path, tmp_path: Path) -> None:
        """No task allocates, fills, writes, lists or validates a target elsewhere."""
        outside = flowmap.allocate(tmp_path / "out.npy", 10, "<f8")
        segment = outside.segments[0]
        for attempt in (
            lambda: flowmap.alloc_task.fn(tmp_path / "new.npy", 10, "<f8"),
            lambda: flowmap.alloc_task.fn("../new.npy", 10, "<f8"),
            lambda: flowmap.pending_task.fn(outside),
            lambda: flowmap.pending_task.fn(str(outside.path)),
            lambda: flowmap.fill_task.fn(segment, ramp),
            lambda: flowmap.write_task.fn(segment, [1.0] * 10),
            lambda: flowmap.validate_task.fn(outside),
        ):
            with pytest.raises(InvalidArgumentError, match="export FLOWMAP_ROOT="):
                attempt()
        assert not (tmp_path / "new.npy").exists()
        assert len(outside.pending()) == 1

    @pytest.mark.usefixtures("deployed")
    def test_fillers_named_in_text(self, root: Path) -> None:
        """A name is checked before its module is imported, by each task that takes one."""
        target = flowmap.allocate(root / "out.npy", 10, "<f8")
        with pytest.raises(FillerRefusedError):
            flowmap.fill_task.fn(target.segments[0], "antigravity:fly")
        with pytest.raises(FillerRefusedError):
            flowmap.alloc_task.fn("new.npy", 10, "<f8", filler="antigravity:fly")
        assert "antigravity" not in sys.modules
        assert not (root / "new.npy").exists()

    @pytest.mark.usefixtures("deployed")
    def test_limits_travel_with_the_work(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The filler of a task keeps them, in a worker that knows nothing of the deployment."""
        monkeypatch.setenv("FLOWMAP_FILLERS", "support")
        target = flowmap.allocate(root / "out.npy", 10, "<f8")
        arguments = {"named": "antigravity:fly"}
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(FillerError, match="export FLOWMAP_FILLERS=support,antigravity"),
        ):
            flowmap.fill_task.fn(target.segments[0], "support:nested", arguments, pool)
        assert "antigravity" not in sys.modules
