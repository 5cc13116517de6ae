"""Closing what a dead run left open, where the API has to be asked page by page, or fails."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running
from support import ramp

import flowmap
from flowmap import closing
from flowmap.closing import close_dead_run

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """Return a job of six segments, two of which are done."""
    made = flowmap.allocate(tmp_path / "out.npy", 60, "<f8", segments=6)
    for segment in made.segments[:2]:
        flowmap.fill_segment(segment, ramp)
    return made


def dead_run(target: flowmap.Target, path: Path) -> str:
    """Make a flow run that is Running, with a task run a segment that is Running too."""
    asked = {"path": str(path)}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(flowmap.fill_array, parameters=asked, state=Running())
        for segment in target.segments:
            client.create_task_run(
                flowmap.fill_task, run.id, segment.name, name=segment.name, state=Running()
            )
    return str(run.id)


def close(target: flowmap.Target, run: str) -> None:
    """Close a run from within another, as the flow does."""

    @flow
    def successor() -> None:
        close_dead_run(target, run)

    successor()


def test_every_page_is_closed(
    server: Server, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All task runs, though the API returns some at a time; what is done is Completed."""
    monkeypatch.setattr(closing, "_PAGE", 4)
    run = dead_run(target, target.path)
    close(target, run)
    states = {n: r["state_type"] for n, r in server.task_runs(run, 6).items()}
    done = {segment.name for segment in target.segments[:2]}
    assert {name for name, state in states.items() if state == "COMPLETED"} == done
    assert {
        name for name, state in states.items() if state == "CRASHED"
    } == states.keys() - done
    ended = server.ended(run)
    assert ended["state_type"] == "CRASHED"
    assert "another run of the job has taken over" in ended["state"]["message"]


def test_closing_again_changes_nothing(server: Server, target: flowmap.Target) -> None:
    """Two runs that both find the dead one do no harm; states are not set anew."""
    run = dead_run(target, target.path)
    close(target, run)
    before = server.task_runs(run, 6)
    flowmap.fill(target, ramp, executor="threads")
    close(target, run)
    assert server.task_runs(run, 6) == before


@pytest.mark.parametrize("run", [str(uuid.UUID(int=1)), "no id of Prefect's"])
def test_failure_is_a_warning(
    server: Server, target: flowmap.Target, caplog: pytest.LogCaptureFixture, run: str
) -> None:
    """A run that another server has, or a lease that names nonsense, stops nobody."""
    close(target, run)
    assert f"The dead run {run} could not be closed" in caplog.text


def test_run_of_another_target_is_left_alone(
    server: Server, target: flowmap.Target, caplog: pytest.LogCaptureFixture
) -> None:
    """A lease that was copied or forged ends no run but one of its own target."""
    run = dead_run(target, target.path.with_name("other.npy"))
    close(target, run)
    assert "its path is not this target's" in caplog.text
    states = server.task_runs(run, 6, ("RUNNING",)).values()
    assert {r["state_type"] for r in states} == {"RUNNING"}
