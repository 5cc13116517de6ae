"""Zombies: attempts that are stopped at each step, overtaken, and then go on.

A real process is stopped before each call that it makes on the target, the ledger and what
lies beside them, and between its stores. Between two calls it changes only its own memory, so
that these are all the moments there are. Another process then has its way, wholly or up to a
step of its own; then the zombie goes on, and then the other.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from campaign import Figures, sizes
from sabotage import sabotage
from stages import MIDDLE, SEGMENTS, Scene, Stage
from stopping import SYNCS, Actor, Ended
from support import states, unproven

import flowmap
import flowmap.alloc
import flowmap.lease
from flowmap.locks import header_lock
from flowmap.records import FINISHED
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from flowmap.records import SegmentRecord

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # 3.12 on

REFUSED: Final = ("OtherJobError", "ForeignFileError", "DamagedJobError", "NotFoundError")
LOST: Final = {"attempt": "ClaimLostError", "run": "SegmentsFailedError"}
"""What a zombie that was overtaken is told."""


@dataclass(frozen=True, slots=True)
class Played:
    """What happened to the middle segment.

    Attributes:
        begun: Its record at the beginning.
        seen: When the zombie had stopped.
        before: Before the zombie went on.
        after: After the zombie's end.
        zombie: How it ended.
        other: How the other process ended.
        held: Whether that one was stopped meanwhile.
    """

    begun: SegmentRecord
    seen: SegmentRecord
    before: SegmentRecord
    after: SegmentRecord
    zombie: Ended
    other: Ended
    held: bool


@dataclass(frozen=True, slots=True)
class Play:
    """Two processes at one job.

    Attributes:
        stage: The job.
        zombie: What the zombie does: the name of an act of the stage.
        other: What the other one does.
        broken: What of flowmap is broken in both.
    """

    stage: Stage
    zombie: str = "attempt"
    other: str = "attempt"
    broken: str = "none"

    def actor(self, act: str, who: int, stop_at: int | None = None) -> Actor:
        """Let one of the processes begin."""

        def play(step: Callable[[], None]) -> str:
            impatient = functools.partial(header_lock, timeout=0)  # a zombie may hold it
            for module in (flowmap.alloc, flowmap.lease):
                vars(module)["header_lock"] = impatient
            self.stage.become(who)
            sabotage(self.broken)
            return str(getattr(self.stage, act)(step))

        return Actor(play, self.stage.path, stop_at)

    def steps(self, most: int | None = None) -> range:
        """Return the steps of the zombie, or about so many of them, evenly spread."""
        self.stage.restore()
        with self.actor(self.zombie, 2) as zombie:
            zombie.stops()
            count = zombie.ends().steps
        return range(0, count, 1 if most is None else max(1, count // most))

    def pairs(self, most: int | None, seed: int) -> Iterator[tuple[int, int]]:
        """Yield pairs of steps of the zombie and the other: so many, or all and some more."""
        steps = len(self.steps())
        every = list(itertools.product(range(steps), range(steps + 8)))
        yield from every if most is None else random.Random(seed).choices(every, k=most)

    def play(self, step: int, other_step: int | None = None) -> Played:
        """Stop the zombie at a step, the other at one of its own or not; let both go on."""
        stage = self.stage
        stage.restore()
        begun = stage.record()
        with self.actor(self.zombie, 2, step) as zombie:
            zombie.stops()
            seen = stage.record()
            with self.actor(self.other, 3, other_step) as other:
                held = other.stops()
                before = stage.record()
                first = zombie.ends()
                after = stage.record()
                second = other.ends()
        return Played(begun, seen, before, after, first, second, held)

    def faults(self, played: Played) -> Iterator[str]:
        """Yield what is wrong after a case; run the job again, and yield what still is."""
        yield from self._of_the_zombie(played)
        stage, told = self.stage, {played.zombie.outcome, played.other.outcome}
        records, bad = stage.records(), unproven(stage.target)
        if MIDDLE in bad and records[MIDDLE].state in FINISHED:
            expected = stage.differ and told & {*LOST.values()}
            if not expected and stage.scene.start != "damaged":
                yield f"wrong rows are {records[MIDDLE].state}, and none was told: {told}"
        if Sidecar.of(stage.path).seal.exists() and {r.state for r in records} != {"done"}:
            yield "sealed, and not done"
        report = flowmap.validate(stage.path)
        if [segment.index for segment in report.bad_segments] != bad:
            yield f"validation names {report.bad_segments}, not {bad}"
        if report.sealed != (not bad):
            yield f"{report.sealed=}, where {bad} are bad"
        stage.become(4)
        for index in bad:
            stage._attempt(index)
        report = flowmap.validate(stage.path)
        if not report.sealed:
            yield f"not valid after another run: {report}"
        # Stores of a lost block that come before the other's digest become part of it.
        if not (stage.differ and stage.scene.way == "map" and played.held):
            yield from stage.strangers()

    def _of_the_zombie(self, played: Played) -> Iterator[str]:
        if self.zombie not in LOST:
            return
        lost, told, seen = LOST[self.zombie], played.zombie.outcome, played.seen
        before, after = played.before, played.after
        if played.begun.token != seen.token != before.token:
            if told != lost and seen.state not in FINISHED:
                yield f"the zombie was not told: {played.zombie}"
            # Every eighth attempt has the same slots: there it may cost the last record.
            shares = (before.attempt - seen.attempt) % 8 == 0
            if after.token != before.token or not (shares or after == before):
                yield f"the zombie recorded {after} in the place of {before}"
        if self.zombie == "attempt" and told == lost and played.zombie.late > 1:
            yield f"the zombie wrote {played.zombie.late} times"


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync nothing in this process either."""
    for name in SYNCS:
        monkeypatch.setattr(os, name, lambda _: None)


def swept(play: Play, moments: Iterable[tuple[int, int | None]], figures: Figures) -> list[str]:
    """Play the cases of these moments; return what is wrong, and after which."""
    wrong = []
    for step, other in moments:
        played = play.play(step, other)
        wrong += [f"{step}, {other}: {fault}" for fault in play.faults(played)]
        meanwhile = "half way" if played.held else "wholly"
        other_act = play.other.replace("_", " ")
        figures.add("zombie", f"{play.zombie} overtaken {meanwhile} by {other_act}")
    return wrong


SCENES = [
    Scene(way, start, durability)
    for way, starts in (
        ("fill", ("fresh", "half")),
        ("write", ("fresh", "done")),
        ("map", ("fresh", "half", "done")),
    )
    for start in starts
    for durability in ("segment", "end")
]


@pytest.mark.parametrize("most", sizes(2, None))
@pytest.mark.parametrize("differ", [True, False], ids=["other values", "same values"])
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_overtaken_wholly(
    tmp_path: Path, figures: Figures, scene: Scene, differ: bool, most: int | None
) -> None:
    """Stopped at any step, it finds its segment taken and stops; what it wrote is found."""
    play = Play(Stage(tmp_path, scene, differ=differ))
    assert not swept(play, ((step, None) for step in play.steps(most)), figures)


@pytest.mark.parametrize("most", sizes((2, 1), (None, 150)))
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_overtaken_half_way(
    tmp_path: Path, figures: Figures, scene: Scene, most: tuple[int | None, int]
) -> None:
    """Its retry is stopped, too, at any step, and goes on when the zombie has ended."""
    for differ, pairs in zip((True, False), most, strict=True):
        play = Play(Stage(tmp_path, scene, differ=differ))
        assert not swept(play, play.pairs(pairs, SCENES.index(scene)), figures)


OTHERS = [
    ("attempt", "attempt_and_validate", Scene("fill", "fresh", "segment")),
    ("attempt", "attempt_and_validate", Scene("map", "half", "end")),
    ("attempt", "eight_attempts", Scene("fill", "half", "segment")),
    ("attempt", "validate", Scene("fill", "half", "end")),
    ("attempt", "validate", Scene("write", "damaged", "segment")),
    ("attempt", "reset", Scene("fill", "half", "segment")),
    ("attempt", "reset", Scene("map", "done", "segment")),
    ("reset", "attempt", Scene("fill", "half", "segment")),
    ("reset", "validate", Scene("fill", "damaged", "end")),
    ("validate", "reset", Scene("fill", "done", "end")),
    ("validate", "reset", Scene("fill", "damaged", "segment")),
    ("validate", "attempt", Scene("write", "damaged", "end")),
    ("validate", "attempt", Scene("map", "done", "segment")),
    ("validate", "validate", Scene("fill", "done", "end")),
    ("run", "run", Scene("fill", "none", "segment")),
    ("run", "run", Scene("fill", "none", "end")),
]
"""What a zombie may do, what overtakes it, and at which job."""


@pytest.mark.parametrize("most", sizes((2, 2), (None, 250)))
@pytest.mark.parametrize(("zombie", "other", "scene"), OTHERS, ids=str)
def test_of_every_kind(
    tmp_path: Path,
    figures: Figures,
    zombie: str,
    other: str,
    scene: Scene,
    most: tuple[int | None, int],
) -> None:
    """Attempts, resets, validations and whole runs, of which one sleeps while another acts.

    A run sleeps past its lease: the other one takes any lease for void.
    """
    play = Play(Stage(tmp_path, scene), zombie, other)
    wholly = [(step, None) for step in play.steps(most[0])]
    assert not swept(play, [*wholly, *play.pairs(most[1], 1)], figures)
    assert not Sidecar.of(play.stage.path).run.exists()


@pytest.mark.parametrize("most", sizes(2, None))
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_overwritten(tmp_path: Path, figures: Figures, scene: Scene, most: int | None) -> None:
    """A zombie of the old job changes neither target nor ledger nor job of the new one."""
    stage = Stage(tmp_path, scene)
    play = Play(stage, other="renew")
    sidecar = Sidecar.of(stage.path)
    files = (stage.path, sidecar.ledger, sidecar.job)
    for step in play.steps(most):
        stage.restore()
        with play.actor("attempt", 2, step) as zombie:
            zombie.stops()
            with play.actor("renew", 3) as other:
                other.stops()
                assert other.ends().outcome == "ok"
            new = [file.read_bytes() for file in files]
            told = zombie.ends()
        # What is replaced after the last look at the path was done before it.
        assert told.outcome in ("OtherJobError", *FINISHED), told
        assert [file.read_bytes() for file in files] == new
        assert flowmap.validate(stage.path).sealed
        figures.add("zombie", "attempt at a job that was overwritten")


@pytest.mark.parametrize("most", sizes(5, None))
@pytest.mark.parametrize("way", ["fill", "write", "map"])
def test_overwriting(tmp_path: Path, figures: Figures, way: str, most: int | None) -> None:
    """An overwrite that sleeps while the old job is filled leaves a new one, untouched."""
    stage = Stage(tmp_path, Scene(way, "fresh", "segment"))
    play = Play(stage, zombie="overwrite")
    for step in play.steps(most):
        stage.restore()
        with play.actor("overwrite", 2, step) as zombie:
            zombie.stops()
            with play.actor("attempt", 3) as other:
                other.stops()
                assert other.ends().outcome in ("done", *REFUSED)
            assert zombie.ends().outcome == "overwritten"
        new = flowmap.open_target(stage.path)
        assert new.id != stage.target.id
        assert states(new) == ["pending"] * SEGMENTS
        assert not stage.rows().any()
        figures.add("zombie", "overwrite overtaken by an attempt at the old job")


@pytest.mark.parametrize("broken", ["no look at the claim", "one pair of slots"])
def test_what_would_be_caught(tmp_path: Path, broken: str) -> None:
    """With flowmap broken the same cases find faults."""
    play = Play(Stage(tmp_path, Scene("write", "fresh", "segment")), broken=broken)
    assert swept(play, ((step, None) for step in play.steps()), Figures())
