"""Which claims are of processes that are dead, as far as this host can tell."""

from __future__ import annotations

import functools
import os
import secrets
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from flowmap.machine import is_alive, machine_id, process_started

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOKEN: Final = struct.Struct("<II8s")
"""The token of a claim: the machine, when the process began, and 64 random bits.

The slot of a claim has no other room for the first two. Versions before this one took random
bits for all of it, which name no machine.
"""


def new_token() -> str:
    """Return a token for a claim of this process, in hexadecimal."""
    return _TOKEN.pack(*_this_process(), secrets.token_bytes(8)).hex()


def find_dead(slots: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which of some slots are running by a process that is known to be dead.

    Nothing is known of the processes of another host, boot or container, and nothing is taken
    for dead that cannot be seen.

    Args:
        slots: Shape (segments,), dtype `SLOT`.
    """
    dead = np.zeros(len(slots), np.bool_)
    (running,) = np.nonzero(slots["state"] == b"running")
    here = _this_machine() if len(running) else 0
    for index in running:
        machine, began, _ = _TOKEN.unpack(slots["token"][index].tobytes())
        dead[index] = bool(here) and machine == here and _is_dead(slots["pid"][index], began)
    return dead


def _is_dead(pid: int, began: int) -> bool:
    now = process_started(int(pid))
    if now is None or not began:
        return is_alive(int(pid), None) is False
    return now % 2**32 != began  # another process by now, or a zombie


@functools.cache
def _this_process() -> tuple[int, int]:
    """Return this machine, and when this process began, in 32 bits each.

    Read once: for a small segment, reading both takes a fourth of the time.
    """
    return _this_machine(), (process_started(os.getpid()) or 0) % 2**32


os.register_at_fork(after_in_child=_this_process.cache_clear)


def _this_machine() -> int:
    """Return a number for this boot and this container; 0 where the system names neither."""
    name = machine_id()
    return xxhash.xxh32_intdigest(name.encode()) if name else 0
