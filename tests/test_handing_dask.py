"""`Target.to_dask`: the right values, under every scheduler, and none of them in the graph."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask.array as da
import numpy as np
import pytest
from dask.base import optimize
from distributed import Client, LocalCluster
from support import DTYPES, ORDERS, damage, oracle, run, script, written

import flowmap
from flowmap import handing
from flowmap.errors import ForeignFileError, NotFoundError, OtherJobError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SHAPES: list[tuple[int, ...]] = [(), (0,), (0, 3), (3, 0), (7,), (7, 4), (4, 2, 5)]
RECORD = np.dtype([("a", "<i2"), ("b", ">f8", (2, 3)), ("c", "S3")])


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A cluster of two processes on this machine."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """A target of 100 rows in 4 segments, all done."""
    return written(tmp_path / "a.npy", oracle((100, 3), np.dtype("<f8")), segments=4)


def same(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    """Assert that two arrays are of one kind and hold the same values."""
    assert type(found) is np.ndarray
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(found, wanted)


SLICES = [
    *(slice(None), slice(2, 5), slice(0, 1), slice(1, 99)),
    *(slice(4, 2), slice(0, 6, 2), slice(None, None, -1)),
]


class TestValues:
    """The values are those of the file."""

    @pytest.mark.parametrize("fortran", ORDERS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_dtype(self, tmp_path: Path, dtype: np.dtype[Any], fortran: bool) -> None:
        """Every dtype in either order, whole and in part."""
        values = oracle((6, 7), dtype)
        target = written(tmp_path / "a.npy", values, fortran_order=fortran)
        rows = target.to_dask()
        loaded = np.load(target.path)
        assert (rows.shape, rows.dtype) == (target.shape, target.dtype)
        same(rows.compute(), loaded)
        for index in (np.s_[2], np.s_[1:5:2, ::-1], np.s_[:, 3], np.s_[5, 6], np.s_[[4, 1]]):
            np.testing.assert_array_equal(rows[index].compute(), loaded[index])
        for index in itertools.product(SLICES, SLICES):  # as tasks get them
            lazy = handing.LazyRows(target.path, target.id, target.job.layout)
            same(lazy[index], loaded[index])

    @pytest.mark.parametrize("fortran", ORDERS)
    @pytest.mark.parametrize("dtype", [np.dtype(">i4"), np.dtype("S5"), RECORD], ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_any_shape(
        self, tmp_path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool
    ) -> None:
        """0-d, empty and many-dimensional targets; chunks follow the segments."""
        target = written(tmp_path / "a.npy", oracle(shape, dtype), fortran_order=fortran)
        rows = target.to_dask()
        same(rows.compute(scheduler="synchronous"), np.load(target.path))
        chunks: list[tuple[int, ...]] = [(length,) for length in shape]
        if shape:
            lengths = tuple(segment.rows for segment in target.segments)
            chunks[-1 if fortran else 0] = lengths or (0,)
        assert rows.chunks == tuple(chunks)

    def test_memory_of_its_own(self, target: flowmap.Target) -> None:
        """What comes out is no view of the file, and may be written to."""
        found = target.to_dask()[:5].compute()
        before = target.path.read_bytes()
        found[...] = -1
        assert target.path.read_bytes() == before

    def test_fields(self, tmp_path: Path) -> None:
        """Fields, those with inner arrays too, can be taken of records."""
        values = oracle((20,), RECORD)
        rows = written(tmp_path / "a.npy", values).to_dask()
        for name in ("a", "b", "c"):
            same(rows[name].compute(), values[name].copy())
        assert rows["b"][4:6, 1].sum().compute() == values["b"][4:6, 1].sum()

    def test_not_done_yet(self, tmp_path: Path) -> None:
        """Rows that nobody wrote are what is there: zeros."""
        target = flowmap.allocate(tmp_path / "a.npy", 100, "<f8", segments=4)
        flowmap.fill_segment(target.segments[1], "arange")
        assert target.to_dask().sum().compute() == np.arange(25, 50).sum()


class TestLazy:
    """Nothing is read before it is asked for, and then no more than that."""

    def test_reads_only_what_is_asked(
        self, target: flowmap.Target, parts: list[NDArray[Any]]
    ) -> None:
        """Dask hands a slice down into the task that reads."""
        rows = target.to_dask()
        some = rows[5:10] * 2
        column = rows[20:30, 1]
        assert parts == []
        some.compute()
        assert [part.shape for part in parts] == [(5, 3)]
        del parts[:]
        column.compute()
        assert sorted(part.shape[0] for part in parts) == [5, 5]
        assert all(part.size == part.shape[0] for part in parts)
        assert all(part.base is None for part in parts)

    def test_a_slice_of_a_slice(
        self, target: flowmap.Target, parts: list[NDArray[Any]]
    ) -> None:
        """Dask hands down only the first of several: what is read is a chunk of it at most."""
        assert target.to_dask()[10:90][5:7].compute().shape == (2, 3)
        assert [part.shape for part in parts] == [(15, 3)]

    def test_sparse(self, tmp_path: Path, parts: list[NDArray[Any]]) -> None:
        """8 GiB: the graph is some KB, is made at once, and a few rows take no more."""
        target = flowmap.allocate(tmp_path / "a.npy", 1 << 30, "<f8", reserve=False)
        begun = time.perf_counter()
        rows = target.to_dask()
        assert time.perf_counter() - begun < 1
        assert len(rows.chunks[0]) == len(target.segments) == 128
        assert len(cloudpickle.dumps(rows)) < 8000
        (optimized,) = optimize(rows)  # what goes to a scheduler, task by task
        assert len(cloudpickle.dumps(dict(optimized.__dask_graph__()))) < 128 * 1000
        assert parts == []
        assert rows[-10:-5].compute().tolist() == [0] * 5
        assert [part.nbytes for part in parts] == [40]

    def test_no_data_in_the_graph(self, target: flowmap.Target) -> None:
        """Whatever is in the file, and however long the segments' arguments: not in there."""
        marker = target.asarray()[0].tobytes()
        assert marker not in cloudpickle.dumps(target.to_dask())


class TestSchedulers:
    """The same under every scheduler, and its errors come through."""

    @pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
    def test_local(self, target: flowmap.Target, scheduler: str) -> None:
        """Dask's own."""
        rows = target.to_dask()
        total = rows.sum(axis=0).compute(scheduler=scheduler, num_workers=2)
        np.testing.assert_allclose(total, np.load(target.path).sum(axis=0))

    @pytest.mark.parametrize("fortran", ORDERS)
    def test_distributed(self, tmp_path: Path, client: Client, fortran: bool) -> None:
        """Processes that are given the graph over the network."""
        values = oracle((30, 9), RECORD)
        target = written(tmp_path / "a.npy", values, fortran_order=fortran)
        rows = target.to_dask()
        same(client.compute(rows).result(), np.load(target.path))
        same(client.compute(rows[5:7, 3]).result(), values[5:7, 3])

    def test_not_stale(self, tmp_path: Path, client: Client) -> None:
        """A cluster that holds the chunks of before takes them for none of now."""
        target = flowmap.allocate(tmp_path / "a.npy", 100, "<f8", segments=4)
        held = client.persist(target.to_dask())
        assert held.sum().compute() == 0
        flowmap.fill(target, "arange", executor="threads", workers=1)
        assert target.to_dask().sum().compute() == np.arange(100).sum()
        flowmap.allocate(target.path, 100, "<f8", segments=4, exist="overwrite")
        assert flowmap.open_target(target.path).to_dask().sum().compute() == 0

    def test_errors_from_a_worker(
        self, target: flowmap.Target, client: Client, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """An error of flowmap's arrives whole from another process."""
        rows = target.to_dask()
        flowmap.allocate(target.path, (100, 3), "<f8", segments=4, exist="overwrite")
        with pytest.raises(OtherJobError, match="allocated anew") as caught:
            client.compute(rows.sum()).result()
        assert vars(caught.value)["path"] == str(target.path)


class TestRefused:
    """A task refuses what is not the job's own any more."""

    def test_allocated_anew(self, target: flowmap.Target) -> None:
        """Of the same kind or another."""
        rows = target.to_dask()
        for shape in ((100, 3), (5,), ()):
            flowmap.allocate(target.path, shape, "<f8", segments=1, exist="overwrite")
            with pytest.raises(OtherJobError, match=r"allocated anew.*open it again"):
                rows[:5].compute()

    def test_gone(self, target: flowmap.Target) -> None:
        """Its records, or the file itself: never zeros in place of them."""
        rows = target.to_dask()
        sidecar = target.path.with_name("a.npy.flowmap")
        sidecar.rename(sidecar.with_name("elsewhere"))
        with pytest.raises(ForeignFileError, match="its records were deleted"):
            rows[:5].compute()
        target.path.unlink()
        with pytest.raises(NotFoundError, match="there is no target"):
            rows[:5].compute()


class TestName:
    """The name says which values they are."""

    def test_same(self, target: flowmap.Target) -> None:
        """As long as nothing changes: here, opened again, after validation, elsewhere."""
        name = target.to_dask().name
        assert name.startswith("flowmap-")
        assert target.to_dask().name == name
        assert flowmap.validate(target).ok
        assert flowmap.open_target(target.path).to_dask().name == name
        code = "import flowmap, sys; print(flowmap.open_target(sys.argv[1]).to_dask().name)"
        done = run(script(code, target.path))
        assert done.stdout.strip() == name, done.stderr

    def test_another_after_a_change(self, target: flowmap.Target) -> None:
        """Whatever happens to a segment, or to the file."""
        names = [target.to_dask().name]

        def changed() -> bool:
            names.append(target.to_dask().name)
            return len(set(names)) == len(names)

        flowmap.reset(target, [2])
        assert changed()
        flowmap.write_segment(target.segments[2], np.ones((25, 3)))
        assert changed()
        flowmap.write_segment(target.segments[2], np.zeros((25, 3)), replace=True)
        assert changed()
        time.sleep(0.05)  # the time of a file goes by ticks of the kernel's clock
        damage(target, 1)
        assert changed()
        assert not flowmap.validate(target).ok  # marks it
        assert changed()

    def test_another_of_another_job(self, target: flowmap.Target) -> None:
        """Two jobs that hold the same have two names, at one path after the other too."""
        copy = written(target.path.with_name("b.npy"), np.array(target.asarray()), segments=4)
        names = {target.to_dask().name, copy.to_dask().name}
        new = flowmap.allocate(target.path, (100, 3), "<f8", segments=4, exist="overwrite")
        names.add(new.to_dask().name)
        assert len(names) == 3

    def test_graph_is_dasks_own(self, target: flowmap.Target) -> None:
        """It mixes with other arrays of Dask's, chunk by chunk."""
        rows = target.to_dask()
        other = da.ones((100, 3), chunks=rows.chunks)
        np.testing.assert_array_equal((rows + other).compute(), np.load(target.path) + 1)
