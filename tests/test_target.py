"""The target: opened, looked at, mapped, sent elsewhere; and refused where it is not whole."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import numpy as np
import pytest
from support import snapshot

import flowmap
from flowmap.documents import publish_json
from flowmap.errors import (
    DamagedJobError,
    ForeignFileError,
    InvalidArgumentError,
    NotFoundError,
    OtherJobError,
    StorageError,
    WrongTypeError,
)
from flowmap.fillers import arange
from flowmap.npy import Layout, header_digest
from flowmap.storage import opened


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """A target of 100 rows in 4 segments, of which two are done."""
    target = flowmap.allocate(tmp_path / "a.npy", (100, 3), "<f8", segments=4, block_rows=10)
    for segment in target.segments[1:3]:
        flowmap.fill_segment(segment, arange)
    return target


class TestTarget:
    """A target that is whole."""

    def test_attributes(self, target: flowmap.Target) -> None:
        """It tells what was allocated."""
        assert target.shape == (100, 3)
        assert target.dtype == np.dtype("<f8")
        assert target.fortran_order is False
        assert target.nbytes == 2400
        assert len(target.id) == 32
        assert int(target.id, 16) >= 0
        assert [(s.index, s.start, s.stop) for s in target.segments] == [
            (0, 0, 25),
            (1, 25, 50),
            (2, 50, 75),
            (3, 75, 100),
        ]
        assert all(s.path == target.path and s.job == target.id for s in target.segments)
        assert target.segments is target.segments

    def test_pending_and_status(self, target: flowmap.Target) -> None:
        """The ledger's state is shown as a table; what is not done is pending."""
        assert [segment.index for segment in target.pending()] == [0, 3]
        status = target.status()
        assert status["index"].tolist() == [0, 1, 2, 3]
        assert status["start"].tolist() == [0, 25, 50, 75]
        assert status["stop"].tolist() == [25, 50, 75, 100]
        assert status["state"].tolist() == ["pending", "done", "done", "pending"]
        assert status["rows_done"].tolist() == [0, 25, 25, 0]
        assert status["attempt"].tolist() == [0, 1, 1, 0]
        assert [len(digest) for digest in status["digest"]] == [0, 32, 32, 0]
        assert [len(work) for work in status["work"]] == [0, 32, 32, 0]
        assert status["pid"].tolist() == [0, os.getpid(), os.getpid(), 0]
        assert (status["finished"] >= status["started"]).all()
        text = ("state", "digest", "host", "work", "reason")
        assert all(status.dtype[name].kind == "U" for name in text)

    def test_failed_is_pending(self, target: flowmap.Target) -> None:
        """Whatever is not done is pending: what failed as much as what was never begun."""

        def fail(out: Any, block: flowmap.Block) -> None:
            raise ZeroDivisionError

        with pytest.raises(flowmap.FlowmapError):
            flowmap.fill_segment(target.segments[0], fail)
        assert target.status()["state"].tolist() == ["failed", "done", "done", "pending"]
        assert "ZeroDivisionError" in target.status()["reason"][0]
        assert [segment.index for segment in target.pending()] == [0, 3]

    @pytest.mark.parametrize("segments", [4, 3])
    def test_stale(self, target: flowmap.Target, segments: int) -> None:
        """After an overwrite it says so, and nothing of the new job's ledger."""
        new = flowmap.allocate(
            target.path, (100, 3), "<f8", segments=segments, exist="overwrite"
        )
        flowmap.fill(new, arange, executor="threads", workers=1)
        for look in (
            *(target.status, target.pending, target.asarray),
            lambda: flowmap.fill(target, arange, {"start": 1}, executor="threads"),
            lambda: flowmap.validate(target),
            lambda: flowmap.reset(target, 1),
        ):
            with pytest.raises(OtherJobError, match=r"allocated anew.*open it again"):
                look()
        assert new.pending() == []

    def test_overwritten_while_it_is_opened(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The new file beside the old `job.json` is no damage: the new target is opened."""
        made = []

        def overtaken(*arguments: Any) -> Any:
            monkeypatch.undo()
            made.append(flowmap.allocate(target.path, 7, "<f8", exist="overwrite").id)
            return opened(*arguments)

        monkeypatch.setattr("flowmap.job.opened", overtaken)
        assert [flowmap.open_target(target.path).id] == made

    def test_an_overwrite_that_ends_while_it_is_looked_at(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`job.json` is missing, then the intent is: the target is flowmap's all the same."""

        def missing(_: Path) -> Any:
            monkeypatch.undo()
            raise FileNotFoundError

        monkeypatch.setattr("flowmap.job.read_json", missing)
        assert flowmap.open_target(target.path).id == target.id

    def test_gone(self, target: flowmap.Target) -> None:
        """Without its file it is not there, whatever its ledger says."""
        target.path.unlink()
        for look in (target.status, target.pending, target.asarray):
            with pytest.raises(NotFoundError):
                look()

    def test_unreadable_header(
        self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that fails while the header is read gives an error of flowmap's."""

        def fail(*_: Any) -> bytes:
            raise OSError(errno.EIO, "no")

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(StorageError, match="cannot open the target") as caught:
            flowmap.open_target(target.path)
        assert caught.value.errno == errno.EIO
        with target.path.open("rb") as file, pytest.raises(StorageError, match="header"):
            target.job.problem_with(file.fileno())

    @pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=lambda m: m.__name__)
    def test_pickles(self, target: flowmap.Target, pickler: Any) -> None:
        """It holds no open file, is small, and is the same elsewhere."""
        data = pickler.dumps(target)
        again = pickle.loads(data)
        assert (again.id, again.path, again.shape) == (target.id, target.path, target.shape)
        assert again.segments == target.segments
        assert [segment.index for segment in again.pending()] == [0, 3]
        assert len(data) < 4000

    def test_left_alone_by_walks(self, target: flowmap.Target) -> None:
        """It is no collection and no dataclass, for Prefect to take apart."""
        assert not isinstance(target, Iterable)
        assert not isinstance(target, Sized)
        assert not dataclasses.is_dataclass(target)
        assert not hasattr(target, "__getitem__")
        assert not hasattr(target, "__dict__")
        with pytest.raises(TypeError):
            iter(target)  # type: ignore[call-overload]  # on purpose

    def test_path_like(self, target: flowmap.Target) -> None:
        """It can be given wherever a path can."""
        assert os.fspath(target) == str(target.path)
        assert np.load(target).shape == (100, 3)
        assert flowmap.open_target(target).id == target.id

    def test_repr(self, tmp_path: Path, target: flowmap.Target) -> None:
        """It says which file it is, what is in it, and in how many segments."""
        assert repr(target) == (f"<flowmap.Target {target.path} (100, 3) float64, 4 segments>")
        other = flowmap.allocate(tmp_path / "f.npy", 5, "<f8", fortran_order=True, segments=1)
        assert "Fortran order, 1 segments" in repr(other)

    def test_asarray(self, target: flowmap.Target) -> None:
        """It is mapped for reading only, or copied on write; the file stays as it is."""
        before = target.path.read_bytes()
        array = target.asarray()
        assert array[30].tolist() == [30.0] * 3
        assert not array.flags.writeable
        copied = target.asarray("c")
        copied[:] = -1
        del copied
        assert target.path.read_bytes() == before
        for mode in ("r+", "w+", "", None, np.array(["r", "c"])):
            with pytest.raises(InvalidArgumentError, match="To write"):
                target.asarray(mode)  # type: ignore[arg-type]  # on purpose

    def test_is_an_array_to_numpy(self, target: flowmap.Target) -> None:
        """NumPy's functions take it for its array, by the rules of `numpy.asarray`."""
        loaded = np.load(target.path)
        array = np.asarray(target)
        assert type(array) is np.ndarray
        assert not array.flags.writeable
        assert isinstance(array.base, np.memmap)
        np.testing.assert_array_equal(array, loaded)
        copied = np.array(target)
        assert copied.flags.writeable
        assert not np.shares_memory(copied, array)
        np.testing.assert_array_equal(np.asarray(target, "c16"), loaded.astype("c16"))
        with pytest.raises(ValueError, match="copy"):
            np.asarray(target, "f2", copy=False)
        np.testing.assert_array_equal(np.concatenate([target, target])[: len(loaded)], loaded)

    @pytest.mark.parametrize("shape", [(), (0,), (4, 0), (3, 2)])
    @pytest.mark.parametrize("fortran", [False, True])
    def test_asarray_of_any_shape(
        self, tmp_path: Path, shape: tuple[int, ...], fortran: bool
    ) -> None:
        """0-d, empty and Fortran-ordered targets are mapped as np.load has them."""
        other = flowmap.allocate(tmp_path / "b.npy", shape, "<i4", fortran_order=fortran)
        array, loaded = other.asarray(), np.load(other.path)
        assert array.shape == loaded.shape == shape
        assert array.dtype == loaded.dtype
        assert array.flags.f_contiguous == loaded.flags.f_contiguous
        assert array.flags.c_contiguous == loaded.flags.c_contiguous


class TestOpenTarget:
    """Opening, and what is refused."""

    def test_opens(self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same target, by whatever kind of path."""
        monkeypatch.chdir(target.path.parent)
        for path in (
            target.path,
            str(target.path),
            "a.npy",
            Path("../", Path.cwd().name, "a.npy"),
        ):
            again = flowmap.open_target(path)
            assert (again.id, again.path) == (target.id, target.path)
            assert again.segments == target.segments

    def test_missing(self, tmp_path: Path) -> None:
        """Where there is nothing it says what would make it."""
        for path in (tmp_path / "no.npy", tmp_path / "no/no.npy"):
            with pytest.raises(NotFoundError, match="allocate") as caught:
                flowmap.open_target(path)
            assert caught.value.filename == str(path)

    def test_foreign(self, tmp_path: Path) -> None:
        """A plain file, or a folder, is not flowmap's."""
        np.save(tmp_path / "a.npy", np.arange(5))
        (tmp_path / "b.npy").mkdir()
        for name, why in (("a.npy", "not allocated by flowmap"), ("b.npy", "but a folder")):
            with pytest.raises(ForeignFileError, match=why):
                flowmap.open_target(tmp_path / name)

    @pytest.mark.parametrize("odd", ["folder", "link", "pipe"])
    def test_not_regular(self, target: flowmap.Target, odd: str) -> None:
        """In place of the target stands something else: it is not followed, nor waited for."""
        moved = target.path.with_name("moved.npy")
        target.path.rename(moved)
        if odd == "folder":
            target.path.mkdir()
        elif odd == "pipe":
            os.mkfifo(target.path)
        else:
            target.path.symlink_to(moved)
        with pytest.raises(ForeignFileError, match="not a regular file"):
            flowmap.open_target(target.path)

    @pytest.mark.parametrize("size", [0, 10, 4096, 6495, 6497, 10000])
    def test_size(self, target: flowmap.Target, size: int) -> None:
        """One byte more or less is refused, with both numbers; the file is not extended."""
        os.truncate(target.path, size)
        with pytest.raises(DamagedJobError, match=f"has {size} bytes, where 6496"):
            flowmap.open_target(target.path)
        with pytest.raises(DamagedJobError):
            target.asarray()
        assert target.path.stat().st_size == size

    @pytest.mark.parametrize("position", [0, 6, 8, 20, 500, 4095])
    def test_header(self, target: flowmap.Target, position: int) -> None:
        """Each byte of the header counts, the padding's too."""
        with target.path.open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1]))
        with pytest.raises(DamagedJobError, match="another header"):
            flowmap.open_target(target.path)

    def test_job_missing(self, target: flowmap.Target) -> None:
        """Without `job.json`, or the whole sidecar, nothing vouches for the file."""
        sidecar = target.path.with_name("a.npy.flowmap")
        (sidecar / "job.json").unlink()
        with pytest.raises(ForeignFileError, match=r"there is no .*job\.json"):
            flowmap.open_target(target.path)
        shutil.rmtree(sidecar)
        with pytest.raises(ForeignFileError, match="not allocated"):
            flowmap.open_target(target.path)
        sidecar.write_text("no folder")
        with pytest.raises(ForeignFileError, match="not allocated"):
            flowmap.open_target(target.path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[:-1],
            lambda text: text.replace('"block_rows": 10', '"block_rows": 11'),
            lambda text: text.replace('"format"', '"fromat"'),
            lambda text: "",
            lambda text: "null",
            lambda text: "[" * 10**5,
            lambda text: '{"checksum": "x"}',
            lambda text: "\xff\xfe",
        ],
    )
    def test_job_damaged(self, target: flowmap.Target, change: Any) -> None:
        """A changed or torn `job.json` is noticed by its checksum."""
        job = target.path.with_name("a.npy.flowmap") / "job.json"
        text = job.read_text()
        changed = change(text)
        assert changed != text
        job.write_bytes(changed.encode("latin-1"))
        with pytest.raises(DamagedJobError, match=r"job\.json is damaged"):
            flowmap.open_target(target.path)

    def test_job_too_long(self, target: flowmap.Target) -> None:
        """One longer than any that flowmap writes is not even read."""
        job = target.path.with_name("a.npy.flowmap") / "job.json"
        os.truncate(job, 2**28 + 1)
        with pytest.raises(DamagedJobError, match="longer than any document"):
            flowmap.open_target(target.path)

    @pytest.mark.parametrize("exist", ["resume", "overwrite"])
    def test_job_too_long_to_be_read(
        self,
        target: flowmap.Target,
        monkeypatch: pytest.MonkeyPatch,
        exist: Literal["resume", "overwrite"],
    ) -> None:
        """A job that could not be read again is not allocated, and replaces none."""
        path = target.path if exist == "overwrite" else target.path.with_name("b.npy")
        before = snapshot(target.path)
        monkeypatch.setattr("flowmap.documents._LONGEST_JSON", 1000)
        with pytest.raises(StorageError) as caught:
            flowmap.allocate(path, 5000, "<f8", segments=[2, 1] * 1000 + [2000], exist=exist)
        assert caught.value.errno == errno.EFBIG
        assert path.exists() == (exist == "overwrite")
        monkeypatch.undo()
        assert snapshot(target.path) == before
        assert flowmap.open_target(target.path).id == target.id

    @pytest.mark.parametrize(
        "changes",
        [
            *({"format": 2}, {"format": None}, {"id": 5}, {"id": "X" * 32}, {"shape": [-1, 3]}),
            *({"shape": [2**70]}, {"shape": "9"}, {"shape": [1.5]}, {"shape": [1] * 65}),
            *({"dtype": "<f9"}, {"dtype": "|O"}, {"dtype": {"x": 1}}, {"dtype": [["a"]]}),
            *({"dtype": ["<f8", [3]]}, {"dtype": "<f4"}, {"fortran_order": 1}),
            *({"segments": [[0, 1]]}, {"segments": 7}, {"segments": [[4, 25.0]]}),
            *({"segments": [[5, 25]]}, {"segments": [[2**70, 1]]}, {"segments": [[4]]}),
            *({"block_rows": 0}, {"block_rows": "10"}, {"block_rows": float("nan")}),
            *({"data_offset": -4096}, {"data_offset": 4032}, {"data_offset": 2**62}),
            *({"header": None}, {"durability": "never"}, {"checkpoint_seconds": float("nan")}),
            *({"checkpoint_seconds": "30"}, {"reserve": 0}, {"made": None}, {"work": 5}),
            *({"work": {}}, {"work": {"fingerprint": 5}}, {"work": {"fingerprint": "x"}}),
            {"work": {"fingerprint": "x", "filler": "f", "version": "", "arguments": []}},
        ],
        ids=str,
    )
    def test_job_of_another_version(
        self, target: flowmap.Target, changes: dict[str, Any]
    ) -> None:
        """A whole `job.json` that this version cannot read is refused, not guessed at."""
        job = target.path.with_name("a.npy.flowmap") / "job.json"
        document = json.loads(job.read_text())
        del document["checksum"]
        publish_json(job, document | changes)
        for use in (flowmap.open_target, flowmap.validate):
            with pytest.raises(DamagedJobError, match="another version"):
                use(target.path)
        with pytest.raises(DamagedJobError, match="another version"):
            flowmap.reset(target, 0)

    def test_job_of_more_segments_than_records(self, target: flowmap.Target) -> None:
        """Segments are not listed before there are records of as many."""
        job = target.path.with_name("a.npy.flowmap") / "job.json"
        document = json.loads(job.read_text())
        del document["checksum"]
        header = Layout.of((2**40, 0), target.dtype, fortran_order=False).header()
        changes = {
            "shape": [2**40, 0],
            "segments": [[2**40, 1]],
            "fortran_order": False,
            "header": header_digest(header),
        }
        publish_json(job, document | changes)
        with pytest.raises(DamagedJobError, match="instead of"):
            flowmap.reset(target, 0)

    def test_sidecar_of_another(self, tmp_path: Path, target: flowmap.Target) -> None:
        """A sidecar copied to another target is not taken for its own."""
        other = flowmap.allocate(tmp_path / "b.npy", (100, 3), ">f8", segments=4)
        for copied in (tmp_path / "c.npy", other.path):
            np.save(tmp_path / "c.npy", np.zeros((100, 3)))
            sidecar = copied.with_name(f"{copied.name}.flowmap")
            shutil.rmtree(sidecar, ignore_errors=True)
            shutil.copytree(target.path.with_name("a.npy.flowmap"), sidecar)
            with pytest.raises(DamagedJobError, match="it is another file"):
                flowmap.open_target(copied)

    def test_ledger_of_another(self, tmp_path: Path, target: flowmap.Target) -> None:
        """A ledger copied from another job vouches for nothing of this one."""
        other = flowmap.allocate(tmp_path / "b.npy", (100, 3), "<f8", segments=4)
        flowmap.fill(other, arange, executor="threads", workers=1)
        ledger = "a.npy.flowmap/ledger.npy"
        shutil.copy(tmp_path / "b.npy.flowmap/ledger.npy", tmp_path / ledger)
        assert len(target.pending()) == 4

    @pytest.mark.parametrize("damage", ["missing", "shorter", "header"])
    def test_ledger_damaged(self, target: flowmap.Target, damage: str) -> None:
        """Without its ledger nothing is known of what is done, and that is said."""
        ledger = target.path.with_name("a.npy.flowmap") / "ledger.npy"
        if damage == "missing":
            ledger.unlink()
        elif damage == "shorter":
            os.truncate(ledger, 4096 * 4)
        else:
            with ledger.open("r+b") as file:
                file.write(b"x")
        with pytest.raises(DamagedJobError, match="nothing is known"):
            target.status()

    @pytest.mark.parametrize("path", [5, None, b"a.npy", object()])
    def test_wrong_type(self, path: Any) -> None:
        """What is no path is refused as such."""
        with pytest.raises(WrongTypeError, match="path is"):
            flowmap.open_target(path)


def test_records_behind_a_link(tmp_path: Path) -> None:
    """They may be anyone's, outside FLOWMAP_ROOT for one: flowmap follows no link to them."""
    target = flowmap.allocate(tmp_path / "out.npy", 10, "<f8")
    folder, elsewhere = tmp_path / "out.npy.flowmap", tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    before = {file.name: file.read_bytes() for file in elsewhere.iterdir()}
    for attempt in (
        lambda: flowmap.open_target(target.path),
        lambda: flowmap.allocate(target.path, 10, "<f8"),
        lambda: flowmap.allocate(target.path, 10, "<f8", exist="overwrite"),
        lambda: flowmap.fill_segment(target.segments[0], "arange"),
        lambda: flowmap.fill(target, "arange"),
    ):
        with pytest.raises(flowmap.FlowmapError, match="is a link"):
            attempt()
    assert {file.name: file.read_bytes() for file in elsewhere.iterdir()} == before
