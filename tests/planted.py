"""Bugs planted in what reads: what shows that the fuzzer would see such."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import flowmap.alloc
import flowmap.documents
import flowmap.lease
import flowmap.ledger
import flowmap.mapping
import flowmap.npy
import flowmap.sealing
import flowmap.storage
import flowmap.values
from flowmap.job import Job
from flowmap.ledger import Ledger
from flowmap.npy import Layout
from flowmap.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


def _replaced(where: Any, name: str, put: Callable[..., Any]) -> Callable[[], None]:
    """Return what puts `put(real, ...)` in the place of a function."""

    def plant() -> None:
        real = getattr(where, name)
        setattr(where, name, lambda *arguments, **named: put(real, *arguments, **named))

    return plant


def _looked_at(look: Callable[[bytes], object]) -> Callable[[], None]:
    """Return what has each piece of a header looked at."""

    def taken(real: Any, file: Any, nbytes: int) -> bytes:
        data: bytes = real(file, nbytes)
        look(data)
        return data

    return _replaced(flowmap.npy, "_taken", taken)


def _evaluate(data: bytes) -> None:
    with contextlib.suppress(Exception):
        eval(data.strip(), {})


def _wait(data: bytes) -> None:
    while b"# x" in data and b"shape" in data:
        pass


def _search(dtype: np.dtype[Any], depth: int = 0) -> None:
    """Fail on a title of a field within a field."""
    for inner, _, *title in (dtype.base.fields or {}).values():
        if title and depth:
            raise IndexError(title)
        _search(inner, depth + 1)


def _layout_of(real: Any, shape: Any, order: bool, dtype: Any) -> Layout:
    _search(dtype)
    return real(shape, order, dtype)  # type: ignore[no-any-return]


def _touch(real: Any, job: Job, descriptor: int) -> str | None:
    os.utime(descriptor)
    return real(job, descriptor)  # type: ignore[no-any-return]


def _early(real: Any, path: Any) -> Any:
    found = real(path)
    found.parent.mkdir(parents=True, exist_ok=True)
    return found


class Bug(NamedTuple):
    """A bug.

    Attributes:
        attack: That finds it.
        told: What the fault that is found says.
        plant: Breaks flowmap in this process.
    """

    attack: str
    told: str
    plant: Callable[[], None]


BUGS: Final = {
    "shapes of any size": Bug(
        "headers", "was read where NumPy has", _replaced(Layout, "check_size", lambda *_: None)
    ),
    "True is a length": Bug(
        "headers",
        "was read where NumPy has",
        _replaced(
            flowmap.npy, "_layout_of", lambda real, n, *rest: real(tuple(map(int, n)), *rest)
        ),
    ),
    "a byte too few": Bug(
        "headers",
        "the data begins at",
        _replaced(flowmap.npy, "_taken", lambda real, file, n: real(file, n - (n > 99))),
    ),
    "titles within": Bug(
        "headers", "IndexError", _replaced(flowmap.npy, "_layout_of", _layout_of)
    ),
    "headers evaluated": Bug("headers", "reading caused ['exec", _looked_at(_evaluate)),
    "endless on a comment": Bug("headers", "timeout", _looked_at(_wait)),
    "memory without end": Bug(
        "headers", "MemoryError", _looked_at(lambda data: b"~~" in data and bytes(2**40))
    ),
    "objects are mapped": Bug(
        "targets",
        "bytes were taken for addresses",
        _replaced(flowmap.mapping, "refuse_objects", lambda *_: None),
    ),
    "headers are not compared": Bug(
        "targets", "another file", _replaced(Job, "problem_with", lambda *_: None)
    ),
    "opened for writing": Bug(
        "targets",
        'reading caused ["open',
        lambda: setattr(flowmap.storage, "_READ_FLAGS", flowmap.storage._WRITE_FLAGS),
    ),
    "touched when read": Bug(
        "documents", "reading caused ['os.utime", _replaced(Job, "problem_with", _touch)
    ),
    "odd jobs": Bug("documents", "Error", _replaced(Job, "_refuse_odd", lambda *_: None)),
    "deep documents": Bug(
        "documents",
        "RecursionError",
        lambda: setattr(flowmap.documents, "RecursionError", LookupError),
    ),
    "any lease": Bug("documents", "Error", lambda: setattr(flowmap.lease, "_FIELDS", {})),
    "any permissions": Bug(
        "documents",
        "permissions",
        _replaced(flowmap.sealing, "_writable", lambda _, now, recorded: recorded),
    ),
    "any slot": Bug(
        "slots", "Error", _replaced(flowmap.ledger, "is_possible", lambda *_: True)
    ),
    "no checksums of slots": Bug(
        "slots", "not (", _replaced(flowmap.ledger, "checksum_matches", lambda *_: True)
    ),
    "the last slot is not read": Bug(
        "slots",
        "is not",
        _replaced(Ledger, "page", lambda real, *of: real(*of)[:-256] + bytes(256)),
    ),
    "segments before the ledger": Bug(
        "forged",
        "timeout",
        _replaced(Target, "status", lambda real, target: (target.segments, real(target))[1]),
    ),
    "large values": Bug(
        "values",
        "OverflowError",
        lambda: setattr(flowmap.values, "OverflowError", LookupError),
    ),
    "a folder before the checks": Bug(
        "parameters", "allocated where", _replaced(flowmap.alloc, "output_path", _early)
    ),
}
