"""The cases of filling a whole array, beside other ways to do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.case import Case, Contestant, Goal, speed, speed_against_fastest

if TYPE_CHECKING:
    from benchmarks.case import Disk

_ZEROS: Final = "--filler", "clear"
_COLUMNS: Final = {"seconds": "seconds", "rate": "GiB/s"}
_LIMIT: Final = "pwrite"
_EARLY: Final = "pwrite, early write-back"
_HASHED: Final = "pwrite, cleared and hashed"
_FLUSH: Final = "open_memmap, flush"
_PROGRAMS: Final = {
    "flowmap": "flowmap",
    "flowmap, threads": "flowmap-threads",
    _LIMIT: "pwrite",
    _EARLY: "pwrite-early",
    _HASHED: "pwrite-hashed",
    "open_memmap": "memmap",
    _FLUSH: "memmap-flush",
    "dask.array.store": "dask",
    "joblib": "joblib",
    "zarr": "zarr",
    "tensorstore": "tensorstore",
    "gather, np.save": "gather",
}
_PEERS: Final = tuple(_PROGRAMS)[5:]
_SLOW: Final = "flowmap, threads", "gather, np.save"  # where one measurement of them will do


def _case(
    name: str,
    title: str,
    left_out: tuple[str, ...],
    *options: str,
    limit: float | None,
    disk: Disk = "disk",
) -> Case:
    """Return a case of all contestants but some.

    Args:
        name: Of the case.
        title: Of the case.
        left_out: The contestants that do not play.
        *options: For all programs.
        limit: Which part of the speed of bare writing flowmap is to reach, if any.
        disk: Where.
    """
    names = [name for name in _PROGRAMS if name not in left_out]
    peers = [name for name in _PEERS if name in names]
    goals = [
        Goal("speed against a bare pwrite loop", limit or 0, speed(_LIMIT)),
        Goal("speed against the fastest peer, {peer}", 1.5, speed_against_fastest(peers)),
        Goal("speed against that loop with early write-back", 0.85, speed(_EARLY)),
        Goal("speed against open_memmap with flush", 2.5, speed(_FLUSH)),
    ]
    played = 4 if _FLUSH in names else 2
    return Case(
        name,
        title,
        tuple(
            Contestant(name, ("benchmarks.fill", _PROGRAMS[name], *options), name in _PEERS)
            for name in names
        ),
        _LIMIT,
        goals=tuple(goals[:played]) if limit else (),
        columns=_COLUMNS,
        disk=disk,
        most=1000 if limit else 7,
    )


_ON_DISK: Final = "by two workers, on the disk at the end"
_IN_CACHE: Final = "by two workers, in the page cache at the end"
_IN_MEMORY: Final = "by two workers, on tmpfs, where a sync does nothing"
_UNSYNCED: Final = (_EARLY, _FLUSH, "gather, np.save")

CASES: Final = (
    _case("fill", f"2 GiB of sqrt(row) {_ON_DISK}", (_HASHED,), "--durable", limit=1.0),
    _case(
        "fill-clear",
        f"2 GiB of zeros {_ON_DISK}",
        (*_SLOW, _HASHED),
        "--durable",
        *_ZEROS,
        limit=1.0,
    ),
    _case("fill-cached", f"2 GiB of sqrt(row) {_IN_CACHE}", (*_UNSYNCED, _HASHED), limit=None),
    _case(
        "fill-cached-clear",
        f"2 GiB of zeros {_IN_CACHE}",
        (*_UNSYNCED, *_SLOW, _HASHED),
        *_ZEROS,
        limit=None,
    ),
    _case(
        "fill-memory",
        f"2 GiB of sqrt(row) {_IN_MEMORY}",
        _UNSYNCED,
        "--durable",
        limit=0.9,
        disk="memory",
    ),
    _case(
        "fill-memory-clear",
        f"2 GiB of zeros {_IN_MEMORY}",
        (*_UNSYNCED, *_SLOW),
        "--durable",
        *_ZEROS,
        limit=0.9,
        disk="memory",
    ),
)
