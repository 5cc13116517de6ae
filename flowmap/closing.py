"""Closing what a dead run left open in Prefect, which shows it as Running for ever."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.logging import get_run_logger
from prefect.states import Completed, Crashed

from flowmap.errors import printable

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State, TaskRun

    from flowmap.target import Target

_OPEN: Final = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED]
_PAGE: Final = 200  # the most that the API returns at once


def close_dead_run(target: Target, run: str) -> None:
    """Close the task runs that a dead flow run left open, and the flow run if it is.

    A segment that the ledger calls done is Completed, since it is; anything else Crashed. A
    flow run whose path has another file name is left alone: a lease may be copied or forged.
    Failing to close costs the run that does it nothing but a warning.

    Args:
        target: The target that the run was filling.
        run: The id of the flow run.
    """
    try:
        with get_client(sync_client=True) as client:
            dead = _read_run(client, target, UUID(run))
            count = _close_task_runs(client, target, dead.id)
            if run != runtime.flow_run.id:  # it was tried again, and lives
                _close_flow_run(client, dead)
    except Exception as error:  # noqa: BLE001 -- the array matters more than what the UI shows
        told = printable(run)
        get_run_logger().warning("The dead run %s could not be closed: %r", told, error)
    else:
        get_run_logger().info("Closed %d task runs of the dead flow run %s", count, run)


def _read_run(client: SyncPrefectClient, target: Target, run: UUID) -> FlowRun:
    found = client.read_flow_run(run)
    if Path(str(found.parameters.get("path"))).name != target.path.name:
        raise ValueError("its path is not this target's")
    return found


def _close_task_runs(client: SyncPrefectClient, target: Target, run: UUID) -> int:
    pending = {segment.name for segment in target.pending()}
    done = {segment.name for segment in target.segments} - pending
    left = _open_task_runs(client, run)
    if str(run) == runtime.flow_run.id:  # what this attempt has begun is not of the dead one
        now = runtime.flow_run.run_count
        left = [task_run for task_run in left if task_run.flow_run_run_count < now]
    for task_run in left:
        client.set_task_run_state(task_run.id, _end_of(task_run, done), force=True)
    return len(left)


def _open_task_runs(client: SyncPrefectClient, run: UUID) -> list[TaskRun]:
    state = TaskRunFilterState(type=TaskRunFilterStateType(any_=_OPEN))
    found: list[TaskRun] = []
    while True:
        page = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])),
            task_run_filter=TaskRunFilter(state=state),
            limit=_PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < _PAGE:
            return found


def _end_of(task_run: TaskRun, done: set[str]) -> State[Any]:
    if task_run.name in done:
        return Completed(message="Done, as the ledger says; its process died before it told.")
    return Crashed(message="Its process died; the next run of the job does what is missing.")


def _close_flow_run(client: SyncPrefectClient, run: FlowRun) -> None:
    if run.state is not None and run.state.is_running():
        message = "Its process died; another run of the job has taken over."
        client.set_flow_run_state(run.id, Crashed(message=message), force=True)
