"""Children that strace attaches to: a warm process forks one for each case.

`Zygote` is the tests' side of it, `serve` the side of the process that forks.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sabotage import sabotage
from support import script, start
from truth import note, noted

import flowmap
import flowmap.examination  # now, so that no child imports it under a fault
import flowmap.executors
from flowmap.errors import FlowmapError
from flowmap.locks import header_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROWS = 4 * 3 * 512
SHAPE: dict[str, Any] = {
    "shape": ROWS,
    "dtype": "<f8",
    "segments": 4,
    "block_rows": 512,
    "checkpoint_seconds": 0,
}
"""Four segments of three blocks of a page each, and a checkpoint after each block."""

WRITES = (
    *("openat", "mkdir", "mkdirat", "pwrite64", "write", "fallocate", "ftruncate"),
    *("sync_file_range", "fdatasync", "fsync", "msync", "link", "linkat", "rename"),
    *("renameat", "renameat2", "unlink", "unlinkat", "rmdir"),
)
"""The system calls that change what is on a disk, or begin to."""

READS = ("read", "pread64", "preadv", "preadv2")


def log_of(path: str | os.PathLike[str]) -> str:
    """Return the folder, beside a target, where a child notes what it computes."""
    return str(Path(path).with_name("log"))


def _allocate(path: str) -> Any:
    return flowmap.allocate(path, **SHAPE).id


def _overwrite(path: str) -> Any:
    shape = SHAPE | {"shape": ROWS // 2, "segments": 2}
    return flowmap.allocate(path, **shape, exist="overwrite", reserve=False).id


def _fill(path: str) -> Any:
    return len(flowmap.fill(path, noted, {"log": log_of(path)}, executor="threads", workers=2))


def _map(path: str) -> None:
    for segment in flowmap.open_target(path).pending():
        note(log_of(path), segment.start)
        with flowmap.open_segment(segment) as out:
            out[...] = np.sqrt(np.arange(segment.start, segment.stop, dtype=float))
            out.flush()


def _validate(path: str) -> Any:
    report = flowmap.validate(path)
    return {"ok": report.ok, "sealed": report.sealed, "told": [*report.problems, *report.notes]}


def _fill_by_workers(path: str) -> Any:
    with flowmap.executor("processes", workers=2) as pool:
        pids = [each.result() for each in [pool.submit(os.getpid) for _ in range(2)]]
        Path(path).with_name("pids").write_text(json.dumps(pids))
        os.kill(os.getpid(), signal.SIGSTOP)
        return len(flowmap.fill(path, noted, {"log": log_of(path)}, executor=pool))


SCENARIOS: dict[str, Callable[[str], Any]] = {
    "allocate": _allocate,
    "overwrite": _overwrite,
    "fill": _fill,
    "map": _map,
    "validate": _validate,
    "workers": _fill_by_workers,
}
"""What a child can be asked to do with a target."""


@dataclass
class Told:
    """How a child ended.

    Attributes:
        status: As `os.waitstatus_to_exitcode` gives it.
        result: What the scenario returned.
        error: What it raised, as `_describe` puts it.
        seen: What strace saw, by thread.
    """

    status: int
    result: Any
    error: dict[str, Any] | None
    seen: dict[int, list[str]]

    @property
    def injected(self) -> int:
        """How often a fault was injected that the child outlived."""
        return sum("(INJECTED)" in line for lines in self.seen.values() for line in lines)

    def calls(self) -> Counter[str]:
        """Return how often each call was made, by the thread that made most of it."""
        most: Counter[str] = Counter()
        for lines in self.seen.values():
            most |= Counter(line.split("(")[0] for line in lines if re.match(r"\w+\(", line))
        return most


class Zygote:
    """A warm process that forks a child for each case, stopped until strace has it."""

    def __init__(self) -> None:
        self._process = start(script("import tracing; tracing.serve()"), stdin=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(
        self,
        scenario: str,
        path: Path,
        *inject: str,
        broken: str = "none",
        pieces: int = 0,
        limit: int = 0,
        traced: bool = True,
    ) -> Told:
        """Run a scenario in a new child to its end.

        Args:
            scenario: One of `SCENARIOS`.
            path: Of the target.
            *inject: What strace is to inject: "fsync:error=EIO:when=2".
            broken: What of flowmap is broken on purpose.
            pieces: How many bytes a `pwrite` takes at most; 0 for all.
            limit: How large a file may become; 0 for no limit.
            traced: Whether strace is attached at all.
        """
        pid = self.begin(scenario, path, broken, pieces, limit)
        tracer = Tracer(path, [pid], inject) if traced else None
        os.kill(pid, signal.SIGCONT)
        return self.end(path, tracer)

    def begin(self, scenario: str, path: Path, *options: Any) -> int:
        """Have a child forked, and return its id once it has stopped."""
        assert self._process.stdin is not None
        request = [scenario, str(path), *(options or ("none", 0, 0))]
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self.stopped()

    def stopped(self) -> int:
        """Wait until the child has stopped, and return its id."""
        return int(self._line())

    def end(self, path: Path, tracer: Tracer | None) -> Told:
        """Wait for the child, and for strace."""
        status = int(self._line())
        seen = {} if tracer is None else tracer.end()
        outcome = path.with_name("outcome")
        told = json.loads(outcome.read_text() or "{}")
        return Told(status, told.get("result"), told.get("error"), seen)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.strip().removeprefix("-").isdigit(), line + self._process.stdout.read()
        return line


class Tracer:
    """strace, attached to processes that exist.

    Args:
        path: Of the target; the logs go beside it.
        pids: The processes, stopped or about to wait.
        inject: What to inject.
    """

    def __init__(self, path: Path, pids: list[int], inject: tuple[str, ...]) -> None:
        self._log = path.with_name("strace")
        self._log.mkdir(exist_ok=True)
        for old in self._log.iterdir():
            old.unlink()
        calls = ",".join(f"?{call}" for call in (*WRITES, *READS, "mmap"))
        faults = [word for each in inject for word in ("-e", f"inject={each}")]
        whom = [word for pid in pids for word in ("-p", str(pid))]
        options = ["-ff", "-y", "-s", "0", "-o", str(self._log / "of"), "-e", f"trace={calls}"]
        self._process = subprocess.Popen(
            ["strace", *options, *faults, *whom], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for _ in pids:
            line = self._process.stderr.readline()
            assert "attached" in line, line + self._process.stderr.read()

    def wait(self) -> None:
        """Wait until all that it traces have ended."""
        self._process.communicate(timeout=60)

    def end(self) -> dict[int, list[str]]:
        """Wait until then, and return what it saw, by thread."""
        if self._process.returncode is None:
            self.wait()
        return {
            int(file.suffix[1:]): file.read_text().splitlines() for file in self._log.iterdir()
        }


def unsynced(seen: Iterable[list[str]], path: Path) -> list[tuple[int, int]]:
    """Return the byte ranges of a file that a thread wrote, or mapped, and did not sync."""
    left = []
    for lines in seen:
        own: list[tuple[int, int]] = []
        for line in lines:
            if f"<{path}>" not in line:
                continue
            if wrote := re.match(r"pwrite64\(.*, (\d+)\) += (\d+)", line):
                own.append((int(wrote[1]), int(wrote[1]) + int(wrote[2])))
            elif mapped := re.match(r"mmap\(\w+, (\d+), .*PROT_WRITE.*, (\w+)\) += 0x", line):
                own.append((int(mapped[2], 0), int(mapped[2], 0) + int(mapped[1])))
            elif re.match(r"(fdatasync|fsync)\(.*\) += 0", line):
                own.clear()
        left += own
    return left


def serve() -> None:
    """Fork a child for each line of the standard input, and tell its id and its end."""
    getpass.getuser()  # what is imported late, so that no child has to
    with tempfile.TemporaryDirectory() as folder, header_lock(Path(folder)):
        pass
    for line in sys.stdin:
        scenario, path, broken, pieces, limit = json.loads(line)
        outcome = os.open(Path(path).with_name("outcome"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        child = os.fork()
        if not child:
            _be_child(scenario, path, outcome, broken, pieces, limit)
        os.close(outcome)
        for _ in range(2 if scenario == "workers" else 1):
            os.waitid(os.P_PID, child, os.WSTOPPED)
            _say(child)
        _, status = os.waitpid(child, 0)
        _say(os.waitstatus_to_exitcode(status))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _be_child(
    scenario: str, path: str, outcome: int, broken: str, pieces: int, limit: int
) -> None:
    told: dict[str, Any]
    try:
        noise = os.open(Path(path).with_name("noise"), os.O_WRONLY | os.O_CREAT)
        os.dup2(noise, 1)
        os.dup2(noise, 2)
        sabotage(broken)
        if pieces:
            _write_in_pieces(pieces)
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        os.kill(os.getpid(), signal.SIGSTOP)
        told = {"result": SCENARIOS[scenario](path)}
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the test judges it
        told = {"error": _describe(error)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    os.writev(outcome, [json.dumps(told).encode()])
    os._exit(0)


def _write_in_pieces(most: int) -> None:
    real = os.pwrite

    def short(descriptor: int, data: Any, offset: int) -> int:
        return real(descriptor, memoryview(data)[:most], offset)

    os.pwrite = short


def _describe(error: BaseException) -> dict[str, Any]:
    failures = getattr(error, "failures", {})
    return {
        "type": type(error).__name__,
        "ours": isinstance(error, FlowmapError),
        "message": str(error),
        "errno": getattr(error, "errno", None),
        "failures": [_describe(each) for each in failures.values()],
        "traceback": "".join(traceback.format_exception(error)),
    }
