"""A contestant of the case `validate`: reading and hashing all bytes, in two threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

import flowmap
from benchmarks.clock import arguments, say, seconds
from benchmarks.filling.with_flowmap import sqrt
from benchmarks.filling.work import WORKERS

if TYPE_CHECKING:
    from flowmap import Segment, Target

GIB: Final = 1 << 30
CHUNK: Final = 1 << 20


def read_and_hash(target: Target) -> list[str]:
    """Return the digest of each segment, as flowmap records them."""
    descriptor = os.open(target.path, os.O_RDONLY)
    begin = target.path.stat().st_size - 8 * target.shape[0]

    def one(segment: Segment) -> str:
        digest = xxhash.xxh3_128()
        buffer = np.empty(CHUNK, np.uint8)
        stop = begin + 8 * segment.stop
        for offset in range(begin + 8 * segment.start, stop, CHUNK):
            count = os.preadv(descriptor, [buffer.data[: stop - offset]], offset)
            digest.update(buffer.data[:count])
        return digest.hexdigest()

    with ThreadPoolExecutor(WORKERS) as threads:
        digests = list(threads.map(one, target.segments))
    os.close(descriptor)
    return digests


def main() -> None:
    """Play the contestant that the command line names."""
    asked = arguments()
    rows = int(2 * asked.scale * GIB) // 8
    target = flowmap.allocate(asked.folder / "array.npy", rows, "<f8")
    flowmap.fill(target, sqrt, workers=WORKERS)

    def validate() -> None:
        assert flowmap.validate(target).ok

    def read() -> None:
        assert read_and_hash(target) == list(target.status()["digest"])

    work = {"flowmap": validate, "bare": read}[asked.contestant]
    work()  # brings all of the file into the page cache
    took = seconds(work)
    say(seconds=took, rate=rows * 8 / GIB / took)


if __name__ == "__main__":
    main()
