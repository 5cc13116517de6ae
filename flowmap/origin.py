"""The origin of a filler: the file and the source that define it."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from flowmap.storage import opened

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.machinery import ModuleSpec

_KEPT: Final = "__flowmap_origin__"
_LONGEST_FILE: Final = 1 << 20  # bytes of a file that is read for the source of a function
_LONGEST_SOURCE: Final = 1 << 17  # characters that are parsed: others may write the records
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_FOLDERS_OF_PACKAGES: Final = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class Origin:
    """The file and the source that define a function.

    Attributes:
        file: Absolute path of the file, links resolved; None if there is no such file.
        source: Source of the function; None if there is none.
    """

    file: str | None
    source: str | None

    @classmethod
    def of(cls, function: Any) -> Origin:
        """Return the origin of a filler: as `keep_origin` found it, or as this process does.

        Raises:
            ValueError: The function wraps itself.
        """
        plain = _plain_function(function)
        kept = getattr(plain, _KEPT, None)
        if isinstance(kept, Origin):
            return kept
        if not isinstance(plain, FunctionType):
            return _look_up(plain)
        code, origin = _KNOWN.get(plain, (None, None))
        if origin is None or code is not plain.__code__:  # autoreload replaces the code
            origin = _look_up(plain)
            _KNOWN[plain] = plain.__code__, origin
        return origin


_KNOWN: Final[WeakKeyDictionary[FunctionType, tuple[CodeType, Origin]]] = WeakKeyDictionary()
"""What was looked up: this takes up to a millisecond, and each segment asks."""


def keep_origin(function: Any) -> None:
    """Look up the origin of a function that is just being defined, and keep it with it.

    A worker process has neither file nor lines for a function that travels by value, and the
    file of a function may be edited after it was imported.
    """
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        plain = _plain_function(function)
        if isinstance(plain, FunctionType):
            setattr(plain, _KEPT, _look_up(plain))


def _plain_function(function: Any) -> Any:
    """Return the function that computes: beneath wrappers, partials and bound methods.

    Of an object that can be called it is its class.
    """
    plain = inspect.unwrap(function)
    while isinstance(plain, functools.partial):
        plain = inspect.unwrap(plain.func)
    plain = getattr(plain, "__func__", plain)
    return plain if inspect.isroutine(plain) else type(plain)


def _look_up(function: Any) -> Origin:
    try:
        file = inspect.getsourcefile(function)
    except (TypeError, OSError):  # a function or a class of an extension module, or a built-in
        return Origin(None, None)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = None
    there = file is not None and Path(file).is_file()
    return Origin(os.path.realpath(file) if file is not None and there else None, source)


def source_in(file: str, function: str) -> str | None:
    """Return the source that a file has now for a function, without importing the file.

    Args:
        file: Path of the file.
        function: Qualified name of the function, as in `__qualname__`.

    Returns:
        None if the file cannot be read, or does not define the function exactly once.
    """
    try:
        with opened(file) as descriptor:
            if os.fstat(descriptor).st_size > _LONGEST_FILE:
                return None
            with open(descriptor, encoding="utf-8", closefd=False) as text:
                return _source_within(text.read().removeprefix("\ufeff"), function)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None


@functools.lru_cache(maxsize=4)  # to parse a file takes a hundred times as long as to read it
def _source_within(text: str, function: str) -> str | None:
    found: list[ast.AST] = [ast.parse(text)]
    for name in function.split("."):
        if name != "<locals>":
            found = [node for scope in found for node in _defined(scope, name)]
    if len(found) != 1 or not isinstance(found[0], _DEFINITIONS):
        return None
    node = found[0]
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return "\n".join(text.split("\n")[first - 1 : node.end_lineno])


def _defined(scope: ast.AST, name: str) -> list[ast.AST]:
    """Return the definitions of a name anywhere in a scope."""
    inner = (node for node in ast.walk(scope) if node is not scope)
    return [node for node in inner if isinstance(node, _DEFINITIONS) and node.name == name]


def is_same_source(one: str, other: str) -> bool:
    """Say whether two sources differ at most in comments, formatting, docstrings and the mark.

    What `@filler` says is in the fingerprint: to name a filler is no edit of what it computes.
    """
    return one == other or _plain(one) == _plain(other)


def _plain(source: str) -> str:
    """Return a text that is equal for sources that do the same, line for line."""
    if len(source) > _LONGEST_SOURCE:
        return source.strip()
    try:
        tree = ast.parse(textwrap.dedent(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a lambda's line, for one
        return source.strip()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[1:] if documented else node.body
            node.decorator_list = [d for d in node.decorator_list if not _is_mark(d)]
    return ast.dump(tree)


def _is_mark(decorator: ast.expr) -> bool:
    """Say whether a decorator is `@filler`, with or without arguments, from any module."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2] == "filler"


def look_in_working_directory(module: str) -> None:
    """Let a module be imported from the working directory if no other folder has it.

    The folder comes last on the path, and not at all for an installed module: in a folder that
    others share, a file named like a library that Python tries and does not find is imported.
    """
    if _spec_of(module) is None:
        with contextlib.suppress(FileNotFoundError):  # it was removed
            sys.path.append(os.getcwd())  # noqa: PTH109 -- entries of sys.path are texts


def look_in_folder_of(file: str, module: str) -> None:
    """Let a module be imported from the file that records name, if no other folder has it.

    Args:
        file: Absolute path of the file.
        module: Name of the module; with its packages, which are folders of that path.
    """
    path, names = Path(file), module.split(".")
    parts = (path.parent if path.stem == "__init__" else path.with_suffix("")).parts
    if _spec_of(module) is None and path.is_file() and list(parts[-len(names) :]) == names:
        sys.path.append(os.fspath(Path(*parts[: -len(names)])))


def _spec_of(module: str) -> ModuleSpec | None:
    """Return where the module, or the package it is in, would come from; import nothing."""
    try:
        return importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return None


def found_elsewhere(module: str, file: str) -> str | None:
    """Say where a module would come from, if not from a file. Nothing is imported.

    For a package this looks only whether the file is in its folders: to find a module in it,
    Python would import the package.

    Args:
        module: Name of the module.
        file: Absolute path of the file that it came from before.

    Returns:
        None if it would come from there; if only importing it can tell what is wrong; or if
        both are installed packages, which other machines keep in other folders.
    """
    spec = _spec_of(module)
    if spec is None:
        return None
    folders = spec.submodule_search_locations
    if folders is not None:
        places = [os.path.realpath(folder) for folder in folders]
        same = _is_beneath(file, places)
    else:
        places = [os.path.realpath(spec.origin)] if spec.has_location and spec.origin else []
        same = os.path.realpath(file) in places
    if same or (_was_installed(module, file) and all(map(_is_installed, places))):
        return None
    return places[0] if places else "Python itself"


def differs(found: Origin, file: str | None, source: str | None, module: str) -> str | None:
    """Say in what the origin of a function is not the recorded one; None if it is the same.

    Args:
        found: Origin of the function as it was imported.
        file: Recorded file; None if unknown.
        source: Recorded source; None if unknown.
        module: Name of the module.
    """
    if file is not None and found.file is not None and os.path.realpath(file) != found.file:
        installed = _was_installed(module, file) and _is_installed(found.file)
        if not installed:
            return f"comes from {found.file}"
    if source is not None and not (
        found.source is not None and is_same_source(source, found.source)
    ):
        return "has another source"
    return None


def _was_installed(module: str, file: str) -> bool:
    """Say whether a file, on whatever machine, was one of an installed package."""
    own = module.partition(".")[0] == __name__.partition(".")[0]
    return own or not _FOLDERS_OF_PACKAGES.isdisjoint(Path(file).parts)


def _is_installed(file: str) -> bool:
    """Say whether a file belongs to a package that is installed here, or to flowmap."""
    paths = sysconfig.get_paths()
    folders = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
    folders += [site.getusersitepackages(), os.path.dirname(__file__)]  # noqa: PTH120 -- texts
    return _is_beneath(file, map(os.path.realpath, folders))


def _is_beneath(place: str, folders: Iterable[str]) -> bool:
    """Say whether a file or folder is one of some folders, or in one of them."""
    real = Path(os.path.realpath(place))
    return any(real.is_relative_to(folder) for folder in folders)
