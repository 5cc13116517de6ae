"""Arrays that map a file travel to workers as a place in that file."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pytest
from support import take_anything

from flowmap import file_maps
from flowmap.errors import InvalidArgumentError
from flowmap.work import Work

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel lists no maps")

ROWS = 1 << 19


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of 4 MiB, whose name has what /proc/self/maps writes in its own way."""
    path = tmp_path / "odd\nname (deleted)"
    np.save(path.with_suffix(".npy"), np.arange(float(ROWS)))
    return path.with_suffix(".npy")


def sent(work: Work) -> bytes:
    """Return what a worker gets."""
    return pickle.dumps(work)


def work_with(argument: Any) -> Work:
    """Return a work with one argument."""
    return Work.of(take_anything, {"x": argument})


WAYS: dict[str, Any] = {
    "whole": lambda x: x,
    "slice": lambda x: x[1000:-1000],
    "strided": lambda x: x[5::2],
    "backward": lambda x: x[::-1],
    "Fortran": lambda x: x.reshape((-1, 4), order="F"),
    "transposed": lambda x: x.reshape(2, -1, 4)[1:].T,
    "records": lambda x: x.view([("a", "<f8"), ("b", "<i4", 2)]),
    "repeated": lambda x: np.broadcast_to(x[:7], (ROWS, 7)),
    "plain": np.asarray,
}


@pytest.mark.parametrize("way", WAYS)
def test_travels_as_its_place(file: Path, way: str) -> None:
    """Whatever part of a file an array maps, the worker maps the same, and gets no copy."""
    array = WAYS[way](np.load(file, mmap_mode="r"))
    work = work_with(array)
    for data in (pickle.dumps(work), cloudpickle.dumps(work)):
        assert len(data) < 10_000
        arrived = pickle.loads(data)
        found: NDArray[Any] = arrived.arguments["x"]
        assert type(found) is type(array)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert np.array_equal(found, array)
        assert not found.flags.writeable
        assert arrived.fingerprint == work.fingerprint == work_with(found).fingerprint
        assert len(sent(arrived)) < 10_000, "it travels on as lightly"
    assert work.arguments["x"] is array


def test_within_others(file: Path) -> None:
    """Arrays in a list, a tuple or a dict travel so, too; all else stays as it is."""
    mapped = np.load(file, mmap_mode="r")
    given = {"list": [mapped, 1], "tuple": (mapped,), "dict": {"a": mapped}, "text": "a"}
    data = pickle.dumps(Work.of(take_anything, given))
    assert len(data) < 10_000
    arrived = pickle.loads(data).arguments
    assert list(arrived) == list(given)
    assert [type(value) for value in arrived.values()] == [list, tuple, dict, str]
    for found in (arrived["list"][0], arrived["tuple"][0], arrived["dict"]["a"]):
        assert np.array_equal(found, mapped)
    assert arrived["list"][1] == 1


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_one_that_can_be_written_to(file: Path, mode: Any) -> None:
    """What is in memory may not be what is in the file: it travels with its elements."""
    mapped = np.load(file, mmap_mode=mode)
    mapped[0] = -1
    arrived = pickle.loads(sent(work_with(mapped)))
    mapped.flags.writeable = False
    frozen = sent(work_with(mapped))
    shutil.rmtree(file.parent)
    assert arrived.arguments["x"][0] == -1
    assert pickle.loads(frozen).arguments["x"][0] == -1


def test_small_one(file: Path) -> None:
    """A small array travels with its elements, and needs no file."""
    data = sent(work_with(np.load(file, mmap_mode="r")[:100]))
    file.unlink()
    assert np.array_equal(pickle.loads(data).arguments["x"], np.arange(100.0))


@pytest.mark.parametrize("how", ["removed", "replaced", "no list of maps"])
def test_file_that_no_name_leads_to(
    file: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array whose file cannot be opened again travels with its elements."""
    mapped = np.load(file, mmap_mode="r")
    other = file.with_name("other.npy")
    np.save(other, np.zeros(ROWS))
    if how == "removed":
        file.unlink()
    elif how == "replaced":
        os.replace(other, file)  # noqa: PTH105 -- a rename over it
    else:
        monkeypatch.setattr(file_maps, "Path", lambda _: other / "maps")
    arrived = pickle.loads(sent(work_with(mapped)))
    assert np.array_equal(arrived.arguments["x"], np.arange(float(ROWS)))


def test_renamed_file(file: Path) -> None:
    """The name is the one that the file has when the work is sent."""
    mapped = np.load(file, mmap_mode="r")
    file.rename(file.with_name("new"))
    data = sent(work_with(mapped))
    assert len(data) < 10_000
    assert np.array_equal(pickle.loads(data).arguments["x"], mapped)


@pytest.mark.parametrize("how", ["removed", "cut short", "written to"])
def test_file_that_the_worker_does_not_see(file: Path, how: str) -> None:
    """A worker that does not find the same file says which, and what to do."""
    data = sent(work_with(np.load(file, mmap_mode="r")))
    if how == "removed":
        file.unlink()
    elif how == "cut short":
        os.truncate(file, 5000)
    else:
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    fault = "cannot be opened" if how == "removed" else "has changed"
    with pytest.raises(InvalidArgumentError, match=rf"{fault}[\s\S]*np.array\(x\)"):
        pickle.loads(data)
