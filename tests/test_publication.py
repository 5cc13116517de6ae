"""Publishing a target: cut short, failing and racing at every step, it stays all or nothing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import Counted

import flowmap
import flowmap.alloc
import flowmap.publication
from flowmap import storage
from flowmap.errors import DamagedJobError, FlowmapError, StorageError, TargetExistsError
from flowmap.fillers import arange
from flowmap.ledger import create_ledger
from flowmap.publication import make_folder
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN: dict[str, Any] = {"shape": (100, 3), "dtype": "<f8", "segments": 4}
CALLS = ("open", "mkdir", "ftruncate", "pwrite", "fsync", "rename", "link", "unlink")
TIDY = ["header.lock", "job.json", "ledger.npy"]


def allocate(path: Path, **changes: Any) -> flowmap.Target:
    """Allocate a small plain target, but for the changes."""
    return flowmap.allocate(path, **(PLAIN | changes))


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


def _begin(case: str, folder: Path) -> Path:
    """Prepare a folder for a case: nothing, a void sidecar, a filled job or a foreign file."""
    path = folder / "a.npy"
    if case == "foreign":
        np.save(path, np.arange(7))
    elif case != "fresh":
        flowmap.fill(allocate(path), arange, executor="threads", workers=1)
        assert flowmap.validate(path).ok
        if case == "void":
            path.unlink()
    return path


def _check_aftermath(case: str, path: Path, old: bytes | None) -> None:
    """Check that what was cut short is all or nothing, says so, and can be mended."""
    replaced = case in ("job", "foreign")
    try:
        target = flowmap.open_target(path)
    except FileNotFoundError:
        assert not replaced
    except DamagedJobError as error:
        assert replaced
        assert "cut short" in str(error)  # noqa: PT017 -- one of three outcomes
        with pytest.raises(DamagedJobError, match="cut short"):
            allocate(path)
        with pytest.raises(TargetExistsError):
            allocate(path, exist="error")
    except ValueError as error:
        assert case == "foreign"
        assert "not allocated by flowmap" in str(error)  # noqa: PT017 -- likewise
        assert path.read_bytes() == old
    else:
        if path.read_bytes() == old:
            assert target.pending() == []
            assert flowmap.validate(path).ok
        else:
            assert len(target.pending()) == 4
            assert not np.load(path).any()
        assert allocate(path).id == target.id
    mended = allocate(path, exist="overwrite" if replaced else "resume")
    assert len(mended.pending()) == 4
    assert not np.load(path).any()
    left = names(path.with_name("a.npy.flowmap"))
    assert [name for name in left if not name.startswith(".target.")] == TIDY
    anew = allocate(path, exist="overwrite")
    assert names(path.with_name("a.npy.flowmap")) == TIDY
    flowmap.fill(anew, arange, executor="threads", workers=1)
    assert flowmap.validate(path).ok


CASES = {"fresh": "resume", "void": "resume", "job": "overwrite", "foreign": "overwrite"}


class TestCutShort:
    """Killed, or failing, at each call of the operating system in turn."""

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child only exits
    @pytest.mark.parametrize("case", CASES)
    def test_killed(self, tmp_path: Path, case: str) -> None:
        """Killed before any call, what is left is the old, nothing, or named as not whole."""
        outcomes = Counter[int]()
        for nth in range(1, 200):
            folder = tmp_path / str(nth)
            folder.mkdir()
            path = _begin(case, folder)
            old = path.read_bytes() if path.exists() else None
            done = self._killed_at(nth, path, CASES[case])
            outcomes[done] += 1
            if not done:
                break
            _check_aftermath(case, path, old)
        assert outcomes[0] == 1
        assert outcomes[9] > 15
        assert set(outcomes) == {0, 9}

    @staticmethod
    def _killed_at(nth: int, path: Path, exist: str) -> int:
        child = os.fork()
        if child == 0:
            try:
                counted = Counted(nth, lambda: os._exit(9))
                for name in CALLS:
                    setattr(os, name, counted.wrap(getattr(os, name)))
                allocate(path, exist=exist)
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    @pytest.mark.parametrize("case", CASES)
    def test_failing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
        """A call that fails gives its errno, and leaves no bytes of what was being built."""
        number = errno.ENOSPC
        for nth in range(1, 200):
            folder = tmp_path / str(nth)
            folder.mkdir()
            path = _begin(case, folder)
            old = path.read_bytes() if path.exists() else None

            def fail() -> None:
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patch:
                counted = Counted(nth, fail)
                for name in CALLS:
                    patch.setattr(os, name, counted.wrap(getattr(os, name)))
                try:
                    allocate(path, exist=CASES[case])
                except FlowmapError as error:
                    assert isinstance(error, StorageError)  # noqa: PT017 -- or none, at last
                    assert error.errno == number  # noqa: PT017 -- likewise
                else:
                    if counted.left > 0:
                        break  # it takes no more calls
            if case == "fresh" and not path.exists():
                assert names(folder) in ([], ["a.npy.flowmap"])
                for left in folder.glob("a.npy.flowmap/*"):
                    assert (left.name, left.stat().st_size) == ("header.lock", 0)
            if not path.exists():
                assert not list(folder.glob("a.npy.flowmap/.*"))
            _check_aftermath(case, path, old)
        assert 15 < nth < 200

    @pytest.mark.parametrize("good", range(4))
    def test_failing_for_good(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int
    ) -> None:
        """A folder that cannot be synced any more, while tidying neither, keeps no records."""
        path, synced = tmp_path / "a.npy", itertools.count()
        sync = storage.sync_folder

        def refuse_from_now_on(folder: Path) -> None:
            if next(synced) >= good:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(folder)

        for module in (storage, flowmap.publication):
            monkeypatch.setattr(module, "sync_folder", refuse_from_now_on)
        with pytest.raises(StorageError) as caught:
            allocate(path)
        assert caught.value.errno == errno.EIO
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock"]
        monkeypatch.undo()
        assert len(allocate(path).pending()) == 4

    def test_interrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C at any step leaves a whole target, or no bytes."""
        for nth in range(1, 200):
            folder = tmp_path / str(nth)
            folder.mkdir()
            path = folder / "a.npy"

            def interrupt() -> None:
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                counted = Counted(nth, interrupt)
                for name in CALLS:
                    patch.setattr(os, name, counted.wrap(getattr(os, name)))
                with contextlib.suppress(KeyboardInterrupt):
                    allocate(path)
            if counted.left > 0:
                break
            if path.exists():
                assert len(flowmap.open_target(path).pending()) == 4
            else:
                for left in folder.glob("a.npy.flowmap/*"):
                    assert (left.name, left.stat().st_size) == ("header.lock", 0)
        assert 15 < nth < 200

    @pytest.mark.parametrize("hard_links", [True, False])
    def test_interrupted_once_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
    ) -> None:
        """Ctrl-C just after the target got its name leaves it whole, with its records."""
        link, rename = storage.link, os.rename

        def named(private: Path, path: Path) -> None:
            link(private, path) if hard_links else rename(private, path)
            raise KeyboardInterrupt

        monkeypatch.setattr(flowmap.publication, "link", named)
        with pytest.raises(KeyboardInterrupt):
            allocate(tmp_path / "a.npy")
        target = flowmap.open_target(tmp_path / "a.npy")
        assert len(target.pending()) == 4
        assert names(tmp_path / "a.npy.flowmap") == TIDY

    def test_old_ledger_never_vouches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While a target is replaced there is no `job.json`; its return is the last step."""
        path = _begin("job", tmp_path)
        job, seen = tmp_path / "a.npy.flowmap/job.json", []
        old = json.loads(job.read_text())["id"]
        rename = os.rename

        def watched(source: Any, destination: Any, **options: Any) -> None:
            seen.append((Path(destination).name, job.exists()))
            rename(source, destination, **options)

        monkeypatch.setattr(os, "rename", watched)
        new = allocate(path, exist="overwrite").id
        assert new != old
        assert seen == [
            ("overwrite.json", True),
            ("ledger.npy", False),
            ("a.npy", False),
            ("job.json", False),
        ]

    @pytest.mark.parametrize("document", ["job", "overwrite"])
    def test_no_space_for_a_document(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str
    ) -> None:
        """A disk that is full but for the data costs nothing of what was to be replaced."""
        path = _begin("job", tmp_path)
        old = path.read_bytes()
        before = names(tmp_path / "a.npy.flowmap")
        pwrite = os.pwrite

        def full(descriptor: int, data: Any, offset: int) -> int:
            name = Path(f"/proc/self/fd/{descriptor}").readlink().name
            if name.startswith(f".{document}.json."):
                raise OSError(errno.ENOSPC, "full")
            return pwrite(descriptor, data, offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StorageError, match="free some space"):
                allocate(path, exist="overwrite")
        assert path.read_bytes() == old
        assert names(tmp_path / "a.npy.flowmap") == before
        assert flowmap.open_target(path).pending() == []
        assert flowmap.validate(path).ok

    def test_name_of_the_ledger_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The new ledger replaces the old one: on a full XFS a new name cannot be had."""
        path, rename = _begin("job", tmp_path), os.rename
        replaced = []

        def watched(source: Any, destination: Any, **options: Any) -> None:
            if Path(destination).exists():
                replaced.append(Path(destination).name)
            rename(source, destination, **options)

        monkeypatch.setattr(os, "rename", watched)
        allocate(path, exist="overwrite")
        assert replaced == ["ledger.npy", "a.npy"]

    def test_records_that_go_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker that renames what it recorded does not cut an overwrite short."""
        path, glob = _begin("job", tmp_path), Path.glob

        def fleeting(folder: Path, pattern: str) -> Iterator[Path]:
            for entry in list(glob(folder, pattern)):
                if entry.name.startswith("work-"):
                    entry.unlink()
                yield entry

        monkeypatch.setattr(Path, "glob", fleeting)
        assert len(allocate(path, exist="overwrite").pending()) == 4

    @pytest.mark.parametrize("document", ["job.json", "overwrite.json"])
    def test_interrupted_once_renamed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str
    ) -> None:
        """Ctrl-C just after a document got its name comes out as such."""
        path, rename = _begin("job", tmp_path), os.rename

        def renamed(source: Any, destination: Any, **options: Any) -> None:
            rename(source, destination, **options)
            if Path(destination).name == document:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", renamed)
            with pytest.raises(KeyboardInterrupt):
                allocate(path, exist="overwrite")
        allocate(path, exist="overwrite")
        assert names(tmp_path / "a.npy.flowmap") == TIDY

    def test_intent_goes_with_its_target(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the target of an overwrite that was cut short is removed, all begins anew."""
        path = _begin("job", tmp_path)

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(errno.EIO, "no")

        with monkeypatch.context() as patch:
            patch.setattr(flowmap.publication, "_clear", fail)
            with pytest.raises(StorageError):
                allocate(path, exist="overwrite")
        assert (tmp_path / "a.npy.flowmap/overwrite.json").exists()
        path.unlink()
        allocate(path)
        assert names(tmp_path / "a.npy.flowmap") == TIDY

    def test_order_of_syncs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All that vouches for a new target is on disk before it gets its name."""
        steps: list[str] = []
        fsync, link, rename = os.fsync, os.link, os.rename

        def synced(descriptor: int) -> None:
            steps.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
            fsync(descriptor)

        def linked(source: Any, destination: Any, **options: Any) -> None:
            steps.append("link")
            link(source, destination, **options)

        def renamed(source: Any, destination: Any, **options: Any) -> None:
            steps.append(f"rename {Path(destination).name}")
            rename(source, destination, **options)

        for name, call in (("fsync", synced), ("link", linked), ("rename", renamed)):
            monkeypatch.setattr(os, name, call)
        target = allocate(tmp_path / "a.npy")
        tidy = [step.replace(target.id, "ID") for step in steps]
        folder, parent = "sync a.npy.flowmap", f"sync {tmp_path.name}"
        assert tidy[:2] == ["sync .target.ID", "sync .ledger.ID"]
        published = tidy.index("rename job.json")
        assert folder in tidy[tidy.index("rename ledger.npy") : published]
        assert tidy[published - 1].startswith("sync .job.json.")
        assert tidy[published:] == ["rename job.json", folder, parent, "link", parent]


STALE = (
    f".target.{'0' * 32}",
    f".ledger.{'a' * 32}",
    f".flowmap-probe.{'b' * 32}",
    f".job.json.{'1' * 16}",
    f".overwrite.json.{'2' * 16}",
)
FOREIGN = (".nfs000000000001", ".target.mine", f".seal.json.{'3' * 16}")


class TestStale:
    """What a killed allocation left behind goes with the next operation under the lock."""

    @staticmethod
    def _leave(path: Path) -> Path:
        sidecar = path.with_name("a.npy.flowmap")
        sidecar.mkdir(exist_ok=True)
        for name in (*STALE, *FOREIGN):
            (sidecar / name).write_text("left")
        return sidecar

    @pytest.mark.parametrize("exist", ["resume", "overwrite"])
    def test_removed_before_building(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exist: str
    ) -> None:
        """It keeps no space from what is built next; foreign files stay, and live ones."""
        path = tmp_path / "a.npy"
        if exist == "overwrite":
            allocate(path)
        sidecar = self._leave(path)
        seen: list[str] = []

        def full(*_: Any) -> None:
            seen.extend(names(sidecar))
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(flowmap.publication, "reserve", full)
        with pytest.raises(StorageError):
            allocate(path, exist=exist)
        assert not set(STALE) & set(seen)
        assert set(FOREIGN) < set(seen)

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child only exits
    def test_a_killed_reservation(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A build that was killed keeps its space no longer than to the next allocation."""
        path = tmp_path / "a.npy"
        child = os.fork()
        if child == 0:
            try:
                monkeypatch.setattr(
                    flowmap.publication, "create_ledger", lambda *_: os._exit(9)
                )
                allocate(path)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert any(name.startswith(".target.") for name in names(tmp_path / "a.npy.flowmap"))
        allocate(path)
        assert names(tmp_path / "a.npy.flowmap") == TIDY

    def test_second_name(self, tmp_path: Path) -> None:
        """A second hard link to the finished target goes when a run begins."""
        target = allocate(tmp_path / "a.npy")
        second = tmp_path / f"a.npy.flowmap/.target.{target.id}"
        os.link(target.path, second)
        assert allocate(target.path).id == target.id
        assert second.exists()  # attaching takes no lock
        flowmap.fill(target, arange, executor="threads", workers=1)
        assert not second.exists()
        assert target.path.stat().st_nlink == 1
        assert flowmap.validate(target.path).ok

    def test_attached_under_the_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever finds the job made by another, once it has the lock, tidies up as well."""
        path = tmp_path / "a.npy"

        def late(folder: Path) -> None:
            monkeypatch.setattr(flowmap.alloc, "make_folder", make_folder)
            allocate(path)
            self._leave(path)
            make_folder(folder)

        monkeypatch.setattr(flowmap.alloc, "make_folder", late)
        allocate(path)
        assert names(tmp_path / "a.npy.flowmap") == sorted((*TIDY, *FOREIGN))

    def test_not_removable(self, tmp_path: Path) -> None:
        """What cannot be removed keeps nobody from allocating."""
        stale = tmp_path / "a.npy.flowmap" / STALE[0]
        stale.mkdir(parents=True)
        flowmap.publication.remove_stale(Sidecar.of(tmp_path / "a.npy"))
        assert stale.exists()
        flowmap.publication.remove_stale(Sidecar.of(tmp_path / "nowhere.npy"))


class TestName:
    """Giving the whole file its name."""

    @pytest.fixture(params=["link", "rename"])
    def naming(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        """With hard links, and without."""
        if request.param == "rename":

            def refuse(*_: Any, **__: Any) -> None:
                raise OSError(errno.EPERM, "no hard links here")

            monkeypatch.setattr(os, "link", refuse)
        return str(request.param)

    def test_named(self, tmp_path: Path, naming: str) -> None:
        """Where there are no hard links a rename that replaces nothing does it."""
        target = allocate(tmp_path / "a.npy")
        assert names(tmp_path / "a.npy.flowmap") == TIDY
        assert target.path.stat().st_nlink == 1
        assert allocate(target.path).id == target.id

    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_taken_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naming: str, kind: str
    ) -> None:
        """What another program puts there meanwhile stays; nothing of ours is left."""
        path, link = tmp_path / "a.npy", storage.link

        def late(private: Path, name: Path) -> None:
            if kind == "file":
                name.write_text("mine")
            else:
                name.symlink_to(private)
            link(private, name)

        monkeypatch.setattr(flowmap.publication, "link", late)
        with pytest.raises(TargetExistsError, match="appeared while"):
            allocate(path)
        assert path.is_symlink() if kind == "link" else path.read_text() == "mine"
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock"]

    def test_taken_while_it_is_built(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naming: str
    ) -> None:
        """Nor is it replaced where it came before there was a name to give."""
        path = tmp_path / "a.npy"

        def late(*arguments: Any) -> None:
            path.write_text("mine")
            create_ledger(*arguments)

        monkeypatch.setattr(flowmap.publication, "create_ledger", late)
        with pytest.raises(TargetExistsError, match="appeared while"):
            allocate(path)
        assert path.read_text() == "mine"
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock"]

    def test_answered_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """NFS may say "exists" of the very link that it made: then all is well."""
        link = storage.link

        def repeated(private: Path, name: Path) -> None:
            link(private, name)
            raise FileExistsError(errno.EEXIST, "exists")

        monkeypatch.setattr(flowmap.publication, "link", repeated)
        target = allocate(tmp_path / "a.npy")
        assert flowmap.open_target(target.path).id == target.id

    def test_link_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Any other failure of the link is no reason to try it otherwise."""

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EDQUOT, "quota")

        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(StorageError, match="free some space") as caught:
            allocate(tmp_path / "a.npy")
        assert caught.value.errno == errno.EDQUOT
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock"]
