"""Values are cast to a target's dtype without a change, or refused with a helpful message."""

from __future__ import annotations

import datetime as dt
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import in_blocks, stable_id

import flowmap
from flowmap.casting import check_cast, store
from flowmap.copying import copy
from flowmap.errors import InvalidArgumentError, WrongTypeError
from flowmap.nested import checked_array

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UNITS: dict[str, Fraction] = {
    "D": Fraction(86400),
    "h": Fraction(3600),
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "ns": Fraction(1, 10**9),
}
NUMBERS = ["?", "i1", "<i4", ">i8", "u1", "<u8", "<f2", ">f4", "<f8", "<c8", "<c16"]
TIMES = [f"{kind}8[{unit}]" for kind in "mM" for unit in UNITS]
TEXTS = ["S2", "S30", "U2", "U30", "V3", "V5"]
PLAIN = [*NUMBERS, *TIMES, *TEXTS]

LOST: list[tuple[Any, Any]] = [
    (np.array(["3000-01-01"], "M8[D]"), "M8[ns]"),
    (np.array(["2020-01-01T00:00:00.5"], "M8[ms]"), "M8[s]"),
    (np.array(["2020-01-01T10:00"], "M8[s]"), "M8[D]"),
    (np.array(["2020-02-03"], "M8[D]"), "M8[M]"),
    (np.array([10**10], "m8[D]"), "m8[ns]"),
    (np.array([1], "m8[D]"), "m8[as]"),
    (np.array(["2020"], "M8[Y]"), "M8[as]"),
    (np.array([1500], "m8[ms]"), "m8[s]"),
    (np.array([-(2**63)]), "m8[s]"),
    (np.array([2**63], "u8"), "m8[s]"),
    (np.array([b"12345678"], "V8"), "V4"),
    (np.array([b"1234\0\0\0\0"], "V8"), "V4"),
    (np.array([1e-60]), "<f4"),
    (np.array([1e-10], "f4"), ">f2"),
    (np.array([1e-60j]), "<c8"),
    (np.array([1e300]), "<f4"),
    (np.array([2**53 + 1]), "<f8"),
    (np.array([2**63 - 1]), "<f8"),
    (np.array([2**64 - 1], "u8"), ">f8"),
    (np.array([2**53 + 1]), "<c16"),
    (np.array([2**24 + 1]), "<f4"),
    (np.array([70000]), "<f2"),
    (np.array([300]), "i1"),
    (np.array([True]), "U3"),
    (np.array([1 / 3]), "S5"),
    (np.array(["abc"]), "U2"),
    (np.array([b"\xff"]), "U1"),
]
IDS = [f"{values.dtype}-{values[0]!r}-{dtype}" for values, dtype in LOST]
WRAPPED: dict[str, Any] = {
    "plain": lambda inner: inner,
    "a record": lambda inner: [("n", "i2"), ("x", inner)],
    "a subarray": lambda inner: [("x", inner, (2, 1))],
    "a nested record": lambda inner: [("p", [("x", inner, 3), ("n", "i2")])],
}


def wrapped(values: NDArray[Any], how: str) -> NDArray[Any]:
    """Return records of which a field, wherever it is, holds the values."""
    record = np.zeros(values.shape, WRAPPED[how](values.dtype))
    if how == "plain":
        return values
    place = record["p"]["x"] if how == "a nested record" else record["x"]
    place[...] = values.reshape(-1, *[1] * (place.ndim - 1))
    return record


class TestLost:
    """What NumPy would change silently."""

    @pytest.mark.parametrize("how", WRAPPED)
    @pytest.mark.parametrize(("values", "dtype"), LOST, ids=IDS)
    def test_arrays(self, values: NDArray[Any], dtype: Any, how: str) -> None:
        """A value that would change is refused wherever it is; `unsafe` is NumPy's cast."""
        given, wanted = wrapped(values, how), np.dtype(WRAPPED[how](dtype))
        with pytest.raises(InvalidArgumentError, match=r"cannot hold|cannot be cast") as caught:
            check_cast(given, wanted, "same_kind", "here", sized=True)
        assert "unsafe" not in str(caught.value)
        if values.dtype != "S1" and not dtype.endswith("[as]"):  # which NumPy itself refuses
            check_cast(given, wanted, "unsafe", "here", sized=True)

    @pytest.mark.parametrize("how", ["plain", "a nested record"])
    def test_both_ways_into_a_target(self, tmp_path: Path, how: str) -> None:
        """`write_segment` and `copy` refuse the year 3000 in nanoseconds, and say why."""
        values = wrapped(np.array(["3000-01-01"], "M8[D]"), how)
        dtype = WRAPPED[how]("M8[ns]")
        np.save(tmp_path / "source.npy", values)
        target = flowmap.allocate(tmp_path / "a.npy", 1, dtype)
        message = r"3000-01-01, which .*ns.* cannot hold: it would become 1830"
        with pytest.raises(InvalidArgumentError, match=message):
            flowmap.write_segment(target.segments[0], values)
        with pytest.raises(InvalidArgumentError, match=message):
            in_blocks(copy, (1,), dtype, source=str(tmp_path / "source.npy"))
        assert not target.status()["attempt"].any()
        flowmap.write_segment(target.segments[0], values, casting="unsafe")
        assert target.asarray().tobytes() == values.astype(dtype).tobytes()

    def test_subarrays_of_other_shapes(self) -> None:
        """NumPy would repeat the one element, or leave some out."""
        for axes, wanted in ((1, 3), (3, 2), ((), 3), (3, ())):
            given = np.zeros(2, [("x", "f8", axes)])
            with pytest.raises(WrongTypeError, match="cannot be cast") as caught:
                check_cast(given, np.dtype([("x", "f8", wanted)]), "same_kind", "", sized=True)
            assert "casting=" not in str(caught.value)  # no other rule would take it

    def test_beyond_the_first_piece(self) -> None:
        """One value among many is found, and named; the order of axes does not matter."""
        values = np.zeros((300, 1000), order="F")
        values[123, 456] = 1e-60
        with pytest.raises(InvalidArgumentError, match="contain 1e-60, which float32"):
            check_cast(values[::3, ::2], np.dtype("f4"), "same_kind", "", sized=True)
        values[123, 456] = 1e-40  # less precise, but no zero
        check_cast(values, np.dtype("f4"), "same_kind", "", sized=True)

    @pytest.mark.parametrize("texts", [["abc"], ["ab", "abcd"], ["a", ""]])
    def test_texts_of_any_length(self, texts: list[str]) -> None:
        """NumPy's texts without a length are cut no more than others; no text is a bool."""
        given, fits = np.array(texts, np.dtypes.StringDType()), max(map(len, texts)) <= 2
        if fits:
            check_cast(given, np.dtype("U2"), "same_kind", "", sized=True)
        else:
            with pytest.raises(InvalidArgumentError, match="cannot hold"):
                check_cast(given, np.dtype("U2"), "same_kind", "", sized=True)
        with pytest.raises(InvalidArgumentError, match="cannot hold"):
            check_cast(given, np.dtype("?"), "same_kind", "", sized=True)


def same(old: Any, new: Any) -> bool:
    """Compare a value with what became of it, by Python's own exact arithmetic."""
    kinds = old.dtype.kind + new.dtype.kind
    if kinds[0] in "mM" and kinds[1] in "mM":
        neither = np.isnat(old) and np.isnat(new)
        return bool(neither or (not np.isnat(new) and elapsed(old) == elapsed(new)))
    if kinds[1] == "m":
        return bool(int(new.astype("i8")) == int(old) and not np.isnat(new))
    if kinds[1] == "V":
        return bool(new.tobytes() == old.tobytes().ljust(new.itemsize, b"\0"))
    if kinds[1] in "SU":
        text = new.decode("latin-1") if kinds[1] == "S" else str(new)
        plain = old.decode("latin-1") if kinds[0] == "S" else str(old)
        return bool(text == plain or (kinds[0] in "fc" and old.dtype.type(text) == old))
    floats = kinds[0] in "fc"
    parts = [(old.real, new.real), (old.imag, new.imag)]
    return all(same_number(a.item(), b.item(), floats=floats) for a, b in parts)


def elapsed(value: Any) -> Fraction:
    """Return the seconds of a duration, or those since 1970."""
    return int(value.astype("i8")) * UNITS[np.datetime_data(value.dtype)[0]]


def same_number(old: Any, new: Any, *, floats: bool) -> bool:
    """Say whether a number is the same; or a float that was rounded, to float16 at worst."""
    if math.isnan(old) or not floats:
        return bool(old == new or (math.isnan(old) and math.isnan(new)))
    close = abs(new - old) <= max(abs(old) * 2.0**-10, 2.0**-25)  # of subnormal numbers
    return bool(old == new or (close and new != 0))


class TestProperty:
    """For every pair of dtypes."""

    @given(data=st.data(), how=st.sampled_from(sorted(WRAPPED)))
    def test_accepted_values_come_back(self, data: st.DataObject, how: str) -> None:
        """A value that is accepted is there afterwards; any other is refused with an error."""
        given, dtype = (np.dtype(data.draw(st.sampled_from(PLAIN))) for _ in range(2))
        raw = given.kind == "V"
        plain = data.draw(hnp.arrays("u1", 3 * given.itemsize) if raw else hnp.arrays(given, 3))
        plain = plain.view(given) if raw else plain
        values, wanted = wrapped(plain, how), np.dtype(WRAPPED[how](dtype))
        try:
            check_cast(values, wanted, "same_kind", "here", sized=True)
        except (WrongTypeError, InvalidArgumentError) as error:
            assert str(error).startswith("here")  # noqa: PT017 -- either is right
            assert given != dtype
            return
        out = np.zeros(3, wanted)
        store(out, values)
        found = out if how == "plain" else out["p"]["x"] if "nested" in how else out["x"]
        for old, new in zip(plain, found.reshape(3, -1)[:, 0], strict=True):
            assert same(old, new), (old, new)

    @given(
        values=st.lists(
            st.integers(-(2**65), 2**65)
            | st.sampled_from([2**53 + 1, 2**63, -(2**63), 2**64 - 1, 1, 0])
            | st.floats()
            | st.booleans(),
            min_size=1,
            max_size=4,
        ),
        dtype=st.sampled_from(NUMBERS),
        record=st.booleans(),
    )
    def test_python_numbers(self, values: list[Any], dtype: str, record: bool) -> None:
        """A list is stored as it is, alone or as a field; whole numbers that fit always are."""
        wanted = np.dtype([("x", dtype)] if record else dtype)
        given: Any = [(value,) for value in values] if record else values
        whole = all(type(value) is int for value in values)
        fits = np.dtype(dtype).kind in "iu" and all(
            np.iinfo(dtype).min <= value <= np.iinfo(dtype).max for value in values if whole
        )
        try:
            array = checked_array(given, wanted, (len(values),), "same_kind", "here")
        except (WrongTypeError, InvalidArgumentError) as error:
            assert "unsafe" not in str(error)  # noqa: PT017 -- either is right
            assert not (whole and fits)
            return
        out = np.zeros(len(values), wanted)
        store(out, array)
        for old, new in zip(values, (out["x"] if record else out).tolist(), strict=True):
            assert same_number(old, new.real, floats=isinstance(old, float))


RECORD = [("a", "<i4"), ("s", "U3"), ("f", "<f4", (2,)), ("p", [("b", "?"), ("t", "M8[s]")])]
NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC).replace(tzinfo=None)
ROW: tuple[Any, ...] = (1, "abc", [0.1, 2], (True, NOON))


class TestLists:
    """Python's own objects, which NumPy casts by no rule."""

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            (0, 1.7, "field 'a'.*float64 cannot be cast to int32"),
            (0, 2**31, "field 'a'.*2147483648, which int32 cannot hold"),
            (0, None, "field 'a'.*object cannot be cast"),
            (1, "abcdef", "field 's'.*'abcdef', which <U3 cannot hold: it would become 'abc'"),
            (1, "a\0", "field 's'.*would become 'a'"),
            (1, 5, "field 's'.*contain 5.*would become '5'"),
            (2, [1e300, 0], "field 'f'.*would become inf"),
            (2, [1, 2, 3], "field 'f'.*shape"),
            (2, 1.0, "field 'f'.*shape"),
            (3, (2, NOON), "field 'p', field 'b'.*int64 cannot be cast to bool"),
            (3, (True, NOON.replace(microsecond=5)), "field 't'.*cannot hold"),
            (3, (True, NOON.replace(tzinfo=dt.UTC)), "time zone"),
            (3, (True,), r"\(True,\) has 1 values; a record has the 2 fields"),
        ],
    )
    def test_records(self, tmp_path: Path, place: int, value: Any, message: str) -> None:
        """Each field of a list of tuples is checked as an array is, also of nested records."""
        target = flowmap.allocate(tmp_path / "a.npy", 2, RECORD)
        good: Any = [ROW, ROW]
        bad: Any = (*ROW[:place], value, *ROW[place + 1 :])
        with pytest.raises((WrongTypeError, InvalidArgumentError), match=message):
            flowmap.write_segment(target.segments[0], [ROW, bad])
        assert not target.status()["attempt"].any()
        flowmap.write_segment(target.segments[0], good)
        assert target.asarray().tobytes() == np.array(good, RECORD).tobytes()

    def test_the_rule_counts_for_tuples_too(self, tmp_path: Path) -> None:
        """With "no" the numbers of Python have NumPy's dtypes for them, as in an array."""
        target = flowmap.allocate(tmp_path / "a.npy", 1, [("a", "<i4"), ("s", "U3")])
        with pytest.raises(WrongTypeError, match=r"rule 'no'.*casting='same_kind'"):
            flowmap.write_segment(target.segments[0], [(1, "abc")], casting="no")

    @pytest.mark.parametrize(
        ("values", "dtype", "expected"),
        [
            ([2**63 + 1, 1, 2, 3], "<u8", [2**63 + 1, 1, 2, 3]),
            (range(2**63 - 1, 2**63 + 1), "<u8", [2**63 - 1, 2**63]),
            ([-(2**63), 1], "<i8", [-(2**63), 1]),
            ([2**80, 1], "<f8", [2.0**80, 1]),
            ([True, 2], "i1", [1, 2]),
            ([dt.date(2026, 1, 31)], "M8[D]", [dt.date(2026, 1, 31)]),
            ([dt.timedelta(days=1)], "m8[s]", [dt.timedelta(days=1)]),
            ([np.float32(0.5), 2, np.array(3.0)], "<f8", [0.5, 2, 3]),
            ([np.array([1, 2]), [3, 4.5]], "<f8", [[1, 2], [3, 4.5]]),
            ([da.arange(2), da.arange(2)], "<i8", [[0, 1], [0, 1]]),
            (bytearray(b"ab"), "u1", [97, 98]),
            (memoryview(b"ab"), "u1", [97, 98]),
            ([[], []], "<i4", [[], []]),
        ],
        ids=stable_id,
    )
    def test_taken(self, values: Any, dtype: str, expected: list[Any]) -> None:
        """What fits is taken exactly, whatever NumPy would make of the list."""
        shape = np.shape(np.array(expected, object))
        array = checked_array(values, np.dtype(dtype), shape, "same_kind", "here")
        out = np.zeros(shape, dtype)
        store(out, array)
        assert out.tolist() == expected

    @pytest.mark.parametrize(
        ("values", "dtype", "message"),
        [
            ([2**64, 1], "<u8", "18446744073709551616, which uint64 cannot hold"),
            ([-1, 2**63], "<u8", "contain -1, which uint64 cannot hold"),
            ([2**63], "<i8", "9223372036854775808, which int64 cannot hold"),
            (
                [2**53 + 1, 0.5],
                "<f8",
                "9007199254740993, which float64 cannot hold",
            ),
            ([2**80 + 1], "<f8", "which float64 cannot hold"),
            ([2**24 + 1, 0.5], "<f4", "16777217, which float32 cannot hold"),
            ([2**24 + 1, 2**63], "<c8", "16777217, which complex64 cannot hold"),
            ([1, "a"], "U3", "contain 1.*would become '1'"),
            ([b"a\0"], "S3", "would become b'a'"),
            ([2.5, 1], "<i8", "Convert the values first, or allocate a dtype of their kind"),
            ([1 + 2j, 1], "<f8", "cannot be cast to float64"),
            ([1, 2], "<f8", "shape"),
        ],
        ids=stable_id,
    )
    def test_refused(self, values: Any, dtype: str, message: str) -> None:
        """What does not fit is named, and no advice would store something else."""
        shape = (len(values) + (message == "shape"),)
        with pytest.raises((WrongTypeError, InvalidArgumentError), match=message) as caught:
            checked_array(values, np.dtype(dtype), shape, "same_kind", "here")
        assert "unsafe" not in str(caught.value)

    def test_unsafe(self) -> None:
        """By the explicit word all of it is what NumPy makes of the list."""
        for values, dtype in (([2**53 + 1, 0.5], "f4"), ([300, 1], "u1"), ([1, "a\0"], "U1")):
            array = checked_array(values, np.dtype(dtype), (2,), "unsafe", "here")
            out = np.zeros(2, dtype)
            store(out, array)
            assert (out == np.array(values).astype(dtype)).all()


class TestMasked:
    """A `.npy` file has no mask."""

    MASKED = np.ma.array([1.0, 2, 3], mask=[False, True, False])
    LAZY = da.ma.masked_equal(da.arange(6, chunks=2), 2)

    @pytest.mark.parametrize(
        ("values", "shape"),
        [
            (MASKED, (3,)),
            (LAZY, (6,)),
            ([1.0, np.ma.masked, 3], (3,)),
            ([MASKED, MASKED], (2, 3)),
            ([np.zeros(3), MASKED], (2, 3)),
            ([LAZY[:3], LAZY[3:]], (2, 3)),
            ([[1.0, 2], [np.ma.masked, 4]], (2, 2)),
        ],
        ids=["array", "dask", "constant", "arrays", "one array", "list of dask", "nested"],
    )
    @pytest.mark.parametrize("casting", ["same_kind", "unsafe"])
    def test_refused(self, values: Any, shape: tuple[int, ...], casting: Any) -> None:
        """Masked values are refused wherever they are."""
        with pytest.raises(WrongTypeError, match="masked"):
            checked_array(values, np.dtype("f8"), shape, casting, "here")

    def test_in_a_record(self, tmp_path: Path) -> None:
        """A masked field of a tuple is one too, and a row of a masked record array."""
        target = flowmap.allocate(tmp_path / "a.npy", 1, [("x", "f8")])
        rows = np.ma.zeros(1, [("x", "f8")])
        for values in ([(np.ma.masked,)], [rows[0]]):
            with pytest.raises(WrongTypeError, match="masked"):
                flowmap.write_segment(target.segments[0], values)
