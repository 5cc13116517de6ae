"""A connection to a Dask cluster, in an event loop of its own.

Every request has a time limit. Dask itself waits forever for the greeting of a server that is
not a Dask scheduler. While the cluster is opened, a signal that asks to stop ends the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from concurrent.futures import wait as _wait
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flowmap.errors import ClusterError, InvalidArgumentError, StoppedError, said
from flowmap.extras import extra
from flowmap.local_cluster import SHIELDED, local_cluster, processes_inherit
from flowmap.starting import start
from flowmap.stopping import refuse_if_asked
from flowmap.wording import setting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

T = TypeVar("T")

OPEN_SECONDS: Final = 25
"""Time limit for connecting to a cluster that runs."""

PROBE_SECONDS: Final = 5
"""Time limit for finding out, after a failure, what listens at the address: 30 s in all."""

START_SECONDS: Final = 120
"""Time limit for starting a cluster of this machine, which may be under load."""

CLOSE_SECONDS: Final = 10
"""Time limit for each step of leaving a cluster."""

_LOOK_SECONDS: Final = 0.1
_HEAR_SECONDS: Final = 1

_GREETING: Final = b"pickle-protocol"
"""Part of what every Dask process sends first to each client."""


class Connection:
    """A connection to a Dask cluster.

    Args:
        workers: Number of workers of a cluster of this machine, if `address` is None.
        address: Address of the scheduler of a cluster that runs.

    Attributes:
        client: Dask's client.
        threads: Number of threads of each worker, by the worker's address.

    Raises:
        MissingExtraError: Dask is not installed.
        ClusterError: There is no such cluster.
        InvalidArgumentError: The system allows no more threads.
        StoppedError: The process was asked to stop.
    """

    def __init__(self, workers: int, address: str | None) -> None:
        self.client: Any = None
        self._cluster: Any = None
        self._distributed = extra("distributed", "dask")
        self._loop = asyncio.new_event_loop()
        self._left = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="flowmap-dask", daemon=True)
        try:
            start(self._thread)
        except InvalidArgumentError:
            self._loop.close()
            raise
        with contextlib.ExitStack() as closing:
            closing.callback(self.close)
            seconds = OPEN_SECONDS if address else START_SECONDS
            try:
                self.threads: dict[str, int] = self.ask(
                    lambda: self._opened(workers, address), seconds, check=refuse_if_asked
                )
            except StoppedError:
                raise
            except Exception as error:
                raise self._fault(address, error) from error
            closing.pop_all()

    def _run(self) -> None:
        # The processes of an own cluster inherit this, since this thread starts them.
        signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._left.wait())

    async def _opened(self, workers: int, address: str | None) -> Any:
        if address is None:
            self._cluster = local_cluster(workers)
            with processes_inherit(workers):
                await self._cluster
        self.client = self._distributed.Client(
            address or self._cluster, asynchronous=True, set_as_default=False
        )
        await self.client
        while len(threads := await self.client.nthreads()) < workers:
            for worker in self._cluster.workers.values():
                if (code := worker.process.returncode) is not None:
                    raise RuntimeError(f"a worker ended with {code} when it started")
            await asyncio.sleep(_LOOK_SECONDS)
        return threads

    def begin(self, request: Callable[[], Awaitable[T]]) -> Future[T]:
        """Begin a request in the event loop.

        Raises:
            ConnectionError: The connection is closed.
        """
        if self._loop.is_closed():
            raise ConnectionError("the connection to the Dask cluster is closed")

        async def awaited() -> T:
            return await request()

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop)

    def ask(
        self,
        request: Callable[[], Awaitable[T]],
        seconds: float,
        check: Callable[[], object] = bool,
    ) -> T:
        """Return the answer to a request.

        Args:
            request: Called in the event loop.
            seconds: Time limit.
            check: Called every now and then; its exception ends the wait.

        Raises:
            TimeoutError: There is no answer in time.
        """
        answer = self.begin(request)
        end = time.monotonic() + seconds
        try:
            while not _wait([answer], _LOOK_SECONDS).done:
                check()
                if time.monotonic() > end:
                    raise TimeoutError(f"no answer within {seconds} s")
        finally:
            answer.cancel()
        return answer.result()

    def close(self) -> None:
        """Leave the cluster; end it if it is of this machine."""
        if not self._thread.is_alive():
            return
        for part in (self.client, self._cluster):
            if part is not None:
                with contextlib.suppress(Exception):  # the scheduler does not answer
                    self.ask(part.close, CLOSE_SECONDS)
        # The end of its thread kills the processes of an own cluster that did not end.
        self._loop.call_soon_threadsafe(self._left.set)
        self._thread.join(CLOSE_SECONDS)

    def _fault(self, address: str | None, error: Exception) -> ClusterError:
        """Return the error that says why there is no cluster, and what to do."""
        reason = said(error).rstrip(".")
        if address is None:
            return ClusterError(
                f"The Dask cluster of this machine did not start: {reason}. Look what `dask "
                f"scheduler` and `dask worker` print, or use {setting(executor='processes')}."
            )
        found = self._found(address)
        return ClusterError(
            f"There is no Dask cluster at {address}: {found}. Dask says: {reason}."
        )

    def _found(self, address: str) -> str:
        """Say what is at an address instead of a scheduler, and what to do."""
        try:
            host, port = self._distributed.comm.get_address_host_port(address)
            heard = self.ask(lambda: _heard(host, port), PROBE_SECONDS, check=refuse_if_asked)
        except StoppedError:
            raise
        except ConnectionRefusedError:
            start = "Start one with `dask scheduler` and `dask worker`"
            found = f"nothing listens there. {start}, or use {setting(executor='processes')}"
        except socket.gaierror as unknown:
            found = f"there is no host of that name ({unknown.strerror}). Correct the name"
        except OSError:
            found = "the host does not answer. Look whether a firewall drops the packets"
        except Exception:  # noqa: BLE001 -- whatever Dask says of an address that is none
            found = "that is no address. Write it as tcp://host:8786"
        else:
            version = self._distributed.__version__
            found = _sender_of(heard, version, tls=address.startswith("tls://"))
        return found


def _sender_of(heard: bytes, version: str, *, tls: bool) -> str:
    """Say what sent something, or nothing, and what to do."""
    usual = "The scheduler's port is usually 8786"
    if heard.startswith(b"HTTP/"):
        return f"an HTTP server answers. Is it the port of the dashboard? {usual}"
    if _GREETING in heard and tls:
        return "a Dask process answers without TLS. Write the address with tcp://"
    if _GREETING in heard:
        return (
            "a Dask process answers, but not as a scheduler of this version does. Give the "
            "address of the scheduler, not of a worker, and install distributed "
            f"{version} there too"
        )
    if heard:
        return f"what answers is not Dask but {heard[:40]!r}. {usual}"
    return (
        f"something takes the connection, but does not speak as Dask does. {usual}; where it "
        "uses TLS, write tls://, and name the certificates in Dask's configuration"
    )


async def _heard(host: str, port: int) -> bytes:
    """Return what a server says first, or what it answers to a request of HTTP."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for request in (b"", b"GET / HTTP/1.0\r\n\r\n"):
            writer.write(request)
            with contextlib.suppress(TimeoutError, ConnectionError):
                if heard := await asyncio.wait_for(reader.read(4096), _HEAR_SECONDS):
                    return heard
    finally:
        writer.close()
    return b""
