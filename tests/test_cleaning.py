"""Cleaning: the records go at once and whole, or stay, whoever is killed or races."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import pytest
from support import ORDINARY, Counted, flip, run, script, sealed, snapshot, states

import flowmap
from flowmap import cleaning
from flowmap import locks as locks_module
from flowmap.claims import Claim
from flowmap.cleaning import clean
from flowmap.documents import publish_json, read_json
from flowmap.errors import (
    DamagedJobError,
    FlowmapError,
    ForeignFileError,
    JobBusyError,
    LockTimeoutError,
    NotFoundError,
    NotValidatedError,
    OtherJobError,
    StorageError,
)
from flowmap.exporting import export, read_export
from flowmap.kernel import job_mark
from flowmap.lease import leased
from flowmap.locks import header_lock
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE, opened, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flowmap.target import Target

VALUES = np.arange(12.0).reshape(6, 2)


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


def mark_of(path: Path) -> str | None:
    """Return the id of the job that a file is marked with."""
    with opened(path) as descriptor:
        return job_mark(descriptor)


def leftover(target: Target) -> Path:
    """Return the private name that the records of a target get."""
    return target.path.with_name(f".{target.path.name}.flowmap.cleaned.{target.id}")


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Return a sealed target of three segments."""
    return sealed(tmp_path / "a.npy", VALUES)


SHAPES = {
    "plain": (VALUES, False),
    "no segments": (np.zeros((0, 3)), False),
    "Fortran order": (np.arange(24.0).reshape(4, 6), True),
    "no axes": (np.array(7.0), False),
}


class TestCleaned:
    """What is left, and what becomes of it."""

    @pytest.mark.parametrize("case", SHAPES)
    def test_only_the_array_is_left(self, tmp_path: Path, case: str) -> None:
        """The target is as it was, read-only; its records and its mark are gone."""
        values, fortran_order = SHAPES[case]
        target = sealed(tmp_path / "a.npy", values, fortran_order=fortran_order)
        content = target.path.read_bytes()
        assert mark_of(target.path) in (target.id, None)
        assert clean(target.path) == [tmp_path / "a.npy.flowmap"]
        assert names(tmp_path) == ["a.npy"]
        assert target.path.read_bytes() == content
        assert stat.S_IMODE(target.path.stat().st_mode) == 0o444
        assert mark_of(target.path) is None
        np.testing.assert_array_equal(np.load(target.path), values)

    def test_flowmap_knows_it_no_more(self, target: Target) -> None:
        """It is a foreign file, which only an overwrite touches; nothing is made beside it."""
        clean(target)
        for act in (
            lambda: clean(target.path),
            lambda: flowmap.open_target(target.path),
            lambda: flowmap.allocate(target.path, (6, 2), "f8"),
            lambda: flowmap.fill_segment(target.segments[0], "flowmap.fillers:arange"),
            lambda: flowmap.fill(target, "flowmap.fillers:arange", executor="threads"),
            lambda: flowmap.reset(target.path, 0),
            lambda: flowmap.validate(target.path),
        ):
            with pytest.raises(ForeignFileError):
                act()
            assert names(target.path.parent) == ["a.npy"]
        anew = flowmap.allocate(target.path, (6, 2), "f8", exist="overwrite")
        assert len(anew.pending()) == len(anew.segments)

    def test_exported_first(self, target: Target, tmp_path: Path) -> None:
        """The export outlives what it is of."""
        file = tmp_path / "export.json"
        clean(target, export_to=file)
        assert names(tmp_path) == ["a.npy", "export.json"]
        assert read_export(file)["job"]["id"] == target.id
        assert read_export(file)["summary"]["state"] == "valid"

    def test_every_file_of_flowmaps(self, target: Target, tmp_path: Path) -> None:
        """What killed allocations, validations and leases have left goes, too."""
        folder = Sidecar.of(target.path).folder
        for name in (
            f".target.{'0' * 32}",
            f".ledger.{'1' * 32}",
            f".flowmap-probe.{'8' * 32}",
            f".job.json.{'2' * 16}",
            f".seal.json.{'3' * 16}",
            f".run.json.{'4' * 16}",
            f".work-{'5' * 32}.json.{'6' * 16}",
            f"work-{'7' * 32}.json",
            "overwrite.json",
            "run.json",
        ):
            (folder / name).write_text("{}")
        assert clean(target) == [folder]
        assert names(tmp_path) == ["a.npy"]

    def test_lock_that_is_gone(self, target: Target, tmp_path: Path) -> None:
        """A folder without its lock file, as a copy may be, can be cleaned."""
        Sidecar.of(target.path).lock.unlink()
        clean(target)
        assert names(tmp_path) == ["a.npy"]

    @pytest.mark.parametrize("length", [200, 201, 206, 247])
    def test_long_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
    ) -> None:
        """Where the private name would be too long it is another, found all the same."""
        target = sealed(tmp_path / ("n" * length), VALUES)
        with monkeypatch.context() as patch:
            patch.setattr(cleaning, "_empty", interrupted)
            with pytest.raises(KeyboardInterrupt):
                clean(target)
        left = [name for name in names(tmp_path) if name != target.path.name]
        assert len(left) == 1
        assert left[0].endswith(f".flowmap.cleaned.{target.id}")
        assert clean(target.path) == [tmp_path / left[0]]
        assert names(tmp_path) == [target.path.name]

    CLEAN = """
    import os, sys
    from flowmap.cleaning import clean
    from flowmap.kernel import job_mark
    from flowmap.storage import opened
    with opened(sys.argv[1]) as descriptor:
        assert job_mark(descriptor) is not None
        clean(sys.argv[1])
        assert job_mark(descriptor) is None
    """

    @pytest.mark.system("setpriv", packages="util-linux")
    def test_by_an_ordinary_user(self, target: Target, tmp_path: Path) -> None:
        """Whoever may not write to the read-only file takes its mark all the same."""
        if mark_of(target.path) is None:
            pytest.skip("no extended attributes here: set TMPDIR to a folder on ext4 or XFS")
        command = script(self.CLEAN, target.path)
        child = run([*ORDINARY, *command] if os.geteuid() == 0 else command)
        assert child.returncode == 0, child.stderr
        assert names(tmp_path) == ["a.npy"]
        assert stat.S_IMODE(target.path.stat().st_mode) == 0o444

    def test_mark_of_somebody_elses(
        self, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A mark that this user may not remove stays, and keeps nobody from anything."""

        def denied(*_: Any) -> None:
            raise PermissionError(errno.EPERM, "not yours")

        monkeypatch.setattr(os, "fchmod", denied)
        monkeypatch.setattr(os, "removexattr", denied, raising=False)
        clean(target)
        assert names(tmp_path) == ["a.npy"]
        monkeypatch.undo()
        flowmap.allocate(target.path, 3, "f8", exist="overwrite")


def interrupted(*_: Any) -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def _reset(target: Target) -> None:
    flowmap.reset(target, 1)


def _unsealed(target: Target) -> None:
    Sidecar.of(target.path).seal.unlink()


def _damaged_seal(target: Target) -> None:
    flip(Sidecar.of(target.path).seal, 20)


def _seal_of_another_job(target: Target) -> None:
    path = Sidecar.of(target.path).seal
    publish_json(path, read_json(path) | {"job": "0" * 32})


def _seal_of_other_bytes(target: Target) -> None:
    path = Sidecar.of(target.path).seal
    publish_json(path, read_json(path) | {"digest": "0" * 32})


def _torn_ledger(target: Target) -> None:
    path = Sidecar.of(target.path).ledger
    first = path.stat().st_size - 3 * PAGE
    for slot in range(16):
        flip(path, first + slot * 256 + 100)


def _no_ledger(target: Target) -> None:
    Sidecar.of(target.path).ledger.unlink()


def _short_ledger(target: Target) -> None:
    os.truncate(Sidecar.of(target.path).ledger, PAGE)


def _longer(target: Target) -> None:
    target.path.chmod(0o644)
    with target.path.open("ab") as file:
        file.write(b"x")


def _other_header(target: Target) -> None:
    flip(target.path, 20)


def _damaged_job(target: Target) -> None:
    flip(Sidecar.of(target.path).job, 20)


def _foreign_file(target: Target) -> None:
    (Sidecar.of(target.path).folder / "notes.txt").write_text("mine")


def _foreign_json(target: Target) -> None:
    (Sidecar.of(target.path).folder / "work-mine.json").write_text("mine")


def _foreign_folder(target: Target) -> None:
    (Sidecar.of(target.path).folder / f"work-{'0' * 32}.json").mkdir()


def _foreign_link(target: Target) -> None:
    (Sidecar.of(target.path).folder / "run.json").symlink_to("job.json")


def _linked_folder(target: Target) -> None:
    folder = Sidecar.of(target.path).folder
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def _no_target(target: Target) -> None:
    target.path.unlink()


REFUSED: dict[Callable[[Target], None], tuple[type[FlowmapError], str]] = {
    _reset: (NotValidatedError, "1 of 3 segments are not done"),
    _unsealed: (NotValidatedError, "no whole seal"),
    _damaged_seal: (NotValidatedError, "no whole seal"),
    _seal_of_another_job: (NotValidatedError, "no whole seal"),
    _seal_of_other_bytes: (NotValidatedError, "other digests"),
    _torn_ledger: (NotValidatedError, "1 of 3 segments are not done"),
    _no_ledger: (DamagedJobError, "missing"),
    _short_ledger: (DamagedJobError, "bytes instead of"),
    _longer: (DamagedJobError, "bytes, where"),
    _other_header: (DamagedJobError, "another header"),
    _damaged_job: (DamagedJobError, "damaged"),
    _foreign_file: (ForeignFileError, r"notes\.txt"),
    _foreign_json: (ForeignFileError, r"work-mine\.json"),
    _foreign_folder: (ForeignFileError, r"work-0+\.json"),
    _foreign_link: (ForeignFileError, r"run\.json"),
    _linked_folder: (DamagedJobError, "is a link"),
    _no_target: (NotFoundError, "no target"),
}


class TestRefused:
    """What is refused is left as it is, to the byte."""

    @pytest.mark.parametrize("harm", REFUSED, ids=lambda harm: harm.__name__.strip("_"))
    def test_whatever_is_not_whole(
        self, target: Target, tmp_path: Path, harm: Callable[[Target], None]
    ) -> None:
        """The error names what is wrong; nothing is removed, and nothing exported."""
        harm(target)
        before, listed = snapshot(target.path), names(tmp_path)
        kind, match = REFUSED[harm]
        with pytest.raises(kind, match=match):
            clean(target.path, export_to=tmp_path / "export.json")
        assert snapshot(target.path) == before
        assert names(tmp_path) == listed

    def test_not_done_yet(self, tmp_path: Path) -> None:
        """A job that nobody has filled keeps its records."""
        target = flowmap.allocate(tmp_path / "a.npy", 3, "f8")
        with pytest.raises(NotValidatedError, match="not done"):
            clean(target)
        assert len(flowmap.open_target(target.path).pending()) == 1

    def test_while_a_run_has_it(self, target: Target) -> None:
        """The error names the run; a lease that is void is no reason."""
        with leased(target.job, "the run"):
            with pytest.raises(JobBusyError, match="the run") as caught:
                clean(target)
            assert vars(caught.value)["run"] == "the run"
            lease = read_json(Sidecar.of(target.path).run)
        assert target.pending() == []
        publish_json(Sidecar.of(target.path).run, lease | {"refreshed": time.time() - 61})
        clean(target)

    def test_the_lock_is_held(self, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is looked at, let alone removed, while another has the lock."""
        monkeypatch.setattr(
            cleaning, "header_lock", lambda folder: header_lock(folder, timeout=0.05)
        )
        with (
            header_lock(Sidecar.of(target.path).folder),
            pytest.raises(LockTimeoutError),
        ):
            clean(target)
        assert flowmap.validate(target).sealed

    def test_a_job_that_was_replaced(self, target: Target) -> None:
        """A target that was opened is cleaned only while the path is its own."""
        anew = flowmap.allocate(target.path, 3, "f8", exist="overwrite")
        with pytest.raises(OtherJobError):
            clean(target)
        assert flowmap.open_target(target.path).id == anew.id

    def test_export_that_cannot_be(self, target: Target, tmp_path: Path) -> None:
        """Nothing is removed where the export was not written."""
        (tmp_path / "export.json").write_text("mine")
        for place, kind in (
            (tmp_path / "export.json", ForeignFileError),
            (tmp_path / "nowhere/export.json", NotFoundError),
            (Sidecar.of(target.path).folder / "export.json", ValueError),
        ):
            with pytest.raises(kind):
                clean(target, export_to=place)
            assert flowmap.validate(target).sealed
        assert (tmp_path / "export.json").read_text() == "mine"

    DENIED = """
    import sys
    from flowmap.cleaning import clean
    from flowmap.errors import AccessDeniedError
    try:
        clean(sys.argv[1])
    except AccessDeniedError as error:
        print(error)
    """

    @pytest.mark.system("setpriv", packages="util-linux")
    @pytest.mark.parametrize("which", ["records", "target's", "both"])
    def test_folder_that_may_only_be_read(
        self, target: Target, tmp_path: Path, which: str
    ) -> None:
        """Whoever may not write to the folder of the records, or the one around, is told."""
        folder = Sidecar.of(target.path).folder
        closed = {"records": [folder], "target's": [tmp_path], "both": [folder, tmp_path]}
        for path in (*folder.iterdir(), *closed[which]):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if which == "target's":
            Sidecar.of(target.path).lock.chmod(0o644)
        before, listed = snapshot(target.path), names(tmp_path)
        command = script(self.DENIED, target.path)
        child = run([*ORDINARY, *command] if os.geteuid() == 0 else command)
        assert child.returncode == 0, child.stderr
        wanted = "cannot take the records away" if which == "target's" else "header lock"
        assert wanted in child.stdout
        assert snapshot(target.path) == before
        assert names(tmp_path) == listed
        for path in (tmp_path, folder):
            path.chmod(0o755)


CALLS = ("open", "pwrite", "fsync", "rename", "link", "unlink", "rmdir", "fchmod")


def count(counted: Counted, patch: Callable[[Any, str, Any], None]) -> None:
    """Count calls of the operating system from now on."""
    for name in (*CALLS, *(["removexattr"] if hasattr(os, "removexattr") else [])):
        patch(os, name, counted.wrap(getattr(os, name)))


def go_on(path: Path, file: Path | None, job: str) -> str:
    """Check what a clean that was cut short has left, and clean again; return what it was."""
    folder = path.parent
    content = np.load(path)
    np.testing.assert_array_equal(content, VALUES)
    left = [name for name in names(folder) if name.startswith(".a.npy.flowmap.cleaned.")]
    try:
        target = flowmap.open_target(path)
    except ForeignFileError:
        outcome = "gone" if left else "clean"
    else:
        outcome = "whole"
        assert left == []
        assert target.id == job
        assert target.pending() == []
        assert flowmap.validate(target, mark=False).ok
        assert Sidecar.of(path).seal.exists()
    if outcome != "clean":
        assert len(clean(path, export_to=file)) == 1
    assert [n for n in names(folder) if not n.startswith(".export.")] == [
        "a.npy",
        *(["export.json"] if file is not None else []),
    ]
    if file is not None:
        assert read_export(file)["job"]["id"] == job
        assert read_export(file)["summary"]["state"] == "valid"
    with pytest.raises(ForeignFileError):
        clean(path)
    return outcome


class TestCutShort:
    """Killed, failing or interrupted at each call of the operating system in turn."""

    @staticmethod
    def _prepared(folder: Path, exported: bool) -> tuple[Target, Path | None]:
        folder.mkdir()
        return sealed(folder / "a.npy", VALUES), folder / "export.json" if exported else None

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child only exits
    @pytest.mark.parametrize("exported", [False, True])
    def test_killed(self, tmp_path: Path, exported: bool) -> None:
        """Killed before any call, the job is whole, or the next call goes on to the end."""
        outcomes = Counter[str]()
        for nth in range(1, 200):
            target, file = self._prepared(tmp_path / str(nth), exported)
            child = os.fork()
            if child == 0:
                try:
                    count(Counted(nth, lambda: os._exit(9)), setattr)
                    clean(target.path, export_to=file)
                    os._exit(0)
                finally:
                    os._exit(1)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == 0:
                break
            assert code == 9
            outcomes[go_on(target.path, file, target.id)] += 1
        assert outcomes["whole"] > 8
        assert outcomes["gone"] > 8
        assert outcomes["clean"] > 0

    @pytest.mark.parametrize("exported", [False, True])
    @pytest.mark.parametrize("how", ["EIO", "Ctrl-C"])
    def test_failing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, exported: bool
    ) -> None:
        """A call that fails, or Ctrl-C, is told, and costs no more than a kill does."""

        def fail() -> None:
            if how == "Ctrl-C":
                raise KeyboardInterrupt
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        outcomes = Counter[str]()
        for nth in range(1, 200):
            target, file = self._prepared(tmp_path / str(nth), exported)
            with monkeypatch.context() as patch:
                counted = Counted(nth, fail)
                count(counted, patch.setattr)
                try:
                    clean(target.path, export_to=file)
                except (FlowmapError, KeyboardInterrupt):
                    told = True
                else:
                    told = False
            if counted.left > 0:
                break
            outcomes[go_on(target.path, file, target.id) + (" and told" if told else "")] += 1
        assert counted.left > 0
        assert outcomes["whole and told"] > 8
        assert outcomes["gone and told"] > 4
        assert set(outcomes) <= {"whole and told", "gone and told", "clean and told", "clean"}

    def test_export_of_a_killed_call(
        self, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What can be exported no more, and was not, is told; what was stands."""
        file = tmp_path / "export.json"
        for before, kind in (
            (None, NotFoundError),
            ("another", ForeignFileError),
            ("it", None),
        ):
            if before == "another":
                export(flowmap.allocate(tmp_path / "b.npy", 3, "f8"), file)
            with monkeypatch.context() as patch:
                patch.setattr(cleaning, "_empty", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    clean(target, export_to=file if before == "it" else None)
            if kind is None:
                assert clean(target.path, export_to=file) == [leftover(target)]
            else:
                with pytest.raises(kind):
                    clean(target.path, export_to=file)
            target.path.unlink()
            target = sealed(target.path, VALUES)


class TestLeftovers:
    """What killed calls have left beside the target."""

    def test_not_decided_yet(self, target: Target, tmp_path: Path) -> None:
        """A folder with all its records is put back, and cleaned from the beginning."""
        folder = Sidecar.of(target.path).folder
        folder.rename(leftover(target))
        assert clean(target.path) == [folder]
        assert names(tmp_path) == ["a.npy"]

    def test_reset_before_the_kill(self, target: Target) -> None:
        """A job that is not whole any more is put back, refused, and can be mended."""
        flowmap.reset(target, 1)
        Sidecar.of(target.path).folder.rename(leftover(target))
        with pytest.raises(NotValidatedError, match="1 of 3 segments"):
            clean(target.path)
        assert states(flowmap.open_target(target.path)) == ["done", "pending", "done"]

    def test_target_was_replaced_since(self, target: Target, tmp_path: Path) -> None:
        """The records of a file that is gone are removed; the file in its place stays."""
        Sidecar.of(target.path).folder.rename(leftover(target))
        target.path.unlink()
        np.save(target.path, np.arange(3))
        assert clean(target.path) == [leftover(target)]
        assert names(tmp_path) == ["a.npy"]
        np.testing.assert_array_equal(np.load(target.path), np.arange(3))

    def test_target_is_gone(self, target: Target, tmp_path: Path) -> None:
        """Likewise where there is no file any more."""
        Sidecar.of(target.path).folder.rename(leftover(target))
        target.path.unlink()
        assert clean(target.path) == [leftover(target)]
        assert names(tmp_path) == []
        with pytest.raises(NotFoundError):
            clean(target.path)

    @pytest.mark.parametrize("done", [False, True])
    def test_another_job_has_the_place(
        self, target: Target, tmp_path: Path, done: bool
    ) -> None:
        """Records of the job before are removed, whatever becomes of the one that is there."""
        Sidecar.of(target.path).folder.rename(leftover(target))
        anew = flowmap.allocate(target.path, (6, 2), "f8", segments=3, exist="overwrite")
        if done:
            anew = sealed(target.path, VALUES)
            assert clean(target.path) == [leftover(target), Sidecar.of(target.path).folder]
            assert names(tmp_path) == ["a.npy"]
        else:
            with pytest.raises(NotValidatedError):
                clean(target.path)
            assert names(tmp_path) == ["a.npy", "a.npy.flowmap"]
            assert flowmap.open_target(target.path).id == anew.id

    def test_decided_and_allocated_anew(
        self, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The mark of the next job is not taken for that of the one before."""
        with monkeypatch.context() as patch:
            patch.setattr(cleaning, "_empty", interrupted)
            with pytest.raises(KeyboardInterrupt):
                clean(target)
        assert not (leftover(target) / "job.json").exists()
        anew = flowmap.allocate(target.path, 3, "f8", exist="overwrite")
        before = mark_of(target.path)
        with pytest.raises(NotValidatedError):
            clean(target.path)
        assert mark_of(target.path) == before
        assert flowmap.open_target(target.path).id == anew.id
        assert names(tmp_path) == ["a.npy", "a.npy.flowmap"]

    def test_foreign_file_in_it(self, target: Target) -> None:
        """It is named, and nothing is removed."""
        Sidecar.of(target.path).folder.rename(leftover(target))
        (leftover(target) / "notes.txt").write_text("mine")
        listed = names(leftover(target))
        with pytest.raises(ForeignFileError, match=r"notes\.txt"):
            clean(target.path)
        assert names(leftover(target)) == listed

    def test_what_only_looks_like_it(self, target: Target, tmp_path: Path) -> None:
        """Links, files, another target's and other names are no leftovers of this one."""
        prefix = ".a.npy.flowmap.cleaned."
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious/ledger.npy").write_text("mine")
        (tmp_path / f"{prefix}{'0' * 32}").symlink_to("precious")
        (tmp_path / f"{prefix}{'1' * 32}").write_text("mine")
        (tmp_path / f"{prefix}{'g' * 32}").mkdir()
        (tmp_path / f"{prefix}{'2' * 31}").mkdir()
        (tmp_path / f".b.npy.flowmap.cleaned.{'3' * 32}").mkdir()
        before = names(tmp_path)
        clean(target)
        assert names(tmp_path) == [name for name in before if name != "a.npy.flowmap"]
        assert (tmp_path / "precious/ledger.npy").read_text() == "mine"

    def test_damaged_on_disk(self, target: Target, tmp_path: Path) -> None:
        """Records that nobody can read any more are removed."""
        flip(Sidecar.of(target.path).job, 20)
        Sidecar.of(target.path).folder.rename(leftover(target))
        assert clean(target.path) == [leftover(target)]
        assert names(tmp_path) == ["a.npy"]

    def test_disk_that_cannot_be_read(
        self, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What may be good records is not removed because it cannot be looked at."""
        Sidecar.of(target.path).folder.rename(leftover(target))
        before = names(leftover(target))

        def unreadable(*_: Any) -> Any:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(cleaning, "read_json", unreadable)
            with pytest.raises(StorageError, match="still wanted"):
                clean(target.path)
        assert set(names(leftover(target))) == {*before, "header.lock"}
        clean(target.path)

    def test_a_call_that_lives_has_it(
        self, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second call waits for the first, which may still put its folder back."""
        real = sync_folder

        def look(folder: Path) -> None:
            if folder == target.path.parent:
                with (
                    pytest.raises(LockTimeoutError),
                    header_lock(leftover(target), timeout=0.05),
                ):
                    pass
            real(folder)

        monkeypatch.setattr(cleaning, "sync_folder", look)
        monkeypatch.setattr(cleaning, "_drop", lambda private: None)
        clean(target)
        assert names(leftover(target)) == ["header.lock"]


WAYS: dict[str, tuple[str, Callable[[Target], object]]] = {
    "reset": ("resetting", lambda target: flowmap.reset(target, 1)),
    "write": (
        "attempt",
        lambda target: flowmap.write_segment(target.segments[1], np.ones((2, 2)), replace=True),
    ),
    "validate": ("validation", flowmap.validate),
}


class TestMeanwhile:
    """What fills or resets takes no lock: it sees that the records go, or is seen."""

    @pytest.mark.parametrize("what", ["claim", "seal", "foreign file"])
    def test_seen_and_put_back(
        self, target: Target, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        """What changed while the folder was renamed keeps it: it gets its name back."""
        real = sync_folder
        with target.job.ledger(write=True) as ledger:

            def change(folder: Path) -> None:
                if leftover(target).exists():
                    if what == "claim":
                        Claim(ledger, ledger.read(1, 2, 4), "", state="running")
                    elif what == "seal":
                        (leftover(target) / "seal.json").unlink(missing_ok=True)
                    else:
                        (leftover(target) / "notes.txt").write_text("mine")
                real(folder)

            with monkeypatch.context() as patch:
                patch.setattr(cleaning, "sync_folder", change)
                kind = ForeignFileError if what == "foreign file" else NotValidatedError
                with pytest.raises(kind, match=r"while it was|notes\.txt"):
                    clean(target)
        assert names(target.path.parent) == ["a.npy", "a.npy.flowmap"]
        again = flowmap.open_target(target.path)
        assert len(again.pending()) == (what == "claim")
        assert mark_of(target.path) in (target.id, None)

    def test_the_place_was_taken(self, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where another job is allocated meanwhile the records stay aside, and are named."""
        real = sync_folder

        def change(folder: Path) -> None:
            if leftover(target).exists():
                (leftover(target) / "seal.json").unlink(missing_ok=True)
                with monkeypatch.context() as patch:
                    patch.setattr(cleaning, "sync_folder", real)
                    flowmap.allocate(target.path, 3, "f8", exist="overwrite")
            real(folder)

        monkeypatch.setattr(cleaning, "sync_folder", change)
        with pytest.raises(OtherJobError, match=r"[Tt]he records of that one are in \.a\.npy"):
            clean(target)
        monkeypatch.undo()
        assert len(flowmap.open_target(target.path).pending()) == 1
        with pytest.raises(NotValidatedError):
            clean(target.path)
        assert names(target.path.parent) == ["a.npy", "a.npy.flowmap"]

    @pytest.mark.parametrize("way", WAYS)
    def test_claimed_too_late(
        self, target: Target, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        """A claim in a ledger that is removed already is found out; no byte is written."""
        module, act = WAYS[way]
        if way == "validate":
            target.path.chmod(0o644)
            flip(target.path, target.job.data_offset + 40)
            target.path.chmod(0o444)
        content = target.path.read_bytes()

        def late(*arguments: Any, **options: Any) -> Claim:
            if Sidecar.of(target.path).folder.exists():
                clean(target.path)
            return Claim(*arguments, **options)

        monkeypatch.setattr("flowmap.sealing.lift", lambda job: None)
        monkeypatch.setattr(f"flowmap.{module}.Claim", late)
        if way == "validate":
            report = flowmap.validate(target)
            assert report.marked == ()
            assert "Nothing was marked or sealed" in str(report)
        else:
            with pytest.raises(ForeignFileError, match="records were deleted"):
                act(target)
        assert names(target.path.parent) == ["a.npy"]
        assert target.path.read_bytes() == content


class TestWaiting:
    """Whoever waits for the lock gets that of a folder that is gone."""

    @pytest.fixture(params=["opened", "locked", "looked at"])
    def removed(
        self, request: pytest.FixtureRequest, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> list[Path]:
        """Take the records away just before the lock is first opened, locked or looked at."""
        opens, locks = locks_module._open, filelock.lock_descriptor
        calls: list[Path] = []

        def take_away(moment: str) -> None:
            if len(calls) == 1 and request.param == moment:
                self._take_away(target)

        def open_(path: Path) -> int:
            calls.append(path)
            take_away("opened")
            return opens(path)

        def lock(descriptor: int, *, blocking: bool) -> bool:
            take_away("locked")
            held = locks(descriptor, blocking=blocking)
            take_away("looked at")
            return held

        monkeypatch.setattr(locks_module, "_open", open_)
        monkeypatch.setattr(filelock, "lock_descriptor", lock)
        return calls

    @staticmethod
    def _take_away(target: Target) -> None:
        Sidecar.of(target.path).folder.rename(leftover(target))

    def test_overwrite(self, target: Target, removed: list[Path]) -> None:
        """An allocation looks again, and is alone under a new lock."""
        anew = flowmap.allocate(target.path, (6, 2), "f8", segments=3, exist="overwrite")
        assert len(removed) == 2
        assert flowmap.open_target(target.path).id == anew.id
        assert len(anew.pending()) == 3
        assert (leftover(target) / "job.json").exists()

    def test_resume(
        self, target: Target, removed: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that would attach refuses the file, and makes nothing beside it."""
        real, looks = flowmap.wanted.open_target, []  # type: ignore[attr-defined]

        def look(path: Any) -> Any:
            looks.append(path)
            if len(looks) == 1:  # as in the midst of an overwrite
                raise DamagedJobError("cut short", path=str(path))
            return real(path)

        monkeypatch.setattr("flowmap.wanted.open_target", look)
        with pytest.raises(ForeignFileError):
            flowmap.allocate(target.path, (6, 2), "f8", segments=3)
        assert len(removed) == 1
        assert names(target.path.parent) == [leftover(target).name, "a.npy"]

    def test_run(self, target: Target, removed: list[Path]) -> None:
        """A run is told that the records are gone, and makes none."""
        with pytest.raises(NotFoundError, match="was cleaned"), leased(target.job, "run"):
            pass
        assert len(removed) == 1
        assert names(target.path.parent) == [leftover(target).name, "a.npy"]

    def test_second_clean(self, target: Target, removed: list[Path]) -> None:
        """A second call is told so, too."""
        with pytest.raises(NotFoundError, match="was cleaned"):
            clean(target)

    def test_folder_that_is_not_made(
        self, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A folder that goes between two looks at it is made by the next."""
        real, calls = os.mkdir, itertools.count()

        def mkdir(path: Any, *arguments: Any, **_: Any) -> None:
            if next(calls) == 0:
                self._take_away(target)
                raise FileExistsError(errno.EEXIST, "as before")
            real(path, *arguments)

        monkeypatch.setattr(os, "mkdir", mkdir)
        anew = flowmap.allocate(target.path, (6, 2), "f8", segments=3, exist="overwrite")
        assert flowmap.open_target(target.path).id == anew.id

    def test_no_folder_at_all(self, tmp_path: Path) -> None:
        """A lock is never made where there is no folder for it."""
        with pytest.raises(NotFoundError), header_lock(tmp_path / "nowhere"):
            pass
        assert names(tmp_path) == []


RACE = """
import json, os, sys, traceback
import numpy as np
import flowmap
from flowmap.cleaning import clean
from flowmap.errors import DamagedJobError, FlowmapError
from flowmap.sidecar import Sidecar
import support
from support import wholeness

path, rounds, chosen = flowmap.sidecar.absolute(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
segments = ()

ACTS = {
    "clean": lambda: clean(path),
    "clean too": lambda: clean(path),
    "reset": lambda: flowmap.reset(path, 1),
    "write": lambda: flowmap.write_segment(segments[2], np.ones((2, 2)), replace=True),
    "fill": lambda: flowmap.fill(path, support.take_anything, executor="threads"),
    "resume": lambda: flowmap.allocate(path, (6, 2), "f8", segments=3),
    "overwrite": lambda: flowmap.allocate(path, (6, 2), "f8", segments=3, exist="overwrite"),
    "validate": lambda: flowmap.validate(path, mark=False),
}

def child(act, gate, answer):
    try:
        os.read(gate, 1)  # all at once, when the parent closes its end
        ACTS[act]()
        said = "ok"
    except FlowmapError as error:
        said = type(error).__name__
    except BaseException:
        said = traceback.format_exc()
    os.write(answer, said.encode())
    os._exit(0)

def race():
    gate, opener = os.pipe()
    readers = {}
    for act in chosen:
        reader, answer = os.pipe()
        if not os.fork():
            os.close(opener)
            child(act, gate, answer)
        os.close(answer)
        readers[act] = reader
    os.close(opener)
    os.close(gate)
    told = {}
    for act, reader in readers.items():
        with os.fdopen(reader) as file:
            told[act] = file.read()
    for _ in chosen:
        os.wait()
    return told

for number in range(rounds):
    if path.exists():
        path.unlink()
    target = flowmap.allocate(path, (6, 2), "f8", segments=3)
    flowmap.fill(target, support.take_anything, executor="threads", workers=1)
    assert flowmap.validate(target).sealed
    segments = target.segments
    told = race()
    sidecar = Sidecar.of(path).folder
    left = sorted(entry.name for entry in path.parent.iterdir())
    print(json.dumps([told, left]), flush=True)
    assert np.load(path).shape == (6, 2)
    if sidecar.exists():
        assert wholeness(path) == [], wholeness(path)
        flowmap.open_target(path).status()
    try:
        clean(path)
    except FlowmapError:
        pass
    else:
        assert str(sidecar.name) in left, "something was left"
    assert not [name for name in os.listdir(path.parent) if ".cleaned." in name]
"""

RACERS = {
    "two cleans": ["clean", "clean too"],
    "reset": ["clean", "reset"],
    "write": ["clean", "write"],
    "fill": ["clean", "fill"],
    "overwrite": ["clean", "overwrite"],
    "all but an overwrite": [
        *("clean", "clean too", "reset", "write", "fill", "resume", "validate"),
    ],
    "all": [*("clean", "clean too", "reset", "write", "fill", "resume", "overwrite")],
}


ERRORS = {
    *("NotValidatedError", "ForeignFileError", "NotFoundError", "OtherJobError"),
    *("JobBusyError", "ClaimLostError", "DamagedJobError", "OtherWorkError"),
    "SegmentsFailedError",
}


@pytest.mark.parametrize("race", RACERS)
def test_races(tmp_path: Path, race: str) -> None:
    """In the end the job is whole, replaced or gone; whoever was told "ok" has its way."""
    rounds = 10
    (tmp_path / "race").mkdir()
    path = tmp_path / "race/a.npy"
    child = run(script(RACE, path, rounds, *RACERS[race]))
    assert child.returncode == 0, child.stdout + child.stderr
    outcomes = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(outcomes) == rounds
    for told, left in outcomes:
        assert set(told.values()) <= {"ok", *ERRORS}, told
        kept = "a.npy.flowmap" in left
        if "overwrite" in told and "OtherJobError" in told.values():  # it may have left its own
            left[:] = [name for name in left if ".cleaned." not in name]
        assert left == ["a.npy", *(["a.npy.flowmap"] if kept else [])], (told, left)
        if told.get("overwrite") == "ok":
            assert kept, told
        elif "ok" in (told["clean"], told.get("clean too")):
            assert not kept, told
            assert "ok" not in (told.get("reset"), told.get("write")), told
        else:
            assert kept, told
        if "overwrite" not in told:
            assert "DamagedJobError" not in told.values(), told
