"""What may be a filler, and what is refused before anything is allocated or filled."""

from __future__ import annotations

import functools
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import stable_id

import flowmap
from flowmap.errors import FillerNotFoundError, OtherWorkError, WrongTypeError
from flowmap.fillers import arange, find_filler
from flowmap.work import Work

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.segments import Block


async def coroutine(out: Any, block: Block) -> None:
    """Fill nothing."""


async def asynchronous_generator(out: Any, block: Block) -> Any:
    """Fill nothing."""
    yield


def generator(out: Any, block: Block) -> Any:
    """Fill nothing."""
    yield


class Asynchronous:
    """An object whose call is a coroutine."""

    async def __call__(self, out: Any, block: Block) -> None:
        """Fill nothing."""


class Callback:
    """An object that fills, and one of whose methods does."""

    def __call__(self, out: Any, block: Block) -> None:
        """Fill."""
        out[:] = 1

    method = __call__

    @classmethod
    def of_the_class(cls, out: Any, block: Block) -> None:
        """Fill."""
        out[:] = 1

    @staticmethod
    def of_no_object(out: Any, block: Block) -> None:
        """Fill."""
        out[:] = 1


def like(module: str, name: str, *bases: type) -> Any:
    """Return an object that can be called, of a class that looks like one of a library."""
    call = {"__module__": module, "__call__": lambda self, out, block: None}
    return type(name, bases, call)()


NOT_FILLERS: list[tuple[Any, str]] = [
    (coroutine, "a coroutine function.*plain function"),
    (asynchronous_generator, "an asynchronous generator function.*plain function"),
    (generator, "a generator function.*plain function"),
    (staticmethod(generator), "a generator function.*plain function"),
    (Asynchronous(), "a coroutine function.*plain function"),
    (Callback, "a class.*plain function"),
    (functools.partial(generator), "a generator function"),
    (functools.lru_cache(Callback.of_no_object), r"of_no_object\.__wrapped__"),
    (np.vectorize(abs), r"Wrap it: def fill\(out, block\): out\[:\] ="),
    (np.sqrt, r"Wrap it: def fill\(out, block\): out\[:\] = sqrt"),
    (np.frompyfunc(abs, 2, 1), "Wrap it"),
    (print, "a function of your own"),
    ([].append, "a function of your own"),
    (np.zeros(3).fill, "a function of your own"),
    (np.random.default_rng(1).random, "a function of your own"),
    (like("numba.core.registry", "CPUDispatcher"), "cannot take a Block. Wrap it"),
    (like("numba.np.ufunc.dufunc", "DUFunc"), "returns new arrays. Wrap it"),
    (like("jaxlib._jax", "PjitFunction"), "returns new arrays. Wrap it"),
    (like("prefect.tasks", "Task"), r"Pass the plain function, f\.fn"),
    (like("mine", "MyTask", type(like("prefect.tasks", "Task"))), r"f\.fn"),
    (like("prefect.flows", "Flow"), r"Pass the plain function, f\.fn"),
    (like("dask.delayed", "Delayed"), "computes nothing yet"),
    (like("ray.remote_function", "RemoteFunction"), "computes nothing yet"),
    (like("joblib.memory", "MemorizedFunc"), r"f\.func"),
]


@pytest.mark.parametrize(("function", "advice"), NOT_FILLERS)
def test_not_fillers(tmp_path: Path, function: Any, advice: str) -> None:
    """The message says what to pass; nothing is allocated, nothing is filled."""
    path = tmp_path / "out.npy"
    with pytest.raises(WrongTypeError, match=advice):
        flowmap.allocate(path, 3, "f8", filler=function)
    assert not list(tmp_path.iterdir())
    target = flowmap.allocate(path, 3, "f8")
    for refused in (
        lambda: flowmap.fill(target, function, executor="threads"),
        lambda: flowmap.fill_segment(target.segments[0], function),
    ):
        with pytest.raises(WrongTypeError, match=advice):
            refused()
    assert len(target.pending()) == 1
    assert target.status()["attempt"].tolist() == [0]


@pytest.mark.parametrize(
    "function",
    [
        Callback(),
        Callback().method,
        Callback.of_the_class,
        Callback().of_no_object,
        staticmethod(Callback.of_no_object),
        functools.partial(Callback()),
        np.copyto,  # an own function of an extension module may fill
    ],
    ids=stable_id,
)
def test_fillers(function: Any) -> None:
    """Objects, methods and functions of extension modules may fill."""
    assert Work.of(function).arguments == {}


def test_partial_is_filled_by(tmp_path: Path) -> None:
    """A partial pins a job, fills it and its segments, as the function with the arguments."""
    path = tmp_path / "out.npy"
    bound = functools.partial(arange, start=2)
    stepped = functools.partial(bound, step=3)
    target = flowmap.allocate(path, 6, "i8", segments=3, filler=stepped)
    flowmap.fill_segment(target.segments[0], stepped)
    flowmap.fill_segment(target.segments[1], bound, {"step": 3})
    flowmap.fill(target, arange, {"step": 3, "start": 2}, executor="threads", workers=1)
    assert flowmap.validate(path).ok
    assert np.load(path).tolist() == [2, 5, 8, 11, 14, 17]
    with pytest.raises(OtherWorkError):
        flowmap.fill(target, functools.partial(bound, step=4), executor="threads")


def test_partial_is_not_marked() -> None:
    """The mark belongs on the function that a partial calls, which has a name."""
    with pytest.raises(WrongTypeError, match="marks a function"):
        flowmap.filler(functools.partial(arange, step=2))


def test_partial_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial of a marked filler is found by its own name."""
    (tmp_path / "with_partials.py").write_text(
        textwrap.dedent("""
            import functools
            import flowmap
            slow = functools.partial(flowmap.fillers.arange, step=2)
            unmarked = functools.partial(print)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    work = Work.of("with_partials:slow", {"start": 1})
    assert work.fingerprint == Work.of(arange, {"start": 1, "step": 2}).fingerprint
    assert work.name == "flowmap.fillers:arange"
    with pytest.raises(FillerNotFoundError, match="not marked"):
        find_filler("with_partials:unmarked")
