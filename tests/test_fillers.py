"""Fillers: marked, named and looked up."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import flowmap
from flowmap.errors import FillerNotFoundError, WrongTypeError
from flowmap.fillers import Mark, arange, find_filler, mark_of
from flowmap.npy import Layout
from flowmap.segments import Block
from flowmap.work import Work


def take_anything(out: Any, block: Block, **arguments: Any) -> None:
    """Do nothing, with any arguments."""


@flowmap.filler(version="2", volatile=("log", "verbose"))
def versioned(
    out: Any, block: Block, rate: float = 1.0, log: Any = None, verbose: Any = False
) -> None:
    """Do nothing, in its second version."""


class Callback:
    """A filler that is an object."""

    def __call__(self, out: Any, block: Block) -> None:
        """Do nothing."""

    def method(self, out: Any, block: Block) -> None:
        """Do nothing either."""


class TestMark:
    """What `@filler` puts on a function."""

    def test_plain_and_with_arguments(self) -> None:
        """Both forms return the function itself, marked with its name."""
        name = f"{__name__}:versioned"
        assert mark_of(versioned) == Mark(name, "2", ("log", "verbose"))

        def local(out: Any, block: Block) -> None: ...

        assert flowmap.filler(local) is local
        assert mark_of(local).version == "1"
        assert mark_of(local).name.endswith(
            ":TestMark.test_plain_and_with_arguments.<locals>.local"
        )

    def test_unmarked(self) -> None:
        """What carries no mark is named all the same: functions, methods, objects."""
        assert mark_of(take_anything) == Mark(f"{__name__}:take_anything")
        assert mark_of(Callback()).name == f"{__name__}:Callback"
        assert mark_of(Callback().method).name == f"{__name__}:Callback.method"

    def test_mark_passes_through_wrappers(self) -> None:
        """A decorator above `@filler` that uses functools.wraps keeps name and version."""

        @functools.wraps(versioned)
        def wrapped(*arguments: Any, **named: Any) -> None:
            versioned(*arguments, **named)

        assert mark_of(wrapped) == mark_of(versioned)

    def test_volatile_may_be_read_once(self) -> None:
        """A generator of names serves every function that is decorated with it."""
        decorate = flowmap.filler(volatile=(name for name in ["log"]))
        for _ in range(2):

            @decorate
            def local(out: Any, block: Block, log: Any = None) -> None: ...

            assert mark_of(local).volatile == ("log",)

    @pytest.mark.parametrize(
        "options",
        [
            {"version": 2},
            {"version": None},
            {"volatile": "log"},
            {"volatile": ""},
            {"volatile": None},
            {"volatile": 5},
            {"volatile": [5]},
        ],
        ids=str,
    )
    def test_bad_options(self, options: dict[str, Any]) -> None:
        """A version is a text, volatile a sequence of names."""
        with pytest.raises(WrongTypeError, match=next(iter(options))):
            flowmap.filler(**options)

    @pytest.mark.parametrize("nothing", ["2", 5, len, int])
    def test_not_markable(self, nothing: Any) -> None:
        """What is no function, or cannot carry a mark, is refused."""
        with pytest.raises(WrongTypeError, match="mark"):
            flowmap.filler(nothing)


class TestFind:
    """Fillers named in text."""

    def test_found(self) -> None:
        """A marked filler is found by the name that its mark has."""
        assert find_filler("flowmap.fillers:arange") is arange
        assert find_filler(mark_of(arange).name) is arange

    def test_nested(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name may have dots, for what stands in a class."""
        module = types.ModuleType("made_up")
        module.Group = type("Group", (), {"fill": staticmethod(versioned)})  # type: ignore[attr-defined]  # made up
        monkeypatch.setitem(sys.modules, "made_up", module)
        assert find_filler("made_up:Group.fill") is versioned

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("", "names no filler"),
            ("arange", "names no filler"),
            ("flowmap.fillers:", "names no filler"),
            (":arange", "names no filler"),
            ("flowmap.fillers.arange", "names no filler"),
            ("no_such_module:f", "cannot be found"),
            ("flowmap.no_such:f", "cannot be found"),
            ("flowmap.fillers:nothing", "cannot be found"),
            ("flowmap.fillers:arange.nothing", "cannot be found"),
            ("flowmap.fillers:a:b", "cannot be found"),
            ("flowmap.fillers: arange", "cannot be found"),
            (".fillers:arange", "cannot be found"),
            ("flowmap.fillers:filler", "not marked"),
            ("flowmap.fillers:sys.exit", "not marked"),
            ("builtins:print", "not marked"),
        ],
    )
    def test_refused(self, name: str, message: str) -> None:
        """Whatever leads to no marked filler is refused, with what to do."""
        with pytest.raises(FillerNotFoundError, match=message):
            find_filler(name)
        with pytest.raises(FillerNotFoundError, match=message):
            Work.of(name)

    @pytest.mark.parametrize(
        "body", ["1 / 0", "def (", "raise RuntimeError('no')", "import no_"]
    )
    def test_broken_module(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
    ) -> None:
        """A module that fails while it is imported is named, with what it raised."""
        name = f"broken_{abs(hash(body))}"
        (tmp_path / f"{name}.py").write_text(body)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(FillerNotFoundError, match="cannot be found") as caught:
            find_filler(f"{name}:f")
        assert type(caught.value.__cause__).__name__ in str(caught.value)


_SCRIPT = """
import enum, json, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import flowmap
from flowmap.fillers import mark_of
from flowmap.work import Work

class Kind(enum.Enum):
    SLOW = 1

@flowmap.filler
def marked(out, block, kind=Kind.SLOW): pass

def plain(out, block, kind=Kind.SLOW): pass

def tell():
    fingerprints = [Work.of(f, {"kind": Kind.SLOW}).fingerprint for f in (marked, plain)]
    return [mark_of(marked).name, mark_of(plain).name, *fingerprints]

if __name__ == "__main__":
    told = [tell()]
    for how in ("spawn", "forkserver"):
        with ProcessPoolExecutor(1, mp_context=get_context(how)) as pool:
            told.append(pool.submit(tell).result())
    print(json.dumps(told))
"""


class TestScripts:
    """A filler in a script keeps its name, whoever reads the script."""

    @pytest.mark.parametrize("way", ["file", "module", "elsewhere"])
    def test_name(self, tmp_path: Path, way: str) -> None:
        """In the script, in spawned processes and when imported, name and work are equal."""
        (tmp_path / "my_script.py").write_text(_SCRIPT)
        command = {
            "file": ["my_script.py"],
            "module": ["-m", "my_script"],
            "elsewhere": [str(tmp_path / "my_script.py")],
        }[way]
        paths = [*filter(None, sys.path), str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        run = functools.partial(
            subprocess.run, check=True, env=environment, capture_output=True, text=True
        )
        cwd = tmp_path if way != "elsewhere" else Path(__file__).parent
        told = json.loads(run([sys.executable, *command], cwd=cwd).stdout)
        imported = "import json, my_script; print(json.dumps(my_script.tell()))"
        told.append(json.loads(run([sys.executable, "-c", imported], cwd=tmp_path).stdout))
        assert told[0][:2] == ["my_script:marked", "my_script:plain"]
        assert told == [told[0]] * 4


class TestArange:
    """The filler that comes with flowmap."""

    @pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i8", "<c16", "<u2"])
    @pytest.mark.parametrize("fortran", [False, True])
    @pytest.mark.parametrize(
        "shape",
        [(7,), (7, 3), (3, 7), (7, 7), (7, 1), (1, 7), (2, 7, 3), (1, 1), (0, 3), (7, 0)],
    )
    def test_against_numpy(
        self, tmp_path: Path, shape: tuple[int, ...], fortran: bool, dtype: str
    ) -> None:
        """Each row, along the slow axis, is start + step * its number."""
        target = flowmap.allocate(
            tmp_path / "a.npy", shape, dtype, fortran_order=fortran, block_rows=2
        )
        arguments = {"start": 5, "step": 3}
        for segment in target.segments:
            flowmap.fill_segment(segment, arange, arguments)
        rows = shape[-1] if fortran else shape[0]
        numbers = np.arange(5, 5 + 3 * rows, 3)
        wide = (rows,) if fortran else (rows, *[1] * (len(shape) - 1))
        expected = np.broadcast_to(numbers.reshape(wide), shape).astype(dtype)
        np.testing.assert_array_equal(np.load(target.path), expected)

    def test_0d(self, tmp_path: Path) -> None:
        """A 0-d target is one row."""
        target = flowmap.allocate(tmp_path / "a.npy", (), "<f8")
        flowmap.fill_segment(target.segments[0], arange, {"start": 2.5})
        assert np.load(target.path) == 2.5

    @given(
        shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
        fortran=st.booleans(),
        start=st.integers(0, 100),
    )
    def test_any_block(self, shape: tuple[int, ...], fortran: bool, start: int) -> None:
        """A block of whatever shape gets the numbers of its own rows."""
        layout = Layout.of(shape, "<f8", fortran_order=fortran)
        out = np.zeros(shape, "<f8", "F" if fortran else "C")
        arange(out, Block(start, start + layout.rows))
        rows = np.moveaxis(out, -1, 0) if fortran else out
        for number, row in enumerate(rows, start):
            assert (row == number).all()
