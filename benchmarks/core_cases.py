"""The cases of everything in the core but filling a whole array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.case import Case, Contestant, Goal, cost, share, speed, value

if TYPE_CHECKING:
    from benchmarks.case import Disk

_PER_BLOCK: Final = cost("pwrite", "blocks")
_PER_SYNCED_BLOCK: Final = cost("pwrite, a sync a segment", "blocks")

BLOCKS: Final = Case(
    "blocks",
    "10,000 blocks of 4 KiB in 100 segments, by one process, with a filler that does nothing",
    (
        Contestant("flowmap", ("benchmarks.blocks", "flowmap")),
        Contestant("flowmap, a sync a segment", ("benchmarks.blocks", "flowmap", "--sync")),
        Contestant("pwrite", ("benchmarks.blocks", "pwrite")),
        Contestant("pwrite, a sync a segment", ("benchmarks.blocks", "pwrite", "--sync")),
    ),
    "pwrite",
    goals=(
        Goal(
            "cost of a block over its bare write",
            50,
            _PER_BLOCK,
            at_most=True,
            unit="µs",
            noise=_PER_BLOCK,
        ),
        Goal(
            "the same, with a sync a segment in both",
            50,
            _PER_SYNCED_BLOCK,
            at_most=True,
            contestant="flowmap, a sync a segment",
            unit="µs",
            noise=_PER_BLOCK,
        ),
    ),
    columns={"seconds": "seconds", "each": "µs a block"},
    compared=False,
)

STEPS: Final = Case(
    "steps",
    "Step by step: 1,024 blocks of 1 MiB of sqrt(row), by one process, on tmpfs",
    (
        Contestant("fill", ("benchmarks.steps", "fill")),
        Contestant("fill, write", ("benchmarks.steps", "write")),
        Contestant("fill, write, hash", ("benchmarks.steps", "hash")),
        Contestant("clear, fill, write, hash", ("benchmarks.steps", "clear")),
        Contestant("flowmap, 1 segment", ("benchmarks.steps", "flowmap")),
        Contestant("flowmap, 64 segments", ("benchmarks.steps", "flowmap", "--segments", "64")),
    ),
    "clear, fill, write, hash",
    columns={"each": "µs a block"},
    compared=False,
    disk="memory",
)

VALIDATE: Final = Case(
    "validate",
    "2 GiB in the page cache, validated by two threads",
    (
        Contestant("flowmap", ("benchmarks.validate", "flowmap")),
        Contestant("read and hash", ("benchmarks.validate", "bare")),
    ),
    "read and hash",
    goals=(Goal("speed against reading and hashing", 0.85, speed("read and hash")),),
    columns={"seconds": "seconds", "rate": "GiB/s"},
)

_TEBIBYTE: Final = "1 TiB, 1,024 segments"

ALLOCATE: Final = Case(
    "allocate",
    "Allocating with `reserve=False`: time, and memory over that before",
    (
        Contestant("1 GiB, 64 segments", ("benchmarks.allocate", "--gib", "1")),
        Contestant("32 GiB, 512 segments", ("benchmarks.allocate", "--gib", "32")),
        Contestant(_TEBIBYTE, ("benchmarks.allocate", "--gib", "1024")),
        Contestant(
            "1 TiB, 10,000 segments",
            ("benchmarks.allocate", "--gib", "1024", "--segments", "10000"),
        ),
    ),
    _TEBIBYTE,
    goals=(
        Goal(
            "allocation of 1 TiB",
            100,
            value("milliseconds"),
            at_most=True,
            contestant=_TEBIBYTE,
            unit="ms",
        ),
        Goal(
            "memory for it",
            10,
            value("mebibytes"),
            at_most=True,
            contestant=_TEBIBYTE,
            unit="MiB",
        ),
    ),
    columns={"milliseconds": "milliseconds", "mebibytes": "MiB"},
    compared=False,
)

_TEN_THOUSAND: Final = "10,000 segments"

RESUME: Final = Case(
    "resume",
    "Running a job again of which everything is done: `allocate` and `fill`",
    (
        Contestant("1,000 segments", ("benchmarks.resume", "--segments", "1000")),
        Contestant(_TEN_THOUSAND, ("benchmarks.resume", "--segments", "10000")),
    ),
    _TEN_THOUSAND,
    goals=(
        Goal(
            "10,000 segments, nothing to do",
            1,
            value(),
            at_most=True,
            contestant=_TEN_THOUSAND,
            unit="s",
        ),
    ),
    columns={"seconds": "seconds", "mebibytes": "MiB"},
    compared=False,
)

IMPORT: Final = Case(
    "import",
    "Import in a fresh interpreter, median of twenty",
    (
        Contestant("flowmap", ("benchmarks.imports", "flowmap")),
        Contestant("flowmap, and its functions", ("benchmarks.imports", "functions")),
        Contestant("numpy", ("benchmarks.imports", "numpy")),
    ),
    "numpy",
    goals=(
        Goal(
            "time of `import flowmap` in that of `import numpy`",
            1.25,
            share("numpy", "milliseconds"),
            at_most=True,
        ),
    ),
    columns={"milliseconds": "milliseconds"},
    rest=0.2,
)


def _memory(name: str, segment: int, block: int) -> Contestant:
    sizes = "--segment", str(segment), "--block", str(block)
    return Contestant(name, ("benchmarks.memory", *sizes))


_LONGEST: Final = "segment of 1 GiB"
_LONGEST_WIDE: Final = "segment of 1 GiB, blocks of 16 MiB"

MEMORY: Final = Case(
    "memory",
    "Memory of a worker over its start, while it fills a segment by blocks of 1 MiB",
    (
        _memory("segment of 1 MiB", 1, 1),
        _memory("segment of 16 MiB", 16, 1),
        _memory("segment of 256 MiB", 256, 1),
        _memory(_LONGEST, 1024, 1),
        _memory(_LONGEST_WIDE, 1024, 16),
    ),
    _LONGEST,
    goals=tuple(
        Goal(
            f"worker over its start and two blocks, {name}",
            16,
            value("beyond"),
            at_most=True,
            contestant=name,
            unit="MiB",
        )
        for name in (_LONGEST, _LONGEST_WIDE)
    ),
    columns={"mebibytes": "MiB", "beyond": "MiB beyond two blocks"},
    compared=False,
)


def _rows(name: str, title: str, disk: Disk) -> Case:
    return Case(
        name,
        f"1 GiB of rows of several sizes by two workers, {title}",
        (
            Contestant("8 bytes", ("benchmarks.shapes", "neat")),
            Contestant("24 bytes, records", ("benchmarks.shapes", "struct")),
            Contestant("4,099 bytes", ("benchmarks.shapes", "odd")),
            Contestant("8 MiB", ("benchmarks.shapes", "wide")),
        ),
        "8 bytes",
        columns={"seconds": "seconds", "rate": "GiB/s"},
        disk=disk,
        most=7,
    )


def _block_sizes(name: str, title: str, disk: Disk) -> Case:
    sizes = {f"{kib} KiB": kib for kib in (64, 256, 512)}
    sizes |= {f"{mib} MiB": mib * 1024 for mib in (1, 2, 4, 16)}
    return Case(
        name,
        f"1 GiB by blocks of several sizes by two workers, {title}",
        tuple(
            Contestant(size, ("benchmarks.shapes", "neat", "--kib", str(kib)))
            for size, kib in sizes.items()
        ),
        "1 MiB",
        columns={"seconds": "seconds", "rate": "GiB/s"},
        disk=disk,
        most=7,
    )


SEGMENTS: Final = Case(
    "segment-count",
    "1 GiB in many segments by two workers, on the disk at the end",
    tuple(
        Contestant(
            f"{count:,} segments{text}",
            ("benchmarks.shapes", "neat", "--segments", str(count), *options),
        )
        for count in (100, 1_000, 10_000)
        for text, options in (("", ()), (', "end" and validated', ("--end",)))
    ),
    "100 segments",
    columns={"seconds": "seconds", "rate": "GiB/s"},
    most=5,
)

_TEN_THOUSAND_OF_SHAPES: Final = ("benchmarks.shapes", "neat", "--segments", "10000", "--end")
UNEQUAL: Final = Case(
    "unequal-segments",
    "1 GiB in 10,000 segments by two workers, on tmpfs",
    (
        Contestant("of equal lengths", _TEN_THOUSAND_OF_SHAPES),
        Contestant("no two neighbours equal", (*_TEN_THOUSAND_OF_SHAPES, "--unequal")),
    ),
    "of equal lengths",
    columns={"seconds": "seconds", "rate": "GiB/s"},
    disk="memory",
    most=5,
)

CASES: Final = (
    BLOCKS,
    STEPS,
    VALIDATE,
    ALLOCATE,
    RESUME,
    IMPORT,
    MEMORY,
    _rows("rows", "on the disk at the end", "disk"),
    _rows("rows-memory", "on tmpfs", "memory"),
    _block_sizes("block-size", "on the disk at the end", "disk"),
    _block_sizes("block-size-memory", "on tmpfs", "memory"),
    SEGMENTS,
    UNEQUAL,
)
