"""What Prefect loads of flowmap: batches for the server that Prefect embeds in a flow.

A Prefect server records the events of task runs one at a time unless it is told otherwise. The
one that a flow starts for itself, where no other is set, ends with the flow, recorded or not:
of a fast run it then shows only some of the segments. So it records in batches, and ends a
little later than it is told to.

Prefect loads this module, an entry point of the group `prefect.collections`, in each server and
worker where flowmap is installed. It acts only in a server that a flow started whose process
had imported flowmap: other flows get Prefect's own defaults. It keeps every setting that
somebody has made.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from flowmap.batches import BATCHES

GRACE: Final = 2.0
"""Seconds, two intervals between flushes; Prefect kills a server that takes more than five."""


def record_in_batches() -> None:
    """Set `BATCHES` for this process, but for those that are set already."""
    chosen = get_current_settings().to_environment_variables(exclude_unset=True)
    for name, value in BATCHES.items():
        if name not in chosen:
            os.environ.setdefault(name, value)
    refresh_global_settings_context()


def linger() -> None:
    """End `GRACE` seconds after SIGTERM: the flow's last events have only just been sent.

    uvicorn's own handler is what ends the server; its loop ticks ten times a second. Ctrl-C,
    which a terminal sends to the flow and its server alike, is left to the flow: it has yet to
    tell the server how it ended, and would wait for it for more than a minute.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()
    if callable(end):
        signal.signal(signal.SIGTERM, lambda *call: loop.call_later(GRACE, end, *call))


def serves_flowmap() -> bool:
    """Tell whether this is the embedded server of a process that has imported flowmap."""
    embedded = os.environ.get("PREFECT__SERVER_EPHEMERAL")  # Prefect's own mark
    return bool(embedded) and os.environ.get("FLOWMAP_IMPORTED_BY") == str(os.getppid())


if serves_flowmap():
    record_in_batches()
    linger()
