"""Memory of texts that were parsed, for what reads the same text again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

V = TypeVar("V")

_MOST: Final = 16
_MOST_BYTES: Final = 32 << 20  # the values take some five times as much memory as their texts


class ParsedTexts(Generic[V]):
    """Parses a text once, as long as its file holds the same text.

    The whole text is compared: an inode number is used again, and two versions of a file may
    have the same size and time. No lock protects the memory, since a fork could leave it
    locked; two threads may parse the same text at the same time.

    Args:
        parse: Called with the path and the text. Errors are not remembered.
    """

    def __init__(self, parse: Callable[[Path, bytes], V]) -> None:
        self._parse = parse
        self._known: dict[Path, tuple[bytes, V]] = {}

    def __call__(self, path: Path, text: bytes) -> V:
        """Return the value of the text that a file holds now."""
        known = self._known.get(path)
        if known is None or known[0] != text:
            known = text, self._parse(path, text)
            self._known.pop(path, None)
            self._known[path] = known  # at the end: the newest
            self._forget_oldest()
        return known[1]

    def _forget_oldest(self) -> None:
        """Keep the newest text, and those before it as long as there is room."""
        nbytes = 0
        for number, (path, (text, _)) in enumerate(reversed(list(self._known.items()))):
            nbytes += len(text)
            if number and (number >= _MOST or nbytes > _MOST_BYTES):
                self._known.pop(path, None)
