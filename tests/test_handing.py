"""Handing a target on: what is loaded for it and when, and xarray, which takes Dask's array."""

from __future__ import annotations

import errno
import importlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
from support import ORDERS, flip, oracle, run, script, written

import flowmap
from flowmap import boxes
from flowmap.errors import (
    DamagedJobError,
    MissingExtraError,
    NotFoundError,
    OtherJobError,
    StorageError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


HANDS = pytest.mark.parametrize("hand", ["to_dask", "zarr_references"])


class TestExtras:
    """The libraries are optional."""

    def test_loaded_late(self, tmp_path: Path) -> None:
        """A job that is handed to nobody loads none of them, nor what they bring."""
        done = run(
            script(
                """
                import sys
                import flowmap

                target = flowmap.allocate(sys.argv[1], 100, "<f8", segments=2)
                flowmap.fill(target, "arange", executor="threads", workers=1)
                flowmap.open_target(target).asarray()
                assert flowmap.validate(target).ok
                print(*{"dask", "zarr", "xarray", "fsspec", "pandas"} & set(sys.modules))
                """,
                tmp_path / "a.npy",
            )
        )
        assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr

    @pytest.mark.parametrize(
        ("hand", "extra", "module"),
        [("to_dask", "dask", "dask.array"), ("zarr_references", "zarr", "zarr")],
    )
    def test_missing(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        hand: str,
        extra: str,
        module: str,
    ) -> None:
        """Without its library each says what installs it, as an ImportError."""
        target = flowmap.allocate(tmp_path / "a.npy", 10, "<f8")
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError):
            importlib.import_module(module)
        with pytest.raises(MissingExtraError, match=rf"pip install .*\[{extra}\]") as no:
            getattr(target, hand)()
        assert isinstance(no.value, ImportError)


class TestRefused:
    """What is no whole target of this job is not handed on."""

    @HANDS
    def test_gone(self, tmp_path: Path, hand: str) -> None:
        """Nor is one that was removed."""
        target = written(tmp_path / "a.npy", np.arange(10.0))
        target.path.unlink()
        with pytest.raises(NotFoundError, match="there is no target"):
            getattr(target, hand)()

    @HANDS
    def test_replaced(self, tmp_path: Path, hand: str) -> None:
        """A target that was allocated anew is to be opened again."""
        target = written(tmp_path / "a.npy", np.arange(10.0))
        flowmap.allocate(target.path, 10, "<f8", exist="overwrite")
        with pytest.raises(OtherJobError, match=r"allocated anew.*open it again"):
            getattr(target, hand)()

    @HANDS
    def test_damaged(self, tmp_path: Path, hand: str) -> None:
        """A header that was changed no longer says where what lies."""
        target = written(tmp_path / "a.npy", np.arange(10.0))
        flip(target.path, 100)
        with pytest.raises(DamagedJobError, match="another header"):
            getattr(target, hand)()

    def test_replaced_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows that were read while the target was allocated anew are not given out."""
        target = written(tmp_path / "a.npy", np.arange(10.0))
        rows = target.to_dask()
        read = boxes.read_part

        def overwrite(*arguments: Any) -> Any:
            flowmap.allocate(target.path, 10, "<f8", exist="overwrite")
            return read(*arguments)

        monkeypatch.setattr(boxes, "read_part", overwrite)
        with pytest.raises(OtherJobError, match="allocated anew"):
            rows[:2].compute()

    def test_whole_rows_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whole rows are not mapped, so that a bad sector is an error and not the end."""
        values = np.arange(60.0).reshape(20, 3)
        rows = written(tmp_path / "a.npy", values, segments=4).to_dask()

        def fail(*_: Any) -> Any:
            raise OSError(errno.EIO, "bad sector")

        monkeypatch.setattr("flowmap.windows._Mapping", fail)
        assert np.array_equal(rows.compute(), values)
        assert np.array_equal(rows[3:17].compute(), values[3:17])
        monkeypatch.setattr("flowmap.windows.read_into", fail)
        with pytest.raises(StorageError, match="cannot read the target; look at the disk"):
            rows[3:17].compute(scheduler="synchronous")

    @pytest.mark.parametrize("fortran", ORDERS)
    def test_nothing_is_mapped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fortran: bool
    ) -> None:
        """Any part is read, since some file systems cannot map a file."""
        values = oracle((9, 6, 5), np.dtype("<i4"))
        target = written(tmp_path / "a.npy", values, fortran_order=fortran, segments=2)
        rows = target.to_dask()

        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError(errno.ENODEV, "no")

        monkeypatch.setattr("flowmap.windows._Mapping", refuse)
        for index in (np.s_[::2], np.s_[:, 3], np.s_[4, ..., ::-2], np.s_[[7, 1], :, 2:4]):
            found = rows[index].compute(scheduler="synchronous")
            np.testing.assert_array_equal(found, values[index])
        with pytest.raises(StorageError, match=r"cannot map the target.*a\.npy") as caught:
            target.asarray()
        assert caught.value.errno == errno.ENODEV


class TestXarray:
    """xarray takes Dask's array; a file without names of axes needs them said anyway."""

    def test_data_array(self, tmp_path: Path, parts: list[NDArray[Any]]) -> None:
        """A plain target is a DataArray, read when it is asked for, and no more of it."""
        values = oracle((60, 4), np.dtype("<f8"))
        target = written(tmp_path / "a.npy", values)
        table = xr.DataArray(
            target.to_dask(), dims=("run", "column"), coords={"column": list("abcd")}
        )
        assert table.chunks == ((20, 20, 20), (4,))
        some = table[18:22, 2]
        assert parts == []
        np.testing.assert_array_equal(some.values, values[18:22, 2])
        assert [part.shape for part in parts] == [(2,), (2,)]
        assert some.column == "c"
        np.testing.assert_array_equal(table.sel(column="b").values, values[:, 1])

    def test_dataset(self, tmp_path: Path, parts: list[NDArray[Any]]) -> None:
        """The fields of a target of records are the variables of a Dataset."""
        values = oracle((60,), np.dtype([("t", "<f8"), ("v", ">f4", (3,)), ("name", "S3")]))
        rows = written(tmp_path / "a.npy", values).to_dask()
        runs = xr.Dataset(
            {
                "t": ("run", rows["t"]),
                "v": (("run", "axis"), rows["v"]),
                "name": ("run", rows["name"]),
            }
        )
        assert parts == []
        assert dict(runs.sizes) == {"run": 60, "axis": 3}
        for field in ("t", "v", "name"):
            np.testing.assert_array_equal(runs[field].values, values[field])
        del parts[:]
        assert runs["t"].isel(run=5).values == values["t"][5]
        assert len(parts) == 1
