"""The work of a run on its way to workers: pickled once, sent once to each, loaded once there.

A call then has its segment alone. What a filler of a script keeps in a global stays there from
one segment to the next, as it does in a module that is imported.
"""

from __future__ import annotations

import os
import socket
import threading
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, Final

import cloudpickle
import xxhash

from flowmap import pickling
from flowmap.errors import FillerNotFoundError, said
from flowmap.importing import importing
from flowmap.wording import setting
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable


class Parcel:
    """A pickled work, which pickles as the same bytes wherever it was loaded.

    Args:
        data: The pickle.

    Attributes:
        key: Digest of the pickle.
        data: The pickle.
    """

    def __init__(self, data: bytes) -> None:
        self.key = xxhash.xxh3_128_hexdigest(data)
        self.data = data
        self._work: Work | None = None
        self._loading = threading.Lock()

    def __reduce__(self) -> tuple[type[Parcel], tuple[bytes]]:
        return Parcel, (self.data,)

    def load(self, name: str) -> Work:
        """Return the work; only the first call unpickles it.

        Args:
            name: Of the segment, for the error.

        Raises:
            FillerNotFoundError: It cannot be unpickled in this process.
        """
        with self._loading:
            if self._work is None:
                self._work = loaded(self.data, name)
            return self._work


def loaded(pickled: bytes, name: str) -> Any:
    """Unpickle what came from the process of the run.

    Raises:
        FillerNotFoundError: It cannot be unpickled in this process.
    """
    try:
        with importing():
            return cloudpickle.loads(pickled)
    except (Exception, SystemExit) as error:  # whatever a module raises when it is imported
        raise FillerNotFoundError(
            f"{name}: a worker cannot load the filler or its arguments ({said(error)}). Put "
            "them into a module that can be imported there too, or use "
            f"{setting(executor='threads')}.",
            worker=f"{socket.gethostname()}:{os.getpid()}",
        ) from error


class Packing:
    """What a pool does with the work of its calls: the last one is kept, pickled."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._work: Work | None = None
        self._parcel: Parcel | None = None

    def part(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Parcel | None]:
        """Take the work out of a call whose last argument it is.

        Returns:
            The other arguments; and the work, the same parcel for the same work: a task of
            Prefect's makes an equal one for each segment.

        Raises:
            PicklingError: The filler or one of its arguments cannot be pickled.
        """
        if not (args and isinstance(args[-1], Work)):
            return args, None
        *rest, work = args
        with self._guard:
            if work is not self._work:
                try:
                    parcel = Parcel(pickling.dumps(work))
                except Exception as error:  # whatever an argument raises
                    raise PicklingError(
                        f"{work.name} or its arguments cannot be pickled: {said(error)}"
                    ) from error
                if self._parcel is None or parcel.key != self._parcel.key:
                    self._parcel = parcel
                self._work = work
            return tuple(rest), self._parcel


_KEPT: Final[list[Work]] = []
"""In a worker process of flowmap's own: the work that it was sent last."""


def keep(parcel: Parcel, name: str) -> None:
    """Load a work in this worker process, and keep it in place of the last one."""
    _KEPT.clear()
    work = parcel.load(name)
    pickling.lend_to_main(work.function)
    _KEPT.append(work)


def call_with_kept(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function with the work that is kept here as its last argument."""
    return fn(*args, *_KEPT, **kwargs)
