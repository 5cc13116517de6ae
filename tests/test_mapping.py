"""`open_memmap`: windows against slices of what NumPy maps, and what is refused."""

from __future__ import annotations

import errno
import io
import itertools
import math
import mmap
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy_format
from support import (
    DTYPES,
    ORDERS,
    SHAPES,
    flip,
    let_others_in,
    oracle,
    run,
    saved,
    script,
    windows,
)

import flowmap
from flowmap import kernel, mapping, storage
from flowmap.errors import (
    AccessDeniedError,
    InvalidArgumentError,
    NotFoundError,
    OtherJobError,
    StorageError,
    WrongTypeError,
)

HEADER = "{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}"


class TestWindow:
    """A window is the slice that its words say."""

    @pytest.mark.parametrize("fortran", ORDERS, ids=["C", "F"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_window(
        self, tmp_path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool
    ) -> None:
        """Every window of every kind of array, in each mode."""
        whole = oracle(shape, dtype)
        path = saved(tmp_path / "a.npy", whole, fortran_order=fortran)
        for (start, stop), mode in itertools.product(windows(shape[0]), ["r", "r+", "c"]):
            wanted = (stop - start, *shape[1:])
            mapped = flowmap.open_memmap(path, mode, shape=wanted, offset=start)
            assert type(mapped) is np.memmap
            assert mapped.dtype == dtype
            assert mapped.shape == wanted
            assert np.array_equal(mapped, whole[start:stop])
            assert mapped.flags.writeable == (mode != "r")
            mapped.flush()

    @settings(max_examples=80)
    @given(data=st.data())
    def test_any_window(self, data: st.DataObject) -> None:
        """Whatever hypothesis comes up with; what is written reaches its rows, no others."""
        dtype = data.draw(hnp.array_dtypes(max_size=3) | hnp.scalar_dtypes())
        shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
        fortran = data.draw(st.booleans())
        start = data.draw(st.integers(0, shape[0]))
        stop = data.draw(st.integers(start, shape[0]))
        with tempfile.TemporaryDirectory() as folder:
            whole = np.zeros(shape, dtype, "F" if fortran else "C")
            path = saved(Path(folder) / "a.npy", whole, fortran_order=fortran)
            header = path.stat().st_size - whole.nbytes
            before = path.read_bytes()
            mapped = flowmap.open_memmap(path, offset=start, shape=(stop - start, *shape[1:]))
            mapped.flat[:] = np.frombuffer(b"\xff" * max(dtype.itemsize, 1), dtype, 1)
            mapped.flush()
            whole[start:stop] = np.frombuffer(b"\xff" * max(dtype.itemsize, 1), dtype, 1)
            after = path.read_bytes()
            assert after[:header] == before[:header]
            assert after[header:] == whole.tobytes("A")

    @pytest.mark.parametrize(
        "shape", [(1000, 5), (5, 0), (0, 5), (1000, 0, 3), (0, 0)], ids=str
    )
    def test_nothing_of_wide_columns(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        """Empty windows, and arrays, in Fortran order: nothing of the file is mapped."""
        path = tmp_path / "a.npy"
        with path.open("wb") as file:  # np.save says of an empty array that it is in C order
            header = {"descr": "<f8", "fortran_order": True, "shape": shape}
            npy_format.write_array_header_1_0(file, header)
            file.write(bytes(8 * math.prod(shape)))
        for start, mode in itertools.product((0, shape[0]), ("r", "r+", "c")):
            window: Any = flowmap.open_memmap(path, mode, offset=start, shape=(0, *shape[1:]))
            assert window.shape == (0, *shape[1:])
            assert len(window.base) == 1
            assert window.base[0] == 0
            window.flush()
        assert flowmap.open_memmap(path).shape == shape
        flowmap.open_memmap(path).flush()

    def test_defaults(self, tmp_path: Path) -> None:
        """Without shape a window goes to the end; without offset it begins at the beginning."""
        path = saved(tmp_path / "a.npy", np.arange(10.0))
        assert flowmap.open_memmap(path).tolist() == list(range(10))
        assert flowmap.open_memmap(path, offset=7).tolist() == [7, 8, 9]
        assert flowmap.open_memmap(path, shape=3).tolist() == [0, 1, 2]
        assert flowmap.open_memmap(path, shape=[np.int64(2)], offset=np.int8(4))[1] == 5
        assert flowmap.open_memmap(path, offset=10).shape == (0,)

    @pytest.mark.parametrize("fortran", ORDERS, ids=["C", "F"])
    def test_no_axes(self, tmp_path: Path, fortran: bool) -> None:
        """A 0-d array is its own only window."""
        path = saved(tmp_path / "a.npy", np.array(5.0), fortran_order=fortran)
        for shape in (None, ()):
            assert flowmap.open_memmap(path, "r", shape=shape) == 5
        for wrong in ({"offset": 1}, {"shape": (1,)}, {"shape": 0}):
            with pytest.raises(InvalidArgumentError, match=r"shape is \(\)"):
                flowmap.open_memmap(path, "r", **wrong)

    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
    def test_versions(self, tmp_path: Path, version: tuple[int, int]) -> None:
        """Every version of the format, with names that only the last one holds as they are."""
        name = "größe 温度 🌡" if version == (3, 0) else "t"
        array = np.zeros(4, [(name, "<f8"), ("v", "<f4", (3,))])
        array[name] = range(4)
        path = saved(tmp_path / "a.npy", array, version=version)
        mapped = flowmap.open_memmap(path, "r", offset=1, shape=2)
        assert mapped.dtype == array.dtype
        assert mapped[name].tolist() == [1, 2]

    def test_beyond_4_gib(self, tmp_path: Path) -> None:
        """Windows lie where they should in files of more than 4 GiB, in both orders."""
        for fortran, shape in (
            (False, (1 << 30, 5)),
            (True, (5, 1 << 30)),
            (True, (1 << 30, 5)),
        ):
            path = tmp_path / "big.npy"
            whole = np.lib.format.open_memmap(path, "w+", "<i2", shape, fortran_order=fortran)
            index = shape[0] - 2, shape[1] - 1
            whole[index] = 7
            window = flowmap.open_memmap(path, offset=shape[0] - 3, shape=(2, shape[1]))
            assert window[1, -1] == 7
            window[0, -1] = 9
            assert whole[shape[0] - 3, -1] == 9
            assert path.stat().st_blocks * 512 < 1 << 20, "the file stays sparse"
            path.unlink()

    def test_as_numpy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its attributes, views and copies are those of NumPy's own."""
        path = saved(tmp_path / "a.npy", np.arange(12.0).reshape(4, 3))
        ours = flowmap.open_memmap(path, "r+", offset=1)
        theirs = np.memmap(path, "<f8", "r+", 128 + 24, (3, 3))
        for name in ("filename", "offset", "mode"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert flowmap.open_memmap(str(path)).filename == str(path)
        monkeypatch.chdir(tmp_path)
        for name in ("a.npy", Path("a.npy"), *os.scandir()):
            found = flowmap.open_memmap(name).filename
            assert found == (str(path) if name == "a.npy" else theirs.filename)
        view = ours[1:]
        assert isinstance(view, np.memmap)
        assert view.filename == theirs.filename
        view[...] = -1
        view.flush()
        assert (theirs[1:] == -1).all()
        assert type(ours + 1) is np.ndarray
        assert isinstance(ours.sum(), np.float64)

    def test_modes(self, tmp_path: Path) -> None:
        """Reading cannot write, a copy on write keeps it to itself; long names are the same."""
        path = saved(tmp_path / "a.npy", np.zeros(4))
        for mode in ("r", "readonly"):
            with pytest.raises(ValueError, match="read-only"):
                flowmap.open_memmap(path, mode, offset=1)[0] = 1
        for mode in ("c", "copyonwrite"):
            flowmap.open_memmap(path, mode, offset=1)[0] = 1
            assert not np.load(path).any()
        for mode in ("r+", "readwrite"):
            flowmap.open_memmap(path, mode, offset=1)[0] += 1
        assert np.load(path).tolist() == [0, 2, 0, 0]

    def test_opened_for_reading(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Modes that do not write do not open the file for writing."""
        path = saved(tmp_path / "a.npy", np.zeros(4))
        real, asked = storage.open_existing, []

        def noted(path: str, *, write: bool, follow: bool) -> int:
            asked.append(write)
            return real(path, write=write, follow=follow)

        monkeypatch.setattr(mapping, "open_existing", noted)
        for mode in ("r", "c", "r+"):
            flowmap.open_memmap(path, mode)
        flowmap.load(path, "r", offset=1)
        flowmap.load(path, offset=1)
        assert [write for write in asked if write] == [True]
        assert asked[:3] == [False, False, True]

    def test_a_file_without_a_name(self, tmp_path: Path) -> None:
        """What is open is mapped through its descriptor's path, as NumPy does."""
        path = saved(tmp_path / "a.npy", np.arange(4.0))
        with path.open("rb") as file:
            path.unlink()
            window = flowmap.open_memmap(f"/proc/self/fd/{file.fileno()}", "r", offset=2)
        assert window.tolist() == [2, 3]

    def test_warnings_are_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The filters of warnings belong to the process: other threads rely on them."""
        path = saved(tmp_path / "a.npy", np.zeros(4, [("a", "<f8")]))
        monkeypatch.setattr(warnings, "catch_warnings", None)
        flowmap.open_memmap(path, offset=1)
        flowmap.load(path, offset=1)
        flowmap.allocate(tmp_path / "b.npy", 4, np.dtype("<f8", metadata={"a": 1}))

    def test_follows_a_link(self, tmp_path: Path) -> None:
        """A link leads to its file, as it does for NumPy."""
        path = saved(tmp_path / "a.npy", np.zeros(4))
        (tmp_path / "link.npy").symlink_to(path)
        flowmap.open_memmap(tmp_path / "link.npy", offset=3)[0] = 1
        assert np.load(path).tolist() == [0, 0, 0, 1]


class TestFlush:
    """What a flush writes to disk is the window's pages."""

    @pytest.mark.parametrize("fortran", ORDERS, ids=["C", "F"])
    @pytest.mark.parametrize("shape", [(4000, 3), (20_000, 2), (3, 4000), (10, 20)], ids=str)
    def test_pages(self, tmp_path: Path, shape: tuple[int, int], fortran: bool) -> None:
        """Every page with bytes of the window, none of which it has no bytes."""
        path = saved(tmp_path / "a.npy", np.zeros(shape), fortran_order=fortran)
        start, stop = shape[0] // 3, shape[0] // 3 + 2
        window = flowmap.open_memmap(path, offset=start, shape=(stop - start, shape[1]))
        mapping: Any = window.base
        begin = window.offset - window.offset % mmap.ALLOCATIONGRANULARITY
        flushed = {
            page
            for offset, size in mapping._spans()
            for page in range(begin + offset, begin + offset + size, mmap.PAGESIZE)
        }
        index = np.arange(shape[0] * shape[1]).reshape(shape, order="F" if fortran else "C")
        first = 128 + index[start:stop].ravel() * 8
        assert flushed == {int(byte) // mmap.PAGESIZE * mmap.PAGESIZE for byte in first}

    @pytest.mark.system("strace", packages="strace")
    def test_system_calls(self, tmp_path: Path) -> None:
        """The kernel is asked for these pages, and for no others: through a view as well."""
        path = saved(tmp_path / "a.npy", np.zeros((20_000, 4)), fortran_order=True)
        program = """
            import sys, flowmap
            window = flowmap.open_memmap(sys.argv[1], offset=1000, shape=(100, 4))
            window[5:].flush()
        """
        calls = "trace=msync,sync_file_range"
        done = run(["strace", "-f", "-e", calls, *script(program, path)]).stderr
        written = re.findall(r"sync_file_range\(\d+, (\d+), (\d+), [A-Z_|]+\) = 0", done)
        begins = [128 + 8 * (20_000 * column + 1000) for column in range(4)]
        pages = [begin - begin % mmap.PAGESIZE for begin in begins]
        assert [int(offset) for offset, _ in written] == pages
        assert all(800 <= int(size) < 800 + mmap.PAGESIZE for _, size in written)
        (synced,) = re.findall(r"msync\(0x\w+, (\d+), MS_SYNC\)", done)
        assert int(synced) == int(written[-1][1])

    def test_where_no_range_can_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the system writes no range, each piece is synced by itself."""
        path = saved(tmp_path / "a.npy", np.zeros((20_000, 4)), fortran_order=True)
        asked = []

        def refuse(*arguments: int) -> bool:
            asked.append(arguments[1:])
            return False

        monkeypatch.setattr("flowmap.windows.write_back", refuse)
        flowmap.open_memmap(path, offset=1000, shape=(100, 4)).flush()
        assert len(asked) == 4

    @pytest.mark.parametrize("fault", ["error", "unsupported"])
    def test_write_back(self, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
        """An error of the disk is raised; a system that lacks the call is told apart."""
        if fault == "error":
            with pytest.raises(OSError, match="Bad file descriptor"):
                kernel.write_back(-1, 0, 10)
        else:
            monkeypatch.setattr("sys.platform", "darwin")
            assert kernel.write_back(-1, 0, 10) is False

    def test_a_span(self, tmp_path: Path) -> None:
        """The mapping beneath still takes a span of bytes, as every `mmap` does."""
        window = flowmap.open_memmap(saved(tmp_path / "a.npy", np.zeros(9999)), offset=1)
        mapping: Any = window.base
        mapping.flush(mmap.PAGESIZE, 100)
        with pytest.raises((ValueError, OSError)):
            mapping.flush(1, 1)


class TestNew:
    """Mode "w+" makes what NumPy makes."""

    @pytest.mark.parametrize("fortran", ORDERS, ids=["C", "F"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_same_file(self, tmp_path: Path, dtype: np.dtype[Any], fortran: bool) -> None:
        """Byte for byte, and what is written to it is there."""
        for shape in [(4, 3), (5,), (), (0, 2)]:
            ours = flowmap.open_memmap(tmp_path / "a.npy", "w+", dtype, shape, fortran)
            npy_format.open_memmap(tmp_path / "b.npy", "w+", dtype, shape, fortran)
            assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
            ours[...] = oracle(shape, dtype)
            ours.flush()
            assert np.array_equal(np.load(tmp_path / "a.npy"), oracle(shape, dtype))

    def test_defaults(self, tmp_path: Path) -> None:
        """No dtype is float64; a length or NumPy's own whole numbers are a shape."""
        for shape in (5, [5], (np.int64(5),)):
            path = tmp_path / "a.npy"
            assert flowmap.open_memmap(path, "w+", shape=shape).dtype == np.float64
            assert np.load(path).shape == (5,)

    def test_version(self, tmp_path: Path) -> None:
        """The version that is asked for is the one that is written."""
        for version in [(1, 0), (2, 0), (3, 0)]:
            flowmap.open_memmap(tmp_path / "a.npy", "w+", "<i4", (3,), version=version)
            assert (tmp_path / "a.npy").read_bytes()[6:8] == bytes(version)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"shape": (5,), "offset": 1}, ValueError, "offset is 1, and mode 'w\\+'"),
            ({"shape": (5,), "offset": -1}, ValueError, "offset is -1, and mode 'w\\+'"),
            ({"shape": (5,), "offset": False}, TypeError, "no whole number"),
            ({"shape": (5,), "offset": 1.5}, TypeError, "no whole number"),
            ({}, ValueError, "shape is missing"),
            ({"shape": (-1,)}, ValueError, "no axis can be negative"),
            ({"shape": (2.5,)}, TypeError, "no whole number"),
            ({"shape": "5"}, TypeError, "no whole number"),
            ({"shape": (2**40, 2**40)}, ValueError, "at most"),
            ({"shape": (5,), "dtype": object}, ValueError, "Python objects"),
            ({"shape": (5,), "dtype": "S"}, ValueError, "how long"),
            ({"shape": (5,), "dtype": "nonsense"}, TypeError, "NumPy does not take"),
            ({"shape": (5,), "fortran_order": 1}, TypeError, "True or False"),
            ({"shape": (5,), "version": (4, 0)}, ValueError, "version is \\(4, 0\\)"),
            ({"shape": (5,), "version": 1}, ValueError, "version is 1"),
            (
                {"shape": (5,), "version": (1, 0), "dtype": [("x" * 70_000, "<f8")]},
                ValueError,
                "version \\(1, 0\\) of the format will not do.*Leave it out",
            ),
        ],
    )
    def test_refused(
        self, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        """Whatever cannot be is refused before the file that is there is thrown away."""
        path = saved(tmp_path / "a.npy", np.arange(5))
        before = path.read_bytes()
        with pytest.raises(error, match=message) as caught:
            flowmap.open_memmap(path, "w+", **options)
        assert isinstance(caught.value, flowmap.FlowmapError)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("options", "prepare", "error"),
        [
            ({"shape": (2**58,)}, "", "StorageError"),
            ({"shape": (1 << 30,)}, "RLIMIT_FSIZE, (1 << 20, 1 << 20)", "StorageError"),
            ({"shape": (1 << 32,)}, "RLIMIT_AS, (4 << 30, -1)", "StorageError"),
            ({"shape": (5,), "dtype": [("ü温", "<f8")]}, "", "UserWarning"),
        ],
    )
    def test_what_fails_late(
        self, tmp_path: Path, options: dict[str, Any], prepare: str, error: str
    ) -> None:
        """What the system, or a warning that is an error, refuses: the old file stays."""
        path = saved(tmp_path / "a.npy", np.arange(5))
        before = path.read_bytes()
        program = f"""
            import resource, sys, flowmap
            flowmap.open_memmap
            {f"resource.setrlimit(resource.{prepare})" if prepare else ""}
            try:
                flowmap.open_memmap(sys.argv[1], "w+", **{options!r})
            except Exception as error:
                print(type(error).__name__)
        """
        done = run(script(program, path))
        assert done.stdout == f"{error}\n", done
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        new = run(script(program, tmp_path / "new.npy"))
        assert new.stdout == f"{error}\n"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.system("setpriv", packages="util-linux", root=True)
    def test_in_a_folder_of_another(self, tmp_path: Path) -> None:
        """A file that may be written is made anew in a folder that may not, as NumPy does."""
        path = saved(tmp_path / "a.npy", np.arange(5))
        path.chmod(0o666)
        let_others_in(path)
        program = "import sys, flowmap; flowmap.open_memmap(sys.argv[1], 'w+', shape=3)[0] = 7"
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = run([*drop, *script(program, path)])
        assert done.returncode == 0, done
        assert np.load(path).tolist() == [7, 0, 0]

    def test_keeps_what_a_header_does_not(self, tmp_path: Path) -> None:
        """The array has the dtype that was asked for: np.record, and alignment."""
        record = np.dtype((np.record, [("a", "<f8")]))
        rows = flowmap.open_memmap(tmp_path / "a.npy", "w+", record, (3,))
        assert rows[0].a == 0
        aligned = np.dtype([("a", "u1"), ("b", "<f8")], align=True)
        assert flowmap.open_memmap(tmp_path / "b.npy", "w+", aligned, 3).dtype.isalignedstruct
        inner = flowmap.open_memmap(tmp_path / "c.npy", "w+", ("<i4", (3,)), (2,))
        assert inner.shape == np.load(tmp_path / "c.npy").shape == (2, 3)

    def test_target_of_a_job(self, tmp_path: Path) -> None:
        """The rows of a job are not thrown away, not even through a link."""
        target = flowmap.allocate(tmp_path / "a.npy", 5, "<f8")
        flowmap.fill(target, "arange", executor="threads", workers=1)
        (tmp_path / "link.npy").symlink_to(target.path)
        for path in (target.path, tmp_path / "link.npy"):
            with pytest.raises(OtherJobError, match="exist='overwrite'"):
                flowmap.open_memmap(path, "w+", "<f8", (5,))
        assert flowmap.validate(target).ok

    def test_no_file_can_be(self, tmp_path: Path) -> None:
        """A folder that is missing, and what is no regular file."""
        with pytest.raises(NotFoundError, match="cannot make the file"):
            flowmap.open_memmap(tmp_path / "none" / "a.npy", "w+", shape=(5,))
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(InvalidArgumentError, match="no regular file"):
                flowmap.open_memmap(path, "w+", shape=(5,))


class TestRefused:
    """Each misuse of a file that is there has its own error, and changes nothing."""

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"offset": -1}, ValueError, r"offset is -1.*can be 0 to 5"),
            ({"offset": 6}, ValueError, r"offset is 6.*can be 0 to 5"),
            ({"offset": 2**70}, ValueError, r"can be 0 to 5"),
            ({"offset": 1.5}, TypeError, "offset: 1.5 is no whole number"),
            ({"offset": 1.0}, TypeError, "offset: 1.0 is no whole number"),
            ({"offset": "1"}, TypeError, "offset: '1' is no whole number"),
            ({"offset": None}, TypeError, "offset: None is no whole number"),
            ({"offset": True}, TypeError, "offset: True is no whole number"),
            ({"offset": 3, "shape": (3, 2)}, ValueError, "would end at 6.*has 5"),
            ({"shape": (6, 2)}, ValueError, "would end at 6.*has 5"),
            ({"shape": (2**70, 2)}, ValueError, "would end at.*has 5"),
            ({"shape": (2, 3)}, ValueError, r"shape is \(2, 3\).*has shape \(n, 2\)"),
            ({"shape": (2,)}, ValueError, r"shape is \(2,\).*has shape \(n, 2\)"),
            ({"shape": 2}, ValueError, r"shape is \(2,\).*has shape \(n, 2\)"),
            ({"shape": ()}, ValueError, r"shape is \(\).*has shape \(n, 2\)"),
            ({"shape": (2, 2, 1)}, ValueError, r"has shape \(n, 2\)"),
            ({"shape": (-1, 2)}, ValueError, r"shape is \(-1, 2\).*0 or more"),
            ({"shape": (2, -2)}, ValueError, r"shape is \(2, -2\)"),
            ({"shape": (1.5, 2)}, TypeError, "no whole number"),
            ({"shape": "22"}, TypeError, "no whole number"),
            ({"dtype": "<f4"}, ValueError, "dtype is float32, but .* has float64"),
            ({"dtype": ">f8"}, ValueError, "dtype is >f8, but .* has float64"),
            ({"dtype": "nonsense"}, TypeError, "dtype is 'nonsense'"),
            ({"dtype": "f8,,"}, ValueError, "dtype is 'f8,,'"),
            ({"dtype": [("a", "<f8"), ("a", "<f8")]}, ValueError, "dtype is"),
            ({"max_header_size": None}, TypeError, "max_header_size: None is no whole number"),
            ({"mode": "w"}, ValueError, "mode is 'w'"),
            ({"mode": "write"}, ValueError, "mode is 'write'"),
            ({"mode": "rb"}, ValueError, "mode is 'rb'"),
            ({"mode": None}, ValueError, "mode is None"),
            ({"mode": ["r"]}, ValueError, r"mode is \['r'\]"),
            ({"max_header_size": 10}, ValueError, "max_header_size"),
        ],
    )
    def test_arguments(
        self, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        """Windows, dtypes and modes that cannot be."""
        path = saved(tmp_path / "a.npy", np.arange(10.0).reshape(5, 2))
        before = path.read_bytes()
        with pytest.raises(error, match=f"(?s){message}") as caught:
            flowmap.open_memmap(path, **options)
        assert isinstance(caught.value, flowmap.FlowmapError)
        assert path.read_bytes() == before

    def test_what_is_the_same(self, tmp_path: Path) -> None:
        """The dtype that a file has may be named, in whatever way."""
        path = saved(tmp_path / "a.npy", np.arange(3.0))
        for dtype in ("<f8", "float64", np.float64, float, np.dtype("d")):
            assert flowmap.open_memmap(path, dtype=dtype).dtype == np.float64

    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    def test_short_file(self, tmp_path: Path, mode: str) -> None:
        """A file that was cut short is refused, at each length, and never grown."""
        path = saved(tmp_path / "a.npy", np.arange(5.0))
        whole = path.read_bytes()
        for length in [*range(0, 128, 9), *range(128, len(whole), 7), len(whole) - 1]:
            path.write_bytes(whole[:length])
            for shape in (None, (1,), (0,)):
                with pytest.raises(InvalidArgumentError, match=r"too short|cannot be read"):
                    flowmap.open_memmap(path, mode, shape=shape)
            assert path.stat().st_size == length

    def test_trailing_bytes(self, tmp_path: Path) -> None:
        """What follows the data is left alone, as NumPy does: another array may be there."""
        path = saved(tmp_path / "a.npy", np.arange(5.0))
        with path.open("ab") as file:
            file.write(b"more")
        window = flowmap.open_memmap(path, offset=4)
        window[0] = 7
        window.flush()
        assert np.load(path).tolist() == [0, 1, 2, 3, 7]
        assert path.read_bytes().endswith(b"more")

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (HEADER.format("'<f8'", "False", "(-1,)"), "no array has"),
            (HEADER.format("'<f8'", "False", f"({9 * 10**30},)"), "at most"),
            (HEADER.format("'<f8'", "False", "(0, 9999999999999999999)"), "at most"),
            (
                HEADER.format("'<f8'", "False", "(1,) * 9"),
                "not one that NumPy|Cannot|malformed",
            ),
            (HEADER.format("'<f8'", "0", "(1,)"), "not a valid bool"),
            (HEADER.format("'|O'", "False", "(1,)"), "Python objects"),
            (HEADER.format("('<f8', (3,))", "True", "(2, 2)"), "Fortran order"),
            (HEADER.format("'nonsense'", "False", "(1,)"), "descr is not a valid dtype"),
            (HEADER.format("'<f8'", "False", f"({'1,' * 65})"), "65 axes"),
            ("{'descr': '<f8', 'fortran_order': False}", "correct keys"),
            ("{}", "correct keys"),
            ("[" * 500 + "]" * 500, "cannot be read as a .npy file"),
            ("not a header", "Cannot parse"),
            (HEADER.format("()", "False", "(1,)"), "not one that NumPy writes"),
            (HEADER.format("('<f8',)", "False", "(1,)"), "not one that NumPy writes"),
            (HEADER.format("'<f8'", "False", "(True,)"), "no array has"),
            (HEADER.format("'<f8'", "False", "(1,)").replace("}", " "), "cannot be read"),
            ("é" * 60, "cannot be read as a .npy file"),
        ],
    )
    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
    def test_headers(self, tmp_path: Path, header: str, message: str, version: int) -> None:
        """Headers that no array has are told as such, and nothing is executed or grown."""
        text = header.encode("latin-1" if version < 3 else "utf-8")
        length = len(text).to_bytes(2 if version == 1 else 4, "little")
        path = tmp_path / "a.npy"
        path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(64))
        before = path.read_bytes()
        with pytest.raises(InvalidArgumentError, match=message):
            flowmap.open_memmap(path)
        assert path.read_bytes() == before

    @pytest.mark.filterwarnings("ignore")  # of headers that say what was said long ago
    def test_every_bit_of_a_header(self, tmp_path: Path) -> None:
        """A header with a flipped bit is read for what it says now, or refused as no header."""
        path = saved(tmp_path / "a.npy", np.zeros(3, [("t", "<f8"), ("v", "<i4", (2,))]))
        whole = path.read_bytes()
        refused = 0
        for bit in range(8 * (len(whole) - 48)):
            flip(path, bit // 8, 1 << bit % 8)
            try:
                flowmap.open_memmap(path, "r")
            except InvalidArgumentError:
                refused += 1
            flip(path, bit // 8, 1 << bit % 8)
        assert refused > 500
        assert path.read_bytes() == whole

    def test_long_header_of_version_3(self, tmp_path: Path) -> None:
        """The limit is one of characters, in whatever encoding they are."""
        array = np.zeros(2, [(f"温{n}", "<f8") for n in range(100)])
        path = saved(tmp_path / "a.npy", array)
        data = path.read_bytes()
        length = int.from_bytes(data[8:12], "little")
        characters = len(data[12 : 12 + length].decode())
        assert characters < length
        assert flowmap.open_memmap(path, max_header_size=characters).dtype == array.dtype
        with pytest.raises(InvalidArgumentError, match=r"is large.*max_header_size"):
            flowmap.open_memmap(path, max_header_size=characters - 1)

    def test_a_length_of_4_gib(self, tmp_path: Path) -> None:
        """A header that says it is gigabytes long is refused, not read."""
        path = tmp_path / "a.npy"
        path.write_bytes(b"\x93NUMPY\x02\0\xff\xff\xff\xff")
        os.truncate(path, 1 << 33)
        program = """
            import resource, sys, flowmap
            flowmap.open_memmap
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, -1))
            try:
                flowmap.open_memmap(sys.argv[1])
            except ValueError as error:
                print(error)
        """
        assert "is large" in run(script(program, path)).stdout

    def test_shortened_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that is cut between the look at its size and the mapping."""
        path = saved(tmp_path / "a.npy", np.zeros(3))

        def cut(*_: Any, **__: Any) -> Any:
            raise ValueError("mmap length is greater than file size")

        monkeypatch.setattr("flowmap.windows._Mapping", cut)
        with pytest.raises(InvalidArgumentError, match="became shorter while"):
            flowmap.open_memmap(path)

    def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that fails while the header is read."""
        path = saved(tmp_path / "a.npy", np.zeros(3))

        def fail(*_: Any) -> Any:
            raise OSError(errno.EIO, "no")

        monkeypatch.setattr(mapping, "read_header", fail)
        with pytest.raises(StorageError, match="cannot read the header"):
            flowmap.open_memmap(path)

    def test_subarray_in_the_header(self, tmp_path: Path) -> None:
        """A dtype that is a bare subarray adds its axes, as it does for NumPy."""
        text = b"{'descr': ('<i4', (3,)), 'fortran_order': False, 'shape': (2,), }"
        path = tmp_path / "a.npy"
        path.write_bytes(b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text)
        with path.open("ab") as file:
            file.write(np.arange(6, dtype="<i4").tobytes())
        assert flowmap.open_memmap(path, "r", offset=1).tolist() == [[3, 4, 5]]

    @pytest.mark.parametrize(
        ("filename", "error", "message"),
        [
            ("none.npy", NotFoundError, "cannot open the file"),
            ("", InvalidArgumentError, "an empty text"),
            ("text.npy/", InvalidArgumentError, "names a folder"),
            ("x" * 300, StorageError, "cannot open the file"),
            ("loop.npy", InvalidArgumentError, "no regular file"),
            (".", InvalidArgumentError, "names a folder"),
            ("pipe", InvalidArgumentError, "no regular file"),
            ("/dev/zero", InvalidArgumentError, "no regular file"),
            ("text.npy", InvalidArgumentError, "cannot be read as a .npy file"),
            ("zip.npz", InvalidArgumentError, "cannot be read as a .npy file"),
            ("a\0.npy", InvalidArgumentError, "names no file"),
            (5, WrongTypeError, "takes the path of a .npy file"),
            (io.BytesIO(), WrongTypeError, "takes the path of a .npy file"),
            (None, WrongTypeError, "takes the path of a .npy file"),
        ],
    )
    def test_files(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        filename: Any,
        error: type[Exception],
        message: str,
    ) -> None:
        """What is not there, no file, or another kind of file; nothing is waited for."""
        monkeypatch.chdir(tmp_path)
        os.mkfifo("pipe")
        Path("loop.npy").symlink_to("loop.npy")
        Path("text.npy").write_text("no array")
        np.savez("zip.npz", np.zeros(3))
        with pytest.raises(error, match=message):
            flowmap.open_memmap(filename)

    def test_open_file(self, tmp_path: Path) -> None:
        """An open file is refused as NumPy refuses it: by a ValueError."""
        path = saved(tmp_path / "a.npy", np.zeros(3))
        with path.open("rb") as file, pytest.raises(InvalidArgumentError, match="open file"):
            flowmap.open_memmap(file)  # type: ignore[arg-type]  # what the test is about

    def test_not_permitted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that may not be written is told as such."""

        def refuse(*_: Any, **__: Any) -> int:
            raise PermissionError(13, "no")

        path = saved(tmp_path / "a.npy", np.zeros(3))
        monkeypatch.setattr("flowmap.mapping.open_existing", refuse)
        with pytest.raises(AccessDeniedError, match="cannot open the file"):
            flowmap.open_memmap(path)

    def test_no_room_to_map(self, tmp_path: Path) -> None:
        """A mapping for which there is no address space is told with the file."""
        path = tmp_path / "a.npy"
        np.lib.format.open_memmap(path, "w+", "<f8", (1 << 32,))
        program = """
            import resource, sys, flowmap
            flowmap.open_memmap
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY))
            flowmap.open_memmap(sys.argv[1], shape=10)
            try:
                flowmap.open_memmap(sys.argv[1])
            except OSError as error:
                print(type(error).__name__, error)
        """
        done = run(script(program, path))
        assert done.stdout.startswith("StorageError [Errno 12] cannot map the file"), done
        assert str(path) in done.stdout

    def test_no_descriptor_left(self, tmp_path: Path) -> None:
        """Neither a window nor a refusal leaves a file open but that of the mapping."""
        path = saved(tmp_path / "a.npy", np.zeros(3))
        opened = Path("/proc/self/fd")
        before = len(list(opened.iterdir()))
        for _ in range(3):
            flowmap.open_memmap(path, offset=1)
            with pytest.raises(InvalidArgumentError):
                flowmap.open_memmap(path, offset=4)
        assert len(list(opened.iterdir())) == before
