"""A process whose Prefect server is gone ends all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import environment

if TYPE_CHECKING:
    from pathlib import Path

SEGMENTS = 64

LOST = """
import asyncio, sys
from prefect.events.clients import EventsClient, PrefectEventsClient
from prefect.events.utilities import emit_event
from prefect.states import Completed
import flowmap
import flowmap.unsent
from flowmap.task_runs import SegmentRun
from flowmap.tasks import fill_task

async def lost(self, event):
    await asyncio.sleep(7)  # as long as Prefect's own tries again, for each event
    raise ConnectionRefusedError

flowmap.unsent.PATIENCE = 2

# A server that was there when the first event was sent.
PrefectEventsClient.__aenter__ = EventsClient.__aenter__
PrefectEventsClient.__aexit__ = EventsClient.__aexit__
PrefectEventsClient._emit = lost
segments = flowmap.allocate("out.npy", 64, "<f8", segments=64).segments
if sys.argv[1] == "flow":
    for segment in segments:
        SegmentRun(segment, fill_task).end(Completed())
else:
    for segment in segments:  # as Prefect's engine does
        emit_event("task-run", {"prefect.resource.id": "task"})
    fill_task.fn(segments[0], "arange")
print("done")
"""


@pytest.mark.parametrize("sent_by", ["flow", "task"])
def test_exit_is_bounded(tmp_path: Path, sent_by: str) -> None:
    """It waits for all events together, not for each, and says once that they are not sent."""
    done = subprocess.run(
        [sys.executable, "-c", LOST, sent_by],
        cwd=tmp_path,
        env=environment() | {"PREFECT_API_URL": os.environ["PREFECT_API_URL"]},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr.count("The Prefect server does not answer") == 1
