"""Boxes that are read from a file: the elements that NumPy would choose, in few calls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import ORDERS, oracle, saved

from flowmap.boxes import read_part
from flowmap.npy import Layout
from flowmap.storage import EndedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def _read(path: Path, array: NDArray[Any], index: Any, *, fortran: bool) -> NDArray[Any]:
    layout = Layout.of(array.shape, array.dtype, fortran)
    with path.open("rb") as file:
        return read_part(layout, path.stat().st_size - array.nbytes, file.fileno(), index)


def _index(rng: np.random.Generator, length: int) -> Any:
    """Return a slice, whole, stepped or backward; a number, or a list of numbers."""
    first, last = sorted(rng.integers(-length - 1, length + 2, 2).tolist())
    slices = [
        slice(None),
        slice(first, last),
        slice(first, last, int(rng.integers(1, 4))),
        slice(last, first, -int(rng.integers(1, 4))),
    ]
    if not length:
        return slices[rng.integers(4)]
    some = rng.integers(-length, length, 3)
    return [*slices, int(some[0]), some.tolist(), some][rng.integers(7)]


@pytest.mark.parametrize("fortran", ORDERS)
@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (5, 4), (3, 2, 6), (2, 3, 2, 5)])
def test_as_numpy_chooses(tmp_path: Path, shape: tuple[int, ...], fortran: bool) -> None:
    """Whatever the index: the part that NumPy takes of the array, in memory of its own."""
    array = oracle(shape, np.dtype([("a", "<i2"), ("b", "S3")]))
    path = saved(tmp_path / "a.npy", array, fortran_order=fortran)
    rng = np.random.default_rng(len(shape))
    indices: list[Any] = [(), ..., np.s_[..., None], array["a"] > 50]
    for _ in range(200):
        index = tuple(_index(rng, length) for length in shape[: rng.integers(len(shape) + 1)])
        indices.append(index)
    for index in indices:
        found = _read(path, array, index, fortran=fortran)
        assert type(found) is np.ndarray
        assert found.flags.writeable
        np.testing.assert_array_equal(found, array[index])
    if shape:
        with pytest.raises(IndexError):
            _read(path, array, shape[0], fortran=fortran)
    with pytest.raises(IndexError):
        _read(path, array, (0,) * (len(shape) + 1), fortran=fortran)


def test_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies close is read together, what is far apart by itself."""
    array = np.arange(120_000, dtype="<i4").reshape(30, 40, 100)
    path = saved(tmp_path / "a.npy", array)
    sizes: list[int] = []
    real = os.preadv

    def noted(*arguments: Any) -> int:
        sizes.append(real(*arguments))
        return sizes[-1]

    monkeypatch.setattr(os, "preadv", noted)
    cases: list[tuple[Any, int, int]] = [
        (np.s_[3:7], 1, 4 * 16_000),
        (np.s_[3:7, :, 9], 1, 159 * 400 + 4),  # all pieces at one distance
        (np.s_[3:7, 5, :], 4, 4 * 400),  # more than a page between them
        (np.s_[2, 4:6, 10:20], 1, 400 + 40),
        (np.s_[::10, 0, 0], 3, 3 * 4),
        (np.s_[4:4], 0, 0),
    ]
    for index, calls, nbytes in cases:
        sizes.clear()
        found = _read(path, array, index, fortran=False)
        np.testing.assert_array_equal(found, array[index])
        assert (len(sizes), sum(sizes)) == (calls, nbytes)


def test_a_file_that_ends_within(tmp_path: Path) -> None:
    """Rows that are not there are an error, never zeros."""
    array = np.ones((10, 10))
    path = saved(tmp_path / "a.npy", array)
    os.truncate(path, path.stat().st_size - 8)
    layout = Layout.of(array.shape, array.dtype, fortran_order=False)
    with path.open("rb") as file, pytest.raises(EndedError):
        read_part(layout, path.stat().st_size + 8 - array.nbytes, file.fileno(), np.s_[:, 9])
