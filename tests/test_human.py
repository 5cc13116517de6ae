"""Durations, sizes and counts as people read them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmap import human

if TYPE_CHECKING:
    from collections.abc import Iterable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (1e-12, "0.0 ns"),
        (120e-9, "120 ns"),
        (12.34e-6, "12.3 µs"),
        (0.0011, "1.1 ms"),
        (0.34, "340 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (1, "1.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (160, "2 min 40 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h"),
        (3 * 3600 + 5 * 60 + 10, "3 h 5 min"),
        (86_399, "1 d"),
        (12 * 86_400 + 4 * 3600, "12 d 4 h"),
        (1e9, "11,574 d 2 h"),
        (-2.5, "-2.5 s"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    """Two units from a minute on, one below; never 60 s or 1,000 ms."""
    assert human.seconds(value) == text


@given(st.floats(1e-9, 1e12))
def test_seconds_are_near(value: float) -> None:
    """What is read back is the duration, but for a twentieth."""
    length = {
        "ns": 1e-9,
        "µs": 1e-6,
        "ms": 1e-3,
        "s": 1,
        "min": 60,
        "h": 3600,
        "d": 86_400,
    }
    parts = re.findall(r"([\d,.]+) (\w+)", human.seconds(value))
    read = sum(float(number.replace(",", "")) * length[unit] for number, unit in parts)
    assert read == pytest.approx(value, rel=0.051)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (102_300, "99.9 KiB"),
        (102_380, "100 KiB"),
        (1_048_063, "1023 KiB"),
        (1_048_064, "1.0 MiB"),
        (180 << 20, "180 MiB"),
        (1_288_490_189, "1.2 GiB"),
        (8 << 40, "8.0 TiB"),
        ((1 << 63) - 1, "8.0 EiB"),
        (1 << 80, "1048576 EiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_size(nbytes: int, text: str) -> None:
    """Binary units, bytes as they are."""
    assert human.size(nbytes) == text


def test_size_of_numpys_numbers() -> None:
    """Sums of arrays are given, too."""
    assert human.size(np.int64(1 << 21)) == "2.0 MiB"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1,000"), (10**6, "1,000,000"), (-1234, "-1,234")],
)
def test_count(number: int, text: str) -> None:
    """Thousands are set apart."""
    assert human.count(number) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([7], "7"),
        ([0, 1], "0-1"),
        ([0, 2, 3, 4, 9], "0, 2-4, 9"),
        (range(64), "0-63"),
        (range(0, 40, 2), "0, 2, 4, 6, 8, 10, 12, 14, ..."),
    ],
)
def test_ranges(numbers: Iterable[int], text: str) -> None:
    """Neighbours are told by the first and the last of them; of many, some."""
    assert human.ranges(numbers) == text
