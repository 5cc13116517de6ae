"""The commands that need a Prefect server, and what they say where none answers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from flowmap.diagnosis_of_own_server import go_around_proxy, hindrance
from flowmap.errors import ClusterError, FlowmapError, said

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGNS: Final = (
    "Failed to reach API",
    "ephemeral Prefect API server",
    "httpx",
    "available port",
)
"""How Prefect's errors of a server that does not answer are recognized; they have no type."""


@contextlib.contextmanager
def needing_server() -> Iterator[None]:
    """Say what to do where no Prefect server answers, for a `with` block.

    Unless the user has set it, a call to a server that is gone ends after some seconds, where
    Prefect tries for minutes; and Prefect's own server, whose first start makes a database,
    has a minute for it on a busy machine, where Prefect gives up after 20 seconds.

    Raises:
        ClusterError: None does.
    """
    from prefect import settings  # noqa: PLC0415 -- for the commands that load it anyway

    waits = {
        settings.PREFECT_CLIENT_MAX_RETRIES: 2,
        settings.PREFECT_API_REQUEST_TIMEOUT: 15,
        settings.PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 60,
    }
    go_around_proxy()
    if (found := hindrance()) is not None:
        raise ClusterError(f"No Prefect server can start here. {found.found} {found.remedy}")
    try:
        with settings.temporary_settings(set_defaults=waits):
            yield
    except FlowmapError:
        raise
    except Exception as error:
        if not any(sign in f"{type(error).__module__} {error}" for sign in _SIGNS):
            raise
        _raise_stop(error)
        raise ClusterError(
            f"No Prefect server answers: {said(error).rstrip('.')}. `flowmap doctor` looks for "
            "the cause, and says how to start one. What was filled is kept; `flowmap fill` "
            "needs no server."
        ) from error


def _raise_stop(error: BaseException | None) -> None:
    """Raise the request to stop during whose report to the server an error came, if any."""
    while error is not None:
        if isinstance(error, SystemExit):
            raise error
        error = error.__context__
