"""Fillers: marked, named and looked up."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import take_anything, versioned

import flowmap
from flowmap.errors import FillerNotFoundError, WrongTypeError
from flowmap.fillers import arange, find_filler, published
from flowmap.marks import Mark, mark_of
from flowmap.work import Work

if TYPE_CHECKING:
    from flowmap.segments import Block


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
        name = "support:versioned"
        assert mark_of(versioned) == Mark(name, "2", ("log", "verbose"))

        def local(out: Any, block: Block) -> None: ...

        assert flowmap.filler(local) is local
        assert mark_of(local).version == "1"
        assert mark_of(local).name.endswith(
            ":TestMark.test_plain_and_with_arguments.<locals>.local"
        )

    def test_unmarked(self) -> None:
        """What carries no mark is named all the same: functions, methods, objects."""
        assert mark_of(take_anything) == Mark("support:take_anything")
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
            ("aranges", "names no filler: published are arange, constant, copy, linspace"),
            ("flowmap.fillers:", "names no filler"),
            (":arange", "names no filler"),
            ("flowmap.fillers.arange", "names no filler"),
            ("no_such_module:f", r"cannot be found.* Is its module installed"),
            ("flowmap.no_such:f", r"cannot be found.* Is its module installed"),
            ("flowmap.fillers:nothing", r"cannot be found.* Correct the name"),
            ("flowmap.fillers:arange.nothing", "cannot be found"),
            ("flowmap.fillers:a:b", "cannot be found"),
            ("flowmap.fillers: arange", "cannot be found"),
            (".fillers:arange", "cannot be found"),
            ("flowmap.fillers:filler", "not marked"),
            ("flowmap.marks:sys.exit", "sys is a module"),
            ("flowmap.copying:filler.__globals__", "not marked"),
            ("flowmap.copying:np.f2py.nothing", "np is a module"),
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
        ("body", "advice"),
        [
            ("x = 1\n1 / 0", "Correct {file}, line 2."),
            ("x = 1\nimport json; json.loads('[')", "Correct {file}, line 2."),
            ("x = 1\ndef (", "Correct {file}, line 2."),
            ("raise RuntimeError('no')", "Correct {file}, line 1."),
            ("raise SystemExit(3)", "Correct {file}, line 1."),
            ("import no_", "({file}, line 1). Is its module installed"),
        ],
    )
    def test_broken_module(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, advice: str
    ) -> None:
        """A module that fails while it is imported is named: file, line, and what it raised."""
        name = f"broken_{abs(hash(body))}"
        file = tmp_path / f"{name}.py"
        file.write_text(body)
        (tmp_path / f"imports_{name}.py").write_text(f"\n\nimport {name}")
        monkeypatch.syspath_prepend(tmp_path)
        for module in (name, f"imports_{name}"):
            with pytest.raises(FillerNotFoundError) as caught:
                find_filler(f"{module}:f")
            assert type(caught.value.__cause__).__name__ in str(caught.value)
            assert advice.format(file=file) in str(caught.value)
            assert ("installed" in str(caught.value)) is (body == "import no_")


_SCRIPT = """
import enum, json, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import flowmap
from flowmap.marks import mark_of
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


def publish(
    folder: Path, distribution: str, points: str, group: str = "flowmap.fillers"
) -> None:
    """Make a distribution that publishes fillers, as an installer would leave it."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n")


class TestPublished:
    """Fillers that distributions publish under short names."""

    def test_own(self) -> None:
        """Those that come with flowmap are published, and each leads to a filler."""
        names = {"constant", "arange", "linspace", "random", "copy"}
        mine = {n: v for n, v in published().items() if v.startswith("flowmap.")}
        assert mine.keys() == names
        for name, value in mine.items():
            assert find_filler(name) is find_filler(value)
            assert mark_of(find_filler(name)).name == value
        assert find_filler("arange") is arange

    def test_work_is_the_same(self) -> None:
        """A published name is another way to write the same filler: the work is equal."""
        assert Work.of("arange").fingerprint == Work.of(arange).fingerprint
        assert Work.of("arange").describe()["filler"] == "flowmap.fillers:arange"

    def test_of_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another distribution's filler is found by its name, once it is installed."""
        (tmp_path / "orbits.py").write_text(
            "import flowmap\n\n@flowmap.filler\ndef kepler(out, block): pass\n"
        )
        publish(tmp_path, "celestial", "orbit = orbits:kepler\nlost = orbits:nothing")
        publish(tmp_path, "unrelated", "orbit = no_such:f", group="flowmap.others")
        with pytest.raises(FillerNotFoundError, match="published are"):
            find_filler("orbit")
        monkeypatch.syspath_prepend(tmp_path)
        assert published()["orbit"] == "orbits:kepler"
        assert mark_of(find_filler("orbit")).name == "orbits:kepler"
        with pytest.raises(FillerNotFoundError, match="cannot be found"):
            find_filler("lost")

    def test_two_of_one_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that two distributions publish is refused, with both; others are found."""
        publish(tmp_path, "celestial", "arange = orbits:kepler")
        monkeypatch.syspath_prepend(tmp_path)
        both = r"celestial \(orbits:kepler\).*flowmap \(flowmap.fillers:arange\)"
        for look in (published, lambda: find_filler("arange")):
            with pytest.raises(FillerNotFoundError, match=both):
                look()
        assert find_filler("linspace").__name__ == "linspace"
        assert find_filler("flowmap.fillers:arange") is arange

    def test_two_that_agree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A flowmap that was installed under its earlier name leaves the same entry points."""
        publish(tmp_path, "flowmap", "arange = flowmap.fillers:arange")
        monkeypatch.syspath_prepend(tmp_path)
        assert published()["arange"] == "flowmap.fillers:arange"
        assert find_filler("arange") is arange

    @pytest.mark.parametrize("value", ["orbits", "orbits:", "not a name", ":f"])
    def test_odd_value(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        """An entry point that is no "module:function" is refused like a name written so."""
        publish(tmp_path, "celestial", f"orbit = {value}")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(FillerNotFoundError, match="names no filler"):
            find_filler("orbit")
