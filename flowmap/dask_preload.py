"""What each process of an own Dask cluster loads first, by the name of this module.

Dask calls `dask_setup` of it as its documentation says under "Customize initialization".
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

from distributed import Worker

from flowmap.local_cluster import SHIELDED
from flowmap.stopping import take_no_notice_of
from flowmap.worker_processes import die_with, forget_safe_path


def dask_setup(server: Any) -> None:
    """Let a scheduler, a nanny or a worker die with the process that started it.

    None of them takes notice of the signals in `SHIELDED`: the cluster's owner says by other
    ways when a block is the last. They were started with these blocked, which a worker lifts,
    since the programs that a filler starts inherit what is blocked or ignored.
    """
    die_with(os.getppid())
    take_no_notice_of(SHIELDED)  # in a nanny, too: multiprocessing lifts what was blocked
    if isinstance(server, Worker):
        forget_safe_path()
        multiprocessing.current_process().daemon = False  # so that a filler may start some
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SHIELDED)
