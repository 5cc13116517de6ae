"""What the fuzzer does to flowmap: each attack has what it is given read, and judges.

Whatever a case raises that is not an error told of by the function that was called is a fault,
and so is an answer that another reader, written here or NumPy's, does not give.
"""

from __future__ import annotations

import abc
import ast
import codecs
import contextlib
import functools
import io
import json
import math
import os
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final

import grammar
import numpy as np
import numpy.ma
from numpy.lib import format as npy_format
from prefect import exceptions
from support import saved

import flowmap
from flowmap import fillers, flow
from flowmap.dtypes import refuse_division
from flowmap.errors import FlowmapError
from flowmap.npy import Layout, read_header
from flowmap.segments import Block
from flowmap.work import Work

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_EVENTS: Final = frozenset(
    {
        *("open", "compile", "mmap.__new__", "os.listdir", "os.scandir", "pathlib.Path.glob"),
        *("os.getxattr", "object.__getattr__", "sys._getframe", "fcntl.flock", "builtins.id"),
    }
)
"""What Python's audit tells of where reading does what reading may do."""

_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


_REFUSALS: Final = (
    FlowmapError,
    exceptions.ParameterBindError,
    exceptions.ParameterTypeError,
    exceptions.SignatureMismatchError,
)
"""What refuses parameters."""


class HarmError(AssertionError):
    """What was read did what reading must not do, or was taken for what it is not."""


class _Watch:
    """Notes what Python tells of while `on`; one for the process, since no hook goes away."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        named = event == "import" and arguments[0] == "unicodedata"  # of "\N{...}" in a text
        asked = event == "os.kill" and arguments[1] == 0  # whether there is such a process
        if not (event in _EVENTS or named or asked) or opened:
            self.seen.append(f"{event} {arguments!r}"[:200])


_watch = functools.cache(_Watch)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Find it harmful if a block writes to a file, loads code or runs any."""
    watch = _watch()
    watch.seen.clear()
    watch.on = True
    try:
        yield
    finally:
        watch.on = False
    if watch.seen:
        raise HarmError(f"reading caused {watch.seen}")


def ensure(truth: object, what: str) -> None:
    """Find it harmful if something is not so."""
    if not truth:
        raise HarmError(what)


class Refusable:
    """Lets a block be refused by an error of some kinds, which says why."""

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        refused = isinstance(error, self._kinds)
        ensure(not refused or str(error), f"{error!r} says nothing")
        return refused


class Attack(abc.ABC):
    """One attack of the fuzzer.

    Args:
        folder: An empty one, for the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abc.abstractmethod
    def seeds(self) -> list[bytes]:
        """Return cases to begin with."""

    @abc.abstractmethod
    def grow(self, rng: random.Random, case: bytes) -> bytes:
        """Return another case, made by the grammar, of one that there is."""

    @abc.abstractmethod
    def case(self, data: bytes) -> None:
        """Do one case."""


class Headers(Attack):
    """`read_header`, against NumPy's own reader."""

    def seeds(self) -> list[bytes]:
        """Return files of NumPy's in each version."""
        dtypes = ["<f8", [("a", "<i4"), ("b", "<f4", (2, 3))], [(("t", "a"), [("x", ">c16")])]]
        path = self.folder / "seed.npy"
        return [
            saved(path, np.zeros((3, 2), dtype), version=version).read_bytes()
            for dtype in dtypes
            for version in ((1, 0), (2, 0), (3, 0))
        ]

    def grow(self, rng: random.Random, case: bytes) -> bytes:
        """Return a header, or one that is cut or joined with something."""
        if rng.random() < 0.7:
            return grammar.header(rng)
        if rng.random() < 0.5:
            return grammar.torn(rng, case)
        return grammar.encoded(rng, grammar.torn(rng, case[10:]).decode("latin-1"))

    def case(self, data: bytes) -> None:
        """Read the header as NumPy does, and refuse what no array has."""
        file, found = io.BytesIO(data), None
        with watched(), Refusable(ValueError):
            layout = read_header(file)
            found = layout.shape, layout.fortran_order, layout.dtype
        expected, end = _numpys(data)
        # A dtype with texts of any length is not equal to its like.
        same = found == expected or repr(found) == repr(expected)
        ensure(same, f"{found} was read where NumPy has {expected}")
        ensure(found is None or file.tell() == end, f"the data begins at {end}")


def _numpys(data: bytes) -> tuple[Any, int]:
    """Return what NumPy reads, if an array can be so, and where the data begins.

    Of what is no literal, NumPy takes some that Python 2 cannot have written, too: not here.
    """
    file = io.BytesIO(data)
    try:
        version = npy_format.read_magic(file)
        begin = file.tell() + (2 if version == (1, 0) else 4)
        end = begin + int.from_bytes(data[file.tell() : begin], "little")
        text = data[begin:end].decode("utf-8" if version == (3, 0) else "latin-1")
        old = version != (3, 0) and text.isascii()  # and so may be of Python 2, with its 1L
        text = re.sub(r"(?<=[\da-fA-F])[ \f\t]*L\b", "", text) if old else text
        refuse_division(ast.literal_eval(text))  # NumPy would end the process
        file.seek(8)
        reader = np.lib._format_impl._read_array_header  # type: ignore[attr-defined]
        shape, order, dtype = reader(file, version)
    except Exception:  # noqa: BLE001 -- whatever NumPy comes to
        return None, 0
    sensible = all(type(n) is int and n >= 0 for n in shape)
    own = shape
    while dtype.subdtype:
        dtype, axes = dtype.subdtype
        shape += axes
    sensible &= shape == own or not order
    room = 2**63 - 1 - math.prod(n for n in shape if n) * max(dtype.itemsize, 1)
    sensible &= len(shape) <= 64 and (
        room > 2**33 or (room >= 0 and room >= len(Layout(shape, dtype, order).header()))
    )
    return ((shape, order, dtype) if sensible else None), end


class Parameters(Attack):
    """The parameters of the flow: what is refused leaves nothing on the disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.plain = {
            "path": "a.npy",
            "shape": [8, 2],
            "dtype": [["t", "<f8"], ["v", "<f4", [3]]],
            "filler": "constant",
            "arguments": {"value": 0},
            "segments": 2,
            "block_rows": 1,
            "durability": "segment",
            "executor": "threads",
            "workers": 1,
            "exist": "resume",
            "fortran_order": False,
            "reserve": True,
            "checkpoint_seconds": 1.0,
            "finite": False,
        }
        os.chdir(folder)

    def seeds(self) -> list[bytes]:
        """Return parameters that are well."""
        return [json.dumps(self.plain).encode()]

    def grow(self, rng: random.Random, case: bytes) -> bytes:
        """Return others of which one is hostile."""
        return json.dumps(grammar.changed(rng, self.plain)).encode()

    def case(self, data: bytes) -> None:
        """Validate them as Prefect does; what is let through allocates, or is refused whole."""
        try:
            asked = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(asked, dict):
            return
        # Into a folder that is not there: no allocation can come further than its checks.
        path = asked.get("path")
        asked["path"] = f"{self.folder}/none/so/deep/{path}" if isinstance(path, str) else path
        with watched(), Refusable(*_REFUSALS):
            known = flow.fill_array.validate_parameters(asked)
            for name in ("executor", "workers", "finite"):
                known.pop(name, None)
            known["dtype"] = flow._dtype_of(known["dtype"])
            flowmap.allocate(**known)
            raise HarmError(f"allocated where no folder is: {known}")
        ensure(not any(self.folder.iterdir()), "something was made")


class Values(Attack):
    """The arguments of the fillers that come along, which fill what they can be put into."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # To look for them takes milliseconds.
        fillers._entry_points = functools.cache(fillers._entry_points)

    def seeds(self) -> list[bytes]:
        """Return what can be filled, of each kind."""
        return [
            json.dumps({"dtype": dtype, "filler": filler, "arguments": arguments}).encode()
            for dtype, filler, arguments in (
                ("<c16", "constant", {"value": "1+2j"}),
                ("<M8[s]", "constant", {"value": "2026-01-01"}),
                ("S3", "constant", {"value": "abc"}),
                ([["t", "<f8"], ["v", "<f4", [3]]], "constant", {"value": [0, [1, 2, 3]]}),
                ("<i4", "arange", {"start": -1, "step": 3}),
                ("<f8", "linspace", {"start": 0, "stop": "1e3", "num": 3}),
                ("<u2", "random", {"seed": 1, "low": 0, "high": 9}),
            )
        ]

    def grow(self, rng: random.Random, case: bytes) -> bytes:
        """Return one in which a value is hostile."""
        known = json.loads(rng.choice(self.seeds()))
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            known |= json.loads(case)
        if rng.random() < 0.7:
            known["arguments"] = grammar.changed(rng, known["arguments"])
            return json.dumps(known).encode()
        return json.dumps(grammar.changed(rng, known)).encode()

    def case(self, data: bytes) -> None:
        """Fill three rows, or be refused."""
        try:
            asked = json.loads(data)
            dtype, filler, arguments = (asked[n] for n in ("dtype", "filler", "arguments"))
        except (ValueError, RecursionError, TypeError, KeyError):
            return
        if ":" in str(filler):  # "module:function" is imported
            return
        with watched(), Refusable(FlowmapError):
            layout = Layout.of(3, dtype, fortran_order=False)
            work = Work.of(filler, arguments)
            if layout.row_bytes < 1 << 16:
                work(np.zeros(layout.shape, layout.dtype), Block(0, 3, 0))


_ENCODINGS: Final = ("utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
for _name in (*_ENCODINGS, "unicode_escape"):
    codecs.lookup(_name)  # what JSON may be in, and f-strings are written with: loaded late
warnings.filterwarnings("ignore")  # of NumPy's, of headers that say what was said long ago
