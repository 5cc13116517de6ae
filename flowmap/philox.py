"""Random numbers by their position: the same, whichever part is drawn first, or alone.

Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11, 2011,
doi:10.1145/2063384.2063405), as `numpy.random.Philox` has it: a bijection, chosen by the key,
that makes four random words of 64 bits of each value of a counter. The seed is the key. The
words are numbered as NumPy draws them: word w is number w mod 4 of the four of counter
1 + w // 4.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from flowmap.arguments import whole
from flowmap.casting import bounds, fitted
from flowmap.errors import InvalidArgumentError, short
from flowmap.values import element, number_leaves, whole_parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

Distribution = Literal["uniform", "normal"]

KINDS: Final = {"uniform": "biufc", "normal": "fc"}
"""The kinds of dtypes that can be drawn from each distribution."""

_LANES: Final = 4  # words that Philox makes of one counter
_HALF: Final = np.uint64(32)
_WORDS_AT_ONCE: Final = 1 << 16  # what is computed with stays in the cache
_LOWER: Final = np.uint64(2**32 - 1)


@dataclass(frozen=True, slots=True)
class Law:
    """A distribution with its parameters, None where they are not given.

    Attributes:
        distribution: "uniform" or "normal".
        low: The least of the uniform numbers.
        high: What they stay below.
        mean: Of the normal numbers.
        std: Their standard deviation.
    """

    distribution: Distribution
    low: float | None
    high: float | None
    mean: float | None
    std: float | None

    def __post_init__(self) -> None:
        if self.distribution not in get_args(Distribution):
            raise InvalidArgumentError(
                f"distribution is {short(self.distribution)}; it takes one of "
                f"{', '.join(get_args(Distribution))}."
            )
        others = ("mean", "std") if self.distribution == "uniform" else ("low", "high")
        for name in others:
            if getattr(self, name) is not None:
                raise InvalidArgumentError(
                    f"{name} is given, which the distribution {self.distribution!r} does not "
                    "have. Leave it out, or choose the other distribution."
                )

    def words(self, dtype: np.dtype[Any]) -> int:
        """Return how many words an element takes: as many, whatever they are."""
        return 1 if self.distribution == "uniform" and dtype.kind != "c" else 2

    def draw(self, words: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Turn words into numbers.

        Args:
            words: Shape (..., k), k as `words` says.
            dtype: Of the numbers.

        Returns:
            Shape (...).

        Raises:
            InvalidArgumentError: The parameters leave no number to draw, or numbers that the
                dtype cannot hold.
            WrongTypeError: A parameter is no number.
        """
        if dtype.kind in "biu":
            return self._whole(words[..., 0], dtype)
        part = dtype if dtype.kind == "f" else np.zeros(0, dtype).real.dtype
        draw = self._uniform if self.distribution == "uniform" else self._normal
        parts = draw(words, part)
        if dtype.kind == "f":
            return parts[0]
        result = np.empty(words.shape[:-1], dtype)
        result.real, result.imag = parts
        return result

    def _whole(self, words: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Multiply and shift: floor(word * span / 2**64), from `low` on.

        Each number comes of floor or ceil(2**64 / span) words: next to 2**64 no two
        probabilities differ by more than one word.
        """
        least, most = bounds(dtype)
        low = least if self.low is None else whole_parameter("low", self.low)
        high = most + 1 if self.high is None else whole_parameter("high", self.high)
        if not least <= low < high <= most + 1:
            raise InvalidArgumentError(
                f"low is {low} and high {high}; {dtype} takes {least} <= low < high <= "
                f"{most + 1}."
            )
        found = _scaled(words, high - low) + np.uint64(low % 2**64)
        return found.view("u8" if dtype.kind == "u" else "i8").astype(dtype)

    def _uniform(
        self, words: NDArray[np.uint64], dtype: np.dtype[Any]
    ) -> list[NDArray[np.floating[Any]]]:
        """Return low + (high - low) * u, u of as many bits as the dtype has, 53 at most."""
        low = float(element(0 if self.low is None else self.low, dtype, "low"))
        high = float(element(1 if self.high is None else self.high, dtype, "high"))
        if not low < high or not np.isfinite(high - low):
            raise InvalidArgumentError(
                f"low is {low!r} and high {high!r} in {dtype}; low must be less than high, and "
                "their difference no more than a float holds."
            )
        bits = min(np.finfo(dtype).nmant + 1, 53)
        units = (words >> np.uint64(64 - bits)).astype("f8") * 2.0**-bits
        values = (low + (high - low) * units).astype(dtype)
        # Rounding may reach what the interval leaves out.
        last = np.nextafter(dtype.type(high), dtype.type(low))
        values = np.minimum(values, last)
        return [values[..., i] for i in range(words.shape[-1])]

    def _normal(
        self, words: NDArray[np.uint64], dtype: np.dtype[Any]
    ) -> list[NDArray[np.floating[Any]]]:
        """Return the two normal numbers of two words.

        Source: Box and Muller, "A note on the generation of random normal deviates", Ann.
        Math. Stat. 29 (1958), 610, doi:10.1214/aoms/1177706645.
        """
        mean = float(element(0 if self.mean is None else self.mean, np.dtype("f8"), "mean"))
        std = float(element(1 if self.std is None else self.std, np.dtype("f8"), "std"))
        if std < 0 or not np.isfinite(abs(mean) + 10 * std):  # no draw is 10 std off
            raise InvalidArgumentError(
                f"mean is {mean!r} and std {std!r}; std must be 0 or more, and both such that "
                "a float holds what is drawn."
            )
        fitted(np.array([std]), dtype, f"std {std}", scale=0)  # or all draws would be `mean`
        # From 53 bits each: the first in (0, 1], so that it has a logarithm. Copies, since
        # NumPy may compute functions of strided arrays in another way.
        units = np.ascontiguousarray(np.moveaxis(words >> np.uint64(11), -1, 0)).astype("f8")
        radius = std * np.sqrt(-2 * np.log((units[0] + 1) * 2.0**-53))
        angle = units[1] * (2 * np.pi * 2.0**-53)
        parts = (mean + radius * turn(angle) for turn in (np.cos, np.sin))
        return [fitted(part, dtype, f"mean {mean}, std {std}") for part in parts]


def fill_random(rows: NDArray[Any], first: int, seed: int | str, law: Law) -> None:
    """Fill rows with random numbers.

    Args:
        rows: Shape (rows, ...), of numbers or of records of such.
        first: The number of the first row, counted in the whole target.
        seed: The key.
        law: What to draw.

    Raises:
        InvalidArgumentError, WrongTypeError: As in `words_at` and `Law.draw`; or the dtype
            holds something else.
    """
    kinds, name = KINDS[law.distribution], f"random ({law.distribution})"
    # Of one row: the elements, and the words that each field of each takes.
    elements = math.prod(rows.shape[1:])
    shares = [
        law.words(leaf.dtype) * math.prod(leaf.shape[rows.ndim :])
        for leaf in number_leaves(rows, kinds, name)
    ]
    row_words = elements * sum(shares)
    if not row_words:
        return
    at_once = max(1, _WORDS_AT_ONCE // max(row_words, 1))
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        words = words_at(seed, (first + start) * row_words, len(part) * row_words)
        parts = np.split(words.reshape(-1, sum(shares)), np.cumsum(shares)[:-1], axis=1)
        for leaf, share in zip(number_leaves(part, kinds, name), parts, strict=True):
            leaf[...] = law.draw(share.reshape(*leaf.shape, -1), leaf.dtype)


def words_at(seed: int | str, first: int, count: int) -> NDArray[np.uint64]:
    """Return some of the words that `numpy.random.Philox(key=seed)` draws.

    Args:
        seed: From 0 to 2**128 - 1; also as text, since not all JSON keeps so large a number.
        first: How many to leave out.
        count: How many to return.

    Returns:
        Shape (count,).

    Raises:
        WrongTypeError: The seed is no whole number.
        InvalidArgumentError: It is negative or too large.
    """
    if isinstance(seed, str) and re.fullmatch("[0-9]{1,39}", seed):
        seed = int(seed)
    seed = whole("seed", seed)
    if not 0 <= seed < 2**128:
        raise InvalidArgumentError(f"seed is {short(seed)}; it takes 0 to 2**128 - 1.")
    generator = np.random.Philox(key=seed)
    generator.advance(first // _LANES)
    skip = first % _LANES
    drawn: NDArray[np.uint64] = generator.random_raw(skip + count)[skip:]
    return drawn


def _scaled(words: NDArray[np.uint64], span: int) -> NDArray[np.uint64]:
    """Return floor(word * span / 2**64): the upper half of a product of 128 bits.

    Args:
        words: Of any shape.
        span: From 1 to 2**64.
    """
    if span == 2**64:
        return words
    upper, lower = words >> _HALF, words & _LOWER
    span_upper, span_lower = np.uint64(span >> 32), np.uint64(span % 2**32)
    carried = upper * span_lower + (lower * span_lower >> _HALF)
    middle = lower * span_upper + (carried & _LOWER)
    result: NDArray[np.uint64] = upper * span_upper + (carried >> _HALF) + (middle >> _HALF)
    return result
