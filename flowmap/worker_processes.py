"""Processes that work for this one: how one starts safely, what it does, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import importlib.machinery
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker, spawn
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import cloudpickle

from flowmap import pickling, stopping
from flowmap.errors import FlowmapError, InvalidArgumentError, said, storage_error
from flowmap.parcels import loaded
from flowmap.streams import fill_closed_streams
from flowmap.tracebacks import RemoteTraceback, traceback_text
from flowmap.wording import setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from multiprocessing.connection import Connection

_SAFE_PATH: Final = "PYTHONSAFEPATH"

_LOOK_SECONDS: Final = 0.1
"""How long to wait between two looks at a worker that computes."""

_LEAVE_SECONDS: Final = 60
"""How long a worker may take to leave, with what the filler has registered for its end."""

_END_SECONDS: Final = 5
"""How long a worker may take to end whose connection is closed, before it is killed."""

_KILL_SECONDS: Final = 10
"""How long to wait for a worker that was killed: one that waits for a disk dies only later."""


def safe_path() -> dict[str, str]:
    """Return variables that keep the working directory off the path of a process that starts.

    `python -m` and `python -c`, which start workers, put it first. In a folder that others
    share, a file of theirs that is named like a library would then be imported in its place.
    """
    return {} if os.environ.get(_SAFE_PATH) else {_SAFE_PATH: "flowmap"}


def forget_safe_path() -> None:
    """Undo `safe_path` in a worker that has started: programs of a filler need their path."""
    if os.environ.get(_SAFE_PATH) == "flowmap":
        del os.environ[_SAFE_PATH]


_STARTING: Final = threading.Lock()
"""Held while the environment of this process has what is meant for one that starts."""


class WorkerGoneError(Exception):
    """The process of a worker has ended, or was ended: how."""


class WorkerNotStartedError(WorkerGoneError):
    """It could not be started, or ended before it could do anything."""


class WorkerProcess:
    """A process that calls functions for a thread of this one, one at a time.

    It is started by fork and exec: safe under threads, and the user's script is not run again
    in it. The thread that makes it also uses and ends it: Linux kills a process when the
    thread that started it ends.

    Args:
        look: Called every 0.1 s while the worker computes. It may end or signal the worker.
        limits: Variables of its environment, as `thread_limits` returns them.

    Raises:
        WorkerNotStartedError: The system starts no more processes.
        StorageError: Too many files are open, or Python is gone.
        InvalidArgumentError: It is not known which Python this is.

    Attributes:
        has: The key of the parcel that it was sent last.
        pid: Its process id.
    """

    def __init__(
        self, look: Callable[[WorkerProcess], object], limits: Mapping[str, str]
    ) -> None:
        self.has: str | None = None
        self._look = look
        self._is_ready = False
        try:
            fill_closed_streams()
            ours, theirs = multiprocessing.Pipe()
            tracker = _tracker()
            with theirs, stopping.shielded() as mask:
                self._process = subprocess.Popen(  # noqa: S603 -- Python itself
                    _command(theirs.fileno()),
                    pass_fds=(theirs.fileno(), tracker),
                    env=os.environ | limits,
                )
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOMEM):
                raise WorkerNotStartedError(error.strerror) from error
            raise storage_error(error, "cannot start a worker", sys.executable) from error
        self.pid = self._process.pid
        self._pipe = ours
        with contextlib.suppress(OSError):  # it has died already, which its first call finds
            ours.send(_path())
            ours.send(_preparation(mask, tracker))

    def call(self, name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function there; return what it returns, and raise what it raises.

        Args:
            name: Of the segment, for messages.
            fn: The function, by reference or by value, as its arguments are.
            *args: Its arguments.
            **kwargs: Likewise.

        Raises:
            WorkerGoneError: The process has ended, maybe while it started.
            FillerNotFoundError: The process cannot load the function or its arguments.
            Exception: Of the function, or of pickling.
        """
        packed = pickling.dumps((fn, args, kwargs))
        try:
            if not self._is_ready:  # before what may not fit into the pipe
                self._receive()
                self._is_ready = True
            self._pipe.send(name)
            self._pipe.send_bytes(packed)
            answer = self._receive()
        except (EOFError, OSError):
            raise self._gone() from None
        result, error, text = cloudpickle.loads(answer)
        if error is None:
            return result
        if not isinstance(error, FlowmapError):  # which brings its cause along
            error.__cause__ = RemoteTraceback(text)
        raise error

    def _receive(self) -> bytes:
        # Its end alone does not close the pipe where programs in C have forked with it.
        while not self._pipe.poll(_LOOK_SECONDS):
            self._look(self)
            if self._process.poll() is not None and not self._pipe.poll():
                raise EOFError
        return self._pipe.recv_bytes()

    def _gone(self) -> WorkerGoneError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)  # else it seems to have died of `kill`
        code = self._process.returncode
        self.kill()
        how = f"exit code {code}"
        if code is None:
            how = "it closed its connection to the run"
        elif code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        if self._is_ready:
            return WorkerGoneError(how)
        return WorkerNotStartedError(f"it printed why, and ended: {how}")

    def ask_to_stop(self) -> None:
        """Ask it to stop after the block being written."""
        self._process.terminate()

    def leave(self) -> None:
        """Let it end by itself, as a program does; kill it if it takes too long."""
        self._pipe.close()
        deadline = time.monotonic() + _LEAVE_SECONDS
        while time.monotonic() < deadline and not stopping.is_asked():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_SECONDS)
                return
            self._look(self)
        self.kill()

    def kill(self) -> None:
        """Kill it, and what its filler has started: it cannot end that any more."""
        self._pipe.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)  # it starts nothing more
            descendants = _descendants_of(self.pid)
            self._process.kill()
            for pid in descendants:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILL_SECONDS)


def _command(descriptor: int) -> list[str]:
    """Return the command of a worker: the Python of this process, with its options.

    The worker gets the path of this process by the pipe, since a command has room for little.

    Raises:
        InvalidArgumentError: It is not known which Python this is: a program embeds it.
    """
    program = (
        "import sys; from multiprocessing.connection import Connection; "
        f"pipe = Connection({descriptor}); sys.path[:] = pipe.recv(); "
        f"from flowmap.worker_processes import serve; serve(pipe, {os.getpid()})"
    )
    python = os.fsdecode(spawn.get_executable() or "")
    if not python:
        raise InvalidArgumentError(
            "Cannot start a worker process: sys.executable is empty. Name a Python by "
            f"multiprocessing.set_executable(), or use {setting(executor='threads')}."
        )
    # Private, but `multiprocessing` starts its processes with it, too: -O, -W, -X, -I ...
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return [python, *options, "-P", "-c", program]


def _path() -> list[str]:
    """Return the path on which a worker finds what this process imports."""
    here = ""
    with contextlib.suppress(FileNotFoundError):  # it was removed
        here = str(Path.cwd())
    entries: list[Any] = sys.path  # some programs add a `Path`, which Python passes over
    return [entry or here for entry in entries if isinstance(entry, str)]


def _tracker() -> int:
    """Return the descriptor of Python's process that cleans up shared memory; start it safely.

    A worker with a tracker of its own would remove the shared memory that it was given.
    """
    with _STARTING, stopping.shielded():
        variables = safe_path()
        os.environ.update(variables)
        try:
            return cast("int", resource_tracker.getfd())
        finally:
            for name in variables:
                del os.environ[name]


def _preparation(mask: Iterable[int], tracker: int) -> dict[str, Any]:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    return {
        "mask": list(mask),
        "tracker": tracker,
        "key": bytes(multiprocessing.current_process().authkey),
        "argv": sys.argv,
        "main": (spec and spec.name, file and str(Path(file).absolute())),
    }


def _prepare(
    mask: list[int], tracker: int, key: bytes, argv: list[str], main: tuple[str, str]
) -> None:
    """Make this worker what the user's program is to the filler, as far as it is asked."""
    stopping.prepare_worker(mask)
    os.set_inheritable(tracker, False)  # noqa: FBT003 -- its only way
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]  # noqa: SLF001 -- as multiprocessing does
    multiprocessing.current_process().authkey = key
    sys.argv = argv
    name, file = main  # which `multiprocessing` runs again in the processes that it spawns
    if name:
        sys.modules["__main__"].__spec__ = importlib.machinery.ModuleSpec(name, None)
    if file:
        sys.modules["__main__"].__file__ = file
    if sys.stderr is not None and not faulthandler.is_enabled():
        faulthandler.enable()
        os.register_at_fork(after_in_child=faulthandler.disable)


def serve(pipe: Connection, parent: int) -> None:
    """Answer calls until the parent closes the pipe: what a worker process does."""
    die_with(parent)
    os.set_inheritable(pipe.fileno(), False)  # noqa: FBT003 -- its only way
    os.register_at_fork(after_in_child=pipe.close)  # a child has nobody to answer
    with contextlib.suppress(EOFError, OSError):
        _prepare(**pipe.recv())
        pipe.send_bytes(b"ready")
        while not pipe.closed:
            name, packed = pipe.recv(), pipe.recv_bytes()
            pipe.send_bytes(_answer(name, packed))


def _answer(name: str, packed: bytes) -> bytes:
    """Make a call; return its result, or its error with the traceback, pickled."""
    try:
        fn, args, kwargs = loaded(packed, name)
        for value in (fn, *args, *kwargs.values()):
            pickling.lend_to_main(value)
        return pickling.dumps((fn(*args, **kwargs), None, ""))
    except BaseException as error:  # noqa: BLE001 -- the parent's to handle
        text = traceback_text(error)
        try:
            answer = pickling.dumps((None, error, text))
            cloudpickle.loads(answer)  # where the class takes other arguments, this fails
        except Exception:  # noqa: BLE001 -- whatever the class does
            answer = pickling.dumps((None, RuntimeError(said(error)), text))
        return answer


def die_with(parent: int) -> None:
    """Let this process end, from now on, when its parent has, also while a filler has the GIL.

    On Linux the kernel kills it, at the end of the *thread* that started it. Elsewhere a thread
    looks for the parent, as far as the filler lets it.
    """
    if not stopping.killed_with_parent():
        watching = threading.Thread(target=_watch, args=(parent,), daemon=True)
        watching.start()
    elif os.getppid() != parent:  # it had ended already
        os._exit(1)


def _watch(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _descendants_of(ancestor: int) -> list[int]:
    """Return the processes that a process has started, and those that these have."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's and hidden
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]  # proc(5)
            children.setdefault(int(parent), []).append(int(entry.name))
    found = [ancestor]
    for pid in found:  # which grows meanwhile
        found += children.get(pid, [])
    return found[1:]
