"""What differs on a network file system, played on a local one; real hosts are in faults."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowmap
from flowmap import cleaning, machine, sidecar, storage
from flowmap.cleaning import clean
from flowmap.errors import StorageError, TargetExistsError
from flowmap.ledger import create_ledger
from flowmap.machine import is_on_network
from flowmap.segments import plan_segments
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from flowmap.segments import Block


def ramp(out: NDArray[np.float64], block: Block) -> None:
    """Fill each row with its number."""
    out[:] = np.arange(block.start, block.stop)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every path pass for one on a network file system."""
    for module in ("storage", "ledger", "validation", "masking"):
        monkeypatch.setattr(f"flowmap.{module}.is_on_network", lambda _: True)


def test_local_file_systems(tmp_path: Path) -> None:
    """Neither a disk nor /proc is on a network; what the system does not say may be."""
    assert not is_on_network(tmp_path)
    assert not is_on_network("/proc")
    assert is_on_network(tmp_path / "missing")


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="is not Linux")
def test_the_kind_is_found_by_statfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What statfs(2) says of a file system decides."""
    monkeypatch.setattr(machine, "_NETWORK_MAGIC", {0x9FA0})  # linux/magic.h: proc
    assert is_on_network("/proc")
    assert not is_on_network(tmp_path)


class Host:
    """A host that has remembered that names are free, until it opens their folder.

    Args:
        free: The paths that it takes for free.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *free: Path) -> None:
        self._free = {os.fspath(path) for path in free}
        for name in ("stat", "lstat", "open"):
            monkeypatch.setattr(os, name, self._remembering(getattr(os, name)))

    def _remembering(self, call: Callable[..., Any]) -> Callable[..., Any]:
        opening = os.open

        def remembered(path: Any, *arguments: Any, **named: Any) -> Any:
            if call is opening and arguments[0] & os.O_DIRECTORY:
                self._free = {free for free in self._free if Path(free).parent != Path(path)}
            elif not isinstance(path, int) and os.fspath(path) in self._free:
                raise FileNotFoundError(2, "No such file or directory", path)
            return call(path, *arguments, **named)

        return remembered


def is_synchronous(descriptor: int) -> bool:
    """Return whether each write of an open file waits for the disk."""
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DSYNC)


class TestWriting:
    """No write takes bytes along that another host may have changed, and none lingers."""

    @pytest.mark.usefixtures("network")
    def test_each_write_of_an_attempt_is_synchronous(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows and records alike go to the server before the call returns."""
        target = flowmap.allocate(tmp_path / "a.npy", 4096, "<f8", segments=2)
        files = {sidecar.Sidecar.of(target.path).ledger.stat().st_ino: "records"}
        files[target.path.stat().st_ino] = "rows"
        real, seen = os.pwrite, set[tuple[str, bool]]()

        def pwrite(descriptor: int, *rest: Any) -> int:
            file = files.get(os.fstat(descriptor).st_ino)
            if file is not None:  # documents are new files, synced before they get their names
                seen.add((file, is_synchronous(descriptor)))
            return real(descriptor, *rest)

        monkeypatch.setattr(os, "pwrite", pwrite)
        flowmap.fill_segment(target.segments[0], ramp)
        flowmap.write_segment(target.segments[1], np.zeros(2048))
        assert flowmap.validate(target, mixed=True).ok
        flowmap.reset(target, 1)
        assert seen == {("rows", True), ("records", True)}

    def test_a_local_file_is_not_opened_so(self, tmp_path: Path) -> None:
        """On a disk of this host the page cache takes the writes."""
        (tmp_path / "a").write_bytes(b"a")
        with storage.opened(tmp_path / "a", write=True) as descriptor:
            assert not is_synchronous(descriptor)

    @pytest.mark.usefixtures("network")
    def test_the_page_is_read_from_the_server_at_each_look(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What this host remembers of the ledger is dropped before a page is read."""
        target = flowmap.allocate(tmp_path / "a.npy", 2048, "<f8", segments=2)
        calls = list[tuple[str, int]]()

        def noting(name: str, at: int) -> None:
            real = getattr(os, name)

            def call(*arguments: Any) -> Any:
                calls.append((name, arguments[at]))
                return real(*arguments)

            monkeypatch.setattr(os, name, call)

        with target.job.ledger() as records:
            noting("posix_fadvise", 1)
            noting("pread", 2)
            noting("preadv", 2)
            records.page(1)
            records.records(np.array([[0, 1024], [1024, 2048]]))
        first = calls[1][1] - PAGE
        # Of the whole file: the kernel keeps a large folio of which only a part is to go.
        assert calls == [
            ("posix_fadvise", 0),
            ("pread", first + PAGE),
            ("posix_fadvise", 0),
            ("preadv", first),
        ]


@pytest.mark.usefixtures("network")
def test_no_page_of_a_mapping_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was changed nowhere would be written over what another host wrote."""
    target = flowmap.allocate(tmp_path / "a.npy", 1024, "<f8", segments=2)
    taken = list[object]()
    monkeypatch.setattr("flowmap.mapped.take_pages", taken.append)
    for replace in (False, True):  # the second time there was an attempt before
        with flowmap.open_segment(target.segments[1], replace=replace) as out:
            out[:] = 1
    assert taken == []
    assert target.status()["state"].tolist() == ["pending", "done"]


class TestNamesOfAnotherHost:
    """A name that this host takes for free is not believed where that would cost data."""

    @pytest.fixture
    def done(self, tmp_path: Path) -> flowmap.Target:
        """Return a target that another host has filled and validated."""
        target = flowmap.allocate(tmp_path / "a.npy", 2048, "<f8", segments=2)
        flowmap.fill(target, ramp, executor="threads")
        flowmap.validate(target).raise_if_bad()
        return target

    @pytest.mark.parametrize("exist", ["resume", "error"])
    def test_allocate(
        self, done: flowmap.Target, monkeypatch: pytest.MonkeyPatch, exist: Any
    ) -> None:
        """A finished job is attached to or refused; its records stay."""
        names = sidecar.Sidecar.of(done.path)
        Host(monkeypatch, done.path, names.job, names.seal)
        if exist == "resume":
            found = flowmap.allocate(done.path, 2048, "<f8", segments=2)
            assert found.id == done.id
        else:
            with pytest.raises(TargetExistsError, match="exists already"):
                flowmap.allocate(done.path, 2048, "<f8", segments=2, exist="error")
        assert not done.pending()
        assert flowmap.validate(done).ok

    def test_a_target_whose_job_seems_missing(
        self, done: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not taken for a file that flowmap has not made."""
        names = sidecar.Sidecar.of(done.path)
        Host(monkeypatch, names.job, names.lock)
        assert flowmap.allocate(done.path, 2048, "<f8", segments=2).id == done.id

    @pytest.mark.parametrize("which", ["path", "job"])
    def test_opening(
        self, done: flowmap.Target, monkeypatch: pytest.MonkeyPatch, which: str
    ) -> None:
        """A target that another host has just made is found."""
        names = sidecar.Sidecar.of(done.path)
        Host(monkeypatch, done.path if which == "path" else names.job)
        assert flowmap.open_target(done.path).id == done.id

    @pytest.mark.parametrize("by", ["write_segment", "reset"])
    def test_a_seal(
        self, done: flowmap.Target, monkeypatch: pytest.MonkeyPatch, by: str
    ) -> None:
        """The seal of another host is lifted before a segment is filled again or reset."""
        names = sidecar.Sidecar.of(done.path)
        Host(monkeypatch, names.seal)
        if by == "reset":
            flowmap.reset(done, 0)
        else:
            flowmap.write_segment(done.segments[0], np.ones(1024), replace=True)
        assert not os.path.lexists(names.seal)
        assert done.path.stat().st_mode & 0o200

    def test_nothing_is_removed_before_the_name_is_free(
        self, done: flowmap.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A target that comes back while its successor is being built keeps its records."""
        done.path.rename(tmp_path / "away")

        def create(*arguments: Any) -> None:
            create_ledger(*arguments)
            (tmp_path / "away").rename(done.path)

        monkeypatch.setattr("flowmap.publication.create_ledger", create)
        with pytest.raises(TargetExistsError, match="appeared while"):
            flowmap.allocate(done.path, 99, "<f4")
        assert flowmap.open_target(done.path).id == done.id
        assert flowmap.validate(done).ok


class TestCleaning:
    """An NFS client keeps a removed file as .nfs... until its last process has closed it."""

    @pytest.fixture
    def kept(self, tmp_path: Path) -> Path:
        """Return the path of a valid target beside which such a file is."""
        target = flowmap.allocate(tmp_path / "a.npy", 8, "<f8")
        flowmap.fill(target, ramp, executor="threads")
        flowmap.validate(target).raise_if_bad()
        (sidecar.Sidecar.of(target.path).folder / ".nfs0000000000000042").touch()
        return target.path

    def test_a_file_that_is_closed_soon(
        self, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The folder is removed once the file is gone."""

        def close(_: float) -> None:
            for file in tmp_path.glob("*/.nfs*"):
                file.unlink()

        monkeypatch.setattr("time.sleep", close)
        assert len(clean(kept)) == 1
        assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]

    def test_a_file_that_stays_open(
        self, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error says so instead of "removed"; the next call removes the folder."""
        monkeypatch.setattr(cleaning, "_CLOSING_SECONDS", 0)
        with pytest.raises(StorageError, match="has one of its files open"):
            clean(kept)
        (file,) = tmp_path.glob(".*/.nfs*")
        file.unlink()
        assert clean(kept) == [file.parent]
        assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]


@given(
    st.integers(1, 300_000), st.integers(1, 10_000), st.integers(1, 300), st.integers(1, 10**6)
)
def test_the_advice_keeps_segments_apart(
    rows: int, row_bytes: int, asked: int, choice: int
) -> None:
    """Whatever the message suggests gives segments that share no page, and as many as said."""
    plan = plan_segments(rows, row_bytes, min(asked, rows))
    advice = plan.keeping_apart(row_bytes, PAGE, PAGE)
    if advice is None:
        assert not plan.shares_pages(row_bytes, PAGE, PAGE)
        return

    def apart(segments: Any, nbytes: int = row_bytes) -> int:
        found = plan_segments(rows, nbytes, segments, PAGE)
        assert found.keeping_apart(nbytes, PAGE, PAGE) is None
        return len(found)

    numbers = [int(number) for number in re.findall(r"\d+", advice.replace(",", ""))]
    if "segments=1" in advice:
        assert apart(1) == 1
        assert apart(min(asked, rows), numbers[-1]) == min(asked, rows)
        return
    align, chosen, *counts, unit = numbers
    assert (align, chosen) == (PAGE, apart(None))
    for count in counts:  # "a count of 2 to 5"
        apart(count)
    runs = [unit] * (rows // unit) + [rows % unit] * (rows % unit > 0)
    cut = choice % len(runs)
    apart([*runs[:cut], sum(runs[cut:])])
