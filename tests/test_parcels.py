"""The work of a run travels once to each worker, and stays there as long as the run."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import weakref
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import numpy as np
import pytest
from support import Traveller, Unloadable, ramp, versioned

import flowmap
from flowmap import parcels
from flowmap.clusters import Dask
from flowmap.errors import FillerNotFoundError
from flowmap.parcels import Packing, Parcel
from flowmap.work import Work
from flowmap.write import fill_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from distributed import Worker
    from numpy.typing import NDArray

    from flowmap.segments import Block
    from flowmap.target import Target

CALLS = 0


def counting() -> Callable[..., None]:
    """Return a filler that travels by value, as a script's does, and counts in a global."""

    @flowmap.filler(volatile=("argument",))
    def count(out: NDArray[Any], _block: Block, *, argument: object = None) -> None:
        global CALLS  # noqa: PLW0603 -- what the test is about
        CALLS += 1
        out["calls"], out["pid"] = CALLS, os.getpid()
        del argument

    return count


def allocate(path: Path) -> Target:
    """Allocate what `counting` fills."""
    dtype = [("calls", "<i8"), ("pid", "<i8")]
    return flowmap.allocate(path, 12, dtype, segments=12, exist="overwrite")


def check(target: Target, argument: Traveller) -> None:
    """Check that each worker had the work once, and kept its global."""
    rows = np.load(target.path)
    pids = set(rows["pid"].tolist())
    for pid in pids:
        calls = rows["calls"][rows["pid"] == pid]
        assert sorted(calls.tolist()) == list(range(1, len(calls) + 1))
    assert pids <= set(argument.notes("loaded"))
    assert len(argument.notes("loaded")) == len(set(argument.notes("loaded")))
    assert argument.notes("pickled") == [os.getpid()]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Dask]:
    """Open a Dask cluster of two processes of this machine."""
    with flowmap.executor("dask", workers=2) as pool:
        assert isinstance(pool, Dask)
        yield pool


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_a_work_is_loaded_once_in_each_worker(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """It is pickled once, and a global that a script's filler sets is there for the next."""
    pool = request.getfixturevalue("cluster") if kind == "dask" else kind
    how: dict[str, Any] = {} if kind == "dask" else {"workers": 2}
    target = allocate(tmp_path / "a.npy")
    argument = Traveller(tmp_path / "log")
    flowmap.fill(target, counting(), {"argument": argument}, executor=pool, **how)
    check(target, argument)


def test_a_worker_that_is_replaced_gets_it_too(tmp_path: Path) -> None:
    """The new one loads it once as well."""

    @flowmap.filler(volatile=("argument", "mark"))
    def fatal(out: NDArray[Any], block: Block, *, argument: object, mark: Path) -> None:
        del argument
        if block.start == 4 and not mark.exists():
            mark.touch()
            os._exit(1)
        out[...] = block.start

    target = flowmap.allocate(tmp_path / "a.npy", 12, "f8", segments=12)
    argument = Traveller(tmp_path / "log")
    work = {"argument": argument, "mark": tmp_path / "mark"}
    flowmap.fill(target, fatal, work, workers=1)
    assert target.asarray().tolist() == list(range(12))
    loaded = argument.notes("loaded")
    assert len(loaded) == len(set(loaded)) == 2


def test_works_in_turn(tmp_path: Path) -> None:
    """One pool fills two targets by different work, a segment of each at a time."""
    one = flowmap.allocate(tmp_path / "1.npy", 6, "f8", segments=3)
    two = flowmap.allocate(tmp_path / "2.npy", 6, "f8", segments=3)
    works = Work.of("arange", {"start": 1}), Work.of("arange", {"start": 2})
    with flowmap.executor("processes", workers=1) as pool:
        futures = [
            pool.submit(fill_work, segment, work)
            for segments in zip(one.segments, two.segments, strict=True)
            for segment, work in zip(segments, works, strict=True)
        ]
        assert {future.result().state for future in futures} == {"done"}
    assert one.asarray().tolist() == [1, 2, 3, 4, 5, 6]
    assert two.asarray().tolist() == [2, 3, 4, 5, 6, 7]


def test_equal_works_are_one_parcel() -> None:
    """A task of Prefect's makes a work for each segment; another work is another parcel."""
    packing, big = Packing(), np.arange(10)
    first = packing.part((0, Work.of(constant, {"value": big})))
    assert first[0] == (0,)
    assert packing.part((1, Work.of(constant, {"value": big})))[1] is first[1]
    big[3] = 7
    assert packing.part((2, Work.of(constant, {"value": big})))[1] is not first[1]
    assert packing.part((1, 2)) == ((1, 2), None)
    assert packing.part(()) == ((), None)


@flowmap.filler
def constant(out: NDArray[Any], block: Block, *, value: NDArray[Any]) -> None:
    """Fill with the values of an argument."""
    out[...] = value[block.start : block.stop]


def test_a_worker_keeps_the_last_work_only() -> None:
    """What was there before is freed."""

    @flowmap.filler(volatile=("argument",))
    def hold(out: NDArray[Any], block: Block, *, argument: object) -> None: ...

    try:
        first = Parcel(cloudpickle.dumps(Work.of(hold, {"argument": {1, 2}})))
        parcels.keep(first, "segment")
        held = weakref.ref(parcels._KEPT[0].function)
        del first
        parcels.keep(Parcel(cloudpickle.dumps(Work.of(versioned))), "segment")
        gc.collect()
        assert held() is None
        assert parcels.call_with_kept(lambda *args: args, 1) == (1, parcels._KEPT[0])
    finally:
        parcels._KEPT.clear()


def test_a_parcel_that_was_opened_travels_as_it_came() -> None:
    """What a filler keeps in a global, a model or a lock, does not go to the next worker."""
    parcel = Parcel(cloudpickle.dumps(Work.of(counting())))
    before = pickle.dumps(parcel)
    parcel.load("segment").function.__globals__["CALLS"] = lambda: None
    assert pickle.dumps(parcel) == before
    assert parcel.load("segment") is parcel.load("segment")


def test_what_cannot_travel_is_told() -> None:
    """On either side, and by name."""
    holding = Work.of(counting(), {"argument": threading.Lock()})
    with pytest.raises(PicklingError, match="count or its arguments cannot be pickled"):
        Packing().part((holding,))
    lost = Parcel(cloudpickle.dumps(Work.of(counting(), {"argument": Unloadable()})))
    with pytest.raises(FillerNotFoundError, match=r"segment 7: .*only where it was pickled"):
        lost.load("segment 7")


def held(dask_worker: Worker) -> int:
    """Return how many results a worker of Dask's holds."""
    return len(dask_worker.data)


def test_dask_forgets_the_work_with_the_run(tmp_path: Path, cluster: Dask) -> None:
    """Its workers hold the work of a run that goes on, and nothing when its client has gone."""
    address = cluster._client.scheduler.address
    target = flowmap.allocate(tmp_path / "a.npy", 8, "f8", segments=4)
    with flowmap.executor(address) as pool:
        assert isinstance(pool, Dask)
        flowmap.fill(target, ramp, executor=pool)
        assert sum(pool._client.run(held).values()) >= 1
    cluster._sent = None, None
    for _ in range(600):
        if not any(cluster._client.run(held).values()):
            break
        gc.collect()
    assert not any(cluster._client.run(held).values())


def test_dask_is_sent_a_large_work_without_a_word(tmp_path: Path, cluster: Dask) -> None:
    """Its warning that a graph is large advises what the user of a filler cannot do."""
    target = flowmap.allocate(tmp_path / "a.npy", 8, "f8", segments=2)
    big = np.arange(1 << 16)
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "100 kB"}):
        flowmap.fill(target, constant, {"value": big}, executor=cluster)
    assert target.asarray().tolist() == list(range(8))


def test_dask_is_sent_a_work_again_that_died(tmp_path: Path, cluster: Dask) -> None:
    """Whatever killed the worker that was about to have it: the calls are tried again."""
    target = flowmap.allocate(tmp_path / "a.npy", 8, "f8", segments=2)
    work = Work.of(ramp)
    _, parcel = cluster._packing.part((work,))
    assert parcel is not None
    there = cluster._client.submit(os._exit, 1)  # kills the worker that has it
    assert isinstance(there.exception(), cluster._killed)
    cluster._sent = parcel, there
    futures = [cluster.submit(fill_work, segment, work) for segment in target.segments]
    assert {future.result(timeout=100).state for future in futures} == {"done"}
