"""The commands that need a Prefect server, and what they say where none answers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from flowmap.errors import ClusterError, FlowmapError, said

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGNS: Final = ("Failed to reach API", "ephemeral Prefect API server", "httpx")
"""How Prefect's errors of a server that does not answer are recognized; they have no type."""


@contextlib.contextmanager
def needing_server() -> Iterator[None]:
    """Say what to do where no Prefect server answers, for a `with` block.

    Raises:
        ClusterError: None does.
    """
    try:
        yield
    except FlowmapError:
        raise
    except Exception as error:
        if not any(sign in f"{type(error).__module__} {error}" for sign in _SIGNS):
            raise
        raise ClusterError(
            f"No Prefect server answers: {said(error).rstrip('.')}. `flowmap doctor` looks for "
            "the cause, and says how to start one. `flowmap alloc` and `flowmap fill` need no "
            "server."
        ) from error
