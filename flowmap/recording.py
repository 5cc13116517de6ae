"""What Prefect loads of flowmap: batches for the server that Prefect embeds in a flow.

A Prefect server records the events of task runs one at a time unless it is told otherwise. The
one that a flow starts for itself, where no other is set, ends with the flow, recorded or not:
of a fast run it then shows only some of the segments. Prefect loads this module, an entry
point of the group `prefect.collections`, in each server and worker where flowmap is
installed; it acts in embedded servers only, and leaves alone what is set by anyone.
"""

from __future__ import annotations

import os
from typing import Final

from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

BATCHES: Final = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
}
"""Settings that record a thousand task runs at a fifth of the cost."""


def record_in_batches() -> None:
    """Set `BATCHES` for this process, but for those that are set already."""
    chosen = get_current_settings().to_environment_variables(exclude_unset=True)
    for name, value in BATCHES.items():
        if name not in chosen:
            os.environ.setdefault(name, value)
    refresh_global_settings_context()


if os.environ.get("PREFECT__SERVER_EPHEMERAL"):  # Prefect's mark of an embedded server
    record_in_batches()
