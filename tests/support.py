"""What several test modules share: fillers that child processes can import, and children."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import itertools
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.lib import format as npy_format

import flowmap
from flowmap import stopping
from flowmap.documents import publish_json, read_json
from flowmap.errors import short
from flowmap.npy import Layout
from flowmap.records import FINISHED
from flowmap.sidecar import Sidecar
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest
    from numpy.typing import DTypeLike, NDArray

    from flowmap.segments import Block
    from flowmap.target import Target

DTYPES: list[np.dtype[Any]] = [
    np.dtype("<f8"),
    np.dtype(">i4"),
    np.dtype("?"),
    np.dtype("<c16"),
    np.dtype("S5"),
    np.dtype("<U3"),
    np.dtype("<M8[ns]"),
    np.dtype("V7"),
    np.dtype([("a", "<i2"), ("b", ">f8", (2, 3)), ("c", "S3")]),
    np.dtype([("a", "u1"), ("b", "<f8")], align=True),  # seven bytes of padding
    np.dtype([(("A title", "a"), "<f4"), ("n", [("x", "<i8"), ("y", "u1", 2)])]),
]
"""Dtypes of every kind that a target may have."""

ORDERS = [False, True]

ORDINARY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
"""Begins a command for which permissions hold, even for root."""

SHAPES: list[tuple[int, ...]] = [(7,), (5, 3), (4, 3, 2), (3, 1, 2, 2), (0,), (4, 0), (0, 3)]
"""Shapes of which windows are taken, without and with elements."""


def stable_id(value: Any) -> str:
    """Name a parameter of a test by its text, without addresses: each process is to agree."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def oracle(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int = 1) -> NDArray[Any]:
    """Return an array of random valid elements, its padding zero: what a target shall hold."""
    rng = np.random.default_rng(seed)
    return _random(rng, shape, dtype)


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    values = np.zeros(shape, dtype)
    if values.dtype.names is not None:
        for name in values.dtype.names:
            field = values[name]
            field[...] = _random(rng, field.shape, field.dtype)
    elif values.dtype.kind in "SUb":
        text = rng.integers(0, 2 if values.dtype.kind == "b" else 10_000, shape)
        values[...] = text.astype(values.dtype)
    else:
        raw = rng.integers(0, 127, (*shape, values.dtype.itemsize), "u1")
        values = raw.view(values.dtype).reshape(shape)
    return values


def data_bytes(path: str | os.PathLike[str], offset: int) -> bytes:
    """Return what a file holds from a byte on."""
    return Path(path).read_bytes()[offset:]


def saved_bytes(array: NDArray[Any], folder: Path, *, fortran_order: bool = False) -> bytes:
    """Return what `np.save` writes after the header."""
    # Not np.asarray: a copy in another order leaves the padding as it finds it.
    ordered = np.zeros(array.shape, array.dtype, order="F" if fortran_order else "C")
    ordered[...] = array
    saved = folder / "oracle.npy"
    with saved.open("wb") as file:
        np.save(file, ordered)
    with saved.open("rb") as file:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        reader(file)
        return file.read()


def saved(
    path: Path, array: np.ndarray[Any, Any], *, fortran_order: bool = False, version: Any = None
) -> Path:
    """Save an array, in the order and the version of the format that are asked for."""
    ordered = np.zeros(array.shape, array.dtype, "F" if fortran_order else "C")
    ordered[...] = array
    with path.open("wb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Stored array in format", UserWarning)
        npy_format.write_array(file, ordered, version)
    return path


def windows(length: int) -> list[tuple[int, int]]:
    """Return every window of an axis, the empty ones too."""
    return list(itertools.combinations_with_replacement(range(length + 1), 2))


def flip(path: str | os.PathLike[str], offset: int, mask: int = 1) -> None:
    """Flip bits of one byte of a file, as a fault of the disk would."""
    with Path(path).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def damage(target: Target, index: int, byte: int = 0) -> None:
    """Flip a bit in one segment of a target."""
    job = target.job
    first = job.data_offset + target.segments[index].start * job.layout.row_bytes
    flip(target.path, first + byte)


def states(target: Target) -> list[str]:
    """Return the state of each segment."""
    return [str(state) for state in target.status()["state"]]


def snapshot(path: Path) -> dict[str, bytes]:
    """Return every file of a target and its sidecar with its bytes."""
    files = [path, *path.with_name(f"{path.name}.flowmap").rglob("*")]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int = errno.EROFS) -> None:
    """Let the system refuse from now on whatever would change something in a folder.

    Args:
        folder: The folder.
        monkeypatch: Of the test.
        number: What it says: EROFS of a read-only disk, EACCES where permissions are missing.
    """

    def refuse(name: str) -> None:
        real = getattr(os, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            changes = name != "open" or arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if changes and Path(os.fsdecode(path)).is_relative_to(folder):
                raise OSError(number, os.strerror(number), path)
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, call)

    def refuse_open_file(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    real_access = os.access

    def access(path: Any, mode: int, **options: Any) -> bool:
        frozen = mode & os.W_OK and Path(path).is_relative_to(folder)
        return not frozen and real_access(path, mode, **options)

    for name in ("open", "mkdir", "rename", "link", "unlink"):
        refuse(name)
    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(os, "fchmod", refuse_open_file)


def wholeness(path: Path) -> list[str]:
    """Say what at a path does not belong together, past flowmap; nothing if it was replaced.

    Whatever is there: its size fits its header. While `job.json` stays the same: size, header
    and ledger are those of the job, and every record is the job's.
    """
    sidecar = path.with_name(f"{path.name}.flowmap")
    before = _document(sidecar / "job.json")
    with path.open("rb") as file:
        npy_format.read_magic(file)
        shape, fortran, dtype = npy_format.read_array_header_1_0(file)
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
    faults = []
    if size != offset + math.prod(shape) * dtype.itemsize:
        faults.append(f"{size} bytes under a header of {shape} {dtype}")
    try:
        ledger = np.load(sidecar / "ledger.npy")
    except FileNotFoundError:
        ledger = None
    if before is None or _document(sidecar / "job.json") != before:
        return faults
    if [list(shape), fortran, offset] != [
        before[name] for name in ("shape", "fortran_order", "data_offset")
    ]:
        faults.append(f"a header of {shape} beside {before}")
    segments = sum(count for count, _ in before["segments"])
    if ledger is None or len(ledger) != segments:
        faults.append(f"{segments} segments, and a ledger of {ledger is None or len(ledger)}")
    elif others := set(ledger["job"].ravel().tolist()) - {b"", before["id"].encode()}:
        faults.append(f"records of {others} in the ledger of {before['id']}")
    return faults


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def rows(block: Block) -> NDArray[np.float64]:
    """Return what `ramp` puts into a block of a one-dimensional target."""
    values: NDArray[np.float64] = np.sqrt(np.arange(block.start, block.stop, dtype=float))
    return values


@flowmap.filler
def ramp(out: NDArray[Any], block: Block) -> None:
    """Fill the square root of each row's number."""
    out[...] = rows(block)


@flowmap.filler
def nested(out: NDArray[Any], block: Block, *, named: str) -> None:
    """Fill by another filler, which is named in text."""
    Work.of(named)(out, block)


@flowmap.filler(volatile=("log",))
def logged(out: NDArray[Any], block: Block, *, log: str) -> None:
    """Fill like `ramp`; append the first row of each block to a file."""
    with Path(log).open("a") as file:
        file.write(f"{block.start}\n")
    out[...] = rows(block)


def take_anything(out: Any, block: Block, **arguments: Any) -> None:
    """Do nothing, with any arguments."""


@flowmap.filler(version="2", volatile=("log", "verbose"))
def versioned(
    out: Any, block: Block, rate: float = 1.0, log: Any = None, verbose: Any = False
) -> None:
    """Do nothing, in its second version."""


def in_blocks(
    fill: Callable[..., None],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *,
    fortran_order: bool = False,
    block_rows: int = 1 << 62,
    **arguments: Any,
) -> NDArray[Any]:
    """Return what a filler makes of a whole array, given to it block by block."""
    layout = Layout.of(shape, dtype, fortran_order)
    whole = np.zeros(shape, dtype, "F" if fortran_order else "C")
    for start in range(0, layout.rows, block_rows):
        block = flowmap.Block(start, min(start + block_rows, layout.rows), layout.axis)
        data = np.zeros(len(block) * layout.row_bytes, np.uint8)
        out = layout.as_array(data, len(block))
        fill(out, block, **arguments)
        rows = slice(block.start, block.stop)
        whole[((..., rows) if fortran_order else rows) if shape else ...] = out
    return whole


@flowmap.filler(volatile=("secret",))
def gated(
    out: NDArray[Any], block: Block, *, gate: str, after: int = 0, secret: str = ""
) -> None:
    """Fill like `ramp`; rows from `after` on wait for a file to be there."""
    while block.stop > after and not Path(gate).exists():
        time.sleep(0.05)
    out[...] = rows(block)


def _unloadable() -> Any:
    time.sleep(0.1)  # one worker alone shall not have tried everything before others start
    raise ImportError("only where it was pickled")


class Unloadable:
    """Pickles, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return _unloadable, ()


class Traveller:
    """Writes into a file when it is pickled, and when it is loaded in another process."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __getstate__(self) -> dict[str, Any]:
        self._note("pickled")
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._note("loaded")

    def _note(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def notes(self, what: str) -> list[int]:
        """Return the processes in which that happened, one for each time."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [int(pid) for noted, pid in lines if noted == what]


def logged_rows(log: Path) -> list[int]:
    """Return what `logged` has written."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def named(value: object) -> str:
    """Return what a test of a value is called, the same in every process."""
    return re.sub(r" at 0x\w+", "", short(value, 60))


def let_others_in(path: Path) -> None:
    """Open the folders that a file lies in, which pytest closes, to other users."""
    everybody = Path(tempfile.gettempdir())
    for folder in path.parents:
        if everybody in folder.parents:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)


def script(text: str, *arguments: object) -> list[str]:
    """Return the command of a Python program given as text, with its arguments."""
    return [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment of a child that imports what this process imports."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "error"}


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a child to its end, its output taken."""
    return subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a child whose output is read line by line."""
    return subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def stop_oneself() -> None:
    """Do what a fill does in a process that is asked to stop."""
    with stopping.stoppable():
        os.kill(os.getpid(), signal.SIGTERM)


def members(group: int) -> set[int]:
    """Return the live processes of a process group."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.add(int(entry.name))
    return found


def until_gone(group: int) -> set[int]:
    """Wait for a process group to be empty; return who is left in the end."""
    for _ in range(300):
        if not members(group):
            break
        time.sleep(0.1)
    return members(group)


def written(
    path: Path, values: NDArray[Any], *, fortran_order: bool = False, segments: int = 3
) -> Target:
    """Return a target that holds some values, in so many segments where it has the rows."""
    rows = Layout(values.shape, values.dtype, fortran_order).rows
    target = flowmap.allocate(
        path,
        values.shape,
        values.dtype,
        fortran_order=fortran_order,
        segments=min(segments, max(rows, 1)),
    )
    for segment in target.segments:
        part = slice(segment.start, segment.stop)
        place = (..., part) if fortran_order else part
        flowmap.write_segment(segment, values[place] if values.shape else values)
    return target


def sealed(path: Path, values: NDArray[Any], *, fortran_order: bool = False) -> Target:
    """Return a target that holds some values, and was validated."""
    target = written(path, values, fortran_order=fortran_order)
    assert flowmap.validate(target).sealed
    return target


class Counted:
    """Counts calls, and does something before the n-th.

    Args:
        nth: Which call, from 1.
        then: What is done.
    """

    def __init__(self, nth: int, then: Callable[[], None]) -> None:
        self.left = nth
        self._then = then

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts, and is the other one otherwise."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self._then()
            return call(*arguments, **options)

        return counted


def unproven(target: Target) -> list[int]:
    """Return the segments that are not finished, or whose bytes are not those recorded."""
    first, row_bytes = target.job.data_offset, target.job.layout.row_bytes
    content = data_bytes(target.path, first)
    return [
        int(row["index"])
        for row in target.status()
        if row["state"] not in FINISHED
        or xxhash.xxh3_128_hexdigest(
            content[row["start"] * row_bytes : row["stop"] * row_bytes]
        )
        != row["digest"]
    ]


def forked(act: Callable[[], str]) -> str:
    """Return what a function says in a forked process, or of which signal that died."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # a signal is an answer here
        try:
            os.write(writer, act().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text if status == 0 else f"signal {-status}"


def as_user(user: int, act: Callable[[], str], mask: int = 0o022) -> str:
    """Return what a function says in a process of another user, or its error; needs root."""

    def act_there() -> str:
        os.umask(mask)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        try:
            return act()
        except flowmap.FlowmapError as error:
            return f"{type(error).__name__}: {error}"

    # Now, for the user may not be allowed to read Python's own library, as in /root.
    for name, home in flowmap._HOMES.items():
        if home not in ("tasks", "flow"):
            getattr(flowmap, name)
    return forked(act_there)


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b2J\r\x7f\u202e[red]<b>|`\u2066"
"""What a terminal, rich, a notebook or Markdown would obey."""


def obeyed(text: str) -> list[str]:
    """Return the characters of a text that a terminal obeys, tabs and newlines left out."""
    controls, order = r"\x00-\x08\x0b-\x1f\x7f-\x9f", r"\u202a-\u202e\u2066-\u2069"
    return re.findall(rf"[{controls}{order}\ud800-\udfff]", text)


def poison(target: Target) -> None:
    """Have every record of a target tell something hostile, as others may who can write them.

    Its second segment has failed, the others were filled, and another host is at it.
    """
    sidecar, text = Sidecar.of(target.path), HOSTILE
    work = str(target.status()["work"][0])
    known = {
        "filler": text,
        "version": text,
        "arguments": {text: text},
        "values": None,
        "source": text,
        "fingerprint": work,
    }
    publish_json(sidecar.work(work), known)
    job = read_json(sidecar.job)
    made = {name: text for name, value in job["made"].items() if isinstance(value, str)}
    publish_json(sidecar.job, job | {"work": known, "made": job["made"] | made})
    lease = {
        "format": 1,
        "job": target.id,
        "token": "",
        "run": text,
        "dead": [text],
        "name": text,
        "host": text,
        "machine": "elsewhere",
        "pid": 1,
        "process_started": 1,
        "began": time.time(),
        "refreshed": time.time(),
    }
    publish_json(sidecar.run, lease)
    with target.job.ledger(write=True) as ledger:
        for segment in target.segments:
            old = ledger.read(segment.index, segment.start, segment.stop)
            new = replace(old, sequence=old.sequence + 1, host=text)
            if segment.index == 1:
                new = replace(new, state="failed", reason=text)
            ledger.write(new)
    attempt = int(target.status()["attempt"][1])
    failure = {
        "job": target.id,
        "attempt": attempt,
        "reason": text,
        "traceback": f"{text}\n\t{text}",
    }
    publish_json(sidecar.failure(1), failure | {"format": 1})
    if sidecar.seal.exists():
        publish_json(sidecar.seal, read_json(sidecar.seal) | {"host": text})
