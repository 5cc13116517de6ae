"""A Dask cluster of this machine, whose processes leave the signals to who started them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from flowmap.extras import extra
from flowmap.stopping import SIGNALS
from flowmap.worker_processes import safe_path

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIELDED: Final = (signal.SIGINT, *SIGNALS)
"""Signals that the processes of an own cluster leave to who started it."""


def local_cluster(workers: int) -> Any:
    """Return a cluster of processes of this machine that do not run the user's script again."""
    deploy = extra("distributed.deploy.subprocess", "dask")
    preload = ["flowmap.dask_preload"]
    # Each has a server for its dashboard even where it shows none; that of a second scheduler
    # on the same machine complains of its port.
    no_dashboard = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with _inherited(
        PYTHONPATH=os.pathsep.join(map(os.path.abspath, sys.path)),
        DASK_LOGGING__DISTRIBUTED="critical",
        # It would drop a work that workers have got and not begun with: `Dask._spread`.
        DASK_DISTRIBUTED__SCHEDULER__ACTIVE_MEMORY_MANAGER__START="false",
        **safe_path(),
    ):
        return deploy.SubprocessCluster(
            n_workers=workers,
            threads_per_worker=1,
            silence_logs=logging.CRITICAL,
            # `Dask` tries again itself.
            scheduler_kwargs={"allowed_failures": 0, "preload": preload, **no_dashboard},
            worker_kwargs={
                "memory_limit": 0,
                "preload": preload,
                "preload_nanny": preload,
                **no_dashboard,
            },
        )


@contextlib.contextmanager
def _inherited(**variables: str) -> Iterator[None]:
    """Set variables, and block signals, for the processes that a `with` block starts.

    The block's threads keep what is blocked, as Dask's loop must: it starts the workers.
    """
    before = {name: os.environ.get(name) for name in variables}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    os.environ.update(variables)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
