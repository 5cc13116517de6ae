"""The runs of Prefect around a task, and the attempt of each."""

from __future__ import annotations

from typing import TypeVar

from prefect.context import ContextModel, FlowRunContext, TaskRunContext

T = TypeVar("T", bound=ContextModel)


def attempts() -> dict[str, str]:
    """Return the attempt of each run that is under way here, by the run's id.

    These are the flow run, the flow runs that it is nested in, and the tasks around the call.
    The id of its state names an attempt of a flow run: the run count stays the same when a
    suspended run resumes. A subflow that is tried again with its parent has a new id, but the
    same task run in the parent. A process pool passes on the innermost flow run and task only.
    """
    found: dict[str, str] = {}
    for flow in _around(FlowRunContext.get()):
        if (run := flow.flow_run) is not None:
            found[str(run.parent_task_run_id or run.id)] = str(run.state_id)
    for task in _around(TaskRunContext.get()):
        found[str(task.task_run.id)] = str(task.task_run.run_count)
    return found


def _around(context: T | None) -> list[T]:
    """Return a context and those that it was entered in: Prefect has no public way to them."""
    found = []
    while context is not None:
        found.append(context)
        outer = getattr(getattr(context, "_token", None), "old_value", None)
        context = outer if isinstance(outer, type(context)) else None
    return found
