"""Worker processes where the system allows few, hides others, or runs this one as a daemon."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import pytest
from support import environment, ramp, script, states, until_gone

import flowmap
from flowmap import machine
from flowmap.errors import InvalidArgumentError, StorageError, WorkerDiedError
from flowmap.starting import _pids_max
from flowmap.workers import Processes

if TYPE_CHECKING:
    from pathlib import Path

    from flowmap.target import Target

USER = 100_000 + os.getpid()
"""A user with no other processes: the system counts processes by user."""

AS_USER = [
    "setpriv",
    f"--reuid={USER}",
    f"--regid={USER}",
    "--clear-groups",
    # Python itself may lie in a folder that only root may enter.
    *(
        f"--{caps}=-all,+dac_read_search"
        for caps in ("bounding-set", "inh-caps", "ambient-caps")
    ),
]
"""Begins a command of a user whom the limits on processes bind, unlike root."""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Allocate a job of eight segments."""
    return flowmap.allocate(tmp_path / "a.npy", 16, "f8", segments=8)


def ended(command: list[str], **variables: str) -> str:
    """Return what a program prints, which leaves no process behind."""
    with subprocess.Popen(
        command,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            output, _ = child.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    assert child.returncode == 0, output
    assert not until_gone(child.pid)
    return output


LIMITED = """
import os, resource, sys
import flowmap
import flowmap.workers
from support import ramp, states

flowmap.workers._AGAIN_SECONDS = 0.01
path, kind, workers = sys.argv[1], sys.argv[2], 4
_, hard = resource.getrlimit(resource.RLIMIT_NPROC)
for most in [*range(1, 15), 200]:
    resource.setrlimit(resource.RLIMIT_NPROC, (most, hard))
    target = flowmap.allocate(path, 16, "f8", segments=8, exist="overwrite")
    try:
        flowmap.fill(target, ramp, executor=kind, workers=workers)
    except flowmap.FlowmapError as error:
        print(most, "refused", str(error).replace("\\n", " "))
    else:
        print(most, "filled", states(target))
"""


@pytest.mark.system("setpriv", packages="util-linux", root=True)
@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_few_processes(tmp_path: Path, kind: str) -> None:
    """With each number that is too low (`ulimit -u`), the error names it, and nothing hangs."""
    folder = tmp_path / "own"
    folder.mkdir()
    os.chown(folder, USER, USER)
    tmp_path.chmod(0o755)
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    output = ended([*AS_USER, *script(LIMITED, folder / "a.npy", kind)], **variables)
    told = re.findall(r"^(\d+) (refused|filled) (.*)$", output, re.MULTILINE)
    assert [int(most) for most, _, _ in told] == [*range(1, 15), 200], output
    assert told[0][1] == "refused"
    assert told[-1][1] == "filled"
    for most, what, text in told:
        if what == "refused":
            assert f"The system allows {most} processes and threads for this user" in text
            assert "smaller workers" in text
        else:
            assert text == str(["done"] * 8)


def test_limit_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a container or a batch job is found, in both versions of control groups."""
    groups = tmp_path / "cgroup"
    monkeypatch.setattr(machine, "_CGROUPS_OF_PROCESS", groups)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "root")
    for controllers, line in (("", "0::/job/step"), ("pids", "8:pids:/job/step")):
        folder = tmp_path / "root" / controllers / "job"
        (folder / "step").mkdir(parents=True)
        groups.write_text(f"9:cpu:/job\n{line}\n")
        (folder / "step" / "pids.max").write_text("max\n")
        assert _pids_max() is None
        (folder / "pids.max").write_text("20\n")
        assert _pids_max() == 20
        (folder / "pids.max").unlink()


def test_too_many_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another limit is told by its own name."""

    def refuse(*_: object, **_options: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(StorageError, match=os.strerror(errno.EMFILE)) as caught:
        Processes(1)
    assert caught.value.errno == errno.EMFILE


HIDDEN = """
import os, time
import flowmap
with open("/proc/mounts") as mounts:
    assert "hidepid" in mounts.read()
try:
    with flowmap.executor("processes", workers=2) as pool:
        print(pool.submit(os.getpid).result())
        pool.submit(time.sleep, 600)
        raise LookupError
except LookupError:
    print("ended")
"""


@pytest.mark.system("setpriv", "unshare", packages="util-linux", root=True)
def test_processes_of_others_are_hidden() -> None:
    """Workers end where /proc hides those of other users, whatever libraries make of that."""
    line = 'mount -t proc -o hidepid=1 none /proc || exit 9; exec "$@"'
    mounted = ["unshare", "--mount", "sh", "-c", line, "sh"]
    if subprocess.run([*mounted, "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("cannot mount; needs docker run --privileged")
    output = ended([*mounted, *AS_USER, *script(HIDDEN)], PYTHONDONTWRITEBYTECODE="1")
    assert re.fullmatch(r"\d+\nended\n", output)


FILL = """
import sys
import flowmap
flowmap.fill(sys.argv[1], "arange", workers=2)
"""


@pytest.mark.system("unshare", packages="util-linux", root=True)
def test_a_read_only_shared_memory(target: Target) -> None:
    """As containers have it: workers need none."""
    line = 'mount -t tmpfs -o ro none /dev/shm || exit 9; exec "$0" "$@"'
    child = subprocess.run(
        ["unshare", "--mount", "sh", "-c", line, *script(FILL, target.path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if child.returncode == 9:
        pytest.skip("cannot mount; needs docker run --privileged")
    assert child.returncode == 0, child.stderr
    assert states(target) == ["done"] * 8


def test_a_daemonic_process(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's workers and those of a DataLoader may fill, too: workers end with them."""
    current: Any = multiprocessing.current_process()
    monkeypatch.setitem(current._config, "daemon", 1)
    flowmap.fill(target, ramp, executor="processes", workers=2)
    assert states(target) == ["done"] * 8


def forking(*, then_die: bool) -> int:
    """Start a process that does nothing; return its number, or die."""
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    if then_die:
        os.write(1, f"forked {child}\n".encode())
        os._exit(9)
    return child


def is_running(pid: int) -> bool:
    """Return whether a process runs, after a while in which it may end."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def test_a_death_is_noticed_whoever_outlives_it(capfd: pytest.CaptureFixture[str]) -> None:
    """A process that the worker has forked keeps what it inherits, and hides no death."""
    pool = Processes(1, tries=1)
    try:
        with pytest.raises(WorkerDiedError, match="exit code 9"):
            pool.submit(forking, then_die=True).result(timeout=60)
        assert pool.submit(abs, -1).result(timeout=60) == 1
    finally:
        pool.end()
        os.kill(int(capfd.readouterr().out.split()[1]), signal.SIGKILL)


def test_what_a_filler_has_started_ends_with_its_worker() -> None:
    """A worker that is killed cannot end it any more."""
    pool = Processes(1)
    child = pool.submit(forking, then_die=False).result(timeout=60)
    pool.end()
    assert not is_running(child)


def test_a_worker_that_closes_its_connection() -> None:
    """It is not reported as killed: nobody but the run itself would have done that."""
    pool = Processes(1, tries=1)
    try:
        with pytest.raises(WorkerDiedError, match="exit code 0"):
            pool.submit(os.closerange, 3, 1000).result(timeout=60)
    finally:
        pool.end()


def test_whoever_waits_for_what_is_cancelled_sees_its_end() -> None:
    """`concurrent.futures.wait` waits for more than the state of a future."""
    pool = Processes(1)
    futures = [pool.submit(time.sleep, 600), pool.submit(abs, -1)]
    waiting = ThreadPoolExecutor(1)
    ended = waiting.submit(wait, futures, 60)
    time.sleep(0.1)
    pool.end()
    assert not ended.result().not_done
    waiting.shutdown()


WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [Path("/nowhere"), *(f"/nowhere/{number:0200}" for number in range(1000))]
import flowmap

def seen():
    flags = sys.flags
    path = [entry for entry in sys.path if isinstance(entry, str)]
    return sys.warnoptions, flags.optimize, flags.utf8_mode, flags.no_user_site, path

with flowmap.executor("processes", workers=1) as pool:
    assert pool.submit(seen).result() == seen()
"""


def test_a_worker_has_the_options_and_the_path_of_the_program() -> None:
    """The same warnings, assertions and encoding; a path may be longer than a command."""
    python, *rest = script(WORKER)
    ended([python, "-W", "error", "-O", "-X", "utf8", "-s", *rest], PYTHONUTF8="0")


EARLY = """
import os, signal, sys
import flowmap
signal.signal(signal.SIGINT, lambda *_: None)
with flowmap.executor("processes", workers=1) as pool:
    first = pool._seats[0].worker.pid
    os.killpg(0, signal.SIGINT)  # as a terminal does
    assert pool.submit(os.getpid).result() == first
"""


def test_ctrl_c_while_a_worker_starts() -> None:
    """It is the program's own: the worker neither ends nor prints a traceback."""
    assert not ended(script(EARLY))


def test_a_python_that_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no program that could be started; `multiprocessing` can be told one."""
    python = sys.executable
    try:
        multiprocessing.set_executable("")
        with pytest.raises(InvalidArgumentError, match="set_executable"):
            Processes(1)
        multiprocessing.set_executable(python)
        monkeypatch.setattr(sys, "executable", "")
        with flowmap.executor("processes", workers=1) as pool:
            assert pool.submit(abs, -1).result(timeout=60) == 1
    finally:
        multiprocessing.set_executable(python)


NO_THREADS = """
import resource, sys
import flowmap
from flowmap.dask_connection import Connection
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for act in (
    lambda: flowmap.validate(sys.argv[1]),
    lambda: flowmap.validate(sys.argv[1], check=lambda values, block: None),
    lambda: Connection(1, None),
):
    try:
        act()
    except flowmap.InvalidArgumentError as error:
        print(error)
"""


@pytest.mark.system("setpriv", packages="util-linux", root=True)
def test_no_thread_to_read_or_to_connect(target: Target) -> None:
    """Validating a target and opening a Dask cluster name the limit, too."""
    flowmap.fill(target, ramp, executor="threads", workers=1)
    for folder in target.path.parents[:2]:
        folder.chmod(0o755)
    output = ended([*AS_USER, *script(NO_THREADS, target.path)], OPENBLAS_NUM_THREADS="1")
    assert output.count("Cannot start a thread") == 3, output
    assert output.count("The system allows 1 processes and threads") == 3
    assert output.count("Validate elsewhere") == 2
