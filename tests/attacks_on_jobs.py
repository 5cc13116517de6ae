"""What the fuzzer does to a target and to the records beside it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import secrets
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import grammar
import numpy as np
import xxhash
from attacks import Attack, Headers, Refusable, ensure, watched

import flowmap
from flowmap import lease, sealing
from flowmap.documents import _checksum
from flowmap.errors import DamagedJobError, FlowmapError, JobBusyError, StorageError
from flowmap.ledger import _header
from flowmap.npy import Layout, header_digest
from flowmap.records import FINISHED, SLOT, SegmentRecord
from flowmap.segments import Plan
from flowmap.sidecar import Sidecar
from flowmap.storage import PAGE

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_ROOM: Final = 4 * PAGE  # bytes: more than most documents of a case have


class _Jobs(Attack):
    """A target of two segments, one of them done, and its sidecar."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "a.npy"
        # So that a case is the same for each target.
        with mock.patch.object(secrets, "token_hex", lambda nbytes: "5a" * nbytes):
            self.target = flowmap.allocate(self.path, 8, "<f8", segments=2)
        flowmap.fill_segment(self.target.segments[0], "arange")
        self.job, self.sidecar = self.target.job, Sidecar.of(self.path)
        with lease.leased(self.job, "fuzzed") as held:
            self.run = held._document | {"dead": ["a run"]}
        self.work = self.sidecar.work("0" * 32)
        for path in (self.work, self.sidecar.seal, self.sidecar.run):
            path.write_bytes(b"")
        paths = [self.path, *sorted(self.sidecar.folder.iterdir())]
        self.files = {path: path.open("r+b", buffering=0) for path in paths}
        self.whole = {path: path.read_bytes() for path in paths}
        self._validate()  # what is loaded at its first use

    def put(self, path: Path, data: bytes) -> None:
        """Put other bytes into a file."""
        file = self.files[path].fileno()
        os.pwrite(file, data, 0)
        if os.fstat(file).st_size != len(data):
            os.ftruncate(file, len(data))

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Find it harmful if a block writes to, makes or removes a file."""
        before = self._state()
        with watched():
            yield
        ensure(self._state() == before, "looking changed the files")

    def _state(self) -> list[Any]:
        state: list[Any] = [*self.folder.iterdir(), *self.sidecar.folder.iterdir()]
        for file in self.files.values():
            stat = os.fstat(file.fileno())
            state += [stat.st_nlink, stat.st_mtime_ns, os.pread(file.fileno(), stat.st_size, 0)]
        return state

    def look(self, *, thorough: bool) -> flowmap.Target | None:
        """Call what reads a target; return it where it could be opened."""
        target = None
        with self.unchanged():
            with Refusable(FlowmapError):
                target = flowmap.open_target(self.path)
            reads = [] if target is None else [target.status, target.masked, self._attach]
            for read in (*reads, *([self._validate] if thorough else [])):
                with Refusable(FlowmapError):
                    read()
        return target

    def _validate(self) -> None:
        ensure(not flowmap.validate(self.path, mark=False).ok, "half a target is valid")

    def _attach(self) -> None:
        flowmap.allocate(self.path, 8, "<f8", segments=2)


class Targets(_Jobs):
    """A target's file, under its own job; and `open_memmap` and `load` of any file."""

    def seeds(self) -> list[bytes]:
        """Return the target as it is, and files of NumPy's."""
        return [self.whole[self.path], *Headers(self.folder.parent).seeds()]

    def grow(self, rng: random.Random, case: bytes) -> bytes:
        """Return a header before data, or the target with a byte changed or cut."""
        if rng.random() < 0.6:
            return Headers.grow(self, rng, case)  # type: ignore[arg-type]
        whole = bytearray(self.whole[self.path])
        at = rng.randrange(len(whole))
        whole[at] ^= 1 << rng.randrange(8)
        return bytes(whole if rng.random() < 0.7 else whole[:at])

    def case(self, data: bytes) -> None:
        """Open it as a target, map it in each mode, and read the latter half of it."""
        self.put(self.path, data)
        whole, first = self.whole[self.path], self.job.data_offset
        fits = len(data) == len(whole) and data[:first] == whole[:first]
        ensure((self.look(thorough=False) is not None) == fits, "another file, or none of it")
        for mode in ("r", "c", "r+"):
            array = None
            with watched() if mode != "r+" else contextlib.nullcontext(), _told():
                array = flowmap.open_memmap(self.path, mode)
            if array is None:
                continue
            ensure(not array.dtype.hasobject, "bytes were taken for addresses")
            inside = data[array.offset : array.offset + array.nbytes]
            ensure(
                array.tobytes("A") == inside, "it is longer than the file, or has other bytes"
            )
            if mode == "r" and array.ndim:
                middle = len(array) // 2
                with watched(), _told():
                    half = flowmap.load(self.path, offset=middle, shape=array[middle:].shape)
                    # NumPy copies elements of no bytes, too, of which there may be very many.
                    same = not half.nbytes or half.tobytes() == array[middle:].tobytes()
                    ensure(same and half.shape == array[middle:].shape, "other bytes")
        with watched(), _told(OSError, ValueError, EOFError):
            flowmap.load(io.BytesIO(data), offset=1)
        ensure(self.path.read_bytes() == data, "the file changed")


@contextlib.contextmanager
def _told(*kinds: type[Exception]) -> Iterator[None]:
    """Take what flowmap tells of for the answer; of memory, only that there is none."""
    with Refusable(FlowmapError, *kinds):
        try:
            yield
        except StorageError as error:
            ensure(error.errno in (0, errno.ENOMEM, errno.EINVAL), f"of no disk: {error!r}")
            raise


class Documents(_Jobs):
    """`job.json`, `run.json`, `seal.json` and a work, by the first byte.

    The second is "s" before JSON that is given its checksum, "r" before any bytes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        seal = {"format": 1, "job": self.job.id, "digest": "0" * 32, "mode": 0o644, "host": ""}
        work = {"filler": "a", "version": "1", "arguments": {"x": "1"}, "fingerprint": "0" * 32}
        self.documents = {
            self.sidecar.job: self.job.document() | {"work": work},
            self.sidecar.run: self.run,
            self.sidecar.seal: seal,
            self.work: work,
        }

    def seeds(self) -> list[bytes]:
        """Return each document as it is, either way, and the lease of another host."""
        away = json.dumps(self.run | {"machine": "elsewhere"}).encode()
        cases = [b"1s" + away]
        for number, document in enumerate(self.documents.values()):
            cases += [b"%ds" % number + json.dumps(document).encode()]
            cases += [b"%dr" % number + _signed(document)]
        return cases

    def grow(self, rng: random.Random, case: bytes) -> bytes:
        """Return one with another value in it, or a torn one."""
        number = rng.choice((0, 0, 0, 1, 1, 2, 3))
        known: Any = [*self.documents.values()][number]
        which = rng.random()
        if which < 0.15:
            return b"%dr" % number + grammar.torn(rng, case[2:])
        if which < 0.4:
            number = (case or b"0")[0] % 4
            with contextlib.suppress(ValueError, RecursionError):
                known = json.loads(case[2:])
        with contextlib.suppress(ValueError, RecursionError):
            known = grammar.changed(rng, known)
        return b"%ds" % number + json.dumps(known).encode()

    def case(self, data: bytes) -> None:
        """Do what reads the document, and look at the target; it must be one that can be."""
        path = [*self.documents][(data or b"0")[0] % 4]
        # Of one size, whatever the case: to cut a file short takes the file system long.
        self.put(path, _told_json(data[1:]).ljust(_ROOM))
        if path == self.sidecar.run:
            with watched(), Refusable(JobBusyError):
                found = lease._read(path)
                dead = lease._dead(found, self.job)
                ensure(all(type(run) is str for run in dead), f"dead runs {dead}")
                if (held := lease.holder(self.job)) is not None and held["live"]:
                    raise lease._busy(self.job, held, 0.0)
        elif path == self.sidecar.seal:
            with watched():
                mode = sealing._writable(0o444, sealing._mode(sealing._read(path), 0o444))
            ensure(mode in (0o644, 0o664, 0o646, 0o666), f"permissions {mode}")
        elif path == self.work:
            with watched():
                ensure(type(self.job.describe_work("0" * 32)) is str, "no text")
        rare = xxhash.xxh3_64_intdigest(data) % 64 == 0  # its threads take most of the time
        if path == self.sidecar.job or rare:
            self._judge(self.look(thorough=rare), sure=path != self.sidecar.job)
        self.put(path, self.whole[path].ljust(_ROOM))

    def _judge(self, target: flowmap.Target | None, *, sure: bool) -> None:
        ensure(target is not None or not sure, "a job was refused for what is no part of it")
        if target is None:
            return
        job, known = target.job, self.job
        for name in ("layout", "data_offset", "header", "size"):
            ensure(repr(getattr(job, name)) == repr(getattr(known, name)), f"another {name}")
        numbers = [job.block_rows, *(n for run in job.plan.runs for n in run)]
        ensure(set(map(type, numbers)) == {int} and min(numbers) > 0, f"{job.plan}, and blocks")
        ensure(sum(a * b for a, b in job.plan.runs) == 8, "segments of other rows")
        ensure(len(job.id) == 32 and int(job.id, 16) >= 0, "no id")
        ensure(job.durability in ("segment", "end"), "no durability")
        ensure(type(job.reserve) is bool, "no flag")
        ensure(0 <= job.checkpoint_seconds < math.inf, "no seconds")
        ensure(job.work is None or {"filler", "fingerprint"} <= job.work.keys(), "no work")


class Forged(_Jobs):
    """A target, its `job.json` and its ledger, all of which fit to a document."""

    def seeds(self) -> list[bytes]:
        """Return the document as it is, and that of another layout."""
        other = {"shape": [3, 0], "dtype": [["a", "<i4"], ["b", "S3", [2]]]}
        return [json.dumps(self.job.document() | each).encode() for each in ({}, other)]

    def grow(self, rng: random.Random, case: bytes) -> bytes:
        """Return one with another shape, or another value in one of its fields."""
        known = self.job.document()
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            known |= json.loads(case)
        changed: Any
        if rng.random() < 0.3:
            changed = {"shape": rng.choices((0, 1, 3, 2**50), k=rng.choice((0, 1, 2, 3)))}
        else:
            name = rng.choice(("shape", "dtype", "segments", "fortran_order", *known))
            changed = grammar.changed(rng, {name: known[name]})
        return json.dumps(known | changed if isinstance(changed, dict) else changed).encode()

    def case(self, data: bytes) -> None:
        """Look at the target; what can be opened has as many bytes and rows as it says."""
        try:
            document = json.loads(data)
            layout = Layout.recorded(*map(document.get, ("shape", "dtype", "fortran_order")))
        except (ValueError, TypeError, AttributeError, RecursionError):
            return
        header, count = layout.header(), 2
        document |= {"data_offset": len(header), "header": header_digest(header)}
        with contextlib.suppress(ValueError, TypeError, KeyError):
            runs = [(number, rows) for number, rows in document["segments"]]
            if Plan(tuple(runs)).rows != layout.rows:
                runs = [(layout.rows, 1)] if layout.rows else []
            document["segments"], count = runs, len(Plan(tuple(runs)))
        self.put(self.path, header + bytes(min(layout.nbytes, _ROOM)))
        self.put(self.sidecar.job, _signed(document))
        self.put(self.sidecar.ledger, _header(count) + bytes(PAGE * min(count, 9)))
        target = self.look(thorough=True)
        if target is not None:
            ensure(target.job.plan.rows == layout.rows == target.job.layout.rows, "other rows")
            ensure(target.job.size == self.path.stat().st_size, "other bytes")
            array = target.asarray()
            ensure((array.shape, array.dtype) == (layout.shape, layout.dtype), "another array")

    def _validate(self) -> None:
        flowmap.validate(self.path, mark=False)


def _signed(document: Any) -> bytes:
    """Return a document as `publish_json` would write it; without a checksum if it has none."""
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        document = document | {"checksum": _checksum(document)}
    return json.dumps(document).encode()


def _told_json(data: bytes) -> bytes:
    """Return what a case puts into a document's file."""
    if data[:1] == b"s":
        with contextlib.suppress(ValueError, RecursionError):
            return _signed(json.loads(data[1:]))
    return data[1:]


class Slots(_Jobs):
    """The ledger: slots of 258 bytes, the first two saying where, and what to put right.

    After a byte 255, any bytes for the whole of it.
    """

    def seeds(self) -> list[bytes]:
        """Return a record in each state."""
        return [
            bytes([number % 2 * 16, 7])
            + self._record(number % 2, state=state, attempt=1 + number)
            for number, state in enumerate(("running", "written", "failed", "damaged", "done"))
        ]

    def _record(self, index: int, **fields: Any) -> bytes:
        known: dict[str, Any] = {"rows_done": 4, "work": "1" * 32, "token": "2" * 32} | fields
        return SegmentRecord(index, 4 * index, 4 * index + 4, **known).pack(self.job.id)

    def grow(self, rng: random.Random, case: bytes) -> bytes:
        """Return slots of which some numbers are at the edges of what they can be."""
        if rng.random() < 0.05:
            return b"\xff" + grammar.torn(rng, self.whole[self.sidecar.ledger])
        slots = []
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            place, right = rng.randrange(32), rng.choice([7, 7, 7, 3, 6, 5, 0])
            state = rng.choice(
                ["running", "written", "failed", "damaged", "done", "pending", "x"]
            )
            record = self._record(place // 16, state=state, attempt=rng.randrange(4))
            slots.append(bytes([place, right]) + grammar.slot(rng, record))
        return b"".join(slots)

    def case(self, data: bytes) -> None:
        """Read the ledger at once and page by page, as the reader that is written here does."""
        content = data[1:] if data[:1] == b"\xff" else self._slots(data)
        self.put(self.sidecar.ledger, content)
        whole = self.whole[self.sidecar.ledger]
        fits = len(content) == len(whole) and content[:PAGE] == whole[:PAGE]
        rare = xxhash.xxh3_64_intdigest(data) % 64 == 0
        with self.unchanged():
            try:
                table = self.target.status()
            except DamagedJobError:
                ensure(not fits, "a ledger was refused")
                return
            with self.job.ledger() as ledger:
                records = [ledger.read(i, 4 * i, 4 * i + 4) for i in range(2)]
            if rare:
                self.target.masked()
            report = flowmap.validate(self.path, mark=False) if rare else None
        ensure(fits, "another ledger was taken")
        ensure(not report or not report.ok or set(table["state"]) <= FINISHED, "it is valid")
        for index, (row, record) in enumerate(zip(table, records, strict=True)):
            slots = np.frombuffer(content[PAGE * (1 + index) :][:PAGE], SLOT)
            expected = self._newest(slots, index)
            seen = tuple(int(row[name]) for name in ("start", "stop", "rows_done", "attempt"))
            alone = record.start, record.stop, record.rows_done, record.attempt
            ensure(seen == alone and row["state"] == record.state, f"{seen} is not {record}")
            ensure((str(row["state"]), *seen) == expected, f"{seen}, not {expected}")

    def _slots(self, data: bytes) -> bytes:
        """Return a ledger with the slots of a case."""
        content = bytearray(self.whole[self.sidecar.ledger][:PAGE] + bytes(2 * PAGE))
        for at in range(0, len(data), 258):
            place, right = (data[at : at + 2] + b"\0\0")[:2]
            place %= 32
            packed = bytearray(data[at + 2 : at + 258].ljust(256, b"\0"))
            if right & 1:
                packed[:32] = self.job.id.encode()
            if right & 2:
                packed[32:36] = (place // 16).to_bytes(4, "little")
            if right & 4:
                packed[248:] = xxhash.xxh3_64_intdigest(packed[:248]).to_bytes(8, "little")
            content[PAGE + 256 * place : PAGE + 256 * (place + 1)] = packed
        return bytes(content)

    def _newest(self, slots: Any, index: int) -> tuple[str, int, int, int, int]:
        """Return what the ledger says of a segment: the newest record that can be."""
        bounds = 4 * index, 4 * index + 4
        best: Any = ((0, -1), ("pending", *bounds, 0, 0))
        for slot in slots[(slots["job"] == self.job.id.encode()) & (slots["segment"] == index)]:
            body, done, durable = slot.tobytes()[:248], slot["rows_done"], slot["rows_durable"]
            attempt, sequence = int(slot["attempt"]), int(slot["sequence"])
            possible = (
                xxhash.xxh3_64_intdigest(body) == slot["checksum"]
                and (slot["start"], slot["stop"]) == bounds
                and min(done, durable) >= 0
                and max(done, durable) <= slot["stop"] - slot["start"]
                and slot["state"] in b"pending running written failed damaged done".split()
                and slot["host"].isascii()
                and slot["reason"].isascii()
                and attempt < 2**28
                and sequence < 2**36
            )
            if possible and (attempt, sequence) > best[0]:
                numbers = (
                    int(slot[name]) for name in ("start", "stop", "rows_done", "attempt")
                )
                best = (attempt, sequence), (slot["state"].decode(), *numbers)
        return best[1]  # type: ignore[no-any-return]
