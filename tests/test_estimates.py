"""The arithmetic of a pilot, on measurements that are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmap.estimates import Measured, Pending, Pilot, Room
from flowmap.segments import Plan, plan_segments
from flowmap.wording import of_the_command_line

MIB = 1 << 20
GIB = 1 << 30


def measured(rows: int = 10, second: float | None = 1.0, **figures: Any) -> Measured:
    """Return a measurement in which nothing but the filler takes time."""
    chosen: dict[str, Any] = {
        "start_seconds": 0.0,
        "load_seconds": 0.0,
        "first_seconds": 1.0 if second is None else second,
        "write_seconds": 0.0,
        "disk_bytes_per_second": None,
        "start_bytes": 50 * MIB,
        "peak_bytes": 180 * MIB,
    }
    return Measured(rows=rows, second_seconds=second, **chosen | figures)


def pilot(
    plan: Plan | None = None,
    measurement: Measured | None = None,
    **figures: Any,
) -> Pilot:
    """Return a pilot of a job of which nothing is done, 64 segments of 10 rows if not said."""
    plan = plan or Plan(((64, 10),))
    measurement = measurement or measured()
    longest = max(rows for _, rows in plan.runs)
    chosen: dict[str, Any] = {
        "path": Path("/data/a.npy"),
        "block_rows": measurement.rows,
        "row_bytes": 8,
        "pending": Pending(len(plan), plan.rows, longest),
        "room": Room(8 * GIB, 8 * GIB, MIB, GIB),
        "workers": 2,
        "cpus": 2,
    }
    return Pilot(plan=plan, measured=measurement, **chosen | figures)


class TestTime:
    """How long it takes."""

    @pytest.mark.parametrize(
        ("workers", "needed"), [(1, 7), (2, 4), (3, 3), (4, 2), (6, 2), (7, 1), (64, 1)]
    )
    def test_whole_rounds(self, workers: int, needed: float) -> None:
        """The last segment to end decides."""
        assert pilot(Plan(((7, 10),))).seconds_with(workers) == pytest.approx(needed)

    def test_blocks_of_a_segment(self) -> None:
        """A segment takes its blocks, each with its writing."""
        one = pilot(Plan(((4, 100),)), measured(10, 1.0, write_seconds=0.5), workers=4)
        assert one.seconds == pytest.approx(15)

    @pytest.mark.parametrize("workers", [1, 64])
    def test_warming_counts_once(self, workers: int) -> None:
        """Every worker imports and compiles, all at the same time."""
        cold = measured(10, 1.0, start_seconds=0.5, load_seconds=2.0, first_seconds=4.0)
        one = pilot(Plan(((7, 10),)), cold)
        warm = pilot(Plan(((7, 10),)))
        assert one.measured.cold_seconds == 6
        assert one.seconds_with(workers) == pytest.approx(warm.seconds_with(workers) + 5.5)

    def test_first_call_alone(self) -> None:
        """Where there was no second call, the first one stands for all."""
        one = pilot(Plan(((7, 10),)), measured(10, None, load_seconds=2, first_seconds=40))
        assert one.seconds_with(7) == pytest.approx(42)

    @pytest.mark.parametrize("workers", [1, 2, 64])
    def test_no_faster_than_the_disk(self, workers: int) -> None:
        """All workers share it."""
        one = pilot(Plan(((64, 10),)), measured(10, 1e-6, disk_bytes_per_second=512.0))
        assert one.seconds_with(workers) == pytest.approx(10)

    def test_uneven_segments(self) -> None:
        """One long segment among short ones does not make all of them long."""
        plan = Plan(((1, 1000), (2, 1)))
        one = pilot(plan, measured(10, 10.0))
        assert one.seconds_with(1) == pytest.approx(1002)
        assert one.seconds_with(2) == pytest.approx(1001)
        assert one.seconds_with(3) == pytest.approx(1000)

    @pytest.mark.parametrize(
        ("segments", "workers", "counts"),
        [
            (1, 8, [1]),
            (3, 2, [1, 2]),
            (6, 6, [1, 2, 4, 6]),
            (120, 3, [1, 2, 3, 4, 8, 16, 32, 64]),
            (120, 100, [1, 2, 4, 8, 16, 32, 64, 100]),
            (70, 100, [1, 2, 4, 8, 16, 32, 64, 70]),
        ],
    )
    def test_table(self, segments: int, workers: int, counts: list[int]) -> None:
        """Powers of two and the number asked for, no more than there are segments."""
        one = pilot(Plan(((segments, 10),)), workers=workers)
        assert [n for n, _ in one.table] == counts
        assert dict(one.table)[one.used_workers] == one.seconds
        assert [needed for _, needed in one.table] == sorted(
            (needed for _, needed in one.table), reverse=True
        )


class TestBlocks:
    """Which block size suits."""

    @pytest.mark.parametrize(
        ("rows", "row_bytes", "seconds", "value"),
        [
            (64, 8, 1e-6, 131_072),  # a mebibyte
            (1, 8, 1e-3, 512),  # a second, less what is not a whole page
            (1, 5000, 1e-3, 209),  # a mebibyte, less than a page's rows
            (100, 8, 0.0049, 19_968),
            (100, 8, 0.0051, None),
            (131_072, 8, 1e-3, None),
            (100_000, 8, 1e-3, None),  # more, but not twice
            (10, 8, 59, None),
            (10, 8, 100, 1),
            (1, 8, 100_000, None),
            (2048, 8, 2048, 10),
            (131_072, 8, 131_072 / 100, 512),  # ten seconds are 1,000 rows
            (1000, 0, 1e-6, 10_000_000),  # a whole segment: it has no bytes
        ],
    )
    def test_suggestion(
        self, rows: int, row_bytes: int, seconds: float, value: int | None
    ) -> None:
        """Neither so short that it costs, nor so long that much is lost; whole pages."""
        plan = Plan(((8, 10_000_000),))
        better = pilot(plan, measured(rows, seconds), row_bytes=row_bytes).better_block_rows
        assert (better and better.value) == value
        if better is not None:
            assert "exist='overwrite'" in better.reason

    def test_segment_is_the_limit(self) -> None:
        """No block is longer than its segment."""
        assert pilot(Plan(((64, 10),)), measured(10, 1e-6)).better_block_rows is None
        better = pilot(Plan(((64, 40),)), measured(10, 1e-6)).better_block_rows
        assert better is not None
        assert better.value == 40

    def test_segments_that_are_suggested_are_the_limit(self) -> None:
        """Tiny segments have tiny blocks; larger ones are suggested for both."""
        one = pilot(Plan(((100_000, 10),)), measured(10, 1e-6))
        assert one.better_segments is not None
        assert one.better_segments.value == 8
        assert one.better_block_rows is not None
        assert one.better_block_rows.value == 125_000


class TestSegments:
    """How many segments suit."""

    @pytest.mark.parametrize(
        ("segments", "rows", "row_seconds", "workers", "value"),
        [
            (64, 1000, 1e-3, 2, None),
            (64, 1000, 1.1, 2, None),  # 18 minutes each
            (64, 1000, 10, 2, 1067),  # three hours each
            (64, 1, 36_000, 2, None),  # one row each: no more to be had
            (64, 100_000, 3600, 2, 10_000),
            (3, 1000, 0.1, 2, 8),  # too few for the workers
            (3, 1000, 1e-6, 2, None),  # over at once all the same
            (7, 1000, 0.1, 2, None),  # not far off
            (64, 1000, 0.1, 500, 2000),
            (2, 1000, 100, 5000, 2000),  # as many as there are rows
            (64, 1000, 1e-9, 2, None),  # what is chosen where nobody asks
            (1000, 1000, 1e-6, 2, 8),
            (1000, 1000, 1e-6, 64, 256),
            (5000, 1000, 1.05e-5, 2, 52),
            (5000, 1000, 1e-4, 2, None),
            (30_000, 1000, 1e-3, 2, 10_000),
            (15_000, 1000, 1e-3, 2, None),
        ],
    )
    def test_suggestion(
        self, segments: int, rows: int, row_seconds: float, workers: int, value: int | None
    ) -> None:
        """From a second to ten minutes, four a worker, ten thousand at most."""
        figures = measured(10, 10 * row_seconds)
        better = pilot(Plan(((segments, rows),)), figures, workers=workers).better_segments
        assert (better and better.value) == value
        if better is not None:
            assert "exist='overwrite'" in better.reason

    def test_the_longest_counts(self) -> None:
        """One that takes hours is found among many that do not."""
        plan = Plan(((1, 10_000), (4, 10)))
        better = pilot(plan, measured(10, 10.0)).better_segments
        assert better is not None
        assert better.value == 17


@given(
    rows=st.integers(1, 10**9),
    segments=st.integers(1, 100_000),
    block=st.integers(1, 10**6),
    row_bytes=st.sampled_from([0, 1, 8, 24, 4096, 5000, 10 * MIB]),
    row_seconds=st.floats(1e-9, 1e6),
    workers=st.integers(1, 200),
)
def test_who_follows_is_not_sent_back(
    rows: int, segments: int, block: int, row_bytes: int, row_seconds: float, workers: int
) -> None:
    """What is suggested can be had, and then nothing more is suggested."""
    plan = plan_segments(rows, row_bytes, min(segments, rows))
    block = min(block, max(each for _, each in plan.runs))
    one = pilot(
        plan, measured(block, block * row_seconds), row_bytes=row_bytes, workers=workers
    )
    cut, size = one.better_segments, one.better_block_rows
    assert str(one)
    if cut is not None:
        assert 1 <= cut.value <= min(rows, 10_000)
        plan = plan_segments(rows, row_bytes, cut.value)
    longest = max(each for _, each in plan.runs)
    block = min(block, longest)
    if size is not None:
        assert 1 <= size.value <= rows
        block = min(size.value, longest)
    then = pilot(
        plan, measured(block, block * row_seconds), row_bytes=row_bytes, workers=workers
    )
    assert then.better_segments is None
    assert then.better_block_rows is None


class TestText:
    """What its user reads."""

    def test_everything_in_place(self) -> None:
        """A job that needs nothing changed."""
        plan = Plan(((120, 8_333_333), (1, 40)))
        figures = measured(
            131_072,
            0.012,
            load_seconds=0.3,
            first_seconds=0.04,
            write_seconds=0.0011,
            disk_bytes_per_second=850.0 * MIB,
        )
        one = pilot(plan, figures)
        assert one.better_segments is None
        assert str(one).splitlines() == [
            (
                "One block of 131,072 rows (1.0 MiB) took 12.0 ms (the first time 340 ms), its "
                "writing 1.1 ms. The disk takes 850 MiB a second, synced once a segment."
            ),
            "1,000,000,000 rows are pending, in 121 segments.",
            "workers   time",
            "      1   1 min 40 s",
            "      2   50.7 s          <- this machine",
            "      4   25.9 s",
            "      8   13.5 s",
            "     16   9.3 s",
            "     32   9.3 s",
            "     64   9.3 s",
            "Processors of this process: 2; more workers need more of them.",
            "Memory: 180 MiB a worker, 360 MiB for 2. Disk: 8.0 GiB, all reserved.",
        ]

    def test_one_of_everything(self) -> None:
        """One row, one segment, one worker; the first call stands alone; no room."""
        one = pilot(
            Plan(((1, 1),)),
            measured(1, None, load_seconds=2, first_seconds=58),
            workers=1,
            room=Room(8 * GIB, 6 * GIB, MIB, GIB),
        )
        assert str(one).splitlines() == [
            (
                "One block of 1 row (8 B) took 1 min, with what is imported and compiled once. "
                "The disk has no room to measure how fast it is."
            ),
            "1 row is pending, in 1 segment.",
            "workers   time",
            "      1   1 min           <- as asked",
            (
                "Memory: 180 MiB a worker. Disk: 8.0 GiB, of which 2.0 GiB are not reserved, "
                "and only 1.0 GiB are free: make room before you fill."
            ),
        ]

    def test_rows_without_bytes(self) -> None:
        """Nothing is said of a disk that nothing goes to."""
        one = pilot(Plan(((8, 10),)), row_bytes=0)
        assert str(one).startswith(
            "One block of 10 rows (0 B) took 1.0 s (the first time 1.0 s)."
        )
        assert "disk has no room" not in str(one)

    def test_suggestions(self) -> None:
        """Each on a line of its own, with its reason."""
        text = str(pilot(Plan(((100_000, 10),)), measured(10, 1e-6)))
        assert text.splitlines()[-2:] == [
            (
                "Suggestion: block_rows=125000. A block of 10 rows takes 1.0 µs, so little "
                "that what each block costs beside it counts. To have that, allocate the "
                "target anew with exist='overwrite': what is done is lost."
            ),
            (
                "Suggestion: segments=8. A segment takes 1.0 µs, no longer than to record it. "
                "To have that, allocate the target anew with exist='overwrite': what is done "
                "is lost."
            ),
        ]

    def test_suggestions_on_the_command_line(self) -> None:
        """They are what is to be typed."""
        with of_the_command_line():
            text = str(pilot(Plan(((100_000, 10),)), measured(10, 1e-6)))
        assert "Suggestion: --block-rows 125000. " in text
        assert "anew with `flowmap alloc --exist overwrite`" in text

    @pytest.mark.parametrize(
        ("reserved", "free", "fits", "text"),
        [
            (8, 0, True, "Disk: 8.0 GiB, all reserved."),
            (9, 0, True, "Disk: 8.0 GiB, all reserved."),
            (6, 2, True, "Disk: 8.0 GiB, of which 2.0 GiB are not reserved; 2.0 GiB are free."),
            (0, 7, False, "only 7.0 GiB are free: make room before you fill."),
        ],
    )
    def test_room(self, reserved: int, free: int, fits: bool, text: str) -> None:
        """What is missing must be free."""
        room = Room(8 * GIB, reserved * GIB, MIB, free * GIB)
        assert room.fits is fits
        assert str(room).endswith(text)

    def test_document(self) -> None:
        """Every figure, as JSON gives it back."""
        one = pilot(Plan(((100_000, 10),)), measured(10, 1e-6))
        document = one.document()
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert document["suggestions"]["segments"]["value"] == 8
        assert document["seconds"] == one.seconds
        assert document["memory"]["bytes"] == 2 * 180 * MIB
        assert pilot().document()["suggestions"] == {"block_rows": None, "segments": None}
