"""Documents: JSON files that are there whole or not at all, each with a checksum.

Every function raises `OSError` as it comes; callers say what it means for their user.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
from typing import TYPE_CHECKING, Any, Final

import xxhash

from flowmap.kernel import again_if_stale
from flowmap.storage import CHUNK, created, opened, put_in_place, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORD: Final = 0o644
"""Records are replaced, never written in place. So no group may write to them, whatever the
umask: their owner is the user who wrote them."""

OUTPUT: Final = 0o666
"""Files that the user names. Snakemake does not replace a file that it may not write to, and
another user of the group may run it next."""

_LONGEST_JSON: Final = 1 << 28  # a job of ten million segments, no two of which are equal


@contextlib.contextmanager
def staged_json(
    path: Path, document: dict[str, Any], *, mode: int = RECORD, end: str = ""
) -> Iterator[Path]:
    """Write a document durably under a private name, for a `with` block to rename.

    Args:
        path: What the block renames it to; its folder must exist.
        document: JSON values; a checksum is added.
        mode: Its permissions, before the umask: `RECORD` or `OUTPUT`.
        end: What follows it in the file.

    Yields:
        The private name, in the same folder. It is removed if the block fails.
    """
    text = json.dumps(document | {"checksum": _checksum(document)}, indent=1) + end
    if len(text) > _LONGEST_JSON:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    private = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with created(private, mode) as descriptor:
        write_all(descriptor, text.encode(), 0)
        os.fsync(descriptor)
        yield private


@again_if_stale
def publish_json(path: Path, document: dict[str, Any], *, mode: int = RECORD) -> None:
    """Put a document at `path` durably, all of it or nothing, in place of what is there.

    Args:
        path: Where; its folder must exist.
        document: JSON values; a checksum is added.
        mode: Its permissions, before the umask: `RECORD` or `OUTPUT`.
    """
    with staged_json(path, document, mode=mode) as private:
        put_in_place(private, path, replace=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the document that `publish_json` wrote.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    return parsed_json(json_text(path))


@again_if_stale
def json_text(path: Path) -> bytes:
    """Return the text of a document, for `parsed_json`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is longer than any.
    """
    with opened(path) as descriptor:
        return read_text(descriptor)


def read_text(descriptor: int) -> bytes:
    """Like `json_text`, of a file that is open."""
    if os.fstat(descriptor).st_size > _LONGEST_JSON:
        raise ValueError("longer than any document that was written")
    return b"".join(iter(lambda: os.read(descriptor, CHUNK), b""))


def parsed_json(text: bytes) -> dict[str, Any]:
    """Return the document of a text.

    Raises:
        ValueError: It is damaged.
    """
    try:
        document = json.loads(text)
        same = document.pop("checksum") == _checksum(document)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError("not the document that was written") from error
    if not same:
        raise ValueError("its checksum does not match")
    return dict(document)


def without_nan(value: Any) -> Any:
    """Return JSON values with NaN and infinities as texts, since JSON has no such numbers.

    "NaN", "Infinity" and "-Infinity" are what Python's `float` and JavaScript's `Number` read;
    null would not tell them apart.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    return [without_nan(each) for each in value] if isinstance(value, list | tuple) else value


def _checksum(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(canonical.encode())
