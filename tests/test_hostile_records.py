"""Records and headers that somebody made to do harm are refused, with the error for damage."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xxhash
from numpy.lib import format as npy_format
from support import snapshot, states

import flowmap
from flowmap.documents import publish_json
from flowmap.dtypes import dtype_from_descr
from flowmap.errors import DamagedJobError, ForeignFileError, StorageError
from flowmap.npy import Layout, read_header
from flowmap.records import SLOT, SegmentRecord
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """Return a target of eight rows in two segments, the first of them done."""
    made = flowmap.allocate(tmp_path / "a.npy", 8, "<f8", segments=2)
    flowmap.fill_segment(made.segments[0], "arange")
    return made


RECORDS = (
    *("job.json", "ledger.npy", "run.json", "seal.json", "overwrite.json"),
    *("work-0.json", ".ledger.0", ".target.0", ".job.json.0"),
)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("there", [False, True])
def test_overwrite_stops_at_no_folder(target: flowmap.Target, name: str, there: bool) -> None:
    """A folder where a record goes is refused before anything is removed or made."""
    place = Sidecar.of(target.path).folder / name
    record = place.read_bytes() if place.exists() else None
    place.unlink(missing_ok=True)
    place.mkdir()
    (place / "inner").write_bytes(b"not flowmap's")
    if not there:
        target.path.unlink()
    before = snapshot(target.path) if there else {}
    with pytest.raises(ForeignFileError, match=f"{name}, where a record goes, is a folder"):
        flowmap.allocate(target.path, 8, "<f8", exist="overwrite")
    assert (place / "inner").read_bytes() == b"not flowmap's"
    if not there:
        assert not target.path.exists()
        return
    assert snapshot(target.path) == before
    (place / "inner").unlink()
    place.rmdir()
    if record is not None:
        place.write_bytes(record)
    assert flowmap.open_target(target.path).status()["state"].tolist() == ["done", "pending"]
    assert flowmap.load(target.path, shape=4).tolist() == [0, 1, 2, 3]


ODD: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": lambda place: place.mkdir(),
    "socket": lambda place: os.mknod(place, stat.S_IFSOCK | 0o600),
    "link": lambda place: place.symlink_to("elsewhere"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("there", [False, True])
def test_lock_that_is_no_file(tmp_path: Path, odd: str, there: bool) -> None:
    """What is in the place of the lock and no file is refused, and not even opened."""
    sidecar = Sidecar.of(tmp_path / "a.npy")
    if there:
        flowmap.allocate(tmp_path / "a.npy", 8, "<f8")
        sidecar.lock.unlink()
    else:
        sidecar.folder.mkdir()
    ODD[odd](sidecar.lock)
    before = snapshot(tmp_path / "a.npy") if there else {}
    with pytest.raises(StorageError, match=r"no regular file; remove.*header\.lock"):
        flowmap.allocate(tmp_path / "a.npy", 8, "<f8", exist="overwrite")
    assert (tmp_path / "a.npy").exists() is there
    assert not (sidecar.folder / "elsewhere").exists()
    if there:
        assert snapshot(tmp_path / "a.npy") == before


@pytest.mark.parametrize("descr", ["|V0", "<U0", []])
@pytest.mark.parametrize("fortran_order", [False, True])
@pytest.mark.parametrize("options", [{}, {"mmap_mode": "r"}])
def test_windows_without_bytes(
    tmp_path: Path, descr: Any, fortran_order: bool, options: dict[str, Any]
) -> None:
    """Elements of no bytes are not copied one by one, however many a header tells of."""
    shape = (3, 2**50) if fortran_order else (2**50, 3)
    file = io.BytesIO()
    npy_format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    )
    path = tmp_path / "a.npy"
    path.write_bytes(file.getvalue())
    window = flowmap.load(path, offset=1, **options)
    assert (window.shape, window.dtype) == ((shape[0] - 1, shape[1]), np.dtype(descr))
    if not options:
        file.seek(0)
        assert flowmap.load(file, offset=1).shape == window.shape


def forge(target: flowmap.Target, changes: dict[str, Any]) -> None:
    """Write a record of segment 1 with values that need not be possible, and a checksum."""
    texts = {"state", "host", "reason"} & changes.keys()
    plain = {name: value for name, value in changes.items() if name not in texts}
    record = SegmentRecord(1, 4, 8, "running", attempt=1, work="0" * 32)
    packed = bytearray(replace(record, **plain).pack(target.id))
    assert SLOT.fields is not None
    for name in texts:
        offset, text = SLOT.fields[name][1], changes[name].encode("latin-1")
        packed[offset : offset + len(text)] = text
    packed[-8:] = xxhash.xxh3_64_intdigest(packed[:-8]).to_bytes(8, "little")
    with Sidecar.of(target.path).ledger.open("r+b") as ledger:
        ledger.seek(2 * PAGE)
        ledger.write(packed)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "finished"},
        {"state": "\xff"},
        {"attempt": 2**28},
        {"attempt": 2**32 - 1},
        {"sequence": 2**36},
        {"sequence": 2**64 - 1},
        {"attempt": 2**32 - 1, "sequence": 2**64 - 1},
        {"start": -(2**63), "stop": 2**63 - 1},
        {"start": 9},
        {"stop": 2**62},
        {"start": 0, "stop": 4, "rows_done": 4, "state": "done\0\0\0"},
        {"rows_done": 9},
        {"rows_done": -1},
        {"rows_durable": 5},
        {"rows_durable": -1},
        {"host": "\xff"},
        {"reason": "\xff"},
    ],
    ids=str,
)
def test_slots_that_cannot_be(target: flowmap.Target, changes: dict[str, Any]) -> None:
    """A slot with the right checksum is none where no attempt can have written it."""
    forge(target, changes)
    assert states(target) == ["done", "pending"]
    assert not flowmap.validate(target).ok
    assert flowmap.load(target.path, masked=True).count() == 4
    assert flowmap.fill_segment(target.segments[1], "arange").attempt == 1
    assert flowmap.validate(target).ok


@pytest.mark.parametrize("sequence", [0, 2**36 - 1])
def test_a_forged_record_is_followed(target: flowmap.Target, sequence: int) -> None:
    """Whatever number a record has, that of the next attempt counts for more."""
    forge(target, {"attempt": 2**28 - 2, "sequence": sequence})
    assert states(target) == ["done", "running"]
    assert flowmap.fill_segment(target.segments[1], "arange").attempt == 2**28 - 1
    assert flowmap.validate(target).ok


def test_there_is_no_attempt_after_the_last(target: flowmap.Target) -> None:
    """A record that no attempt can follow is damage, and the error says what to do."""
    forge(target, {"attempt": 2**28 - 1})
    before = snapshot(target.path)
    for use in (
        lambda: flowmap.fill_segment(target.segments[1], "arange"),
        lambda: flowmap.write_segment(target.segments[1], np.ones(4)),
        lambda: flowmap.reset(target, 1),
    ):
        with pytest.raises(DamagedJobError, match=r"no next: .* Restore it from a copy"):
            use()
    after = snapshot(target.path)
    assert {name: after[name] for name in before} == before
    assert not flowmap.validate(target).ok


def test_more_bytes_than_memory() -> None:
    """A window that no memory can hold is an error of the system, which says what to do."""
    header = Layout.of(2**58, "<f8", fortran_order=False).header()
    with pytest.raises(StorageError, match="no memory for so much; take less") as caught:
        flowmap.load(io.BytesIO(header), offset=1)
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("version", [True, 1.0, "1", None, 2])
def test_a_job_of_no_version(target: flowmap.Target, version: object) -> None:
    """A `job.json` whose version only equals the number that it must be is no job."""
    publish_json(Sidecar.of(target.path).job, target.job.document() | {"format": version})
    with pytest.raises(DamagedJobError, match=r"job\.json is damaged"):
        flowmap.open_target(target.path)


@pytest.mark.parametrize("divisor", ["0", "-0", "+0", " 0", "00", "4294967296", "9" * 20])
@pytest.mark.parametrize("kind", ["<M8", "|m8", "datetime64", ">timedelta64"])
def test_a_unit_of_time_divided_by_zero(tmp_path: Path, kind: str, divisor: str) -> None:
    """NumPy ends the process when it is given such a dtype: it is given none."""
    text = f"{kind}[s/{divisor}]"
    given: list[Any] = [text, text.encode(), [("a", text)], [["a", [["b", text]]]]]
    for dtype in [*given, {"names": ["a"], "formats": [text]}]:
        with pytest.raises(flowmap.FlowmapError, match="divides a unit of time"):
            flowmap.allocate(tmp_path / "a.npy", 8, dtype)
    for recorded in (text, [["a", text]], [text, [2]]):
        with pytest.raises(ValueError, match="divides a unit of time"):
            dtype_from_descr(recorded)
    for descr in (
        repr(text),
        f"[('a', {text!r})]",
        f"({text!r}, (2,))",
        f"({text[:3]!r} {text[3:]!r})",
        f"{{('a', {text!r}): 1}}",
        f"{{('a', {text!r})}}",
    ):
        file = io.BytesIO(
            header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (3,)}}")
        )
        with pytest.raises(ValueError, match="divides a unit of time"):
            read_header(file)


@pytest.mark.parametrize("text", ["<M8[s/2]", "<m8[Y/4]", "<M8[7us]"])
def test_a_unit_of_time_that_is_divided(tmp_path: Path, text: str) -> None:
    """What NumPy can divide is divided."""
    assert flowmap.allocate(tmp_path / "a.npy", 8, text).dtype == np.dtype(text)
    twice = f"{{'descr': '<M8[s/0]', 'fortran_order': False, 'shape': (3,), 'descr': '{text}'}}"
    assert read_header(io.BytesIO(header(twice))).dtype == np.dtype(text)


def test_a_title_that_cannot_be_hashed() -> None:
    """NumPy takes a dict for a field's title; such a header is read as others are."""
    text = "{'descr': [(({}, 'a'), '?')], 'fortran_order': False, 'shape': (%s,)}"
    assert read_header(io.BytesIO(header(text % 3))).dtype.names == ("a",)
    with pytest.raises(ValueError, match="bytes"):
        read_header(io.BytesIO(header(text % (2**63 - 1))))


def header(text: str) -> bytes:
    """Return a header of version 1 with such a text."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1")
