"""The package's face: what importing it costs, its public names, and what is shipped."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import flowmap
from flowmap import errors
from flowmap.extras import DISTRIBUTION

ROOT = Path(__file__).parents[1]
CORE = [name for name in flowmap.__all__ if not name.endswith("_task") and name != "fill_array"]


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter that imports this very flowmap."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def loaded_after(*lines: str) -> set[str]:
    """Return which top-level packages are loaded after some lines."""
    tell = "import json, sys; print(json.dumps([n.partition('.')[0] for n in sys.modules]))"
    done = run("\n".join([*lines, tell]))
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


class TestImport:
    """What importing brings along."""

    def test_flowmap_alone(self) -> None:
        """`import flowmap` loads neither Prefect nor workers nor locks, nor even asyncio."""
        loaded = loaded_after("import flowmap")
        assert "flowmap" in loaded
        assert not loaded & {"prefect", "filelock", "pydantic", "asyncio", "numpy"}

    def test_core_knows_no_prefect(self, tmp_path: Path) -> None:
        """Every name of the core, and a whole job in threads, load no Prefect."""
        names = "; ".join(f"flowmap.{name}" for name in CORE)
        path = str(tmp_path / "a.npy")
        loaded = loaded_after(
            "import flowmap",
            names,
            f"target = flowmap.allocate({path!r}, 1000, '<f8', segments=4)",
            "flowmap.fill(target, 'flowmap.fillers:arange', executor='threads', workers=1)",
            "assert flowmap.validate(target.path).ok",
        )
        assert not loaded & {"prefect", "pydantic", "dask", "ray"}

    def test_opening_needs_no_lock(self) -> None:
        """The lower floors load without the package that locks."""
        floors = "flowmap.write, flowmap.validation, flowmap.target, flowmap.ledger"
        assert "filelock" not in loaded_after(f"import {floors}")

    def test_windows(self) -> None:
        """Windows is refused at once, by a line that says where it runs."""
        done = run("import sys; sys.platform = 'win32'; import flowmap")
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: flowmap does not run on Windows")
        assert "WSL 2" in last


class TestNames:
    """The public names."""

    def test_tables_agree(self) -> None:
        """What type checkers see, what is loaded on first use, and `__all__` are the same."""
        tree = ast.parse(Path(flowmap.__file__).read_text())
        (block,) = [
            node
            for node in tree.body
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        seen = {
            name.name: (statement.module or "").removeprefix("flowmap.")
            for statement in block.body
            if isinstance(statement, ast.ImportFrom)
            for name in statement.names
        }
        assert seen == flowmap._HOMES
        assert flowmap.__all__ == sorted([*flowmap._HOMES, "__version__"])
        assert set(flowmap.__all__) <= set(dir(flowmap))

    @pytest.mark.parametrize("name", flowmap.__all__)
    def test_resolves(self, name: str) -> None:
        """Each name leads to the thing in its home, and stays."""
        value = getattr(flowmap, name)
        if name in flowmap._HOMES:
            home = importlib.import_module(f"flowmap.{flowmap._HOMES[name]}")
            assert value is getattr(home, name)
        assert getattr(flowmap, name) is value

    @pytest.mark.parametrize("name", ["nothing", "Allocate", "_target", "__path", ""])
    def test_unknown(self, name: str) -> None:
        """Any other name is an AttributeError, as of every module."""
        with pytest.raises(AttributeError, match="has no attribute"):
            getattr(flowmap, name)
        assert not hasattr(flowmap, name)

    def test_star(self) -> None:
        """A star import brings all of them."""
        space: dict[str, Any] = {}
        exec("from flowmap import *", space)
        assert set(flowmap.__all__) <= space.keys()

    def test_version(self) -> None:
        """The version is that of the distribution's metadata."""
        assert re.fullmatch(r"\d+\.\d+\.\d+(\.?\w+)?", flowmap.__version__)
        assert metadata.version(DISTRIBUTION) == flowmap.__version__


def _function_of(value: Any) -> Any:
    """Return the function of a public name: of a task or a flow, its body."""
    return getattr(value, "fn", value)


def _sections(doc: str) -> set[str]:
    return set(re.findall(r"^(Args|Returns|Yields|Raises|Attributes):$", doc, re.MULTILINE))


class TestDocstrings:
    """What the public names say of themselves."""

    @pytest.mark.parametrize("name", [n for n in flowmap.__all__ if n != "__version__"])
    def test_public(self, name: str) -> None:
        """A sentence; every argument explained; functions say what they raise."""
        value = _function_of(getattr(flowmap, name))
        doc = inspect.getdoc(value) or ""
        assert doc.split("\n")[0].endswith("."), name
        if inspect.isclass(value):
            if not issubclass(value, Exception):
                assert _sections(doc) & {"Args", "Attributes"}
            return
        named = [p for p in inspect.signature(value).parameters if p not in ("self", "cls")]
        described = doc.partition("Args:")[2]
        assert all(
            re.search(rf"^ +\*{{0,2}}{p}(, \w+)*:", described, re.MULTILINE) for p in named
        )
        assert "Raises" in _sections(doc)

    @pytest.mark.parametrize("name", [n for n in flowmap.__all__ if n[0].isupper()])
    def test_methods(self, name: str) -> None:
        """Every public method and property of a public class is described too."""
        for member, value in vars(getattr(flowmap, name)).items():
            if member.startswith("_") or not (callable(value) or isinstance(value, property)):
                continue
            assert inspect.getdoc(value), member

    def test_raised(self) -> None:
        """Every error that a public docstring names is a public name, or Python's own."""
        names: set[str] = set()
        for name in flowmap.__all__:
            value = _function_of(getattr(flowmap, name))
            members = vars(value).values() if inspect.isclass(value) else ()
            for documented in (value, *members):
                doc = inspect.getdoc(documented) or ""
                raised = re.search(r"^Raises:\n(( .*\n?|\n)*)", doc, re.MULTILINE)
                text = raised[1] if raised else ""
                lines = re.findall(r"^    (\w.*?):(?: |$)", text, re.MULTILINE)
                names.update(name for line in lines for name in line.split(", "))
        assert {"SegmentsFailedError", "LockTimeoutError"} <= names
        known = {*flowmap.__all__, *vars(builtins), "UnpicklingError"}  # as in numpy.load
        assert not names - known

    def test_errors(self) -> None:
        """Every class of errors is a public name."""
        classes = {
            name
            for name, value in vars(errors).items()
            if inspect.isclass(value) and issubclass(value, flowmap.FlowmapError)
        }
        assert classes <= set(flowmap.__all__)

    def test_modules(self) -> None:
        """Every module begins with what it is for."""
        for path in Path(flowmap.__file__).parent.glob("*.py"):
            doc = ast.get_docstring(ast.parse(path.read_text()))
            assert doc or path.name == "_version.py", path


def test_wheel(tmp_path: Path) -> None:
    """The wheel holds every module and `py.typed`, and nothing of the tests or flows."""
    build = [*("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")]
    command = [sys.executable, *build, "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("prefect_flowmap-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {n for n in archive.namelist() if ".dist-info/" not in n}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "flowmap").rglob("*.py")}
    assert shipped == modules | {"flowmap/py.typed"}
