"""The fillers `constant`, `arange` and `linspace`, against NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import DTYPES, ORDERS, data_bytes, in_blocks, saved_bytes, stable_id

import flowmap
from flowmap.casting import bounds
from flowmap.errors import FillerError, InvalidArgumentError, WrongTypeError
from flowmap.fillers import arange, constant, linspace
from flowmap.npy import Layout
from flowmap.segments import Block

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RECORD = np.dtype([("a", "<i2"), ("b", ">f8", (2, 3)), ("c", [("x", "S3"), ("y", "?")])])
NUMBERS = np.dtype(
    [("a", "u1"), ("b", "<f8", 2), ("c", [("x", ">i8"), ("y", "<f2")])], align=True
)


def along_rows(values: NDArray[Any], shape: tuple[int, ...], *, fortran: bool) -> NDArray[Any]:
    """Spread the values of the rows over an array."""
    wide = (len(values),) if fortran else (len(values), *[1] * (len(shape) - 1))
    return np.broadcast_to(values.reshape(wide), shape)


class TestConstant:
    """One value, or the same values in each row."""

    @pytest.mark.parametrize(
        ("dtype", "value", "expected"),
        [
            ("<f8", 1.5, 1.5),
            (">f4", 0.1, np.float32(0.1)),
            ("<f8", "nan", math.nan),
            ("<f2", "-inf", -math.inf),
            ("<f8", 2**70, 2.0**70),
            ("<f8", True, 1),
            ("u1", 255, 255),
            ("<i8", -(2**63), -(2**63)),
            (">i4", 3.0, 3),
            ("<u8", "18446744073709551615", 2**64 - 1),
            ("<u8", 2**64 - 1, 2**64 - 1),
            ("?", True, True),
            ("?", 0, False),
            ("<c16", "1+2j", 1 + 2j),
            (">c8", -1.5, -1.5),
            ("<c16", "nan", math.nan),
            ("S5", "abc", b"abc"),
            ("<U3", "äß€", "äß€"),
            ("<U3", "", ""),
            ("<M8[D]", "2026-01-31", np.datetime64("2026-01-31")),
            (">M8[ns]", "2026-01-31T23:59:59", np.datetime64("2026-01-31T23:59:59")),
            ("<M8[s]", "-0001-01-01", np.datetime64("-0001-01-01")),
            ("<M8[D]", 7, np.datetime64("1970-01-08")),
            ("<M8[D]", "NaT", np.datetime64("NaT")),
            ("<m8[h]", -5, np.timedelta64(-5, "h")),
            ("<m8[h]", "NaT", np.timedelta64("NaT")),
        ],
    )
    @pytest.mark.parametrize("shape", [(), (5,), (3, 2)])
    def test_value(
        self, dtype: str, value: object, expected: Any, shape: tuple[int, ...]
    ) -> None:
        """Every element gets the value."""
        found = in_blocks(constant, shape, dtype, block_rows=2, value=value)
        np.testing.assert_array_equal(found, np.full(shape, expected, dtype))

    @pytest.mark.parametrize(
        ("dtype", "value", "message"),
        [
            ("u1", 300, "0 to 255"),
            ("u1", -1, "0 to 255"),
            ("<i8", 2**63, "9223372036854775807"),
            ("<i4", 1.5, "no whole number"),
            ("<i4", math.nan, "no whole number"),
            ("<i4", math.inf, "no whole number"),
            ("<i4", "nan", "nan"),
            ("?", 2, "0 to 1"),
            ("<f4", 1e300, "too large"),
            ("<f4", 1e-60, "would be 0"),
            ("<f8", "1e400", "too large"),
            ("<f8", 10**400, "too large"),
            ("<f8", "-1e-400", "would be 0"),
            ("<c16", "1e-400j", "would be 0"),
            ("<f8", "9007199254740993", "would be rounded"),
            ("<f8", "one", "one"),
            ("<c8", 1e300, "too large"),
            ("<c16", "1e400j", "too large"),
            ("<U2", "abc", "cut, to 2"),
            ("S2", "abc", "cut, to 2"),
            ("<U3", "a\0", "zero byte"),
            ("S3", "ä", "ascii"),
            ("<M8[D]", "2026-01-31T12", "between two"),
            ("<M8[ns]", "3000-01-01", "beyond the range"),
            ("<M8[D]", "2026-02-30", "Day out of range"),
            ("<M8[s]", "2026-01-31T12:00Z", "in UTC"),
            ("<M8[s]", "2026-01-31T12:00+01", "in UTC"),
            ("<M8[D]", "today", "takes a text such as"),
            ("<M8[D]", "", "takes a text such as"),
            ("<m8[s]", -(2**63), "9223372036854775807"),
            ("<f8", [1, 2], "broadcast"),
            ("<f8", [[1, 2], [3]], "unequal"),
            (RECORD, [1, 2], "3 fields"),
            (RECORD, {"a": 1, "b": 2}, "Give each field"),
            (RECORD, {"a": 1, "b": 2, "c": 3, "d": 4}, "Give each field"),
            (RECORD, [1, [1, 2], ["x", 1]], "broadcast"),
            (RECORD, [1, 2, ["long", 1]], r"value\['c'\]\['x'\].*cut"),
        ],
    )
    def test_does_not_fit(self, dtype: Any, value: object, message: str) -> None:
        """What the dtype cannot hold is refused, never wrapped, cut or rounded off."""
        with pytest.raises(InvalidArgumentError, match=message):
            in_blocks(constant, (3,), dtype, value=value)

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [
            ("<f8", None),
            ("<i8", None),
            ("<i8", 1j),
            ("<f8", 1j),
            ("<f8", {"a": 1}),
            ("<c16", {}),
            ("S3", 5),
            ("<U3", 5),
            ("<M8[D]", None),
            ("<m8[s]", "1 s"),
            ("V3", "abc"),
        ],
    )
    def test_other_kind(self, dtype: str, value: object) -> None:
        """What the dtype does not take at all is refused, with a name for it."""
        with pytest.raises(WrongTypeError, match="value is"):
            in_blocks(constant, (3,), dtype, value=value)

    @pytest.mark.parametrize("fortran_order", ORDERS)
    @pytest.mark.parametrize("value", [[1, 2, 3], [[1], [2]], [[1, 2, 3], [4, 5, 6]], [[7]]])
    @pytest.mark.parametrize("block_rows", [1, 2, 7])
    def test_broadcast(self, value: Any, block_rows: int, fortran_order: bool) -> None:
        """A list broadcasts over the shape of a row, in either order, by rows or at once."""
        shape = (2, 3, 4) if fortran_order else (4, 2, 3)
        found = in_blocks(
            constant,
            shape,
            "<i8",
            fortran_order=fortran_order,
            block_rows=block_rows,
            value=value,
        )
        expected = np.broadcast_to(value, (2, 3))
        for row in np.moveaxis(found, -1, 0) if fortran_order else found:
            np.testing.assert_array_equal(row, expected)

    def test_one_wide(self) -> None:
        """A block of one row has the shape that it has, though its strides do not tell."""
        for shape, fortran_order in (((1, 3, 5), True), ((5, 3, 1), False)):
            value = [[1, 2, 3]] if fortran_order else [[1], [2], [3]]
            found = in_blocks(
                constant, shape, "i8", fortran_order=fortran_order, block_rows=1, value=value
            )
            assert (found == np.array([1, 2, 3]).reshape(3, 1)).all()

    def test_records(self) -> None:
        """Fields get their values in order, by name, or all of them one."""
        value = [1, [[1, 2, 3]], ["x", True]]
        named = {"c": {"y": True, "x": "x"}, "a": 1, "b": [[1, 2, 3], [1, 2, 3]]}
        expected = np.zeros((4, 2), RECORD)
        expected["a"], expected["b"], expected["c"]["x"], expected["c"]["y"] = (
            1,
            [1, 2, 3],
            "x",
            1,
        )
        for given_value in (value, named):
            found = in_blocks(constant, (4, 2), RECORD, block_rows=3, value=given_value)
            assert found.tobytes() == expected.tobytes()
        ones = in_blocks(constant, (2,), NUMBERS, value=1)
        assert (ones["b"] == 1).all()
        assert (ones["c"]["y"] == 1).all()

    def test_arrays_in_arrays(self) -> None:
        """A field whose elements are arrays of arrays takes what broadcasts over all of it."""
        dtype = np.dtype([("v", np.dtype(("<f8", (2,))), (3,))])
        for value in ([1, 2], [[1, 2], [3, 4], [5, 6]]):
            found = in_blocks(constant, (4,), dtype, block_rows=3, value=[value])
            np.testing.assert_array_equal(found["v"], np.broadcast_to(value, (4, 3, 2)))
        with pytest.raises(InvalidArgumentError, match=r"\(3,\), which does not broadcast"):
            in_blocks(constant, (4,), dtype, value=[[1, 2, 3]])

    @pytest.mark.parametrize("dtype", [d for d in DTYPES if d.str[1] not in "SUV"], ids=str)
    def test_default(self, dtype: Any) -> None:
        """Zero, in every dtype of numbers or times."""
        assert not in_blocks(constant, (3, 2), dtype).view("u1").any()

    def test_padding_stays_zero(self, tmp_path: Path) -> None:
        """The file is what `np.save` would have written."""
        target = flowmap.allocate(tmp_path / "a.npy", (5, 2), NUMBERS, segments=2)
        flowmap.fill(target, "constant", {"value": 7}, executor="threads", workers=1)
        written = data_bytes(target.path, target.job.data_offset)
        assert written == saved_bytes(np.load(target.path), tmp_path)
        assert flowmap.validate(target).ok

    def test_the_error_reaches_the_user(self, tmp_path: Path) -> None:
        """Filling fails with the message, and the rows it was for."""
        target = flowmap.allocate(tmp_path / "a.npy", 5, "u1")
        with pytest.raises(FillerError, match=r"rows 0 to 5.*value is 300.*0 to 255"):
            flowmap.fill_segment(target.segments[0], "constant", {"value": 300})


class TestArange:
    """Counting, as `numpy.arange` does."""

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

    @given(
        dtype=st.sampled_from(["u1", "i2", ">i4", "i8", "u8", "?"]),
        data=st.data(),
        block_rows=st.integers(1, 7),
    )
    def test_whole_numbers(self, dtype: str, data: st.DataObject, block_rows: int) -> None:
        """Whole numbers are exact up to the ends of their range, and refused beyond."""
        least, most = bounds(np.dtype(dtype))
        start = data.draw(st.integers(least - 3, most + 3))
        step = data.draw(st.integers((least - most) // 4 - 1, (most - least) // 4 + 1))
        exact = [start + step * row for row in range(5)]
        if all(least <= value <= most for value in exact):
            found = in_blocks(
                arange, (5,), dtype, block_rows=block_rows, start=start, step=step
            )
            assert found.tolist() == exact
            texts: dict[str, Any] = {"start": str(start), "step": float(step)}
            if float(step) == step:  # as a form may give them
                assert in_blocks(arange, (5,), dtype, **texts).tolist() == exact
        else:
            with pytest.raises(InvalidArgumentError, match="holds"):
                in_blocks(arange, (5,), dtype, block_rows=block_rows, start=start, step=step)

    def test_times(self) -> None:
        """Times count units from a date, or from their origin."""
        days = in_blocks(arange, (40,), ">M8[D]", block_rows=7, start="2026-01-31")
        assert (days == np.arange("2026-01-31", "2026-03-12", dtype="M8[D]")).all()
        spans = in_blocks(arange, (5,), "<m8[h]", start=10, step=-5)
        assert (spans == np.arange(10, -15, -5).astype("m8[h]")).all()
        with pytest.raises(InvalidArgumentError, match="holds"):
            in_blocks(arange, (5,), "<M8[ns]", start="2262-01-01", step=10**17)

    @pytest.mark.parametrize(
        ("dtype", "arguments", "error", "message"),
        [
            ("i4", {"start": 0.5}, InvalidArgumentError, "start is 0.5"),
            ("i4", {"step": 0.5}, InvalidArgumentError, "step is 0.5"),
            ("i4", {"step": math.nan}, InvalidArgumentError, "step is nan"),
            ("i4", {"start": True}, WrongTypeError, "start is True"),
            ("i4", {"start": None}, WrongTypeError, "start is None"),
            ("i4", {"start": 1j}, WrongTypeError, "start is 1j"),
            ("f8", {"start": "0"}, WrongTypeError, "start is '0'"),
            ("f8", {"start": True}, WrongTypeError, "start is True"),
            ("f8", {"step": [1]}, WrongTypeError, "step is"),
            ("f8", {"start": 1j}, WrongTypeError, "start is 1j"),
            ("f8", {"step": 1e308}, InvalidArgumentError, "beyond what a float holds"),
            ("f8", {"start": 10**400}, InvalidArgumentError, "beyond what a float holds"),
            ("f2", {"step": 70_000}, InvalidArgumentError, "70000.*cannot hold"),
            ("M8[D]", {"start": "soon"}, InvalidArgumentError, "start is 'soon'"),
            ("M8[D]", {"start": "NaT"}, InvalidArgumentError, "holds"),
            ("<U3", {}, WrongTypeError, "cannot fill <U3"),
            (RECORD, {}, WrongTypeError, r"cannot fill \|S3"),
        ],
    )
    def test_refused(
        self, dtype: Any, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        """What would wrap, lose a fraction or makes no sense is refused."""
        with pytest.raises(error, match=message):
            in_blocks(arange, (4,), dtype, **arguments)

    @given(
        start=st.integers(-(2**70), 2**70),
        step=st.integers(-(2**70), 2**70),
        block_rows=st.integers(1, 5),
    )
    def test_large_in_floats(self, start: int, step: int, block_rows: int) -> None:
        """Whole numbers beyond any whole dtype are exact in floats, or refused."""
        exact = [start + step * row for row in range(5)]
        if [int(float(number)) for number in exact] == exact:
            found = in_blocks(arange, (5,), "f8", block_rows=block_rows, start=start, step=step)
            assert found.tolist() == exact
        else:
            with pytest.raises(InvalidArgumentError, match="float64 cannot hold"):
                in_blocks(arange, (5,), "f8", block_rows=block_rows, start=start, step=step)

    @pytest.mark.parametrize(
        ("filler", "dtype", "arguments"),
        [
            (arange, "<f4", {"start": 2**24}),
            (arange, "<f2", {"step": 2047}),
            (arange, "<c8", {"start": 2**24}),
            (arange, "<f8", {"start": 2**53 + 1, "step": 0.5}),
            (arange, "<f8", {"start": np.int64(2**63 - 1)}),
            (arange, "<f4", {"step": 1e-60}),
            (linspace, "<f4", {"num": 4, "stop": 1e-60}),
            (linspace, "<c8", {"num": 4, "stop": 1e-60}),
            (linspace, "<f8", {"num": 4, "stop": 2**53 + 1}),
            (constant, "<f8", {"value": 2**53 + 1}),
            (constant, "<f4", {"value": 2**24 + 1}),
            (constant, "<c16", {"value": 2**53 + 1}),
        ],
        ids=stable_id,
    )
    def test_the_rules_are_those_of_casts(
        self, filler: Any, dtype: str, arguments: dict[str, Any]
    ) -> None:
        """A whole number is never rounded, and no float becomes zero."""
        with pytest.raises(InvalidArgumentError, match=r"cannot hold|would round"):
            in_blocks(filler, (4,), dtype, **arguments)

    def test_rounding_errors_may_become_zero(self) -> None:
        """What a float's precision leaves of a zero does not count as a number."""
        found = in_blocks(linspace, (7,), "<f2", start=-0.9, stop=0.9, num=7)
        assert found[3] == 0 != np.linspace(-0.9, 0.9, 7)[3]

    def test_records(self) -> None:
        """Each field of a record counts alike, through padding and inner axes."""
        found = in_blocks(arange, (6, 2), NUMBERS, block_rows=4, start=1, step=2)
        for field in (found["a"], found["b"][..., 1], found["c"]["x"], found["c"]["y"]):
            np.testing.assert_array_equal(field, np.outer(1 + 2 * np.arange(6), [1, 1]))


class TestLinspace:
    """An interval divided, as `numpy.linspace` does."""

    @given(
        start=st.floats(-1e300, 1e300),
        stop=st.floats(-1e300, 1e300),
        rows=st.integers(1, 40),
        more=st.integers(0, 3),
        endpoint=st.booleans(),
        block_rows=st.integers(1, 41),
    )
    def test_against_numpy(
        self,
        start: float,
        stop: float,
        rows: int,
        more: int,
        endpoint: bool,
        block_rows: int,
    ) -> None:
        """Row for row the same bits, whatever the blocks."""
        num = rows + more
        found = in_blocks(
            linspace,
            (rows,),
            "<f8",
            block_rows=block_rows,
            start=start,
            stop=stop,
            num=num,
            endpoint=endpoint,
        )
        expected = np.linspace(start, stop, num, endpoint=endpoint)[:rows]
        assert found.tobytes() == expected.tobytes()

    @pytest.mark.parametrize("stop", [5e-324, 1e-320])
    def test_tiny(self, stop: float) -> None:
        """Where the step vanishes NumPy computes in another order, and so does the filler."""
        found = in_blocks(linspace, (9,), "<f8", block_rows=2, stop=stop, num=9)
        assert found.tobytes() == np.linspace(0, stop, 9).tobytes()

    @pytest.mark.parametrize("fortran_order", ORDERS)
    @pytest.mark.parametrize("shape", [(), (6,), (4, 6), (6, 4), (1, 6), (2, 3, 6)])
    @pytest.mark.parametrize("dtype", [">f4", "<c16", "f2", NUMBERS["b"].base])
    def test_shapes(self, shape: tuple[int, ...], dtype: Any, fortran_order: bool) -> None:
        """Rows lie along the slow axis; single precision is the double rounded."""
        rows = (shape[-1] if fortran_order else shape[0]) if shape else 1
        found = in_blocks(
            linspace, shape, dtype, fortran_order=fortran_order, block_rows=1, num=6, start=-1
        )
        values = np.linspace(-1, 1, 6)[:rows].astype(dtype)
        wide = along_rows(values, shape, fortran=fortran_order) if shape else values[0]
        np.testing.assert_array_equal(found, wide)

    def test_whole_numbers(self) -> None:
        """Whole dtypes take whole values, and nothing is rounded for them."""
        found = in_blocks(linspace, (5,), "u1", stop=200, num=5)
        assert found.tolist() == [0, 50, 100, 150, 200]
        assert in_blocks(linspace, (2,), NUMBERS, num=2)["c"]["x"].tolist() == [0, 1]
        for dtype, stop in (("u1", 300), ("i8", 2), ("i8", 2.0**64), ("?", 4), ("u1", -4)):
            with pytest.raises(InvalidArgumentError, match="cannot hold"):
                in_blocks(linspace, (5,), dtype, stop=stop, num=5)

    @pytest.mark.parametrize(
        ("dtype", "arguments", "error", "message"),
        [
            ("f8", {"num": 3}, InvalidArgumentError, "num is 3.*has 4 rows or more"),
            ("f8", {"num": 4.0}, WrongTypeError, "num"),
            ("f8", {"num": 4, "start": "0"}, WrongTypeError, "start is '0'"),
            ("f8", {"num": 4, "stop": None}, WrongTypeError, "stop is None"),
            ("f8", {"num": 4, "stop": 1j}, WrongTypeError, "stop is 1j"),
            ("f8", {"num": 4, "stop": math.nan}, InvalidArgumentError, "finite"),
            ("f8", {"num": 4, "stop": math.inf}, InvalidArgumentError, "finite"),
            ("f8", {"num": 4, "start": -1e308, "stop": 1e308}, InvalidArgumentError, "beyond"),
            ("f8", {"num": 4, "stop": 10**400}, InvalidArgumentError, "beyond"),
            ("f4", {"num": 4, "stop": 1e300}, InvalidArgumentError, "cannot hold"),
            ("f8", {"num": 4, "endpoint": 1}, WrongTypeError, "endpoint"),
            ("S3", {"num": 4}, WrongTypeError, "cannot fill"),
            ("M8[s]", {"num": 4}, WrongTypeError, "cannot fill"),
        ],
    )
    def test_refused(
        self, dtype: str, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        """What NumPy would round, overflow or not divide is refused."""
        with pytest.raises(error, match=message):
            in_blocks(linspace, (4,), dtype, **arguments)
