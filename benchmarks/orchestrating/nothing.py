"""A filler that does nothing: in a module of its own, so that workers import little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flowmap

if TYPE_CHECKING:
    from numpy.typing import NDArray


@flowmap.filler
def nothing(out: NDArray[Any], block: flowmap.Block) -> None:
    """Leave the zeros that are there."""
