"""A change of a filler: what is said of the segments that its earlier source has filled."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Final

from flowmap import human
from flowmap.errors import cut, printable
from flowmap.wording import either

_MOST: Final = 50  # ranges of segments in a warning


class FillerChangedWarning(UserWarning):
    """Segments of a job were filled by an earlier source of its filler.

    Attributes:
        segments: Numbers of these segments.
    """

    def __init__(self, message: str, segments: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.segments = segments


# After the filters of the user. By default Python shows a warning once for each line, so that a
# notebook's cell that is run again after the next edit would show none.
warnings.simplefilter("always", FillerChangedWarning, append=True)


@dataclass(frozen=True, slots=True)
class Change:
    """Segments of a job that an earlier source of a filler has filled, at least in part.

    Attributes:
        filler: Name of the filler.
        segments: Numbers of the segments.
        count: How many segments the job has.
        path: Path of the target.
    """

    filler: str
    segments: tuple[int, ...]
    count: int
    path: str

    def __str__(self) -> str:
        """Return the warning."""
        return either(
            f"{self._fact()} If the edit changes values, compute these again: "
            f"flowmap.reset(path, segments) with the segments {self.numbers(', ')}, then fill; "
            'or all of them: allocate(..., exist="overwrite"). Mark a filler that computes '
            'other values by @flowmap.filler(version="2"): flowmap then refuses to mix them.',
            self.command_text(shlex.quote(self.path)),
        )

    def command_text(self, quoted_path: str) -> str:
        """Return the warning, for the command line.

        Args:
            quoted_path: Path of the target, as a shell takes it.
        """
        return (
            f"{self._fact()} If the edit changes values, compute these again: "
            f"`flowmap reset {quoted_path} {self.numbers(' ')}`, then `flowmap fill` with the "
            "same --filler and --arguments, since no edited filler is recalled; or all of "
            "them: `flowmap alloc` with --exist overwrite. Mark a filler that computes "
            'other values by @flowmap.filler(version="2"): flowmap then refuses to mix them.'
        )

    def _fact(self) -> str:
        return printable(
            f"{self.path}: {len(self.segments)} of {self.count} segments were filled by an "
            f"earlier source of the filler {cut(self.filler)}."
        )

    def numbers(self, separator: str) -> str:
        """Return the numbers of the segments as text: "0-11, 15"."""
        return human.ranges(self.segments, _MOST).replace(", ", separator)

    def document(self) -> dict[str, Any]:
        """Return JSON values that stand for it."""
        return asdict(self) | {"segments": list(self.segments)}

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> Change:
        """Return what `document` made JSON values of."""
        return cls(**document | {"segments": tuple(document["segments"])})

    def warn(self, stacklevel: int) -> None:
        """Issue the warning.

        Args:
            stacklevel: As in `warnings.warn`, for whoever calls this method.
        """
        warning = FillerChangedWarning(str(self), self.segments)
        warnings.warn(warning, stacklevel=stacklevel + 1)
