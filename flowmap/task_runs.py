"""The task run of a segment, told to Prefect by the flow and not by Prefect's engine.

What a server knows of a task run it takes from the events of its states. Prefect's engine sends
three for each run, between much else that a segment has no use for. The flow sends the same
events, made by Prefect's own function, but for what nobody could see: that a segment is about
to begin, and that it is running where it ends within a second.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext, TagsContext
from prefect.logging.loggers import task_run_logger
from prefect.states import AwaitingRetry, Retrying, Running
from prefect.utilities.engine import emit_task_run_state_change_event

from flowmap.unsent import bound_exit

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from prefect.events import Event
    from prefect.logging.loggers import LoggingAdapter
    from prefect.tasks import Task

    from flowmap.segments import Segment

SECONDS_UNTOLD: Final = 1.0
"""How long a segment runs before the server is told that it does."""


class SegmentRun:
    """The task run of a segment in the current flow run; it begins when it is made.

    Args:
        segment: The segment.
        task: What it counts as a run of.

    Attributes:
        segment: The segment.
    """

    def __init__(self, segment: Segment, task: Task[..., Any]) -> None:
        context = FlowRunContext.get()
        flow_run = context.flow_run if context is not None else None
        self.segment = segment
        self._task = task
        self._state: State[Any] = Running()
        began: Any = self._state.timestamp  # TaskRun is annotated with a type of Prefect's own
        self._run = TaskRun(
            name=segment.name,
            flow_run_id=flow_run.id if flow_run is not None else None,
            flow_run_run_count=flow_run.run_count if flow_run is not None else 0,
            run_count=1,
            task_key=task.task_key,
            task_version=task.version,
            dynamic_key=uuid4().hex,  # a flow run that is tried again has the segment once more
            tags=sorted(TagsContext.get().current_tags),
            expected_start_time=began,
            start_time=began,
        )
        self._told: Event | None = None  # of the last state that the server knows
        self._untold_since: float | None = time.monotonic()

    @property
    def tries(self) -> int:
        """How often it has begun."""
        return self._run.run_count

    @property
    def waits(self) -> bool:
        """Whether it is to begin again."""
        return self._state.is_scheduled()

    @property
    def log(self) -> LoggingAdapter:
        """The logger whose lines the UI shows with this run."""
        return task_run_logger(self._run, self._task)

    def show(self) -> None:
        """Tell the server that it is running, if it has been for a while."""
        since = self._untold_since
        if since is not None and time.monotonic() - since >= SECONDS_UNTOLD:
            self._tell(None, self._state)

    def wait(self, seconds: float) -> None:
        """Tell the server that it has failed and is to begin again after so many seconds."""
        self._enter(
            AwaitingRetry(scheduled_time=datetime.now(UTC) + timedelta(seconds=seconds))
        )

    def begin_again(self) -> None:
        """Begin another try."""
        self._run.run_count += 1
        self._enter(Retrying())

    def end(self, state: State[Any]) -> None:
        """Tell the server how it ended.

        Args:
            state: A final one.
        """
        ended: Any = state.timestamp
        self._run.end_time = ended
        self._enter(state)

    def _enter(self, state: State[Any]) -> None:
        last = self._state
        if last.is_running():
            self._run.total_run_time += state.timestamp - last.timestamp
        self._state = state
        self._tell(last, state)

    def _tell(self, last: State[Any] | None, state: State[Any]) -> None:
        self._untold_since = None
        self._told = emit_task_run_state_change_event(
            task_run=self._run, initial_state=last, validated_state=state, follows=self._told
        )
        bound_exit()
