"""Opening a Dask cluster where there is none: no wait is endless, and the error says why."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from distributed.core import Server
from distributed.deploy.subprocess import SubprocessWorker
from support import environment

import flowmap
from flowmap import dask_connection
from flowmap.clusters import Dask
from flowmap.errors import ClusterError, StoppedError
from flowmap.executors import width
from flowmap.lease import holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Place = contextlib.AbstractContextManager[int]


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Let connections in, and say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def dropping() -> Iterator[int]:
    """Drop what arrives, as a firewall does: no more connections can wait here."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as server,
        socket.create_connection(server.getsockname()),
    ):
        yield server.getsockname()[1]


@contextlib.contextmanager
def closed() -> Iterator[int]:
    """Keep a port at which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """Answer each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as one, contextlib.suppress(OSError):
                        answer(one)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def hanging_up() -> Place:
    """Close each connection at once."""
    return serving(lambda _: None)


def something_else() -> Place:
    """Greet as another kind of server does."""
    return serving(lambda one: one.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n"))


def web() -> Place:
    """Answer requests of HTTP, and wait for the rest of anything else."""

    def answer(one: socket.socket) -> None:
        while heard := one.recv(4096):
            if heard.endswith(b"\r\n\r\n"):
                one.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                return

    return serving(answer)


@contextlib.contextmanager
def other_of_dask() -> Iterator[int]:
    """Serve as each process of Dask does, but not as a scheduler."""
    ready, left = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    ports: list[int] = []

    async def serve() -> None:
        async with Server({}) as server:
            await server.listen("tcp://127.0.0.1:0")
            ports.append(server.port)
            ready.set()
            await left.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(left.set)
        thread.join()
        loop.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test take half a minute."""
    limits = {"OPEN_SECONDS": 0.5, "PROBE_SECONDS": 1.5, "_HEAR_SECONDS": 0.3}
    for name, seconds in limits.items():
        monkeypatch.setattr(dask_connection, name, seconds)
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # Tornado leaves the socket of a connection that it gave up to this


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("place", "scheme", "said"),
    [
        (web, "tcp", r"an HTTP server answers\. .*dashboard\? The scheduler's .* 8786\."),
        (silent, "tcp", "something takes the connection, .* 8786; .*: no answer within"),
        (silent, "ws", "something takes the connection"),
        (hanging_up, "tcp", "something takes the connection, but .*where it uses TLS"),
        (dropping, "tcp", "the host does not answer.*firewall"),
        (closed, "tcp", "nothing listens there.*dask scheduler.*executor='processes'"),
        (something_else, "tcp", r"not Dask but b'SSH-2\.0-OpenSSH"),
        (other_of_dask, "tcp", r"not as a scheduler .*not of a worker, and install distr"),
        (other_of_dask, "tls", r"without TLS.*tcp://"),
    ],
)
def test_what_is_no_scheduler(place: Callable[[], Place], scheme: str, said: str) -> None:
    """The run ends soon, and the error says what answers there and what to do."""
    with place() as port:
        address = f"{scheme}://127.0.0.1:{port}"
        with pytest.raises(ClusterError, match=f"no Dask cluster at {address}: .*{said}"):
            Dask(0, address)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tcp://no-such-host.invalid:8786", r"no host of that name .*Correct the name\."),
        ("tcp://127.0.0.1", "that is no address.*tcp://host:8786.*missing port"),
        ("tcp://127.0.0.1:x", "that is no address"),
        ("tcp://127.0.0.1:70000", "that is no address"),
    ],
)
def test_what_is_no_address(address: str, said: str) -> None:
    """What is wrong with it is said."""
    with pytest.raises(ClusterError, match=said):
        width(address, None)


def test_a_scheduler_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses what it does not know, with whatever error, which is one of the cluster."""

    async def refuse(*_: object, **__: object) -> None:
        raise TypeError("identity() got an unexpected keyword argument")

    monkeypatch.setattr("distributed.Client._update_scheduler_info", refuse)
    with (
        other_of_dask() as port,
        pytest.raises(ClusterError, match=r"not as a scheduler of this version .*unexpected"),
    ):
        Dask(0, f"tcp://127.0.0.1:{port}")


CONNECTING = """
import sys
import flowmap
flowmap.fill(sys.argv[1], "arange", executor=sys.argv[2])
"""


def test_a_signal_ends_the_wait_for_a_scheduler(tmp_path: Path) -> None:
    """The run exits with 75 at once, and leaves no lease."""
    target = flowmap.allocate(tmp_path / "a.npy", 8, "f8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        child = subprocess.Popen(
            [sys.executable, "-c", CONNECTING, target.path, address],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        with server.accept()[0]:
            child.terminate()
            _, errors = child.communicate(timeout=20)  # shorter than the wait is
    assert child.returncode == os.EX_TEMPFAIL, errors
    assert "Stopped by a signal" in errors
    assert holder(target.job) is None


def test_an_own_cluster_whose_workers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for them."""

    async def start(self: Any) -> None:
        code = "raise SystemExit(3)"
        self.process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)

    monkeypatch.setattr(SubprocessWorker, "_start", start)
    with pytest.raises(ClusterError, match=r"did not start: .* worker ended with 3 "):
        Dask(2)


def test_a_signal_ends_the_start_of_an_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What had started is ended."""
    started: list[Any] = []

    async def start(self: Any) -> None:
        self.process = await asyncio.create_subprocess_exec("sleep", "600")
        started.append(self.process)
        monkeypatch.setattr("flowmap.stopping._ASKED", [signal.SIGTERM])

    monkeypatch.setattr(SubprocessWorker, "_start", start)
    with pytest.raises(StoppedError):
        Dask(1)
    assert started[0].returncode == -signal.SIGKILL
