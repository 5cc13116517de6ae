"""Runs that are killed, stopped and starved on purpose: what a child of the whole jobs does.

`python -c "import battered; battered.serve()"` is a server with everything imported: for each
line of JSON on its standard input it forks a run, tells its process id and then how it ended.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sabotage import sabotage
from support import oracle, script, start

import flowmap
from flowmap.errors import FlowmapError
from flowmap.stopping import prepare_worker
from flowmap.worker_processes import die_with

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from flowmap.job import Job
    from flowmap.segments import Block

REFUSED = 3
"""What a run exits with that ended by an error of flowmap's."""

CALLS = ("open", "pwrite", "pread", "fdatasync", "fsync", "rename", "unlink")

_whole = functools.cache(oracle)


@flowmap.filler(volatile=("log", "trap"))
def patterned(
    out: NDArray[Any],
    block: Block,
    *,
    shape: list[int],
    seed: int,
    log: str = "",
    trap: dict[str, Any] | None = None,
) -> None:
    """Fill the rows of the oracle; note the block, and step into the trap, if it is there."""
    if log:
        with Path(log).open("a") as file:
            file.write(f"{block.start} {block.stop}\n")
    if trap and block.start <= trap["row"] < block.stop:
        step_into(trap)
    whole = _whole(tuple(shape), out.dtype, seed)
    rows = slice(block.start, block.stop)
    out[...] = whole[(..., rows) if block.axis else rows] if shape else whole


TRAPS: dict[str, Callable[[int], object]] = {
    "kill -9 of the run": lambda run: os.kill(run, signal.SIGKILL),
    "kill -9 of the run and its workers": lambda run: os.killpg(run, signal.SIGKILL),
    "kill -9 of a worker": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda run: os.kill(run, signal.SIGTERM),
    "SIGINT": lambda run: os.killpg(run, signal.SIGINT),
    "SIGSTOP": lambda run: os.kill(run, signal.SIGSTOP),
    "a filler that raises": lambda run: divmod(run, 0),
}
"""What a filler does at a row, once, with the id of the process of the run."""


def step_into(trap: dict[str, Any]) -> None:
    """Spring a trap, the first time."""
    try:
        Path(trap["sprung"]).touch(exist_ok=False)
    except FileExistsError:
        return
    TRAPS[trap["what"]](trap["run"])
    # A worker does not stand still, nor does a thread at once.
    while trap["what"] == "SIGSTOP" and not Path(trap["on"]).exists():
        time.sleep(0.01)


def killed_at(nth: int, sprung: Path) -> None:
    """Have this process killed at the n-th call of the operating system."""
    left = nth

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.close(open_file(sprung, os.O_CREAT | os.O_WRONLY))
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    open_file = os.open
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def _prepare(parent: int) -> None:
    """Do in a worker of a pool of one's own what flowmap does in its own."""
    prepare_worker(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    die_with(parent)


def pool_of(name: str) -> Executor | Any:
    """Return what `fill` takes as executor."""
    if name == "a pool of threads":
        return ThreadPoolExecutor(2)
    if name == "a pool of processes":
        context, parent = multiprocessing.get_context("fork"), (os.getpid(),)
        pool = ProcessPoolExecutor(2, context, _prepare, parent)
        pool.submit(int).result()  # forked now, before there are threads
        return pool
    return name


def run(spec: dict[str, Any]) -> None:
    """Run a job as it is specified."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sabotage(spec["sabotage"])
    arguments = spec["arguments"]
    if (trap := arguments.get("trap")) is not None:
        trap["run"] = os.getpid()
    if spec["flow"]:
        os.environ["PREFECT_API_URL"] = spec["flow"]
        flowmap.fill_array(
            **spec["job"],
            filler="battered:patterned",
            arguments=arguments,
            executor=spec["executor"],
            workers=2,
        )
        return
    executor = pool_of(spec["executor"])
    named = isinstance(executor, str)
    if spec["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (spec["limit"], resource.RLIM_INFINITY))
    if spec["call"]:
        killed_at(spec["call"], Path(spec["sprung"]))
    workers = 2 if named else None
    try:
        flowmap.fill(spec["path"], patterned, arguments, executor=executor, workers=workers)
    finally:
        if not named:
            executor.shutdown()


def serve() -> None:
    """Fork a run for each line, and tell how it ended."""
    for line in sys.stdin:
        spec = json.loads(line)
        child = os.fork()
        if not child:
            _exit_from(spec)
        tell(child)
        tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _exit_from(spec: dict[str, Any]) -> None:
    with Path(spec["output"]).open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        run(spec)
        code = 0
    except FlowmapError:
        traceback.print_exc()
        code = REFUSED
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001 -- told by the exit code
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def tell(number: int) -> None:
    """Write a line."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def expected(job: Job, seed: int) -> NDArray[Any]:
    """Return what a job that is filled by `patterned` holds in the end."""
    dtype: np.dtype[Any] = job.layout.dtype
    return oracle(job.layout.shape, dtype, seed)


class Runs:
    """A server that forks runs."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        command = script("import battered; battered.serve()")
        self._server = start(command, stdin=subprocess.PIPE, bufsize=1)
        self.groups: list[int] = []
        self._running = False
        self._said = b""

    def begin(self, spec: dict[str, Any]) -> int:
        """Start a run; return the id of its process, which leads a group."""
        assert self._server.stdin is not None
        self.output.unlink(missing_ok=True)
        self._server.stdin.write(json.dumps(spec | {"output": str(self.output)}) + "\n")
        self.groups.append(self._number())
        self._running = True
        return self.groups[-1]

    def has_ended(self) -> bool:
        """Return whether the run has ended, after a moment."""
        return b"\n" in self._said or bool(select.select([self._pipe], [], [], 0.005)[0])

    def code(self) -> int:
        """Wait for the end of the run; return how it ended."""
        code = self._number()
        self._running = False
        return code

    @property
    def _pipe(self) -> int:
        assert self._server.stdout is not None
        return self._server.stdout.fileno()

    def _number(self) -> int:
        """Return the next line; of a run that ends at once two come together."""
        while b"\n" not in self._said:
            more = os.read(self._pipe, 1000)
            assert more, "the server of runs is gone"
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return int(line)

    def close(self) -> None:
        """End the server, and the run that a test which failed has left."""
        if self._running:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.groups[-1], signal.SIGKILL)
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        assert self._server.stdout is not None
        self._server.stdout.close()
