"""Canonical forms: what a filler could tell apart counts as two inputs, all else as one."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import functools
import io
import logging
import random
import re
import struct
import tracemalloc
import types
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pytest
from support import take_anything

from flowmap import canonical
from flowmap.documents import publish_json, read_json
from flowmap.errors import InvalidArgumentError
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def fingerprint(value: Any) -> str:
    """Return the fingerprint of an argument."""
    return Work.of(take_anything, {"x": value}).fingerprint


def assert_all_different(values: list[Any]) -> None:
    """Assert that each value has a fingerprint of its own, and the same one twice."""
    found: dict[str, Any] = {}
    for value in values:
        mark = fingerprint(value)
        assert mark == fingerprint(value)
        assert mark not in found, f"{value!r} is taken for {found[mark]!r}"
        found[mark] = value


class Unit(np.ndarray):
    """An array with a unit, as libraries of units make it."""

    unit: str


class Quantity(float):
    """A number with a unit."""

    def __new__(cls, value: float, unit: str) -> Self:
        """Make one."""
        made = super().__new__(cls, value)
        made.unit = unit
        return made

    unit: str

    def __str__(self) -> str:
        """Name it without its value, to mislead."""
        return "a quantity"


class Slotted(str):
    """A text with attributes that are in no `__dict__`."""

    __slots__ = ("hidden", "unset")

    hidden: int


def slotted(text: str, hidden: int) -> Slotted:
    """Return a text with an attribute."""
    made = Slotted(text)
    made.hidden = hidden
    return made


class Listing(list[Any]):
    """A list that shows other elements than it has, to mislead."""

    def __iter__(self) -> Any:
        """Go through nothing."""
        return iter(())


class Count(int):
    """A whole number of something."""


class Wave(complex):
    """A complex number of something."""


class Raw(bytes):
    """Bytes of something."""


class Polar(NamedTuple):
    """Two coordinates."""

    first: float
    second: float


class Cartesian(NamedTuple):
    """Two coordinates of another kind."""

    first: float
    second: float


@dataclasses.dataclass
class Model:
    """A dataclass, with a value that it computes from its fields."""

    rate: float
    name: str = "a"
    steps: list[int] = dataclasses.field(default_factory=list, compare=False)

    @functools.cached_property
    def twice(self) -> float:
        """Twice the rate."""
        return 2 * self.rate


class Other(Model):
    """A dataclass by inheritance."""


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A dataclass without a `__dict__`."""

    x: int
    y: int = dataclasses.field(init=False, default=0)
    unset: int = dataclasses.field(init=False)


@dataclasses.dataclass
class Table(dict[str, int]):
    """A dataclass whose objects hold more than its fields."""

    unit: str = "m"


def table(content: int, unit: str = "m") -> Table:
    """Return a dict that is a dataclass, too."""
    made = Table(unit)
    made["a"] = content
    return made


class Shape(enum.Enum):
    """Members that repeat their names, as those of most enumerations of texts do."""

    ROUND = "ROUND"
    MARK = object()


def colour(red: Any, base: Any = enum.Enum) -> Any:
    """Return a member of an enumeration, whose value was edited or not."""
    return base("Colour", {"RED": red}, module=__name__).RED


def labelled(label: str) -> Any:
    """Return a member of an enumeration with an attribute, which was edited or not."""

    class Labelled(enum.Enum):
        RED = 1

        def __init__(self, _value: int) -> None:
            self.label = label

    return Labelled.RED


BERLIN = zoneinfo.ZoneInfo("Etc/GMT-1")
UTC_2 = dt.timezone(dt.timedelta(hours=2))


class TestDifferent:
    """What a filler could tell apart."""

    def test_enumerations(self) -> None:
        """A member counts by its name and by all that it stands for."""
        assert fingerprint(colour(1)) == fingerprint(colour(1))
        assert fingerprint(labelled("a")) == fingerprint(labelled("a"))
        assert_all_different(
            [
                *(colour(1), colour(2), colour("1"), colour("RED"), colour((1, 2))),
                *(Shape.ROUND, Shape.MARK, "RED", 1),
            ]
        )
        assert fingerprint(labelled("a")) != fingerprint(labelled("b"))

    def test_subclasses(self) -> None:
        """An object of a subclass counts with its class and its attributes."""
        assert_all_different(
            [
                *(1.5, Quantity(1.5, "m"), Quantity(1.5, "s"), Quantity(2.5, "m")),
                *("a", slotted("a", 1), slotted("a", 2), slotted("b", 1)),
                *([1], Listing([1]), Listing([2])),
                *(each(made) for made in (2, 3) for each in (Count, Wave, Raw)),
                *({"a": 1}, table(1), table(2), table(1, "s")),
                collections.Counter({"a": 1}),
                collections.defaultdict(int, {"a": 1}),
                collections.defaultdict(list, {"a": 1}),
                collections.defaultdict(list, {"a": 2}),
            ]
        )

    def test_named_tuples(self) -> None:
        """A named tuple counts with its class and the names of its fields."""
        edited: Any = collections.namedtuple("Polar", "second first")  # type: ignore[name-match]  # noqa: PYI024
        edited.__module__ = __name__
        assert_all_different(
            [(1, 2), Polar(1, 2), Polar(2, 1), Cartesian(1, 2), edited(1, 2), Polar(1, 2.0)]
        )

    def test_dataclasses(self) -> None:
        """A dataclass counts with its class and each attribute, but not what it caches."""
        tagged, used = Model(1.0), Model(1.0)
        tagged.tag = "new"  # type: ignore[attr-defined]  # as scripts do
        assert used.twice == 2
        assert fingerprint(used) == fingerprint(Model(1.0))
        assert_all_different(
            [
                *(Model(1.0), Model(2.0), Model(1.0, "b"), Model(1.0, steps=[1]), tagged),
                *(Other(1.0), Point(1), Point(2), Model({"a": Point(1)})),  # type: ignore[arg-type]
            ]
        )

    def test_times(self) -> None:
        """Dates and times count with their zone, and with the fold of an hour that is twice."""
        assert_all_different(
            [
                *(dt.date(2020, 1, 1), dt.datetime(2020, 1, 1), dt.time(0)),  # noqa: DTZ001
                *(dt.time(0, tzinfo=dt.UTC), dt.time(0, fold=1), "2020-01-01"),
                *(dt.datetime(2020, 1, 1, tzinfo=zone) for zone in (dt.UTC, UTC_2, BERLIN)),
                dt.datetime(2020, 1, 1, fold=1, tzinfo=BERLIN),
                dt.datetime(2020, 1, 1, microsecond=1, tzinfo=dt.UTC),
                *(dt.timedelta(1), dt.timedelta(-1), dt.timedelta(microseconds=1), 86400),
                *(dt.UTC, UTC_2, dt.timezone(dt.timedelta(0), "Z"), BERLIN),
                zoneinfo.ZoneInfo("UTC"),
            ]
        )

    def test_numbers_and_ranges(self) -> None:
        """Exact numbers, ranges, sets, dtypes and types count by what they are."""
        assert_all_different(
            [
                *(Decimal("1.0"), Decimal("1.00"), Decimal("-0"), Decimal(0), Decimal("NaN")),
                *(Fraction(1, 3), Fraction(-1, 3), Fraction(1), 1, 1.0),
                *(uuid.UUID(int=1), uuid.UUID(int=2), str(uuid.UUID(int=1))),
                *(set(), {1}, frozenset({1}), {1, 2}, {"1"}, {(1, 2)}, [1], {1: 1}),
                *(range(3), range(0, 4, 2), range(0, 3, 2), [0, 1, 2], range(0), range(1, 1)),
                *(slice(3), slice(0, 3), slice(None, None, 3), (None, 3, None), ...),
                *(np.dtype("f4"), np.dtype(">f4"), np.float32, "f4", float, np.float64, int),
                np.dtype([("a", "f4")]),
                np.dtype([("a", "f4")], align=True),
            ]
        )


def test_equal() -> None:
    """The same input in another guise is the same work."""
    # Small integers that collide go into a set in the order that it keeps.
    groups: list[tuple[Any, ...]] = [
        ({8, 0, 16}, {16, 8, 0}),
        ({"a", "b", "c"}, {"c", "a", "b"}),
        (dt.UTC, dt.timezone(dt.timedelta(0))),
        (np.dtype("f4"), np.dtype(np.float32)),
        (Shape["ROUND"], Shape.ROUND),
        (Polar(1, 2), Polar(first=1, second=2)),
    ]
    for group in groups:
        assert len({fingerprint(value) for value in group}) == 1, group


def test_member_named_by_its_value() -> None:
    """A member whose value is its name has the fingerprint of the first version."""

    class Fast(enum.StrEnum):
        FAST = "FAST"

    Fast.__module__, Fast.__qualname__ = "old", "Fast"
    assert fingerprint(Fast.FAST) == "3404a7a9a745955532e80ab55b832e11"


def test_complex_numbers() -> None:
    """Complex numbers have one form, whether Python or NumPy writes them."""
    numbers = np.random.default_rng(1).integers(0, 256, (500, 16), "u1").view("c16").ravel()
    for number in [*numbers, np.complex128(complex(-0.0, 1)), np.complex128(1e16)]:
        assert canonical.canonical(number, "x") == ["scalar", "<c16", str(number)]


class TestRecorded:
    """The values that a later run recalls are the same input, or there are none."""

    @pytest.mark.parametrize(
        "value",
        [
            *(Polar(1, 2), Quantity(1.5, "m"), colour(1, enum.IntEnum), Shape.ROUND),
            *({1: 2}, {"a": {1: 2}}, Model(1.0), dt.date(2020, 1, 1), {1}, np.float32(1)),
            *(collections.Counter("a"), slotted("a", 1), Listing([1])),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_none(self, value: Any) -> None:
        """Where JSON gives back something else, nothing is recorded to be recalled."""
        described = Work.of(take_anything, {"x": value}).describe()
        assert described["values"] is None
        assert described["arguments"].keys() == {"x"}

    def test_order(self, tmp_path: Path) -> None:
        """Dicts and arguments come back from the records in the order that was given."""
        given = {"z": {"b": 1, "a": {"d": 2, "c": 3}}, "y": collections.OrderedDict(b=1, a=2)}
        work = Work.of(take_anything, given)
        publish_json(tmp_path / "work.json", work.describe())
        recorded = read_json(tmp_path / "work.json")["values"]
        assert Work.of(take_anything, recorded).fingerprint == work.fingerprint
        assert list(recorded) == ["z", "y"]
        assert list(recorded["z"]) == ["b", "a"]


def of(module: str, name: str, *bases: type) -> Any:
    """Return a class that looks like one of a library."""
    return type(name, bases, {"__module__": module})


class TestRefused:
    """What has no canonical form, and what to pass in its place."""

    @pytest.mark.parametrize(
        ("value", "advice"),
        [
            (np.zeros(3).view(Unit), r"Pass np.asarray\(x\), and what else it holds"),
            (np.zeros((1, 2)).view(np.matrix), r"Pass np.asarray\(x\)"),
            (np.ma.masked_array([1, 2], [True, False]), r"x.data and x.mask"),
            (np.array([None]), r"x.tolist\(\)"),
            (np.zeros(2, [("a", "O")]), r"x.tolist\(\)"),
            (np.array(["a"], np.dtypes.StringDType()), r"x.tolist\(\)"),
            (type("Angle", (np.float64,), {})(1), r"x.item\(\)"),
            (np.random.default_rng(1), "Pass a seed"),
            (np.random.RandomState(1), "Pass a seed"),
            (random.Random(1), "Pass a seed"),
            (lambda: 0, "Pass its name"),
            (print, "Pass its name"),
            (np.sin, "Pass its name"),
            (Model, "Pass its name"),
            (functools.partial(print), "Pass its name"),
            (np, "Pass its name"),
            (bytearray(b"x"), r"Pass bytes\(x\)"),
            (collections.deque([1]), r"Pass list\(x\)"),
            (types.MappingProxyType({}), r"Pass dict\(x\)"),
            (collections.UserDict(), r"Pass dict\(x\)"),
            (types.SimpleNamespace(a=1), r"Pass vars\(x\)"),
            (re.compile("a"), "Pass x.pattern"),
            (io.BytesIO(), "Pass the path of its file"),
            (PureWindowsPath("a"), r"os.fspath\(x\)"),
            (logging.getLogger("a"), "volatile"),
            (object(), "Only if it does not change the values"),
            (of("py._path.local", "LocalPath")(), r"pathlib.Path\(x\)"),
            (iter([]), "Only if it does not change the values"),
            (of("here", "Plain")(), "or a dataclass of these"),
            (dataclasses.make_dataclass("Failure", [], bases=(Exception,))(), "Pass what"),
            (collections.defaultdict(lambda: 0), r"'x'\]\.default_factory"),
            (colour(print), r"'x'\]\.value has the type builtin"),
            (Quantity(1.5, object()), r"'x'\]\.unit"),  # type: ignore[arg-type]  # its point
            (Model(object()), r"'x'\]\.rate"),  # type: ignore[arg-type]  # its point
            ([1, [2, {print}]], r"\['x'\]\[1\]\[1\]"),
            ({"a": {object(): 1}}, r"\['x'\]\['a'\]"),
            (dt.time(1, tzinfo=of("pytz", "Zone", dt.tzinfo)()), "zoneinfo.ZoneInfo"),
            (of("pandas.core.frame", "DataFrame")(), r"x.to_numpy\(\), or the path"),
            (of("pandas", "Series")(), r"x.to_numpy\(\), or the path"),
            (of("pandas._libs.tslibs.period", "Period")(), r"str\(x\) and x.freqstr"),
            (of("xarray.core.dataarray", "DataArray")(), r"x.to_numpy\(\)"),
            (of("torch", "Tensor")(), r"x.numpy\(force=True\)"),
            (of("h5py._hl.dataset", "Dataset")(), "the path of its file"),
            (of("mine", "Settings", of("pydantic.main", "BaseModel"))(), "model_dump"),
            (np.zeros(1).view(of("unyt.array", "unyt_array", Unit)), "its unit"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_advice(self, value: Any, advice: str) -> None:
        """The message names the argument, and what to pass that flowmap can compare."""
        with pytest.raises(InvalidArgumentError, match=advice) as caught:
            fingerprint(value)
        message = str(caught.value)
        assert "arguments['x']" in message
        assert ("volatile" in message) == ("Only if" in message or advice == "volatile")

    def test_zone_from_a_file(self) -> None:
        """A time zone that was read from a file has no name to compare."""
        counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)
        file = b"TZif" + bytes(16) + counts + struct.pack(">lbb", 0, 0, 0) + b"UTC\0"
        zone = zoneinfo.ZoneInfo.from_file(io.BytesIO(file))
        with pytest.raises(InvalidArgumentError, match="without a key"):
            fingerprint(zone)


_ORDERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "strided": lambda array: np.stack([array, array], -1)[..., 0],
    "backward": lambda array: np.flip(np.flip(array).copy()),
}


class TestPieces:
    """Arrays are hashed in pieces."""

    @pytest.mark.parametrize("order", _ORDERS)
    @pytest.mark.parametrize("shape", [(0, 2), (7,), (5, 3), (3, 4, 5), (1, 40), (2, 3, 4, 5)])
    def test_the_same(
        self, shape: tuple[int, ...], order: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However an array is cut, and laid out in memory, its fingerprint is the same."""
        array = np.arange(np.prod(shape, dtype=int), dtype="f8").reshape(shape)
        whole = fingerprint(array)
        for size in (1, 8, 24, 100):
            monkeypatch.setattr(canonical, "_PIECE", size)
            assert fingerprint(_ORDERS[order](array)) == whole

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_memory(self, tmp_path: Path, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A map of a file is not copied whole into memory."""
        monkeypatch.setattr(canonical, "_PIECE", 1 << 18)
        size = 1 << 23
        (tmp_path / "data").write_bytes(bytes(size))
        mapped = np.memmap(tmp_path / "data", "f8", "r", 0, (1 << 10, 1 << 10), order)
        fingerprint(0)  # what the first one imports
        tracemalloc.start()
        try:
            fingerprint(mapped)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < size / 4
