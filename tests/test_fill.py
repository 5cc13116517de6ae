"""Filling segments: byte for byte what `np.save` writes, and every refusal with its error."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pickle
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, ORDERS, data_bytes, oracle, ramp, run, saved_bytes, script, states

import flowmap
import flowmap.attempt
from flowmap.blocks import block_buffer
from flowmap.errors import (
    DamagedJobError,
    FillerError,
    FillerNotFoundError,
    InvalidArgumentError,
    NotFoundError,
    OtherJobError,
    OtherWorkError,
    StorageError,
    WrongTypeError,
)
from flowmap.sidecar import Sidecar
from flowmap.storage import CHUNK, PAGE, buffer_of, write_all

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from flowmap.segments import Block
    from flowmap.target import Target


def copying(array: NDArray[Any], *, fortran_order: bool = False) -> Any:
    """Return a filler that copies rows of an array, and checks the buffer it is given."""

    def copy(out: NDArray[Any], block: Block) -> None:
        assert out.dtype == array.dtype
        assert out.flags.f_contiguous if fortran_order else out.flags.c_contiguous
        assert not any(out.tobytes("A"))  # padding included
        part: Any = array
        if array.ndim:
            part = (
                array[..., block.start : block.stop]
                if fortran_order
                else array[block.start : block.stop]
            )
        assert out.shape == part.shape
        out[...] = part

    return copy


def make(path: Path, array: NDArray[Any], *, fortran_order: bool = False, **how: Any) -> Target:
    """Allocate a target for an array."""
    return flowmap.allocate(
        path / "out.npy", array.shape, array.dtype, fortran_order=fortran_order, **how
    )


def check_filled(target: Target, array: NDArray[Any], folder: Path) -> None:
    """Fill every segment in any order; compare with the oracle."""
    filler = copying(array, fortran_order=target.fortran_order)
    for segment in reversed(target.segments):
        record = flowmap.fill_segment(segment, filler)
        assert (record.state, record.rows_done) == ("done", segment.rows)
    wanted = saved_bytes(array, folder, fortran_order=target.fortran_order)
    assert data_bytes(target.path, target.job.data_offset) == wanted
    assert flowmap.validate(target).ok
    if array.dtype.kind != "V" or array.dtype.names:
        np.testing.assert_array_equal(np.load(target.path), array)


@pytest.mark.parametrize("fortran_order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_are_those_of_save(
    tmp_path: Path, dtype: np.dtype[Any], fortran_order: bool
) -> None:
    """Every kind of dtype, in both orders, ends up as `np.save` writes it."""
    array = oracle((3, 2, 5) if fortran_order else (5, 2, 3), dtype)
    target = make(tmp_path, array, fortran_order=fortran_order, segments=[2, 3], block_rows=2)
    check_filled(target, array, tmp_path)


@pytest.mark.parametrize("fortran_order", ORDERS)
@pytest.mark.parametrize(
    "shape", [(), (0,), (7,), (0, 4), (4, 0), (3, 0, 2), (1, 1), (2, 3, 4, 5), (5,) * 3]
)
def test_any_shape(tmp_path: Path, shape: tuple[int, ...], fortran_order: bool) -> None:
    """0-d, empty, zero-width and many axes."""
    array = oracle(shape, np.dtype("<f4"))
    target = make(tmp_path, array, fortran_order=fortran_order)
    check_filled(target, array, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_scalar_of_any_dtype(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    """A 0-d target gives its filler a 0-d `out`."""
    array = oracle((), dtype)
    check_filled(make(tmp_path, array), array, tmp_path)


def test_a_long_row_is_written_by_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has something to do, and the hash a piece in the cache, before the end."""
    array = oracle((3, 5 * CHUNK // 16 + 1), np.dtype("<f8"))
    lengths: list[int] = []

    def noted(descriptor: int, data: memoryview, offset: int) -> None:
        lengths.append(len(data))
        write_all(descriptor, data, offset)

    monkeypatch.setattr("flowmap.attempt.write_all", noted)
    check_filled(make(tmp_path, array, segments=2), array, tmp_path)
    assert lengths == 3 * [CHUNK, CHUNK, CHUNK // 2 + 8]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Any, ...]:
    """Draw shape, dtype, order, segmentation and block rows that fit together."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)))
    fortran_order = draw(st.booleans())
    n_rows = shape[-1] if fortran_order else shape[0]
    cuts = draw(st.lists(st.integers(1, max(1, n_rows - 1)), unique=True).map(sorted))
    edges = [0, *(cut for cut in cuts if cut < n_rows), n_rows]
    segments = np.diff(edges).tolist() if n_rows else None
    block_rows = draw(st.none() | st.integers(1, 9))
    return shape, draw(st.sampled_from(DTYPES)), fortran_order, segments, block_rows


@settings(max_examples=60)
@given(layouts())
def test_any_segmentation_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, layout: tuple[Any, ...]
) -> None:
    """However rows are cut into segments and blocks, the bytes are the oracle's."""
    shape, dtype, fortran_order, segments, block_rows = layout
    folder = tmp_path_factory.mktemp("fill")
    array = oracle(shape, dtype)
    target = make(
        folder, array, fortran_order=fortran_order, segments=segments, block_rows=block_rows
    )
    check_filled(target, array, folder)


@pytest.mark.parametrize("block_rows", [1, 3, 7, 1000])
def test_blocks_tile_each_segment(tmp_path: Path, block_rows: int) -> None:
    """A filler sees every row of its segment once, in order, in blocks of the asked size."""
    target = flowmap.allocate(tmp_path / "a.npy", 20, "f8", segments=2, block_rows=block_rows)
    seen: list[tuple[int, int]] = []

    def note(out: NDArray[Any], block: Block) -> None:
        seen.append((block.start, block.stop))

    flowmap.fill_segment(target.segments[1], note)
    assert [row for start, stop in seen for row in range(start, stop)] == list(range(10, 20))
    assert all(stop - start == min(block_rows, 10) for start, stop in seen[:-1])


def test_out_is_zeroed_for_each_block(tmp_path: Path) -> None:
    """What one block leaves in the buffer, padding included, the next does not see."""
    dtype = np.dtype([("a", "u1"), ("b", "<f8")], align=True)
    target = flowmap.allocate(tmp_path / "a.npy", 6, dtype, segments=1, block_rows=2)
    dirty: list[bool] = []

    def soil(out: NDArray[Any], block: Block) -> None:
        raw = out.view(np.uint8)
        dirty.append(bool(raw.any()))
        raw[...] = 0xFF

    flowmap.fill_segment(target.segments[0], soil)
    assert dirty == [False] * 3


def test_done_computes_nothing(tmp_path: Path) -> None:
    """A segment that is done returns its record, and writes nothing."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    calls: list[int] = []

    def count(out: NDArray[Any], block: Block) -> None:
        calls.append(block.start)

    first = flowmap.fill_segment(target.segments[0], count)
    before = Sidecar.of(target.path).ledger.read_bytes()
    assert flowmap.fill_segment(target.segments[0], count) == first
    assert calls == [0]
    assert Sidecar.of(target.path).ledger.read_bytes() == before


def constant(out: NDArray[Any], block: Block, *, value: float) -> None:
    """Fill one value."""
    out[...] = value


def constant_until(out: NDArray[Any], block: Block, *, value: float, stop: int = 10**9) -> None:
    """Fill one value, and fail from a row on."""
    if block.start >= stop:
        raise RuntimeError("so far")
    out[...] = value


@pytest.mark.parametrize("durability", ["segment", "end"])
def test_other_work_is_refused_on_what_is_finished(tmp_path: Path, durability: Any) -> None:
    """Finished rows are not computed again with other arguments, unless after `reset`."""
    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", durability=durability, segments=1)
    flowmap.fill_segment(target.segments[0], constant, {"value": 1})
    with pytest.raises(OtherWorkError, match="reset"):
        flowmap.fill_segment(target.segments[0], constant, {"value": 2})
    flowmap.reset(target.path, 0)
    flowmap.fill_segment(target.segments[0], constant, {"value": 2})
    assert (target.asarray() == 2).all()


def test_other_work_is_refused_on_a_pinned_job(tmp_path: Path) -> None:
    """A job pinned to its work refuses other arguments before anything is claimed."""
    target = flowmap.allocate(
        tmp_path / "a.npy", 4, "f8", filler=constant, arguments={"value": 1}
    )
    with pytest.raises(OtherWorkError, match="pinned"):
        flowmap.fill_segment(target.segments[0], constant, {"value": 2})
    with pytest.raises(OtherWorkError, match="pinned"):
        flowmap.write_segment(target.segments[0], np.zeros(target.segments[0].rows))
    assert target.status()["attempt"].sum() == 0


def test_half_a_segment_of_other_work_is_begun_anew(tmp_path: Path) -> None:
    """Rows that other arguments left are not kept."""
    target = flowmap.allocate(
        tmp_path / "a.npy", 10, "f8", segments=1, block_rows=2, checkpoint_seconds=0
    )
    with pytest.raises(FillerError):
        flowmap.fill_segment(target.segments[0], constant_until, {"value": 1, "stop": 6})
    assert target.status()["rows_done"][0] == 6
    flowmap.fill_segment(target.segments[0], constant_until, {"value": 2})
    assert (target.asarray() == 2).all()
    assert flowmap.validate(target).ok


def raises(out: NDArray[Any], block: Block) -> None:
    """Raise, as a filler with a fault does."""
    raise KeyError("nothing of that name")


def meets_a_full_disk(out: NDArray[Any], block: Block) -> None:
    """Raise what another time may not be."""
    raise OSError(28, "No space left on device")


def returns(out: NDArray[Any], block: Block) -> Any:
    """Return values instead of filling."""
    return np.ones(len(block))


def resizes(out: NDArray[Any], block: Block) -> None:
    """Resize the buffer."""
    out.resize(100, refcheck=False)


def reshapes(out: NDArray[Any], block: Block) -> None:
    """Reshape the buffer in place."""
    type(out).shape.__set__(out, (-1, 1))  # type: ignore[attr-defined]  # a deprecated setter


def retypes(out: NDArray[Any], block: Block) -> None:
    """Give the buffer another dtype in place."""
    out.dtype = np.dtype("i8")  # type: ignore[misc]  # deprecated, still possible


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("filler", "words"),
    [
        (raises, "KeyError"),
        (meets_a_full_disk, "No space"),
        (returns, "returned ndarray"),
        (resizes, "ValueError"),
        (reshapes, "shape"),
        (retypes, "dtype"),
    ],
)
def test_fillers_that_misbehave(tmp_path: Path, filler: Any, words: str) -> None:
    """Each fails its segment with an error that names it, and is recorded so."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=1, block_rows=5)
    with pytest.raises(FillerError, match=words) as caught:
        flowmap.fill_segment(target.segments[0], filler)
    assert "segment 0000 [0:10], rows 0 to 5" in str(caught.value)
    assert caught.value.transient is (filler is meets_a_full_disk)
    assert pickle.loads(pickle.dumps(caught.value)).segment == target.segments[0].name
    status = target.status()[0]
    assert (status["state"], status["rows_done"]) == ("failed", 0)
    assert status["reason"]
    assert not target.asarray().any()
    flowmap.fill_segment(target.segments[0], ramp)
    assert flowmap.validate(target).ok


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_transposed_buffer_is_noticed(tmp_path: Path) -> None:
    """A square buffer whose strides were exchanged would hold the right shape, wrongly."""
    target = flowmap.allocate(tmp_path / "a.npy", (3, 3), "f8", segments=1)

    def transpose(out: NDArray[Any], block: Block) -> None:
        type(out).strides.__set__(out, out.strides[::-1])  # type: ignore[attr-defined]
        out[...] = np.arange(9).reshape(3, 3)

    with pytest.raises(FillerError, match="memory"):
        flowmap.fill_segment(target.segments[0], transpose)


def unmarked(out: NDArray[Any], block: Block) -> None:
    """Be a filler without its mark."""


@pytest.mark.parametrize(
    ("filler", "arguments", "error"),
    [
        ("support:nothing", None, FillerNotFoundError),
        ("no_such_module:f", None, FillerNotFoundError),
        ("support", None, FillerNotFoundError),
        ("support:rows", None, FillerNotFoundError),
        (constant, None, WrongTypeError),
        (constant, {"value": 1, "other": 2}, WrongTypeError),
        (constant, {"value": object()}, InvalidArgumentError),
        (constant, [1], WrongTypeError),
        (3, None, WrongTypeError),
    ],
)
def test_what_is_no_work_changes_nothing(
    tmp_path: Path, filler: Any, arguments: Any, error: type[Exception]
) -> None:
    """A filler that cannot be had, or called so, is refused before anything is claimed."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8")
    before = Sidecar.of(target.path).ledger.read_bytes()
    with pytest.raises(error):
        flowmap.fill_segment(target.segments[0], filler, arguments)
    assert Sidecar.of(target.path).ledger.read_bytes() == before


def test_a_name_finds_its_filler(tmp_path: Path) -> None:
    """A marked filler may be given by its name."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=1)
    flowmap.fill_segment(target.segments[0], "support:ramp")
    np.testing.assert_array_equal(target.asarray(), np.sqrt(np.arange(10)))


def test_write_back_takes_whole_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for in the order of the file, no page twice, and for no little at a time."""
    target = flowmap.allocate(tmp_path / "a.npy", (3000, 1001), "u1", segments=1, block_rows=7)
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "flowmap.attempt.start_writeback", lambda _, first, n: asked.append((first, first + n))
    )
    flowmap.fill_segment(target.segments[0], lambda out, block: out.fill(block.start % 251))
    assert len(asked) == 2
    ends = [target.job.data_offset, *(end for _, end in asked)]
    assert [first for first, _ in asked] == ends[:-1]
    assert not any(end % PAGE for end in ends)
    assert all(end - first >= CHUNK for first, end in asked)
    assert target.job.size - ends[-1] < CHUNK + PAGE


FILL_AND_TELL = """
import sys
import flowmap
target = flowmap.open_target(sys.argv[1])
flowmap.fill_segment(target.segments[0], "flowmap.fillers:arange")
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_segment(tmp_path: Path) -> None:
    """A segment of 128 MiB takes no more memory than one of 8 MiB."""
    peaks = []
    for mebibytes in (8, 128):
        path = tmp_path / f"{mebibytes}.npy"
        flowmap.allocate(path, mebibytes << 17, "f8", segments=1)
        child = run(script(FILL_AND_TELL, path))
        assert child.returncode == 0, child.stderr
        peaks.append(int(child.stdout))
    assert peaks[1] - peaks[0] < 16 << 10


def test_segments_of_another_allocation_are_refused(tmp_path: Path) -> None:
    """A segment of the job that was overwritten does not touch the new one."""
    old = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    new = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2, exist="overwrite")
    with pytest.raises(OtherJobError, match="anew"):
        flowmap.fill_segment(old.segments[0], ramp)
    assert states(new) == ["pending"] * 2


@pytest.mark.parametrize("changes", [{"start": 1}, {"stop": 4}, {"index": 1}, {"index": 7}])
def test_handmade_segments_are_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    """A segment that is not the job's own is not filled."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    segment = dataclasses.replace(target.segments[0], **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"target\.segments"):
        flowmap.fill_segment(segment, ramp)
    with pytest.raises(WrongTypeError):
        flowmap.fill_segment(0, ramp)  # type: ignore[arg-type]


def test_an_overwrite_meanwhile_is_noticed(tmp_path: Path) -> None:
    """Rows that went into the file that was replaced are not reported as done."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=1)

    def overwrite(out: NDArray[Any], block: Block) -> None:
        flowmap.allocate(target.path, 10, "f8", segments=1, exist="overwrite")

    with pytest.raises(OtherJobError, match="while the segment"):
        flowmap.fill_segment(target.segments[0], overwrite)
    assert states(flowmap.open_target(target.path)) == ["pending"]


@pytest.mark.parametrize("segments", [1, 2])
def test_an_overwrite_before_the_claim_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: int
) -> None:
    """An attempt that was checked just before writes nothing into the new job's ledger."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=1)
    real = flowmap.admission._check

    def checked(*arguments: Any) -> None:
        real(*arguments)
        anew = flowmap.allocate(target.path, 10, "f8", segments=segments, exist="overwrite")
        for _ in range(9):  # until each slot of the page holds a record
            flowmap.reset(anew, 0)

    with monkeypatch.context() as patch:
        patch.setattr("flowmap.admission._check", checked)
        with pytest.raises(OtherJobError, match="allocated anew"):
            flowmap.fill_segment(target.segments[0], ramp)
    assert flowmap.open_target(target.path).status()["attempt"][0] == 9


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _rewritten(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(10,)", b"(11,)", 1))


def _linked(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "harm", [_longer, _shorter, _rewritten, _linked, _piped, _folder], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("which", ["target", "ledger"])
def test_a_damaged_file_is_refused(tmp_path: Path, harm: Any, which: str) -> None:
    """A target or ledger of another size, header or kind is left alone, with an error."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    path = target.path if which == "target" else Sidecar.of(target.path).ledger
    if (which, harm) == ("ledger", _rewritten):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"(2, 16)", b"(3, 16)", 1))
    else:
        harm(path)
    with pytest.raises(DamagedJobError):
        flowmap.fill_segment(target.segments[0], ramp)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A target, ledger or job that is gone is an error, and is not made again."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=2)
    sidecar = Sidecar.of(target.path)
    sidecar.ledger.unlink()
    with pytest.raises(DamagedJobError, match="missing"):
        flowmap.fill_segment(target.segments[0], ramp)
    document = json.loads(sidecar.job.read_text())
    sidecar.job.write_text(json.dumps(document | {"block_rows": 3}))
    with pytest.raises(DamagedJobError):
        flowmap.fill_segment(target.segments[0], ramp)
    target.path.unlink()
    with pytest.raises(NotFoundError, match="segment 0000"):
        flowmap.fill_segment(target.segments[0], ramp)
    assert not target.path.exists()
    assert not sidecar.ledger.exists()


def test_a_full_ledger_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be recorded the attempt fails with the segment's name."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowmap.ledger.write_all", full)
    with pytest.raises(StorageError, match="segment 0000") as caught:
        flowmap.fill_segment(target.segments[0], ramp)
    assert caught.value.errno == 28
    assert states(target) == ["pending"]


def test_no_memory_for_a_block_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is too big for the memory is not taken for a full disk."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=1, block_rows=4)

    def none_left(_: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("flowmap.blocks._KEPT.buffer", None)
    monkeypatch.setattr("flowmap.blocks.buffer_of", none_left)
    with pytest.raises(StorageError, match=r"block of 32 bytes.*block_rows") as caught:
        flowmap.fill_segment(target.segments[0], ramp)
    assert caught.value.errno == 12


def test_a_thread_keeps_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next segment has what the one before had, zeroed."""
    made: list[int] = []

    def counted(nbytes: int) -> NDArray[np.uint8]:
        made.append(nbytes)
        return buffer_of(nbytes)

    @flowmap.filler
    def looks(out: NDArray[Any], block: Block) -> None:
        assert not out.any()
        out[...] = 1

    monkeypatch.setattr("flowmap.blocks._KEPT.buffer", None)
    monkeypatch.setattr("flowmap.blocks.buffer_of", counted)
    target = flowmap.allocate(tmp_path / "a.npy", 90, "f8", segments=3)
    for segment in target.segments:
        flowmap.fill_segment(segment, looks)
    assert len(block_buffer(8, target.segments[0])) == 8, "no more of it than was asked for"
    assert made == [240]
    other = flowmap.allocate(tmp_path / "b.npy", 90, "f8", segments=3)
    flowmap.fill(other, looks, executor="threads", workers=1)
    assert made == [240] * 2, "another thread has memory of its own"


def test_a_filler_may_keep_its_block(tmp_path: Path) -> None:
    """What it kept of one segment stays as it was while the next ones are filled."""
    kept: list[NDArray[Any]] = []

    @flowmap.filler
    def keeps(out: NDArray[Any], block: Block) -> None:
        out[...] = block.start
        kept.append(out)

    target = flowmap.allocate(tmp_path / "a.npy", 9, "f8", segments=3)
    for segment in target.segments:
        flowmap.fill_segment(segment, keeps)
    assert [set(out) for out in kept] == [{0}, {3}, {6}]


def test_a_filler_may_fill_another_job(tmp_path: Path) -> None:
    """Its own block is not in the way of that one's."""
    other = flowmap.allocate(tmp_path / "b.npy", 4, "f8", segments=1)

    @flowmap.filler
    def nests(out: NDArray[Any], block: Block) -> None:
        out[...] = 7
        flowmap.fill_segment(other.segments[0], ramp)

    target = flowmap.allocate(tmp_path / "a.npy", 4, "f8", segments=1)
    flowmap.fill_segment(target.segments[0], nests)
    assert target.asarray().tolist() == [7] * 4
    np.testing.assert_array_equal(other.asarray(), np.sqrt(np.arange(4)))


def test_no_thread_keeps_a_large_block(tmp_path: Path) -> None:
    """A block that somebody made very large goes with its segment."""
    blocks: list[weakref.ref[Any]] = []

    @flowmap.filler
    def refers(out: NDArray[Any], block: Block) -> None:
        blocks.append(weakref.ref(out.base))

    target = flowmap.allocate(tmp_path / "a.npy", 1 << 22, "f8", segments=1, block_rows=1 << 22)
    flowmap.fill_segment(target.segments[0], refers)
    gc.collect()
    assert blocks[0]() is None


def test_an_unreadable_header_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that cannot be read gives flowmap's error, which names the segment."""
    target = flowmap.allocate(tmp_path / "a.npy", 10, "f8", segments=1)

    def bad(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", bad)
    with pytest.raises(StorageError, match=r"segment 0000.*cannot read the target"):
        flowmap.fill_segment(target.segments[0], ramp)
