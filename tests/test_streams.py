"""Closed standard streams: no file of flowmap's takes the place of one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import forked, wholeness

import flowmap
from flowmap.cleaning import clean
from flowmap.lease import leased
from flowmap.pilot import _write
from flowmap.shares import fill_here
from flowmap.streams import fill_closed_streams
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

CLOSED = [numbers for count in (1, 2, 3) for numbers in combinations(range(3), count)]


def noisy(out: Any, block: flowmap.Block) -> None:
    """Fill each row with its number, while a library of C prints to all streams."""
    out[...] = np.arange(block.start, block.stop)
    for number in range(3):
        ctypes.CDLL(None).dprintf(number, b"a library has something to say\n")


def close(numbers: Any = range(3)) -> None:
    """Close standard streams, as a daemon does, whatever Python has there."""
    for number in numbers:
        with contextlib.suppress(OSError):
            os.close(number)


@pytest.mark.parametrize("closed", CLOSED, ids=lambda numbers: "".join(map(str, numbers)))
def test_library_that_prints(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """What a library prints to a closed stream reaches neither the array nor a record."""

    def act() -> str:
        close(closed)
        target = flowmap.allocate(tmp_path / "a.npy", 1000, "<f8", segments=4, block_rows=100)
        flowmap.fill_segment(target.segments[0], noisy)
        close(closed)  # a program may become a daemon at any time
        flowmap.fill(target, noisy, executor="threads")
        target = flowmap.allocate(tmp_path / "b.npy", 1000, "<f8", segments=1)
        with flowmap.open_segment(target.segments[0]) as out:
            noisy(out, flowmap.Block(0, 1000))
        return f"{flowmap.validate(tmp_path / 'a.npy').ok} {flowmap.validate(target.path).ok}"

    assert forked(act) == "True True"
    for name in ("a.npy", "b.npy"):
        assert wholeness(tmp_path / name) == []
        np.testing.assert_array_equal(np.load(tmp_path / name), np.arange(1000.0))


def test_workers(tmp_path: Path) -> None:
    """Nor does it in worker processes, which are started without streams."""
    path = tmp_path / "a.npy"

    def act() -> str:
        close()
        with flowmap.executor("processes", 1) as pool:
            close()
            target = flowmap.allocate(path, 1000, "<f8", segments=4)
            flowmap.fill(target, noisy, executor=pool)
        return str(flowmap.validate(path).ok)

    assert forked(act) == "True"
    assert wholeness(path) == []
    np.testing.assert_array_equal(np.load(path), np.arange(1000.0))


class _Closing:
    """Closes the streams again at each call of a function of flowmap, and finds what took one.

    So every place that opens a file, duplicates a descriptor or maps a file must see to the
    streams itself, just before.
    """

    def __init__(self) -> None:
        self.found: set[str] = set()
        sys.addaudithook(self._heard)

    def see(self, frame: FrameType, event: str, _: object) -> None:
        """Look and close; a function for `sys.setprofile`."""
        code = frame.f_code
        if event == "call" and "/flowmap/" in code.co_filename and code is not _FILL:
            self.look(code.co_qualname)
            close()

    def look(self, where: str) -> None:
        """Note what has the place of a stream."""
        for number in range(3):
            with contextlib.suppress(OSError):
                taken = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 -- may be no path
                if taken != os.devnull:
                    self.found.add(f"{taken}, before {where}")

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        system = event == "open" and arguments[1] is None and arguments[0] != os.devnull
        if not (system or event == "mmap.__new__"):
            return
        for number in range(3):
            try:
                os.get_inheritable(number)
            except OSError:
                frame: Any = sys._getframe(1)
                self.found.add(f"{frame.f_code.co_qualname} opens {arguments[0]}")


_FILL = fill_closed_streams.__code__


def _use(folder: Path) -> Iterator[Callable[[], object]]:
    """Yield steps that open all kinds of files."""
    path, other, wide = (folder / name for name in ("a.npy", "b.npy", "wide.npy"))
    targets: list[flowmap.Target] = []
    kept: list[Any] = []
    yield lambda: targets.append(flowmap.allocate(path, (1000, 4), "<f8", segments=5))
    yield lambda: _write(targets[0].job, targets[0].segments[0], np.zeros(4096, np.uint8))
    yield lambda: _fill(targets[0])
    yield lambda: flowmap.validate(path)
    yield lambda: flowmap.reset(path, [1])
    yield lambda: _fill(targets[0])
    yield lambda: flowmap.validate(path)
    yield lambda: targets.append(flowmap.allocate(other, (1000, 4), "<f8", segments=2))
    yield lambda: flowmap.write_segment(targets[1].segments[0], np.zeros((500, 4)))
    yield lambda: _map(targets[1].segments[1])
    yield lambda: flowmap.open_memmap(wide, "w+", "<f8", (64, 4096), fortran_order=True)
    yield lambda: kept.append(flowmap.open_memmap(wide, "r+", shape=(16, 4096), offset=8))
    yield lambda: [each.flush() for each in kept]
    yield lambda: kept.append(flowmap.load(path, mmap_mode="r"))
    yield lambda: flowmap.load(path)
    yield lambda: kept.append(targets[0].asarray())
    yield lambda: clean(path)


def rows_of(out: Any, block: flowmap.Block) -> None:
    """Fill each row with its number."""
    out[...] = np.arange(block.start, block.stop)[:, None]


def _fill(target: flowmap.Target) -> None:
    """Fill a job as a run does, but in this thread."""
    with leased(target.job, "test"):
        fill_here(target, target.pending(), Work.of(rows_of))


def _map(segment: flowmap.Segment) -> None:
    with flowmap.open_segment(segment) as out:
        out[...] = 1


def test_every_file(tmp_path: Path) -> None:
    """Wherever a file is opened the streams are filled first: a place that forgets it fails."""

    def act() -> str:
        for step in _use(folder_of(tmp_path, "first")):
            step()  # imports what is imported late
        close()
        closing = _Closing()
        for step in _use(folder_of(tmp_path, "second")):
            sys.setprofile(closing.see)
            step()
            sys.setprofile(None)
            closing.look("the end")
        return f"found: {sorted(closing.found)}"

    assert forked(act) == "found: []"


def folder_of(path: Path, name: str) -> Path:
    """Make a folder in another."""
    (path / name).mkdir()
    return path / name
