"""The cases of filling a whole array."""

from __future__ import annotations

from typing import Final

from benchmarks.case import Case, Contestant, Goal, speed

_COLUMNS: Final = {"seconds": "seconds", "rate": "GiB/s"}


def _contestant(name: str, program: str, *options: str, peer: bool = False) -> Contestant:
    return Contestant(name, ("benchmarks.fill", program, *options), peer)


def _all(*options: str) -> tuple[Contestant, ...]:
    return (
        _contestant("flowmap", "flowmap", *options),
        _contestant("flowmap, threads", "flowmap-threads", *options),
        _contestant("pwrite", "pwrite", *options),
        _contestant("pwrite, early write-back", "pwrite-early", *options),
    )


CASES: Final = (
    Case(
        "fill",
        "2 GiB of sqrt(row) by two workers, on the disk at the end",
        _all("--durable"),
        "pwrite",
        goals=(
            Goal("against a bare pwrite loop", 1.0, speed("pwrite")),
            Goal("against early write-back", 0.85, speed("pwrite, early write-back")),
        ),
        columns=_COLUMNS,
    ),
)
