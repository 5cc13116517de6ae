"""What the contestants share: their arguments, the clock, memory, and the line they print."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def arguments(**defaults: Any) -> argparse.Namespace:
    """Return what the command line says: `contestant`, if any, `folder`, `scale`, and more.

    Args:
        **defaults: Other options with their defaults; a false one is a flag.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant", nargs="?")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0)
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(default), default=default)
    return parser.parse_args()


def seconds(work: Callable[[], object]) -> float:
    """Do the work, and return how long it took."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def peak_bytes(pid: int | str = "self") -> int:
    """Return the most memory that a process has had so far (VmHWM).

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget_peak(pid: int | str = "self") -> None:
    """Make the most memory of a process what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def say(**figures: float) -> None:
    """Print the figures: the last thing that a contestant does."""
    print(json.dumps(figures))  # noqa: T201
