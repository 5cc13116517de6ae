"""File systems, sandboxes and systems that lack what others have."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from mounts import mounted
from sandbox import forbid, needs_filter
from support import as_user, forked, ramp, states

import flowmap
from flowmap import doctor, pilot, storage
from flowmap.cleaning import clean
from flowmap.errors import (
    AccessDeniedError,
    DamagedJobError,
    OtherJobError,
    StorageError,
    TargetExistsError,
)
from flowmap.locks import header_lock
from flowmap.sidecar import Sidecar
from flowmap.sources import changed_by
from flowmap.storage import open_existing
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowmap.target import Target

USER: Final = 65534
OWNER: Final = 12345
NO_LINKS: Final = {"link": errno.EPERM, "linkat": errno.EPERM}


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


def play(path: Path) -> str:
    """Do all that there is to do with a job, once; say what is odd."""
    target = flowmap.allocate(path, 1000, "f8", segments=2)
    flowmap.fill_segment(target.segments[0], ramp)
    with flowmap.open_segment(target.segments[1]) as out:
        out[...] = np.sqrt(np.arange(500, 1000))
    with flowmap.open_segment(target.segments[1], replace=True) as out:  # it takes the pages
        out[...] = np.sqrt(np.arange(500, 1000))
    del out
    gc.collect()  # FUSE keeps what is mapped under another name
    report = flowmap.validate(target, mixed=True)
    assert np.array_equal(np.load(path), np.sqrt(np.arange(1000)))
    assert path.stat().st_nlink == 1
    flowmap.reset(target, 0)
    flowmap.allocate(path, 10, "f8", exist="overwrite")
    assert names(path.parent) == [path.name, f"{path.name}.flowmap"]
    return ", ".join((*report.problems, *report.notes)) if report.sealed else str(report)


@pytest.fixture
def own() -> Iterator[Path]:
    """Yield a folder of an ordinary user; pytest closes its own to others at each start."""
    with tempfile.TemporaryDirectory() as folder:
        if not os.geteuid():
            os.chown(folder, USER, USER)
        yield Path(folder)


def ordinary(act: Callable[[], str]) -> str:
    """Return what a function says as an ordinary user."""
    return forked(act) if os.geteuid() else as_user(USER, act)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import all of it beforehand: the other user may not read Python's own library."""
    folder = tmp_path_factory.mktemp("warm")
    play(folder / "a.npy")


LACKING: Final[dict[str, dict[str, int]]] = {
    "no links to other folders": {"link": errno.EXDEV, "linkat": errno.EXDEV},
    "no links": NO_LINKS,
    "no links, in FUSE": {"link": errno.ENOSYS, "linkat": errno.ENOSYS},
    "one link": {"link": errno.EMLINK, "linkat": errno.EMLINK},
    "no links, on an odd system": {"link": errno.EINVAL, "linkat": errno.EINVAL},
    "nor such a rename": NO_LINKS | {"renameat2": errno.EINVAL},
    "nor such a rename, on an old kernel": NO_LINKS | {"renameat2": errno.ENOSYS},
    "nor such a rename, in a sandbox": NO_LINKS | {"renameat2": errno.EPERM},
    "no reservation": {"fallocate": errno.EOPNOTSUPP},
    "no reservation, in a sandbox": {"fallocate": errno.EPERM},
    "no reservation, in another": {"fallocate": errno.EACCES},
    "no reservation, in a third": {"fallocate": errno.ENOSYS},
    "no advice": {"fadvise64": errno.ENOSYS},
    "no advice, in a sandbox": {"fadvise64": errno.EPERM},
    "no write-back": {"sync_file_range": errno.EPERM},
    "no pages to take": {"madvise": errno.EPERM},
    "no attributes": {"fsetxattr": errno.EPERM, "fgetxattr": errno.EPERM},
    "unknown kind": {"statfs": errno.EPERM},
    "no signals": {"kill": errno.EPERM},
}


@needs_filter
@pytest.mark.parametrize("lack", LACKING)
def test_without(own: Path, lack: str) -> None:
    """What the system lacks is done without, by an ordinary user."""

    def act() -> str:
        forbid(**LACKING[lack])
        return play(own / "a.npy") or "fine"

    assert ordinary(act) == "fine"


@needs_filter
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOLCK])
def test_without_locks(own: Path, number: int) -> None:
    """Without flock(2) there is no header lock, and the error says just that."""

    def act() -> str:
        forbid(flock=number)
        with pytest.raises(StorageError, match="must support flock") as caught:
            play(own / "a.npy")
        assert caught.value.errno == number
        return "refused"

    assert ordinary(act) == "refused"


def test_without_what_is_linuxs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does Python have all of it everywhere, or the C library."""
    monkeypatch.setattr("flowmap.kernel._LIBC", object())
    for name in ("posix_fadvise", "fdatasync", "setxattr", "getxattr", "sched_getaffinity"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("os.link", _refuse)
    assert play(tmp_path / "a.npy") == ""


def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AFS syncs no folder: it is done without; an error of the disk is one all the same."""
    sync, number = os.fsync, errno.EINVAL

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", refuse)
    assert play(tmp_path / "a.npy") == ""
    number = errno.EIO
    with pytest.raises(StorageError, match="Input/output error"):
        flowmap.allocate(tmp_path / "b.npy", 10, "f8")


def test_free_space_that_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of FUSE may say nothing of its space, which is not that there is none."""
    monkeypatch.setattr("flowmap.kernel.done", lambda *_: False)
    monkeypatch.setattr("os.fstatvfs", lambda _: os.statvfs_result((512, 512, *[0] * 7, 255)))
    assert flowmap.allocate(tmp_path / "a.npy", 10, "f8").path.stat().st_size == 4096 + 80


def test_free_space_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does doctor say so, or the measuring before a fill: it is unknown."""
    target = flowmap.allocate(tmp_path / "a.npy", 4096, "f8", reserve=False)
    space = os.statvfs_result((512, 512, *[0] * 7, 255))
    monkeypatch.setattr("os.fstatvfs", lambda _: space)
    monkeypatch.setattr("os.statvfs", lambda _: space)
    found = {finding.name: finding for finding in doctor.examine(target.path)}
    for name in ("space", "reserved"):
        assert found[name].level == "note"
        assert "free space is unknown" in found[name].found
    room = pilot._room(target.job)
    assert room.fits
    assert str(room).endswith("; the free space is unknown.")


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.fixture
def neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have neither hard links nor a rename that replaces nothing."""
    monkeypatch.setattr("os.link", _refuse)
    monkeypatch.setattr("flowmap.storage.done", lambda *_: False)


@pytest.mark.usefixtures("neither")
class TestPlaceholder:
    """An empty file that takes the name of a target until that replaces it."""

    def test_taken(self, tmp_path: Path) -> None:
        """What has the name stays, and nothing of ours is left."""
        (tmp_path / "a.npy").write_text("mine")
        (tmp_path / "private").write_text("ours")
        with pytest.raises(FileExistsError):
            storage.link(tmp_path / "private", tmp_path / "a.npy")
        assert (tmp_path / "a.npy").read_text() == "mine"

    def test_taken_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """So does what another program puts there at the last moment."""
        path, link = tmp_path / "a.npy", storage.link

        def late(private: Path, name: Path) -> None:
            name.write_text("mine")
            link(private, name)

        monkeypatch.setattr("flowmap.publication.link", late)
        with pytest.raises(TargetExistsError, match="appeared while"):
            flowmap.allocate(path, 10, "f8")
        assert path.read_text() == "mine"
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock"]

    def test_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where nothing can be renamed there the error says it, and nothing is left."""
        rename, path = os.rename, tmp_path / "a.npy"

        def within(old: Any, new: Any, **options: Any) -> None:
            if Path(old).parent != Path(new).parent:
                _refuse()
            rename(old, new, **options)

        monkeypatch.setattr("os.rename", within)
        with pytest.raises(
            StorageError, match=r"does not rename what is there.*another file sy"
        ):
            flowmap.allocate(path, 10, "f8")
        assert not path.exists()
        assert names(tmp_path / "a.npy.flowmap") == ["header.lock"]

    @pytest.mark.parametrize("exist", ["resume", "overwrite"])
    def test_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exist: Any) -> None:
        """A kill in between leaves it behind; the next allocation begins anew."""
        path = tmp_path / "a.npy"

        def act() -> str:
            rename = os.rename

            def killing(old: Any, new: Any, **options: Any) -> None:
                if Path(new) == path:
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(old, new, **options)

            monkeypatch.setattr("os.rename", killing)
            flowmap.allocate(path, 10, "f8")
            return "not killed"

        assert forked(act) == f"signal {signal.SIGKILL.value}"
        assert path.stat().st_size == 0
        with pytest.raises(DamagedJobError):
            flowmap.open_target(path)
        target = flowmap.allocate(path, 10, "f8", exist=exist)
        assert states(target) == ["pending"]
        assert names(Path(f"{path}.flowmap")) == ["header.lock", "job.json", "ledger.npy"]

    def test_emptied(self, tmp_path: Path) -> None:
        """A target that somebody emptied is damaged, and is not begun anew."""
        path = flowmap.allocate(tmp_path / "a.npy", 10, "f8").path
        os.truncate(path, 0)
        with pytest.raises(DamagedJobError):
            flowmap.allocate(path, 10, "f8")


def clean_while_open(path: Path) -> None:
    """Clean a job whose ledger a process closes a moment later."""
    target = filled(path)
    assert flowmap.validate(target).sealed
    ledger = open_existing(Sidecar.of(path).ledger)
    threading.Timer(0.2, os.close, (ledger,)).start()
    assert clean(target) == [Sidecar.of(path).folder]


@pytest.mark.system(
    *("mkfs.exfat", "mount.exfat-fuse", "losetup", "umount"),
    packages="exfatprogs exfat-fuse mount",
    root=True,
)
def test_exfat(tmp_path: Path) -> None:
    """A disk of FUSE without links, such a rename, reservation, attributes and permissions."""
    image, root = tmp_path / "image", tmp_path / "root"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)
    with mounted(root, "-t", "exfat-fuse", "-o", "loop", str(image)):
        assert play(root / "a.npy") == ""
        clean_while_open(root / "b.npy")


@pytest.mark.system("mount", "umount", packages="mount", root=True)
def test_image_of_a_container(tmp_path: Path) -> None:
    """A job in a lower layer goes on; clean wants its records copied, and says so."""
    with mounted(tmp_path, "-t", "tmpfs", "tmpfs"):  # the layers may not be in an overlay
        image, upper, work, root = (
            tmp_path / name for name in ("image", "upper", "work", "root")
        )
        for folder in (image, upper, work, root):
            folder.mkdir()
        target = flowmap.allocate(image / "a.npy", 100, "f8", segments=2)
        flowmap.fill_segment(target.segments[0], ramp)
        layers = f"lowerdir={image},upperdir={upper},workdir={work}"
        with mounted(root, "-t", "overlay", "-o", layers, "overlay"):
            target = flowmap.open_target(root / "a.npy")
            flowmap.fill_segment(target.segments[1], ramp)
            assert flowmap.validate(target).sealed
            with pytest.raises(StorageError, match=r"put a copy \(cp -a\) in its place"):
                clean(target)
            records = Sidecar.of(target.path).folder
            shutil.copytree(records, root / "copy")
            shutil.rmtree(records)
            (root / "copy").rename(records)
            assert clean(target) == [records]
            assert names(root) == ["a.npy"]


@contextlib.contextmanager
def stale(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[list[str]]:
    """Find the file of one call stale, in a block; yield the calls, which the block fills."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == at + 1:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "pread", "preadv", "read", "fstat"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield calls


def lock(target: Target) -> None:
    """Take and give back the header lock."""
    with header_lock(Sidecar.of(target.path).folder):
        pass


LOOKS: Final[dict[str, Callable[[Target], object]]] = {
    "status": lambda target: flowmap.open_target(target.path).status(),
    "attach": lambda target: flowmap.allocate(target.path, 10, "f8", segments=2),
    "validate": lambda target: flowmap.validate(target.path).raise_if_bad(),
    "changes": lambda target: changed_by(target.job, Work.of(ramp)),
    "lock": lock,
}


class TestStale:
    """A file that another host has replaced is stale to this one."""

    @pytest.mark.parametrize("look", LOOKS)
    def test_looking(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
        """Whatever looks at a job looks again, whichever file it was."""
        target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
        for segment in target.segments:
            flowmap.fill_segment(segment, ramp)
        for at in itertools.count():
            with stale(monkeypatch, at) as calls:
                LOOKS[look](target)
            if len(calls) <= at:
                break
        assert at > 1

    def test_filling(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """So does a fill; what it has opened and claimed is another job's once it is stale."""
        refused = []
        for at in itertools.count():
            target = flowmap.allocate(tmp_path / f"{at}.npy", 10, "f8")
            with stale(monkeypatch, at) as calls, contextlib.suppress(OtherJobError):
                refused.append(at)
                flowmap.fill_segment(target.segments[0], ramp)
                refused.pop()
            if len(calls) <= at:
                break
            if at in refused:
                assert calls[at] in ("fstat", "pread")
            flowmap.fill_segment(target.segments[0], ramp)
        assert 0 < len(refused) < at / 3

    def test_for_good(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that stays stale is an error of the disk."""
        target = flowmap.allocate(tmp_path / "a.npy", 10, "f8")

        def gone(*_: Any, **__: Any) -> None:
            raise StorageError(errno.ESTALE, "stale")

        monkeypatch.setattr("flowmap.job.Ledger", gone)
        with pytest.raises(StorageError, match="stale"):
            target.status()


def notes(target: Target) -> str:
    """Validate a target, which is sealed; return what is noted."""
    report = flowmap.validate(target)
    assert report.sealed, report
    return " ".join(report.notes)


def filled(path: Path, mode: int = 0o644) -> Target:
    """Return a target that is done, and has these permissions."""
    target = flowmap.allocate(path, 10, "f8")
    flowmap.fill_segment(target.segments[0], ramp)
    target.path.chmod(mode)
    return target


class TestProtected:
    """A target that cannot be replaced: an overwrite removes none of its records."""

    def refused(self, path: Path) -> str:
        """Return what an overwrite of a valid target says, and see that it stays valid."""
        with pytest.raises(AccessDeniedError, match="cannot replace the target") as caught:
            flowmap.allocate(path, 10, "f8", exist="overwrite")
        assert flowmap.validate(path).sealed
        return str(caught.value)

    def test_closed_folder(self, own: Path) -> None:
        """Its folder is closed, and that of the records is not."""

        def act() -> str:
            target = filled(own / "a.npy")
            flowmap.validate(target)
            own.chmod(0o555)
            return self.refused(target.path)

        said = ordinary(act)
        own.chmod(0o755)
        assert f"{own.name} is yours, and closed to you: chmod u+rwX /" in said

    @pytest.mark.system(root=True)
    def test_sticky_folder(self, own: Path) -> None:
        """Nobody but its owner may rename what is in a folder like /tmp."""

        def act() -> str:
            flowmap.validate(own / "a.npy")
            return self.refused(own / "a.npy")

        assert ordinary(lambda: str(filled(own / "a.npy").path)) == str(own / "a.npy")
        own.chmod(0o1777)
        os.chown(own, 0, 0)
        os.chown(own / "a.npy", OWNER, USER)
        assert f"a.npy belongs to user number {OWNER}" in ordinary(act)

    @pytest.mark.system("chattr", packages="e2fsprogs", root=True)
    @pytest.mark.parametrize("attribute", ["i", "a"])
    def test_attribute(self, tmp_path: Path, attribute: str) -> None:
        """Not even root replaces what is immutable, or may only be appended to."""
        target = filled(tmp_path / "a.npy")
        flowmap.validate(target)
        done = subprocess.run(
            ["chattr", f"+{attribute}", target.path], check=False, capture_output=True
        )
        if done.returncode:
            why = done.stderr.decode()
            pytest.skip(f"no attributes here: set TMPDIR to a folder on ext4 or XFS: {why}")
        try:
            said = self.refused(target.path)
        finally:
            subprocess.run(["chattr", f"-{attribute}", target.path], check=True)
        assert "a.npy is yours, and the system protects it" in said
        again = flowmap.allocate(target.path, 10, "f8", exist="overwrite")
        assert states(again) == ["pending"]


def of_seal(target: flowmap.Target, *, writable: bool) -> str:
    """Seal a target and lift the seal; return the note of the one, or the other's error."""
    said = notes(target)
    if writable:
        flowmap.reset(target, 0)
        return said
    assert said == ""
    with pytest.raises(AccessDeniedError, match="cannot lift the seal") as caught:
        flowmap.reset(target, 0)
    return str(caught.value)


class TestSealing:
    """Sealing, as an ordinary user, what cannot be made read-only, or is that already."""

    def test_closed(self, own: Path) -> None:
        """What its owner has closed is sealed; it is opened by a reset, and closed again."""

        def act() -> str:
            target = filled(own / "a.npy", 0o444)
            assert notes(target) == ""
            flowmap.reset(target, 0)
            flowmap.fill_segment(target.segments[0], ramp)
            assert notes(target) == ""
            return stat.filemode(target.path.stat().st_mode)

        assert ordinary(act) == "-r--r--r--"

    @needs_filter
    @pytest.mark.parametrize("mode", [0o644, 0o444])
    def test_protected(self, own: Path, mode: int) -> None:
        """What the system protects (chattr +i, a sandbox) is sealed, and it is said why not."""

        def act() -> str:
            target = filled(own / "a.npy", mode)
            forbid(fchmod=errno.EPERM)
            return of_seal(target, writable=mode == 0o644)

        assert "a.npy is yours, and the system protects it" in ordinary(act)

    @pytest.mark.system(root=True)
    @pytest.mark.parametrize("mode", [0o664, 0o444])
    def test_of_another(self, own: Path, mode: int) -> None:
        """So is what another user owns, by whoever may write the records beside it."""

        def act() -> str:
            target = flowmap.open_target(own / "a.npy")
            return of_seal(target, writable=mode == 0o664)

        assert ordinary(lambda: str(filled(own / "a.npy").path)) == str(own / "a.npy")
        (own / "a.npy").chmod(mode)
        os.chown(own / "a.npy", OWNER, USER)
        assert f"only its owner, user number {OWNER}, can" in ordinary(act)

    @pytest.mark.system("mount", "umount", packages="mount", root=True)
    def test_read_only_disk(self, tmp_path: Path) -> None:
        """On a disk that is read-only nothing is sealed, and that is why."""
        with mounted(tmp_path, "-t", "tmpfs", "tmpfs"):
            target = filled(tmp_path / "a.npy")
            subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
            report = flowmap.validate(target)
        assert report.ok
        assert not report.sealed
        assert "sealed: the file system is read-only" in str(report)


@pytest.mark.parametrize("mask", [0o222, 0o700, 0o777])
def test_a_umask_against_oneself(own: Path, mask: int) -> None:
    """Who could not open the new files is told so at once, and nothing is made."""

    def act() -> str:
        os.umask(mask)
        with pytest.raises(AccessDeniedError, match=rf"the umask is {mask:04o}"):
            flowmap.allocate(own / "a.npy", 10, "f8")
        return str(names(own))

    assert ordinary(act) == "[]"


def test_a_lock_of_ones_own(own: Path) -> None:
    """Who may not write to a file of theirs is not sent to its owner."""

    def act() -> str:
        target = flowmap.allocate(own / "a.npy", 10, "f8")
        lock_file = Sidecar.of(target.path).lock
        lock_file.chmod(0o444)
        with pytest.raises(AccessDeniedError) as caught:
            lock(target)
        return str(caught.value)

    said = ordinary(act)
    assert "header.lock is yours, and closed to you: chmod u+rwX /" in said
