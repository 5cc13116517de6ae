"""Another user flips a folder in FLOWMAP_ROOT and a link: nothing beyond it is touched."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import flowmap
from flowmap.errors import FlowmapError, InvalidArgumentError
from flowmap.lease import leased
from flowmap.root import LIMITS, Limits, rooted
from flowmap.sidecar import absolute
from flowmap.work import Work
from flowmap.write import fill_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowmap.target import Target

CALLS = ("open", "mkdir", "rename", "link", "unlink", "stat", "lstat", "scandir", "listdir")
SECRET = 777.0


class Flipper:
    """A folder in the root, `a`, and one beyond, to which a link in its place leads.

    Attributes:
        folder: The folder in the root.
        outside: The folder beyond, with a target of the same name.
        opened: Files beyond the root that were opened.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.outside = tmp_path / "root" / "a", tmp_path / "outside"
        self.opened: list[str] = []
        self._parked = self.folder.with_name("parked")
        self._patch = pytest.MonkeyPatch()
        self._busy = threading.Lock()

    def flip(self) -> None:
        """Put a link in the place of the folder."""
        self.folder.rename(self._parked)
        self.folder.symlink_to(self.outside)

    def flip_back(self) -> None:
        """Put the folder back, if it is not there."""
        if self.folder.is_symlink():
            self.folder.unlink()
            self._parked.rename(self.folder)

    def count(self, act: Callable[[], object], nth: int = 0, *, back: bool = False) -> int:
        """Act, with the folder flipped before the n-th call of the system.

        Args:
            act: What is done.
            nth: Which call, from 1; 0 for none.
            back: Whether the folder is flipped back after the call.

        Returns:
            How many calls there were.
        """
        calls, done = itertools.count(1), [0]

        def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                if self._busy.locked() or not self._concerns(arguments, options):
                    return call(*arguments, **options)
                done[0] = next(calls)
                if done[0] != nth:
                    return call(*arguments, **options)
                with self._busy:
                    self.flip()
                try:
                    result = call(*arguments, **options)
                finally:
                    with self._busy:
                        self.flip_back() if back else None
                if name == "open":
                    self._note(result)
                return result

            return counted

        with self._patch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, wrap(name, getattr(os, name)))
            for name in ("fsync", "fdatasync"):
                patch.setattr(os, name, lambda _: None)
            with contextlib.suppress(FlowmapError):
                act()
        self.flip_back()
        return done[0]

    def _concerns(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Say whether a call is about something in the folder, by a path or by a descriptor."""
        within = any(value is not None for name, value in options.items() if "dir_fd" in name)
        return within or str(arguments[0]).startswith(str(self.folder))

    def _note(self, descriptor: int) -> None:
        where = Path(f"/proc/self/fd/{descriptor}").readlink()
        if self.outside in where.parents and not where.is_dir():
            self.opened.append(str(where))


@pytest.fixture
def flipper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flipper]:
    """Make both folders, and set the root."""
    made = Flipper(tmp_path)
    made.folder.mkdir(parents=True)
    made.outside.mkdir()
    monkeypatch.setenv("FLOWMAP_ROOT", str(made.folder.parent))
    filled(made.outside / "x.npy", SECRET)
    yield made
    made.flip_back()


def filled(path: Path, value: float) -> Target:
    """Return a target of two segments, filled and sealed."""
    target = flowmap.allocate(path, 8, "<f8", segments=2)
    for segment in target.segments:
        flowmap.fill_segment(segment, "constant", {"value": value})
    assert flowmap.validate(target).sealed
    return target


def everything(folder: Path) -> dict[str, Any]:
    """Return all that a folder holds, with the times of change."""
    found = {}
    for entry in [folder, *sorted(folder.rglob("*"))]:
        of = entry.stat()
        content = entry.is_file() and entry.read_bytes()
        found[str(entry)] = (of.st_mode, of.st_ino, of.st_mtime_ns, content)
    return found


def _allocate() -> object:
    return flowmap.allocate(rooted("a/x.npy"), 8, "<f8", segments=2)


def _overwrite() -> object:
    return flowmap.allocate(rooted("a/x.npy"), 4, "<f8", segments=2, exist="overwrite")


def _fill() -> None:
    target = flowmap.open_target(rooted("a/x.npy"))
    with leased(target.job, "a run"):
        flowmap.fill_segment(target.segments[0], "arange")


def _write() -> None:
    for segment in flowmap.open_target(rooted("a/x.npy")).segments:
        flowmap.write_segment(segment, [1.0] * 4)


def _validate() -> object:
    return flowmap.validate(rooted("a/x.npy"))


def _reset() -> None:
    flowmap.reset(rooted("a/x.npy"), [0])


def _copy() -> None:
    out: Any = np.zeros(8)
    try:
        Work.of("copy", {"source": "a/x.npy"})(out, flowmap.Block(0, 8))
    finally:
        assert SECRET not in out


ACTS: dict[str, tuple[str, Callable[[], object]]] = {
    "allocate": ("nothing", _allocate),
    "overwrite": ("filled", _overwrite),
    "fill": ("pending", _fill),
    "write": ("pending", _write),
    "validate": ("filled", _validate),
    "reset": ("filled", _reset),
    "copy": ("filled", _copy),
}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc: run on Linux")
@pytest.mark.parametrize("back", [True, False])
@pytest.mark.parametrize("name", ACTS)
def test_at_each_call(flipper: Flipper, name: str, back: bool) -> None:
    """Whenever the folder is flipped, no file beyond the root is opened, made or removed."""
    begin, act = ACTS[name]
    before = flipper.folder.with_name("before")
    before.mkdir()
    if begin == "filled":
        filled(before / "x.npy", 1.0)
    elif begin == "pending":
        flowmap.allocate(before / "x.npy", 8, "<f8", segments=2)

    def start_anew() -> None:
        shutil.rmtree(flipper.folder)
        shutil.copytree(before, flipper.folder)

    start_anew()
    calls = flipper.count(act)
    assert calls > 5
    there = everything(flipper.outside)
    for nth in range(1, calls + 1):
        start_anew()
        flipper.count(act, nth, back=back)
        assert flipper.opened == [], f"flipped at call {nth} of {calls}"
        assert everything(flipper.outside) == there, f"flipped at call {nth} of {calls}"


def test_worker_without_the_root(flipper: Flipper, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits that a work carries hold for the whole attempt, not only for the filler."""
    target = flowmap.allocate(rooted("a/x.npy"), 8, "<f8", segments=2)
    work = Work.of("arange")
    monkeypatch.delenv("FLOWMAP_ROOT")
    there = everything(flipper.outside)
    flipper.flip()
    with pytest.raises(FlowmapError, match="Not a directory"):
        fill_work(target.segments[0], work)
    assert everything(flipper.outside) == there
    flipper.flip_back()
    assert fill_work(target.segments[0], work).state == "done"
    assert LIMITS.get() == Limits()


def test_path_that_leads_out_by_now(flipper: Flipper) -> None:
    """A path that was within when it was checked is not followed out of the root."""
    path = rooted("a/x.npy")
    flipper.flip()
    with pytest.raises(InvalidArgumentError, match="leads out of"):
        absolute(path)


def test_while_another_flips(flipper: Flipper) -> None:
    """As it happens: a thread flips as fast as it can."""
    there = everything(flipper.outside)
    ended = threading.Event()

    def flip() -> None:
        while not ended.is_set():
            flipper.flip()
            flipper.flip_back()

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for number in range(20):
            for act in (
                lambda: flowmap.allocate(rooted(f"a/{number}.npy"), 8, "<f8", segments=2),  # noqa: B023 -- called here
                _overwrite,
                _fill,
                _copy,
            ):
                with contextlib.suppress(FlowmapError, FileNotFoundError):  # between two flips
                    act()
    finally:
        ended.set()
        thread.join()
    assert everything(flipper.outside) == there
