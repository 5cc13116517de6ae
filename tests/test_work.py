"""Work: a filler with its arguments, their fingerprint and their description."""

from __future__ import annotations

import enum
import functools
import json
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import take_anything, versioned

import flowmap
from flowmap.errors import InvalidArgumentError, WrongTypeError
from flowmap.fillers import arange, find_filler
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from flowmap.segments import Block


class Callback:
    """A filler that is an object."""

    def __call__(self, out: Any, block: Block) -> None:
        """Do nothing."""


def kept(function: Any, **bound: Any) -> Any:
    """Return a partial that functools does not merge with another one: it has an attribute."""
    partial: Any = functools.partial(function, **bound)
    partial.note = "kept"
    return partial


class Colour(enum.Enum):
    """Two members with one value's text."""

    RED = 1
    BLUE = "1"


class Hue(enum.Enum):
    """Another enumeration with a member of the same name."""

    RED = 1


class Option(enum.Flag):
    """Options to combine."""

    A = enum.auto()
    B = enum.auto()
    C = enum.auto()


class Loose(enum.IntFlag):
    """Options that may be combined with bits of no name."""

    A = enum.auto()


def fingerprint(**arguments: Any) -> str:
    """Return the fingerprint of some arguments."""
    return Work.of(take_anything, arguments).fingerprint


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that cannot be written to."""
    array.flags.writeable = False
    return array


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


SETTLED = {
    "none": "f8f7941f4ec351df537f9c269b8f0b58",
    "numbers": "458c406e19b72585d26b418fc12d2ee8",
    "everything": "20335e3456bede3e4e9955f7a2cef02b",
}

SETTLED_VALUES: list[tuple[str, Any]] = [
    ("37cf32c2b2d89511653f7bb3e17e9915", {"a": 1, "b": [1.5, "x", None]}),
    ("79f54491dee7393f49d627e6bf41013d", OrderedDict(a=1)),
    ("0747a72bc802d03e5d8a211bca2d4831", np.float64(0.5)),
    ("09f9dc073236358eeafdc0c3e3898fda", np.int64(3)),
    ("bc28fc75f3e487cdeb5c949fe373b207", np.True_),
    ("f480a2efd949e6be09d525b30b38435c", np.str_("ab")),
    ("8da6159a51a781da2e6891401ec3e127", 1 + 2j),
    ("2bcc2c159e909669b455f0fd9d5e8d98", np.zeros(3, "f8,i4")),
    ("e98ffff3a6a6d2ad0c82d5d6ce32c3e8", np.rec.array([(1, 2.0)], dtype="i4,f8")),
    ("03f063183b19ef5cbe3212f0a3ea6557", np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    ("5596cf1a85abc68bd5cc23a7607a43b1", np.arange(12, dtype="i2")[::2]),
    ("f970c39b1d3da2600a72c8375e330a6c", np.void(b"ab")),
    ("e9e92f3f5a6401fa86d7893734b33216", np.datetime64("2020-01-01")),
    ("817e81ef3fbaccda21dbc2aad3f3d20c", np.arange(4).astype("m8[s]")),
    ("aeb16ce3266f9af37906412260cf9064", np.array(["a", "bc"])),
    ("0f3babb98568b9baa695d270ed2f6826", np.arange(3, dtype="g")),
    ("df9f472b574f75ae0584dbf677744078", (1, (2,))),
    ("6e12975aff463e4940af5ac60b161234", Path("/a/b")),
    ("960d26ca5fa3deebda2a8bf1582609eb", np.bytes_(b"x")),
    ("91e9a0c3b977a29715d52a0cc10822ee", b"\x00x"),
    ("09812a94c6b0c6ca59fd3fd783fae83e", np.array(2.5)),
    ("b915e0e8ad355559b5ac8b89486892d9", np.zeros((0, 3))),
    ("e5f99c9b8a1ed93db4d7ab6ccc39e107", np.zeros(2, [("v", "f4", (2,)), ("w", "S3")])),
]


class TestFingerprint:
    """Equal exactly where the work is the same."""

    @given(arguments=st.dictionaries(st.text(), JSON, max_size=4), data=st.data())
    def test_order_of_keys(self, arguments: dict[str, Any], data: st.DataObject) -> None:
        """The order of a dict, and of what a filler collects in `**arguments`, counts."""
        shuffled = {k: arguments[k] for k in data.draw(st.permutations(list(arguments)))}
        same = list(shuffled) == list(arguments)
        assert (fingerprint(x=arguments) == fingerprint(x=shuffled)) == same
        assert (fingerprint(**arguments) == fingerprint(**shuffled)) == same

    def test_order_of_arguments(self) -> None:
        """A filler cannot see in which order the arguments were given that it names."""
        first = Work.of(arange, {"start": 1, "step": 2}).fingerprint
        assert Work.of(arange, {"step": 2, "start": 1}).fingerprint == first

        def collects(out: Any, block: Block, rate: int, **others: int) -> None: ...

        def printed(*names: str) -> str:
            return Work.of(collects, dict.fromkeys(names, 1)).fingerprint

        assert (
            printed("a", "b", "rate") == printed("rate", "a", "b") == printed("a", "rate", "b")
        )
        assert printed("b", "a", "rate") != printed("a", "b", "rate")
        assert printed("b", "rate", "a") == printed("b", "a", "rate")

    @given(first=JSON, second=JSON)
    def test_values(self, first: Any, second: Any) -> None:
        """Values that JSON tells apart have two fingerprints, others one."""
        same = json.dumps(first) == json.dumps(second)
        assert (fingerprint(x=first) == fingerprint(x=second)) == same

    @given(value=JSON)
    def test_through_json(self, value: Any) -> None:
        """What went through JSON, as a flow's parameters do, is the same work."""
        assert fingerprint(x=value) == fingerprint(x=json.loads(json.dumps(value)))

    def test_all_different(self) -> None:
        """Values that are easily taken for one another are not."""
        values: list[Any] = [
            *(None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, float("nan"), float("inf")),
            *(1j, 1 + 0j, "", "1", "None", b"", b"1", [], [[]], {}, [None], [1], ["1"]),
            *([1, 2], [[1], 2], [1, [2]], {"a": 1}, {"a": "1"}, {"1": "a"}, ["a", 1]),
            *(["list"], ["int", "1"], ["float", (1.0).hex()], ["list", ["int", "1"]]),
            *(2**63, 2**64, 0.1, 0.1 + 2**-55, np.float32(0.1)),
            *(np.longdouble(1) / 3, np.complex64(1)),
            *(np.int8(1), np.uint8(1), np.int16(1), np.int32(1), np.uint64(1)),
            *(0.5, np.float16(0.5), np.float32(0.5), np.longdouble(0.5)),
            *({"a": 1, "b": 2}, {"b": 2, "a": 1}, [["a", 1], ["b", 2]], ["dict", ["a", 1]]),
            *({1: "a"}, {2: "a"}, {1: 2, 3: 4}, {3: 4, 1: 2}, {None: 1}, {1.0: "a"}, {(1,): 1}),
            *(np.timedelta64(1, "s"), np.timedelta64(1, "m"), np.timedelta64(60, "s")),
            *(np.timedelta64(1), np.timedelta64(1, "D"), np.timedelta64("NaT")),
            *(np.datetime64("2020-01-01"), np.datetime64("2020-01-01T00")),
            *(Colour.RED, Colour.BLUE, Hue.RED, Option(0), Option.A, Option.A | Option.B),
            *(Loose(0), Loose(8), Loose(16)),  # none of which has a name
            *(Option.B | Option.C, Option.A | Option.B | Option.C),
            *(Path("1"), Path("a"), Path("/a"), Path("a/b")),
            *(np.void(b"ab"), np.void(b"abc"), np.bytes_(b"abc")),
            *(np.zeros(0), np.zeros(3), np.zeros(3, "f4"), np.zeros(3, ">f8")),
            *(np.zeros((3, 1)), np.zeros((1, 3)), np.arange(3.0), np.array(0.0), -np.zeros(3)),
            *(np.array(["a"]), np.array(["a "]), np.zeros(1, "U1"), np.zeros(3, "i8")),
            *(np.zeros(2, "f4,f4"), np.zeros(2, [("f0", "f4"), ("g", "f4")])),
            *(np.ones(2, "f4,f4"), np.array([(0, 1), (0, 0)], "f4,f4")),
            *(np.array([1], "g"), np.array([1], "g") + np.longdouble(2) ** -60),
        ]
        found: dict[str, Any] = {}
        for value in values:
            mark = fingerprint(x=value)
            assert mark not in found, f"{value!r} is taken for {found[mark]!r}"
            found[mark] = value

    def test_all_equal(self) -> None:
        """The same input in another guise is the same work."""
        groups: list[tuple[Any, ...]] = [
            (1, np.int64(1), np.intp(1), np.longlong(1)),
            (0.5, np.float64(0.5)),
            (float("nan"), -float("nan"), np.float64("nan")),
            ({"b": 1, "a": 2}, OrderedDict(b=1, a=2)),
            (True, np.True_),
            (1 + 2j, np.complex128(1 + 2j)),
            ((1, 2), [1, 2]),
            ("abc", np.str_("abc")),
            (Path("/a/b"), PurePosixPath("/a/b"), Path("/a//b/")),
            (Option.A | Option.B, Option.B | Option.A),
            (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
            (np.arange(12)[::2], np.arange(0, 12, 2)),
            (np.arange(6.0), frozen(np.arange(6.0))),
        ]
        for group in groups:
            assert len({fingerprint(x=value) for value in group}) == 1, group

    @given(
        array=hnp.arrays(
            hnp.scalar_dtypes()
            | hnp.array_dtypes(allow_subarrays=True).filter(lambda dtype: dtype.names),
            hnp.array_shapes(max_dims=2, max_side=3),
        )
    )
    def test_arrays(self, array: Any) -> None:
        """A copy of an array is the same argument."""
        assert (
            fingerprint(x=array)
            == fingerprint(x=array.copy())
            == fingerprint(x=array.copy("F"))
        )

    def test_padding_is_no_value(self) -> None:
        """What lies between the fields of a record does not count, nor beside a long double."""
        dtype = np.dtype([("a", "i1"), ("b", [("c", "f8"), ("d", "i2", (2,))])], align=True)
        prints: set[Any] = set()
        for byte in (0, 255):
            raw = np.full(3 * dtype.itemsize, byte, np.uint8).view(dtype)
            raw["a"], raw["b"]["c"], raw["b"]["d"] = 1, 2.5, 3
            prints.add((fingerprint(x=raw), fingerprint(x=raw[0])))
        assert len(prints) == 1
        prints = set()
        for byte in (0, 255):
            raw = np.full(32, byte, np.uint8)
            raw[:10] = raw[16:26] = np.array([1], np.longdouble).view(np.uint8)[:10]
            prints.add(fingerprint(x=raw.view(np.longdouble)))
        assert len(prints) == (1 if np.finfo(np.longdouble).nmant == 63 else len(prints))

    def test_long_records(self) -> None:
        """A record is compared whole, whatever of it NumPy would print."""
        dtype = np.dtype([("v", "f8", (5000,))])
        first, second = np.zeros(2, dtype)
        second["v"][2500] = 1e-12
        assert fingerprint(x=first) != fingerprint(x=second)
        before = fingerprint(x=second)
        with np.printoptions(precision=2, threshold=5):
            assert fingerprint(x=second) == before

    def test_what_counts(self) -> None:
        """Version, name and the arguments count; the volatile ones and the source do not."""
        base = Work.of(versioned, {"rate": 2.0}).fingerprint
        assert Work.of(versioned, {"rate": 2.0, "log": object()}).fingerprint == base
        assert Work.of(versioned, {"rate": 2.0, "verbose": {1, 2}}).fingerprint == base
        assert Work.of(versioned, {"rate": 3.0}).fingerprint != base
        assert Work.of(versioned, {}).fingerprint != base
        assert Work.of(versioned).fingerprint == Work.of(versioned, {}).fingerprint
        assert Work.of(versioned).fingerprint != Work.of(take_anything).fingerprint

        def define(version: str, source: str) -> Callable[..., None]:
            space: dict[str, Any] = {"__name__": "somewhere"}
            exec(f"def simulate(out, block): {source}", space)
            marked: Callable[..., None] = flowmap.filler(version=version)(space["simulate"])
            return marked

        first = Work.of(define("1", "pass")).fingerprint
        assert Work.of(define("1", "out[:] = 1")).fingerprint == first
        assert Work.of(define("2", "pass")).fingerprint != first

    def test_settled(self) -> None:
        """A few fingerprints are written down: a resume by a later flowmap finds its work."""
        assert Work.of(arange).fingerprint == SETTLED["none"]
        assert Work.of(arange, {"start": 1, "step": 0.5}).fingerprint == SETTLED["numbers"]
        everything = {
            "a": [None, True, "ü", 1, 0.1, 1j, b"x"],
            "b": {"p": Path("/a"), "t": np.timedelta64(5, "s")},
            "c": np.arange(3, dtype="<i4"),
        }
        work = Work.of(find_filler("flowmap.fillers:arange"), {"start": everything})
        assert work.fingerprint == SETTLED["everything"]

    @pytest.mark.parametrize(
        ("settled", "value"), SETTLED_VALUES, ids=lambda value: str(value)[:9]
    )
    def test_settled_values(self, settled: str, value: Any) -> None:
        """A value of each kind has the fingerprint that the first version gave it."""
        assert fingerprint(x=value) == settled

    def test_endless(self) -> None:
        """Arguments that hold themselves are refused."""
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(InvalidArgumentError, match="hold themselves"):
            fingerprint(x=loop)


class TestWork:
    """A filler with its arguments."""

    @pytest.mark.parametrize("filler", [5, None, [arange], {"filler": "x:y"}])
    def test_no_filler(self, filler: Any) -> None:
        """A filler is a function or its name."""
        with pytest.raises(WrongTypeError, match="filler is"):
            Work.of(filler)

    def test_partial(self) -> None:
        """A partial is the function that it calls, with the arguments that it binds."""
        plain = Work.of(arange, {"start": 3, "step": 2})
        bound: list[tuple[Any, dict[str, Any] | None]] = [
            (functools.partial(arange, start=3, step=2), None),
            (functools.partial(arange, step=2), {"start": 3}),
            (functools.partial(functools.partial(arange, start=1, step=2), start=3), {}),
            (functools.partial(arange, start=1, step=2), {"start": 3}),
            (functools.partial(kept(arange, start=1), start=3, step=2), None),
        ]
        for filler, arguments in bound:
            work = Work.of(filler, arguments)
            assert work.fingerprint == plain.fingerprint
            assert work.describe() == plain.describe()
            assert work.function is arange
            assert work.arguments == plain.arguments

    def test_partial_of_positions(self) -> None:
        """A partial that binds by position takes the place of `out` and is refused."""
        first: Any = functools.partial(take_anything, None)
        for filler in (first, kept(first, step=2)):
            with pytest.raises(WrongTypeError, match="by position"):
                Work.of(filler)
        with pytest.raises(WrongTypeError, match="out"):
            Work.of(functools.partial(take_anything, out=3))

    @pytest.mark.parametrize(
        "arguments",
        [[1], [{"start": 1}], "start", 5, {1: 2}, ("start", 1), {"start": 1, None: 2}],
        ids=str,
    )
    def test_no_dict(self, arguments: Any) -> None:
        """Arguments are a dict by name; a mapped list is what `unmapped` is for."""
        with pytest.raises(WrongTypeError, match=r"unmapped\("):
            Work.of(arange, arguments)

    @pytest.mark.parametrize(
        ("function", "arguments", "message"),
        [
            (arange, {"stop": 3}, "stop"),
            (arange, {"out": 3}, "out"),
            (arange, {"block": 3}, "block"),
            (lambda out: None, {}, "cannot be called"),
            (lambda out, block, needed: None, {}, "needed"),
            (lambda out, block, /, x: None, {"y": 1}, "cannot be called"),
        ],
    )
    def test_other_arguments(
        self, function: Any, arguments: dict[str, Any], message: str
    ) -> None:
        """Arguments that the filler does not take, or lacks, are refused with its signature."""
        with pytest.raises(WrongTypeError, match=message) as caught:
            Work.of(function, arguments)
        assert "(out" in str(caught.value)

    def test_arguments_are_copied(self) -> None:
        """What the user does to the dict later does not change the work."""
        arguments = {"start": 1}
        work = Work.of(arange, arguments)
        arguments["start"] = 2
        assert work.arguments == {"start": 1}

    def test_description(self) -> None:
        """What is recorded is JSON, with the source for people; without one it does without."""
        described = Work.of(versioned, {"rate": 2.0, "log": object()}).describe()
        assert json.loads(json.dumps(described)) == described
        assert described["filler"] == "support:versioned"
        assert described["version"] == "2"
        assert described["arguments"] == {"rate": "2.0"}, "without the volatile one"
        assert "in its second version" in described["source"]
        assert len(described["fingerprint"]) == 32
        space: dict[str, Any] = {}
        exec("def made(out, block): pass", space)
        assert Work.of(space["made"]).describe()["source"] is None


def test_arguments_are_not_shown() -> None:
    """Whoever logs a work, as Dask does when its task fails, logs no password."""

    @flowmap.filler(volatile=("password",))
    def fill(out: object, block: object, *, password: str) -> None:
        """Fill nothing."""

    assert "hunter2" not in repr(Work.of(fill, {"password": "hunter2"}))


def test_pickles_of_an_earlier_version() -> None:
    """A work that was pickled before it had an origin and limits can be filled by."""
    work = Work.of("arange", {"step": 2})
    earlier = object.__new__(Work)
    earlier.__setstate__(
        [work.function, work.arguments, work.name, work.version, work.fingerprint]
    )
    assert earlier.fingerprint == work.fingerprint
    assert earlier.describe()["file"] is None
    assert pickle.loads(pickle.dumps(work)) == work
