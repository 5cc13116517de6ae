"""Links, pipes, folders and devices in every place: an error or success, and no harm done."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from harm import small_job, traced
from sabotage import sabotage

import flowmap
from flowmap.errors import FlowmapError, TargetExistsError
from flowmap.lease import leased
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from campaign import Figures

    from flowmap.target import Target

RECORDS: Final = (
    *("job.json", "ledger.npy", "run.json", "seal.json", "overwrite.json", "header.lock"),
    *(
        "failure-0.json",
        f"work-{'0' * 32}.json",
        f".target.{'0' * 32}",
        f".job.json.{'0' * 16}",
    ),
)
PLACES: Final = ("a.npy", "a.npy.flowmap", *(f"a.npy.flowmap/{name}" for name in RECORDS))
PRECIOUS: Final = b"not flowmap's\n" * 1000


class HungError(BaseException):
    """A call that does not return."""


def _linked(place: Path, precious: Path) -> None:
    place.symlink_to(precious)


def _linked_to_what_was_there(place: Path, precious: Path) -> None:
    place.symlink_to(precious.with_name("original"))


def _dangling(place: Path, precious: Path) -> None:
    place.symlink_to(precious.with_name("none"))


def _looping(place: Path, precious: Path) -> None:
    place.symlink_to(place)


def _linked_to_a_folder(place: Path, precious: Path) -> None:
    place.symlink_to(precious.parent)


def _hard_linked(place: Path, precious: Path) -> None:
    place.hardlink_to(precious)


def _folder(place: Path, precious: Path) -> None:
    place.mkdir()
    (place / "inner").write_bytes(PRECIOUS)


def _pipe(place: Path, precious: Path) -> None:
    os.mkfifo(place)


def _socket(place: Path, precious: Path) -> None:
    os.mknod(place, stat.S_IFSOCK | 0o600)


def _null(place: Path, precious: Path) -> None:
    os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def _zero(place: Path, precious: Path) -> None:
    os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))


KINDS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "link": _linked,
    "link to what was there": _linked_to_what_was_there,
    "dangling link": _dangling,
    "loop": _looping,
    "link to a folder": _linked_to_a_folder,
    "hard link": _hard_linked,
    "folder": _folder,
    "pipe": _pipe,
    "socket": _socket,
    "null": _null,
    "zero": _zero,
}
DEVICES: Final = ("null", "zero")


def _stored(target: Target) -> None:
    with flowmap.open_segment(target.segments[1]) as out:
        out[...] = 2


def _sealed(target: Target) -> None:
    for segment in target.segments:
        flowmap.fill_segment(segment, "arange")
    for _ in range(2):
        flowmap.validate(target)
    flowmap.reset(target, 0)


def _held(target: Target) -> None:
    with leased(target.job, "a run"):
        pass


def _allocated(exist: Any) -> Callable[[Target], object]:
    return lambda target: flowmap.allocate(
        target.path, 40, "<f8", segments=4, block_rows=3, exist=exist
    )


USES: Final[dict[str, Callable[[Target], object]]] = {
    "resume": _allocated("resume"),
    "error": _allocated("error"),
    "overwrite": _allocated("overwrite"),
    "open_target": lambda target: flowmap.open_target(target.path),
    "fill_segment": lambda target: flowmap.fill_segment(target.segments[1], "arange"),
    "write_segment": lambda target: flowmap.write_segment(target.segments[1], np.ones(10)),
    "open_segment": _stored,
    "seal": _sealed,
    "validate": flowmap.validate,
    "validate without a mark": lambda target: flowmap.validate(target, mark=False),
    "reset": lambda target: flowmap.reset(target, [0, 1]),
    "lease": _held,
    "status": lambda target: target.status(),
    "masked": lambda target: target.masked(),
    "load": lambda target: flowmap.load(target.path),
    "load a window": lambda target: flowmap.load(target.path, offset=1),
    "load masked": lambda target: flowmap.load(target.path, masked=True),
}
OF_NUMPY: Final = (OSError, ValueError, EOFError)
"""What `load` raises as `numpy.load` does, of what is neither a window nor masked."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Interrupt a block that takes longer."""

    def hung(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tree(folder: Path) -> dict[str, Any]:
    """Return all that is in a folder: kinds, permissions and times, and what files hold."""
    found = {}
    for entry in sorted(folder.rglob("*")):
        status = entry.lstat()
        content = entry.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(entry)] = (status.st_mode, status.st_mtime_ns, content)
    return found


class Stage:
    """A job, copied anew for each case, and a folder beside it that is nobody's business.

    Args:
        folder: Where.
        waits: Seconds after which a call hangs.
    """

    def __init__(self, folder: Path, waits: float = 20) -> None:
        self._folder, self._waits = folder, waits
        self.case, self.template = folder / "case", folder / "template"
        self.case.mkdir()
        self.target = small_job(self.case)
        flowmap.reset(self.target, range(4))
        self.case.rename(self.template)

    def _prepared(self, place: str, kind: str) -> Path:
        """Put what is hostile into its place; return the folder that must not change."""
        elsewhere = self._folder / "elsewhere"
        for folder in (self.case, elsewhere):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.template, self.case)
        elsewhere.mkdir()
        precious, there = elsewhere / "precious", self.case / place
        precious.write_bytes(PRECIOUS)
        if there.exists():
            there.rename(precious.with_name("original"))
        KINDS[kind](there, precious)
        return elsewhere

    def fault(self, place: str, kind: str, use: str) -> str:
        """Say what a use of the target does that it must not, or ""."""
        elsewhere = self._prepared(place, kind)
        before, names = tree(elsewhere), set(self._folder.iterdir())
        allowed = (FlowmapError, *(OF_NUMPY if use == "load" else ()))
        fault = ""
        try:
            with patience(self._waits):
                USES[use](self.target)
        except allowed:
            pass
        except BaseException as error:  # noqa: BLE001 -- it is what is looked for
            fault = f"raises {type(error).__name__}: {error}"
        if tree(elsewhere) != before:
            fault += " changes what is elsewhere"
        here = {entry.name for entry in self.case.iterdir()}
        if set(self._folder.iterdir()) != names or not here <= {"a.npy", "a.npy.flowmap"}:
            fault += " leaves files elsewhere"
        inner = self.case / place / "inner"
        if kind == "folder" and not (inner.exists() and inner.read_bytes() == PRECIOUS):
            fault += " empties the folder"
        return f"{kind} at {place}: {use} {fault}" if fault else ""


def test_each_use_succeeds_otherwise(tmp_path: Path) -> None:
    """None of them is refused for another reason, but for "error", which is for that."""
    stage = Stage(tmp_path)
    for name, use in USES.items():
        shutil.copytree(stage.template, stage.case)
        with pytest.raises(TargetExistsError) if name == "error" else contextlib.nullcontext():
            use(stage.target)
        shutil.rmtree(stage.case)


def _each(kind: str) -> Any:
    root = pytest.mark.system(packages="", root=True)
    return pytest.param(kind, marks=[root] if kind in DEVICES else [])


@pytest.mark.parametrize("kind", [_each(kind) for kind in KINDS])
def test_what_is_no_file_of_flowmaps_is_harmless(
    tmp_path: Path, figures: Figures, kind: str
) -> None:
    """Whatever has the name of the target or a record, it is not followed, nor waited for."""
    stage = Stage(tmp_path)
    cases = {(place, use) for place in PLACES for use in USES}
    if kind == "pipe":
        cases -= {("a.npy", "load")}  # numpy.load waits, and so does what is but that
    found = [stage.fault(place, kind, use) for place, use in sorted(cases)]
    assert not any(found), [fault for fault in found if fault]
    figures.add("hostile file", f"{kind} in the place of a file", len(found))


@pytest.mark.parametrize(
    ("name", "kind", "place", "use"),
    [
        ("links are followed", "link to what was there", f"{PLACES[1]}/ledger.npy", "reset"),
        ("links are followed", "link to what was there", f"{PLACES[1]}/ledger.npy", "seal"),
        ("pipes are waited for", "pipe", "a.npy", "validate"),
        ("pipes are waited for", "pipe", f"{PLACES[1]}/job.json", "open_target"),
        ("no look at the job of a lease", "link to a folder", PLACES[1], "lease"),
    ],
)
def test_harm_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, place: str, use: str
) -> None:
    """The same look finds the fault of a flowmap that follows links, or waits for pipes."""
    stage = Stage(tmp_path, waits=0.3)
    sabotage(name, monkeypatch.setattr)
    assert stage.fault(place, kind, use)


def test_the_target_is_linked_twice(tmp_path: Path, figures: Figures) -> None:
    """A second name of the target itself changes nothing: it is the file that is filled."""
    target = small_job(tmp_path)
    second = tmp_path / "second.npy"
    second.hardlink_to(target.path)
    flowmap.reset(target, 1)
    flowmap.fill_segment(target.segments[1], traced)
    assert flowmap.validate(target)
    old = second.read_bytes()
    _allocated("overwrite")(target)
    assert second.read_bytes() == old
    assert not Sidecar.of(second).folder.exists()
    figures.add("hostile file", "hard link to the target")
