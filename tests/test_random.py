"""The filler `random`: NumPy's own stream, at whatever place; and the statistics of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support import ORDERS, in_blocks

import flowmap
from flowmap.errors import InvalidArgumentError, WrongTypeError
from flowmap.fillers import random
from flowmap.philox import Law, words_at

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ROW = np.dtype(
    [("a", "u1"), ("b", ">f4", (2,)), ("c", [("x", "?"), ("y", "<c16")])], align=True
)
DTYPES = ["<f8", ">f4", "<f2", "<c16", ">c8", "u1", "<i8", ">u8", "?", ROW]
MANY = 200_000


def drawn(count: int = MANY, dtype: Any = "<f8", **arguments: Any) -> NDArray[Any]:
    """Return many random numbers."""
    return in_blocks(random, (count,), dtype, **arguments)


class TestStream:
    """Which random number is where."""

    @pytest.mark.parametrize("text", [False, True])
    @pytest.mark.parametrize("seed", [0, 1, 2**64, 2**128 - 1])
    def test_against_numpy(self, seed: int, text: bool) -> None:
        """Doubles are those that NumPy's generator returns for the same key."""
        oracle = np.random.Generator(np.random.Philox(key=seed)).random(1003)
        given = str(seed) if text else seed
        assert (in_blocks(random, (1003,), "<f8", block_rows=10, seed=given) == oracle).all()
        square = in_blocks(random, (59, 17), ">f8", block_rows=3, seed=seed)
        assert (square.ravel() == oracle).all()

    @given(first=st.integers(0, 2**70), count=st.integers(0, 20))
    def test_words(self, first: int, count: int) -> None:
        """Words are numbered as NumPy draws them: four of each value of the counter."""
        near = first % 1000
        oracle = np.random.Philox(key=5).random_raw(near + count)[near:]
        assert (words_at(5, near, count) == oracle).all()
        # Far off: the state is set by hand. NumPy counts up before it draws.
        state: Any = np.random.Philox(key=5).state
        counter = first // 4
        state["state"]["counter"] = np.array(
            [counter >> 64 * i & 2**64 - 1 for i in range(4)], "u8"
        )
        philox = np.random.Philox(key=5)
        philox.state = state
        skip = first % 4
        assert (words_at(5, first, count) == philox.random_raw(skip + count)[skip:]).all()

    @pytest.mark.parametrize("distribution", ["uniform", "normal"])
    @pytest.mark.parametrize("fortran_order", ORDERS)
    @given(
        shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
        dtype=st.sampled_from(DTYPES),
        block_rows=st.integers(1, 5),
    )
    def test_blocks_and_orders(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        block_rows: int,
        fortran_order: bool,
        distribution: str,
    ) -> None:
        """Bytes depend neither on the blocks, nor, for the same rows, on the order."""
        if distribution == "normal" and np.dtype(dtype).kind not in "fc":
            dtype = "<f8"
        asked: dict[str, Any] = {"seed": 3, "distribution": distribution}
        found = in_blocks(
            random, shape, dtype, fortran_order=fortran_order, block_rows=block_rows, **asked
        )
        rows = np.moveaxis(found, -1, 0) if fortran_order else found
        whole = in_blocks(random, rows.shape, dtype, **asked)
        assert (rows == whole).all()

    def test_large_rows(self) -> None:
        """Rows that are drawn in several goes are those drawn in one."""
        whole = drawn(300_000, seed=1)
        assert (in_blocks(random, (3, 100_000), "<f8", seed=1).ravel() == whole).all()
        assert (in_blocks(random, (300, 1000), "<f8", seed=1).ravel() == whole).all()

    def test_normal_wherever_it_stands(self) -> None:
        """Not one bit of a normal number depends on what is computed with it."""
        whole = drawn(5000, distribution="normal")
        for block_rows in (1, 7, 64, 1023):
            found = in_blocks(
                random, (5000,), "<f8", block_rows=block_rows, distribution="normal"
            )
            assert found.tobytes() == whole.tobytes()

    def test_executors(self, tmp_path: Path) -> None:
        """Processes, threads and another segmentation write one file."""
        written = []
        ways: list[tuple[str, Any, int]] = [("a", "threads", 1), ("b", "processes", 7)]
        for name, executor, segments in ways:
            target = flowmap.allocate(tmp_path / name, (1000, 3), ROW, segments=segments)
            flowmap.fill(target, "random", {"seed": 4}, executor=executor, workers=2)
            written.append(target.path.read_bytes())
            assert flowmap.validate(target).ok
        assert written[0] == written[1]

    def test_scalar(self) -> None:
        """A 0-d target gets the first number."""
        assert in_blocks(random, (), "<f8") == drawn(1)[0]

    def test_nothing(self) -> None:
        """Rows without elements take none."""
        assert in_blocks(random, (4, 0), "<f8").shape == (4, 0)

    def test_records(self) -> None:
        """A record draws for its fields in order, through nested ones and inner axes."""
        found = in_blocks(random, (50,), ROW, block_rows=9, seed=8)
        words = words_at(8, 0, 50 * 6).reshape(50, 6)
        assert (found["a"] == words[:, 0] >> np.uint64(56)).all()
        units = (words >> np.uint64(40)).astype("f8") * 2.0**-24
        assert (found["b"] == units[:, 1:3]).all()
        assert (found["c"]["x"] == words[:, 3] >> np.uint64(63)).all()
        doubles = (words >> np.uint64(11)).astype("f8") * 2.0**-53
        assert (found["c"]["y"].real == doubles[:, 4]).all()
        assert (found["c"]["y"].imag == doubles[:, 5]).all()

    @given(
        word=st.integers(0, 2**64 - 1),
        low=st.integers(-(2**63), 2**63 - 1),
        high=st.integers(-(2**63), 2**63),
    )
    def test_whole_numbers(self, word: int, low: int, high: int) -> None:
        """A whole number is the upper half of the product, exactly."""
        low, high = min(low, high), max(low, high)
        if low == high:
            return
        law = Law("uniform", low, high, None, None)
        (found,) = law.draw(np.array([[word]], "u8"), np.dtype("i8"))
        assert found == low + (word * (high - low) >> 64)


class TestStatistics:
    """What the numbers are like, for fixed seeds."""

    @pytest.mark.parametrize("dtype", ["<f8", "<f4"])
    @pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 5), (1e-3, 1e3)])
    def test_uniform(self, dtype: str, low: float, high: float) -> None:
        """Floats are spread evenly over the interval."""
        values = drawn(dtype=dtype, low=low, high=high, seed=11)
        assert values.min() >= np.dtype(dtype).type(low)
        assert values.max() < high
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.01

    @pytest.mark.parametrize("dtype", ["<f8", "<f4"])
    @pytest.mark.parametrize(("mean", "std"), [(0, 1), (-3, 0.5)])
    def test_normal(self, dtype: str, mean: float, std: float) -> None:
        """Normal numbers have the moments and the shape of the distribution."""
        values = drawn(dtype=dtype, distribution="normal", mean=mean, std=std, seed=12)
        assert stats.kstest(values, stats.norm(mean, std).cdf).pvalue > 0.01
        scaled = (values.astype("f8") - mean) / std
        for order, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
            spread = math.sqrt(stats.norm.moment(2 * order) - moment**2)
            found = float((scaled**order).mean())
            assert abs(found - moment) < 3.5 * spread / math.sqrt(MANY), order

    def test_tails(self) -> None:
        """Extreme words give the extremes of the distribution, and no infinity."""
        law = Law("normal", None, None, None, None)
        words = np.array([[0, 0], [2**64 - 1, 0], [0, 2**63]], "u8")
        extremes = law.draw(words, np.dtype("f8"))
        largest = math.sqrt(2 * 53 * math.log(2))
        np.testing.assert_allclose(extremes, [largest, 0, -largest], rtol=1e-15)

    def test_complex(self) -> None:
        """The parts of a complex number are two numbers that know nothing of each other."""
        for distribution in ("uniform", "normal"):
            values = drawn(dtype="<c16", distribution=distribution, seed=13)
            assert abs(np.corrcoef(values.real, values.imag)[0, 1]) < 0.008
            assert abs(np.corrcoef(values.real**2, values.imag**2)[0, 1]) < 0.008

    @pytest.mark.parametrize(("low", "high"), [(0, 6), (-7, 3), (250, 256)])
    def test_dice(self, low: int, high: int) -> None:
        """Each whole number comes equally often."""
        values = drawn(dtype="<i4", low=low, high=high, seed=14)
        numbers, counts = np.unique(values, return_counts=True)
        assert numbers.tolist() == list(range(low, high))
        assert stats.chisquare(counts).pvalue > 0.01

    @pytest.mark.parametrize("dtype", ["u1", "i1", "?"])
    def test_whole_range(self, dtype: str) -> None:
        """Without bounds, every value of a small dtype comes equally often."""
        counts = np.unique(drawn(dtype=dtype, seed=15), return_counts=True)[1]
        assert len(counts) == (2 if dtype == "?" else 256)
        assert stats.chisquare(counts).pvalue > 0.01

    def test_whole_range_of_the_longest(self) -> None:
        """Without bounds, 64 bits are the words themselves, signs shifted to the middle."""
        words = words_at(0, 0, 1000)
        assert (drawn(1000, "<u8") == words).all()
        assert (drawn(1000, "<i8") == (words ^ np.uint64(2**63)).view("i8")).all()

    @pytest.mark.parametrize("distribution", ["uniform", "normal"])
    def test_neighbours(self, distribution: str) -> None:
        """Neighbouring segments, elements and seeds do not go together."""
        values = drawn(distribution=distribution, seed=16)
        pairs = [(values[:-lag], values[lag:]) for lag in (1, 2, 3, 4, MANY // 2)]
        pairs += [(values, drawn(distribution=distribution, seed=seed)) for seed in (17, 0)]
        for one, other in pairs:
            assert abs(np.corrcoef(one, other)[0, 1]) < 3.5 / math.sqrt(len(one))
        first, second = np.split(values, 2)
        assert stats.ks_2samp(first, second).pvalue > 0.01


class TestRefused:
    """What cannot be drawn."""

    @pytest.mark.parametrize(
        ("dtype", "arguments", "error", "message"),
        [
            ("f8", {"seed": -1}, InvalidArgumentError, "seed is -1"),
            ("f8", {"seed": 2**128}, InvalidArgumentError, "seed is"),
            ("f8", {"seed": 1.0}, WrongTypeError, "seed"),
            ("f8", {"seed": None}, WrongTypeError, "seed"),
            ("f8", {"distribution": "gauss"}, InvalidArgumentError, "uniform, normal"),
            ("f8", {"distribution": ["normal"]}, InvalidArgumentError, "uniform, normal"),
            ("f8", {"mean": 1}, InvalidArgumentError, "mean is given"),
            (
                "f8",
                {"distribution": "normal", "high": 1},
                InvalidArgumentError,
                "high is given",
            ),
            ("f8", {"low": 1}, InvalidArgumentError, "low must be less"),
            ("f8", {"low": 2, "high": 1}, InvalidArgumentError, "low must be less"),
            ("f8", {"high": math.nan}, InvalidArgumentError, "low must be less"),
            ("f8", {"high": math.inf}, InvalidArgumentError, "no more than a float"),
            ("f8", {"low": -1e308, "high": 1e308}, InvalidArgumentError, "no more than"),
            ("f2", {"high": 1e6}, InvalidArgumentError, "too large"),
            ("f2", {"low": 1, "high": 1.0001}, InvalidArgumentError, "low must be less"),
            ("f8", {"high": [1]}, WrongTypeError, "high is"),
            ("u1", {"low": -1}, InvalidArgumentError, "takes 0 <= low < high <= 256"),
            ("u1", {"high": 257}, InvalidArgumentError, "takes 0 <= low < high <= 256"),
            ("u1", {"low": 3, "high": 3}, InvalidArgumentError, "takes 0 <= low < high <= 256"),
            ("u1", {"high": 1.5}, InvalidArgumentError, "high is 1.5"),
            ("u1", {"high": [1]}, WrongTypeError, "high is"),
            ("?", {"high": 3}, InvalidArgumentError, "takes 0 <= low < high <= 2"),
            ("f8", {"distribution": "normal", "std": -1}, InvalidArgumentError, "0 or more"),
            ("f8", {"distribution": "normal", "std": math.inf}, InvalidArgumentError, "holds"),
            ("f8", {"distribution": "normal", "mean": math.nan}, InvalidArgumentError, "holds"),
            ("f2", {"distribution": "normal", "std": 1e5}, InvalidArgumentError, "cannot hold"),
            ("f4", {"distribution": "normal", "std": 1e-60}, InvalidArgumentError, "1e-60"),
            ("i4", {"distribution": "normal"}, WrongTypeError, "cannot fill int32"),
            (ROW, {"distribution": "normal"}, WrongTypeError, "cannot fill uint8"),
            ("S3", {}, WrongTypeError, "cannot fill"),
            ("M8[s]", {}, WrongTypeError, "cannot fill"),
        ],
    )
    def test_arguments(
        self, dtype: Any, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        """Each is named, with what it takes."""
        with pytest.raises(error, match=message):
            in_blocks(random, (50,), dtype, **arguments)
