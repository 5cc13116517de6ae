"""Processes that a filler starts: as they would be without flowmap, ended by their owner."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from support import run, script, start, until_gone

from flowmap import stopping

if TYPE_CHECKING:
    from pathlib import Path

PROBE = """
import ctypes, faulthandler, json, multiprocessing, os, re, signal, subprocess, sys, threading
from pathlib import Path
import flowmap

def signals_of(status):
    sets = dict(re.findall(r"^(SigBlk|SigIgn|SigCgt):\\s*(\\w+)$", status, re.MULTILINE))
    # Without 32 and 33, which glibc handles once there was a thread.
    return {name: hex(int(numbers, 16) & ~(3 << 31)) for name, numbers in sets.items()}

def look():
    handlers = {n: signal.getsignal(n) for n in signal.valid_signals()}
    death = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(death))  # PR_GET_PDEATHSIG
    return {
        "handlers": {n: getattr(h, "__name__", str(h)) for n, h in handlers.items()},
        "signals": signals_of(Path("/proc/self/status").read_text()),
        "wakeup": signal.set_wakeup_fd(-1),
        "death": death.value,
        "threads": threading.active_count(),
        "method": multiprocessing.get_start_method(),
        "daemon": multiprocessing.current_process().daemon,
        "faults": faulthandler.is_enabled(),
        "arguments": sys.argv,
        "environment": {
            name: value for name, value in os.environ.items()
            if not name.startswith("FLOWMAP_") and not name.endswith("_THREADS")
        },
    }

def children():
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(look()).encode())
        os._exit(0)
    os.wait()
    forked = json.loads(os.read(reader, 1 << 16))
    command = ["cat", "/proc/self/status"]
    executed = subprocess.run(command, capture_output=True, text=True).stdout
    return {"forked": forked, "executed": signals_of(executed)}

@flowmap.filler(volatile=("into",))
def probe(out, block, *, into):
    Path(into).write_text(json.dumps(children()))

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "plain").write_text(json.dumps(children()))
    for kind in ("segment", "share", "threads", "processes", "dask"):
        target = flowmap.allocate(folder / f"{kind}.npy", 1, "f8")
        into = {"into": str(folder / kind)}
        if kind == "segment":
            flowmap.fill_segment(target.segments[0], probe, into)
        elif kind == "share":
            flowmap.fill_share(target, "all", probe, into)
        else:
            flowmap.fill(target, probe, into, executor=kind, workers=1)
"""


def test_children_inherit_nothing_of_flowmap(tmp_path: Path) -> None:
    """Handlers, blocked signals, the wakeup descriptor, threads, environment: all as before."""
    ended = run(script(PROBE, tmp_path))
    assert ended.returncode == 0, ended.stderr
    plain = json.loads((tmp_path / "plain").read_text())
    assert plain["forked"]["handlers"][str(int(signal.SIGTERM))] == "0"  # SIG_DFL
    for kind in ("segment", "share", "threads", "processes"):
        assert json.loads((tmp_path / kind).read_text()) == plain, kind
    dask = json.loads((tmp_path / "dask").read_text())
    assert dask["executed"] == plain["executed"]
    assert not dask["forked"]["daemon"]
    for number in stopping.SIGNALS:  # SIGINT is asyncio's there
        assert dask["forked"]["handlers"][str(int(number))] == "0"


FILLER = """
import multiprocessing, os, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
import flowmap

def square(number):
    return number**2

def fill(out, block):
    method = ["fork", "spawn", "forkserver"][block.start // 4]
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        out[...] = pool.map(square, range(block.start, block.stop))
    with ProcessPoolExecutor(1, context) as pool:
        assert pool.submit(square, 3).result() == 9
    child = context.Process(target=time.sleep, args=(600,))
    child.start()
    child.terminate()
    child.join()
    assert child.exitcode == -15, child.exitcode
    program = subprocess.Popen(["sleep", "600"])
    program.terminate()
    assert program.wait() == -15

if __name__ == "__main__":
    path, kind = sys.argv[1:]
    target = flowmap.allocate(path, 12, "f8", segments=3)
    if kind == "segment":
        for segment in target.segments:
            flowmap.fill_segment(segment, fill)
    elif kind == "submitted":
        with flowmap.executor("processes", workers=1) as pool:
            pool.submit(flowmap.fill_segment, target.segments[0], fill).result()
    if target.pending():
        executor = "threads" if kind == "threads" else "processes"
        flowmap.fill(target, fill, executor=executor, workers=1)
    print(target.asarray().tolist())
"""


@pytest.mark.parametrize("kind", ["segment", "threads", "processes", "submitted"])
def test_a_filler_of_a_script_uses_multiprocessing(tmp_path: Path, kind: str) -> None:
    """Pools by each way to start processes; what is terminated ends, and nothing is left."""
    file = tmp_path / "my_script.py"
    file.write_text(textwrap.dedent(FILLER))
    command = [sys.executable, str(file), str(tmp_path / "a.npy"), kind]
    with start(command, start_new_session=True) as child:
        output, _ = child.communicate(timeout=150)
    assert child.returncode == 0, output
    assert output == f"{[float(row**2) for row in range(12)]}\n"
    assert not until_gone(child.pid)


def test_a_child_is_terminated_however_early() -> None:
    """A signal between the fork and the first line of Python is not lost, nor the parent's."""
    with stopping.stoppable():
        for _ in range(200):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                while True:
                    signal.pause()
            os.kill(child, signal.SIGTERM)
            assert os.waitpid(child, 0)[1] == signal.SIGTERM
        assert not stopping.is_asked()
