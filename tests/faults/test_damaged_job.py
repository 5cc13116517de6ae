"""A `job.json` that says what no job can be, or is damaged in many places: an error, always."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from campaign import sizes
from harm import ADVICE, refused, small_job, telling_bits, traced
from hypothesis import given, settings
from sabotage import sabotage

import flowmap
from flowmap.documents import publish_json, read_json
from flowmap.errors import DamagedJobError, FlowmapError, InvalidArgumentError
from flowmap.npy import Layout, header_digest
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from campaign import Figures

    from flowmap.target import Target

# Values of every kind that JSON has, near and far from those that a job has.
whole = st.integers(-3, 50) | st.sampled_from([4032, 4096, 4160, 2**31, 2**62, 2**63, 2**70])
plain = st.one_of(
    st.none(), st.booleans(), whole, whole.map(lambda n: -n), st.floats(), st.text(max_size=5)
)
json_values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
dtypes = st.sampled_from(
    [
        *("<f8", ">f8", "<f4", "<f9", "f8", "d", "float64", "|O", "O", "V", "|V8", "|V0"),
        *("|S8", "|S99999999999", "<U2", "<M8[s]", "(2,)<f8", "<f8,<f8"),
    ]
)
FIELDS: dict[str, Any] = {
    "format": st.sampled_from([0, 2, 1.5, "1", [1]]),
    "id": st.text("0123456789abcdefg/.\0", max_size=40),
    "shape": st.lists(whole, max_size=3),
    "dtype": dtypes | st.lists(st.tuples(st.text(max_size=2), dtypes), max_size=3),
    "segments": st.lists(st.lists(whole, max_size=3), max_size=4),
    "block_rows": whole,
    "data_offset": whole,
    "checkpoint_seconds": whole | st.floats(),
    "durability": st.sampled_from(["end", "segment", "never", "END"]),
    "work": st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("fingerprint", "filler", "version", "arguments"), json_values),
    ),
}


@st.composite
def odd_documents(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """Return a job's document with a few values replaced, or missing."""
    odd = dict(document)
    for name in draw(st.sets(st.sampled_from(sorted(document)), min_size=1, max_size=3)):
        if draw(st.integers(0, 9)) == 0:
            del odd[name]
        else:
            odd[name] = draw(FIELDS.get(name, json_values) | json_values)
    return odd


HARMLESS = frozenset(
    {"made", "work", "block_rows", "checkpoint_seconds", "durability", "reserve"}
)
"""What may have another value of the right kind without any byte being sought elsewhere."""


def comparable(document: dict[str, Any]) -> Any:
    """Return a document of which a NaN equals itself."""
    return json.loads(json.dumps(document), parse_constant=str)


def job_faults(target: Target, document: dict[str, Any]) -> Iterator[str]:
    """Put a document in the place of `job.json`; tell what is neither refused nor harmless."""
    file, content = Sidecar.of(target.path).job, target.path.read_bytes()
    good, text, segment = read_json(file), file.read_bytes(), target.segments[1]
    publish_json(file, document)
    uses: dict[str, Callable[[], object]] = {
        "open_target": lambda: flowmap.open_target(target.path),
        "validate": lambda: flowmap.validate(target),
        "reset": lambda: flowmap.reset(target, 1),
        "status": target.status,
        "fill_segment": lambda: flowmap.fill_segment(segment, traced),
        "load": lambda: flowmap.load(target.path, masked=True),
    }
    kind: type[FlowmapError] = DamagedJobError
    try:
        job = flowmap.open_target(target.path).job
        harmless = {name: document[name] for name in HARMLESS}
        if comparable(job.document()) != comparable(good | harmless):
            yield f"{document} is taken"
        kind = FlowmapError  # it is another job, that can be
    except FlowmapError:
        pass
    for name, use in uses.items():
        fault = refused(use, kind, advice="" if kind is FlowmapError else ADVICE)
        if fault and not (kind is FlowmapError and fault == "is not refused"):
            yield f"{document}: {name} {fault}"
    if target.path.read_bytes() != content:
        yield f"{document} leads to a wrong place"
    file.write_bytes(text)


@pytest.mark.parametrize("examples", sizes(150, 10_000))
@pytest.mark.parametrize("pinned", [False, True])
def test_a_job_that_cannot_be_is_refused(
    tmp_path: Path, figures: Figures, pinned: bool, examples: int
) -> None:
    """Whatever a whole `job.json` says, it is a job or an error, and no byte is lost by it."""
    target = small_job(tmp_path, filler=traced if pinned else None)
    good = read_json(Sidecar.of(target.path).job)

    @settings(max_examples=examples)
    @given(odd_documents(good))
    def prove(document: dict[str, Any]) -> None:
        assert not list(job_faults(target, document))
        figures.add("damage", "job.json with odd values and the right checksum")

    prove()


def test_a_job_of_another_layout_is_refused(tmp_path: Path, figures: Figures) -> None:
    """One that is right in itself, but not for the file, is no reason to write to it."""
    target = small_job(tmp_path)
    good = read_json(Sidecar.of(target.path).job)
    for shape, dtype, segments in [
        ((80,), "<f4", [[4, 20]]),
        ((20, 2), "<f8", [[4, 5]]),
        ((40,), "<i8", [[4, 10]]),
        ((2**50, 0), "<f8", [[2**50, 1]]),
        ((2**59,), "<f8", [[4, 2**57]]),
        ((0,), "<f8", []),
    ]:
        header = Layout.of(shape, dtype, fortran_order=False).header()
        changes = {
            "shape": list(shape),
            "dtype": dtype,
            "segments": segments,
            "header": header_digest(header),
            "data_offset": len(header),
        }
        publish_json(Sidecar.of(target.path).job, good | changes)
        for use in (
            lambda: flowmap.open_target(target.path),
            lambda: flowmap.load(target.path, masked=True),
            lambda: flowmap.fill_segment(target.segments[0], traced),
        ):
            with pytest.raises((DamagedJobError, InvalidArgumentError)):
                use()
        report = flowmap.validate(target)
        assert report.problems
        assert not report.bad_segments
        figures.add("damage", "job.json of another layout")


def test_segments_that_no_ledger_has_are_not_listed(tmp_path: Path, figures: Figures) -> None:
    """A job of 2**50 segments without bytes, which fits to its target, is refused at once."""
    target = flowmap.allocate(tmp_path / "a.npy", (5, 0), "<f8", segments=5)
    header = Layout.of((2**50, 0), "<f8", fortran_order=False).header()
    target.path.write_bytes(header)
    file = Sidecar.of(target.path).job
    changes = {"shape": [2**50, 0], "segments": [[2**50, 1]], "header": header_digest(header)}
    publish_json(file, read_json(file) | changes)
    many = flowmap.open_target(target.path)
    for use in (many.status, many.masked, lambda: flowmap.fill(many, "arange")):
        with pytest.raises(DamagedJobError, match=r"ledger\.npy has .* bytes instead of"):
            use()
    assert "ledger.npy has" in str(flowmap.validate(many))
    figures.add("damage", "job.json of more segments than its ledger")


def test_values_that_are_taken_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same look finds the fault of a flowmap that takes what the checksum vouches for."""
    target = small_job(tmp_path)
    good = read_json(Sidecar.of(target.path).job)
    sabotage("no look at the values of a job", monkeypatch.setattr)
    for changes in ({"data_offset": 0}, {"block_rows": 0}, {"segments": [[2, 10]]}):
        assert list(job_faults(target, good | changes))


def several_faults(target: Target, rounds: int) -> Iterator[str]:
    """Damage `job.json` in several bits, but not in its checksum; tell what is not refused."""
    file, rng = Sidecar.of(target.path).job, random.Random(3)
    text, bits = file.read_bytes(), telling_bits(file)
    begin = text.index(b'"checksum"') * 8
    before = [bit for bit in bits if bit < begin]
    for _ in range(rounds):
        damaged = bytearray(text)
        first = rng.randrange(len(before))
        for bit in (
            rng.sample(before, rng.randint(2, 40))
            if rng.random() < 0.5
            else (
                before[first : first + rng.randint(2, 40)]  # close together
            )
        ):
            damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        fault = refused(lambda: flowmap.open_target(target.path), DamagedJobError)
        if fault == "is not refused" and json.loads(damaged) == json.loads(text):
            continue  # other white space, or other digits of the same number
        yield f"{bytes(damaged)!r} {fault}" if fault else ""
    changed = json.loads(text)
    values: list[Any] = [None, 7, "x", [], {}, changed["id"], changed["shape"]]
    for name in changed.keys() - {"checksum"}:
        for value in values:
            if changed[name] != value:
                file.write_text(json.dumps(changed | {name: value}))
                fault = refused(lambda: flowmap.open_target(target.path), DamagedJobError)
                yield f"{name} {value}: {fault}" if fault else ""
    file.write_bytes(text)


@pytest.mark.parametrize("rounds", sizes(2000, 200_000))
def test_damage_in_many_places_is_refused(
    tmp_path: Path, figures: Figures, rounds: int
) -> None:
    """Several bits, or whole values, that leave the checksum as it is do not get past it."""
    outcomes = list(several_faults(small_job(tmp_path, filler=traced), rounds))
    assert not any(outcomes), [fault for fault in outcomes if fault][:10]
    figures.add("damage", "job.json damaged in many places", len(outcomes))


def test_damage_in_many_places_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same damage finds the fault of a flowmap that compares no checksum."""
    sabotage("no checksum of documents", monkeypatch.setattr)
    assert any(several_faults(small_job(tmp_path, filler=traced), 200))
