"""`load`: windows against slices of what NumPy loads; everything else is NumPy's."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import DTYPES, ORDERS, SHAPES, oracle, run, saved, script, windows

import flowmap
from flowmap.errors import (
    ForeignFileError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
    WrongTypeError,
)


class Noted(io.BytesIO):
    """A file object without a descriptor, which notes what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.seen: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and note from where to where."""
        begin = self.tell()
        data = super().read(size)
        self.seen.append((begin, begin + len(data)))
        return data


class TestWindow:
    """A window is the slice that its words say."""

    @pytest.mark.parametrize("fortran", ORDERS, ids=["C", "F"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_window(
        self, tmp_path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool
    ) -> None:
        """Every window, mapped, read, and read through a file object."""
        whole = oracle(shape, dtype)
        path = saved(tmp_path / "a.npy", whole, fortran_order=fortran)
        for start, stop in windows(shape[0]):
            options: Any = {"offset": start, "shape": (stop - start, *shape[1:])}
            with path.open("rb") as file:
                found = [
                    flowmap.load(path, **options),
                    flowmap.load(file, **options),
                    flowmap.load(io.BytesIO(path.read_bytes()), **options),
                    *(flowmap.load(str(path), mode, **options) for mode in ("r", "r+", "c")),
                ]
            for each in found:
                assert each.dtype == dtype
                assert each.shape == options["shape"]
                assert np.array_equal(each, whole[start:stop])
            read, mapped = found[0], found[-1]
            assert type(read) is np.ndarray
            assert read.flags.writeable
            assert read.flags.f_contiguous if fortran else read.flags.c_contiguous
            assert type(mapped) is np.memmap

    def test_only_these_bytes_are_read(self, tmp_path: Path) -> None:
        """Of a file object, too, nothing but header and window is read, in either order."""
        shape, wanted = (50, 4), slice(10, 13)
        for fortran in ORDERS:
            whole = np.arange(200.0).reshape(shape)
            path = saved(tmp_path / "a.npy", whole, fortran_order=fortran)
            file = Noted(path.read_bytes())
            flowmap.load(file, offset=10, shape=(3, 4))
            index = np.arange(200).reshape(shape, order="F" if fortran else "C")
            bytes_read = {b for begin, end in file.seen for b in range(begin, end) if b >= 128}
            first = 128 + 8 * index[wanted].ravel()
            assert bytes_read == {int(b) + n for b in first for n in range(8)}

    @pytest.mark.system("strace", packages="strace")
    def test_system_calls(self, tmp_path: Path) -> None:
        """A path is read by `pread` of the window, and of nothing else of the data."""
        path = saved(tmp_path / "a.npy", np.zeros(1 << 20))
        program = "import sys, flowmap; flowmap.load(sys.argv[1], offset=5000, shape=100)"
        trace = tmp_path / "trace"
        options = ["-f", "-y", "-e", "trace=read,pread64,preadv,preadv2", "-o", str(trace)]
        assert run(["strace", *options, *script(program, path)]).returncode == 0
        calls = [line for line in trace.read_text().splitlines() if "a.npy>" in line]
        *header, window = calls
        assert re.search(r"preadv2?\(.*, 1, 40128.*= 800", window)
        assert sum(int(call.rpartition("= ")[2]) for call in header) <= 6 + 128

    @pytest.mark.parametrize("close", [True, False])
    def test_very_many_pieces(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, close: bool
    ) -> None:
        """A window of more pieces than calls are made for, with and without pages between."""
        shape = (20, 3000) if close else (1000, 1100)
        whole = np.arange(shape[0] * shape[1]).reshape(shape)
        path = saved(tmp_path / "a.npy", whole, fortran_order=True)
        calls: list[int] = []
        real = os.preadv

        def noted(*arguments: Any) -> int:
            calls.append(real(*arguments))
            return calls[-1]

        monkeypatch.setattr(os, "preadv", noted)
        monkeypatch.delattr("flowmap.windows._Mapping")  # some file systems cannot map a file
        read = flowmap.load(path, offset=7, shape=(4, shape[1]))
        assert len(calls) == (1 if close else shape[1])
        assert type(read) is np.ndarray
        assert read.flags.f_contiguous
        assert np.array_equal(read, whole[7:11])
        read[...] = 0
        assert np.array_equal(np.load(path), whole)

    def test_one_after_the_other(self, tmp_path: Path) -> None:
        """A window of a file object leaves it after the array, where the next one begins."""
        path = tmp_path / "three.npy"
        with path.open("wb") as file:
            for n in range(3):
                np.save(file, np.arange(5) + 10 * n)
        for opened in (path.open("rb"), io.BytesIO(path.read_bytes())):
            with opened as file:
                assert flowmap.load(file, offset=1, shape=2).tolist() == [1, 2]
                assert flowmap.load(file).tolist() == [10, 11, 12, 13, 14]
                assert flowmap.load(file, shape=1).tolist() == [20]
                for offset in (0, 1):
                    with pytest.raises(EOFError, match="No data left"):
                        flowmap.load(file, offset=offset)

    def test_compressed(self, tmp_path: Path) -> None:
        """A file object that decompresses will do."""
        with gzip.open(tmp_path / "a.npy.gz", "wb") as file:
            np.save(file, np.arange(1000))
        with gzip.open(tmp_path / "a.npy.gz") as file:
            assert flowmap.load(file, offset=990, shape=2).tolist() == [990, 991]

    def test_short_reads(self) -> None:
        """A file object that returns less than was asked for is asked again."""

        class Slow(io.BytesIO):
            """Returns ten bytes at a time of what comes after the magic."""

            def read(self, size: int | None = -1, /) -> bytes:
                return super().read(min(size or 0, 10) if self.tell() >= 6 else size)

        array = np.arange(20)
        header = Slow()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.save(header, array.astype([("温", "<i8")]))
        header.seek(0)
        assert flowmap.load(header, offset=18)["温"].tolist() == [18, 19]
        file = Slow()
        np.save(file, np.arange(20))
        file.seek(0)
        assert flowmap.load(file, offset=3).tolist() == list(range(3, 20))

    def test_short_reads_of_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The system may return less than was asked for, too."""
        real = os.preadv

        def some(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            return real(descriptor, [buffers[0][:7]], offset)

        path = saved(tmp_path / "a.npy", np.arange(20))
        monkeypatch.setattr(os, "preadv", some)
        assert flowmap.load(path, offset=3).tolist() == list(range(3, 20))

    def test_beyond_4_gib(self, tmp_path: Path) -> None:
        """A window of a sparse file of 8 GiB."""
        path = tmp_path / "a.npy"
        whole = np.lib.format.open_memmap(path, "w+", "<f8", (1 << 30,))
        whole[-3:] = 1, 2, 3
        assert flowmap.load(path, offset=(1 << 30) - 2).tolist() == [2, 3]


class TestAsNumpy:
    """Without a window everything is as `numpy.load` does it."""

    def test_arrays(self, tmp_path: Path) -> None:
        """Whole arrays, read and mapped."""
        whole = oracle((4, 3), DTYPES[8])
        path = saved(tmp_path / "a.npy", whole)
        assert np.array_equal(flowmap.load(path), whole)
        assert np.array_equal(flowmap.load(path, "r"), whole)
        assert np.array_equal(flowmap.load(path, "r", offset=0), whole)
        assert flowmap.load(path, "").dtype == whole.dtype  # type: ignore[arg-type]

    def test_zip(self, tmp_path: Path) -> None:
        """An .npz file gives its arrays, whether or not it was asked to be mapped."""
        np.savez(tmp_path / "a.npz", x=np.arange(3))
        for mode in (None, "r"):
            with flowmap.load(tmp_path / "a.npz", mode) as file:
                assert file["x"].tolist() == [0, 1, 2]

    def test_pickles(self, tmp_path: Path) -> None:
        """Pickles are loaded where that is allowed, and refused otherwise."""
        np.save(tmp_path / "a.npy", np.array([None, {}]), allow_pickle=True)
        (tmp_path / "a.pkl").write_bytes(pickle.dumps([1]))
        for name in ("a.npy", "a.pkl"):
            with pytest.raises(ValueError, match="allow_pickle"):
                flowmap.load(tmp_path / name)
        assert flowmap.load(tmp_path / "a.npy", allow_pickle=True)[1] == {}
        assert flowmap.load(tmp_path / "a.pkl", allow_pickle=True) == [1]

    def test_long_header(self, tmp_path: Path) -> None:
        """A header of more than 10,000 characters needs a word, or the file is trusted."""
        dtype = [(f"f{n:08d}", "<i4") for n in range(800)]
        path = saved(tmp_path / "a.npy", np.ones(3, dtype))
        ways: list[dict[str, Any]] = [{"max_header_size": 30_000}, {"allow_pickle": True}]
        for options in ({}, {"mmap_mode": "r"}, {"offset": 1}, {"mmap_mode": "r", "offset": 1}):
            window: dict[str, Any] = dict(options)
            with pytest.raises(ValueError, match="max_header_size"):
                flowmap.load(path, **window)
            for way in ways:
                assert flowmap.load(path, **window, **way)["f00000007"].all()

    def test_mapped_as_a_whole(self, tmp_path: Path) -> None:
        """Mapped without a window, a short file is refused as well, and not made longer."""
        path = saved(tmp_path / "a.npy", np.arange(5))
        os.truncate(path, 140)
        with pytest.raises(InvalidArgumentError, match="too short"):
            flowmap.load(path, "r+")
        assert path.stat().st_size == 140

    def test_options_are_handed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is NumPy's to do is done with every option that was given."""
        seen: list[Any] = []
        monkeypatch.setattr(
            "flowmap.loading.numpy_load", lambda *given, **more: seen.append((given, more))
        )
        file = io.BytesIO()
        flowmap.load(file, None, True, False, "latin1", max_header_size=5)  # noqa: FBT003
        flowmap.load(file, fix_imports=False, encoding="bytes")
        assert seen == [
            ((file, None, True, False, "latin1"), {"max_header_size": 5}),
            ((file, None, False, False, "bytes"), {"max_header_size": 10_000}),
        ]

    def test_errors(self, tmp_path: Path) -> None:
        """What NumPy refuses is refused."""
        (tmp_path / "empty.npy").touch()
        with pytest.raises(EOFError):
            flowmap.load(tmp_path / "empty.npy", "r")
        with pytest.raises(FileNotFoundError):
            flowmap.load(tmp_path / "none.npy")
        with pytest.raises(TypeError):
            flowmap.load(5)  # type: ignore[arg-type]  # what the test is about
        path = saved(tmp_path / "a.npy", np.zeros(3))
        with (
            path.open("rb") as file,
            pytest.raises(ValueError, match=r"existing file|open file"),
        ):
            flowmap.load(file, "r")


class TestRefused:
    """Each misuse has its own error, and changes nothing."""

    @pytest.mark.parametrize("mode", [None, "r", "r+", "c"])
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"offset": -1}, ValueError, "can be 0 to 5"),
            ({"offset": 6}, ValueError, "can be 0 to 5"),
            ({"offset": 0.5}, TypeError, "no whole number"),
            ({"offset": False}, TypeError, "no whole number"),
            ({"offset": 0.0}, TypeError, "no whole number"),
            ({"offset": np.array([0, 1])}, TypeError, "no whole number"),
            ({"offset": 2, "shape": (4, 2)}, ValueError, "would end at 6"),
            ({"shape": (-3, 2)}, ValueError, "0 or more"),
            ({"shape": (3, 1)}, ValueError, r"has shape \(n, 2\)"),
            ({"shape": "3"}, TypeError, "no whole number"),
            ({"offset": 1, "encoding": "utf-8"}, ValueError, "encoding is 'utf-8'"),
            ({"masked": 1}, TypeError, "True or False"),
        ],
    )
    def test_arguments(
        self,
        tmp_path: Path,
        mode: Any,
        options: dict[str, Any],
        error: type[Exception],
        message: str,
    ) -> None:
        """Windows that cannot be, of files and of file objects."""
        path = saved(tmp_path / "a.npy", np.zeros((5, 2)))
        before = path.read_bytes()
        for file in (path, io.BytesIO(before)) if mode is None else (path,):
            with pytest.raises(error, match=message) as caught:
                flowmap.load(file, mode, **options)
            assert isinstance(caught.value, flowmap.FlowmapError)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("mode", [None, "r"])
    @pytest.mark.parametrize(
        ("file", "error", "message"),
        [
            ("none.npy", NotFoundError, "cannot open the file"),
            ("..", InvalidArgumentError, "names a folder"),
            ("a\0b", InvalidArgumentError, "names no file"),
            (5, WrongTypeError, "takes the path of a .npy file"),
            ("junk.npy", InvalidArgumentError, "is no .npy file"),
            (b"junk.npy", WrongTypeError, "a path in bytes"),
        ],
    )
    def test_files(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        file: Any,
        mode: Any,
        error: type[Exception],
        message: str,
    ) -> None:
        """What is not there, no file, or another kind of file."""
        monkeypatch.chdir(tmp_path)
        Path("junk.npy").write_bytes(b"\x93junk" + bytes(200))
        with pytest.raises(error, match=message):
            flowmap.load(file, mode, offset=1)

    def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that fails while the rows are read."""

        def fail(*_: Any) -> Any:
            raise OSError(errno.EIO, "no")

        path = saved(tmp_path / "a.npy", np.zeros(3))
        monkeypatch.setattr("flowmap.windows.read_into", fail)
        with pytest.raises(StorageError, match=r"cannot read the file.*a\.npy"):
            flowmap.load(path, offset=1)

    def test_throwing_away(self, tmp_path: Path) -> None:
        """The mode that would erase the file, as NumPy's does, is refused."""
        path = saved(tmp_path / "a.npy", np.arange(3))
        for options in ({}, {"offset": 1}):
            with pytest.raises(InvalidArgumentError, match="throw away"):
                flowmap.load(path, "w+", **options)  # type: ignore[arg-type]
        assert np.load(path).tolist() == [0, 1, 2]

    def test_no_window(self, tmp_path: Path) -> None:
        """What is no .npy file has no window, and neither has an array of Python objects."""
        np.savez(tmp_path / "a.npz", np.zeros(3))
        (tmp_path / "a.pkl").write_bytes(pickle.dumps([1]))
        np.save(tmp_path / "o.npy", np.array([None, {}]), allow_pickle=True)
        for name, mode in itertools.product(["a.npz", "a.pkl", "o.npy"], [None, "r"]):
            for file in [tmp_path / name, io.BytesIO((tmp_path / name).read_bytes())]:
                if mode and isinstance(file, io.BytesIO) and name == "o.npy":
                    continue  # a file object cannot be mapped, which is told first
                with pytest.raises(InvalidArgumentError, match=r"no .npy file|Python objects"):
                    flowmap.load(file, mode, allow_pickle=True, offset=1)  # type: ignore[arg-type]

    def test_short_file(self, tmp_path: Path) -> None:
        """A file that was cut short is refused at each length, and never grown."""
        path = saved(tmp_path / "a.npy", np.arange(5.0))
        whole = path.read_bytes()
        for length in (*range(6, 128, 11), *range(128, len(whole), 7), len(whole) - 1):
            path.write_bytes(whole[:length])
            for file, mode in ((path, None), (path, "r+"), (io.BytesIO(whole[:length]), None)):
                with pytest.raises(InvalidArgumentError, match=r"too short|cannot be read"):
                    flowmap.load(file, mode, offset=1)  # type: ignore[arg-type]
            assert path.stat().st_size == length


class TestMasked:
    """A target that is being filled."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> flowmap.Target:
        """Return a target of which the second and third of five segments are done."""
        target = flowmap.allocate(tmp_path / "a.npy", (10, 3), "<i4", segments=[2] * 5)
        for segment in target.segments[1:3]:
            flowmap.fill_segment(segment, "arange")
        return target

    def test_modes(self, target: flowmap.Target) -> None:
        """Read, only what is done is there, and it is the reader's own; mapped, it is not."""
        with target.path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\1" * 24)  # of a segment that is not done
        read = flowmap.load(target, masked=True)
        assert read.mask.all(axis=1).tolist() == [True] * 2 + [False] * 4 + [True] * 4
        assert not read.data[:2].any()
        read[0] = 7
        assert read[0].tolist() == [7, 7, 7]
        mapped = flowmap.load(target.path, "r", masked=True)
        assert mapped.compressed().tolist() == read.data[2:6].ravel().tolist()
        assert not mapped.flags.writeable

    def test_window(self, target: flowmap.Target) -> None:
        """Windows are masked as their rows are."""
        for mode in (None, "r"):
            found = flowmap.load(target, mode, masked=True, offset=5, shape=(2, 3))
            assert found.mask[:, 0].tolist() == [False, True]
            assert flowmap.load(target, mode, masked=True, shape=(0, 3)).shape == (0, 3)
            with pytest.raises(InvalidArgumentError, match="would end at 11"):
                flowmap.load(target, mode, masked=True, offset=5, shape=(6, 3))

    def test_refused(self, target: flowmap.Target, tmp_path: Path) -> None:
        """What has no records, and what would write."""
        path = saved(tmp_path / "b.npy", np.zeros(3))
        with pytest.raises(ForeignFileError):
            flowmap.load(path, masked=True)
        with pytest.raises(NotFoundError):
            flowmap.load(tmp_path / "none.npy", masked=True)
        with path.open("rb") as file, pytest.raises(WrongTypeError, match="open file"):
            flowmap.load(file, masked=True)
        for mode in ("r+", "c", "w+", "nonsense"):
            with pytest.raises(InvalidArgumentError, match="it takes 'r', or None"):
                flowmap.load(target, mode, masked=True)  # type: ignore[arg-type]
