"""An attempt at a segment through a mapping of its bytes, which others store into."""

from __future__ import annotations

import contextlib
import errno
import mmap
from typing import Any

import numpy as np

from flowmap.attempt import Attempt
from flowmap.kernel import reserve_range, start_writeback, take_pages
from flowmap.storage import read_into
from flowmap.windows import Window


class MappedAttempt(Attempt):
    """An attempt whose rows are stored through `map`, and taken over by `adopt`."""

    _mapped: Any = None
    _unsynced: OSError | None = None

    def map(self) -> np.memmap[Any, Any]:
        """Map the segment's bytes for reading and writing, its space taken.

        A store into a hole of a file on a full disk ends the process (SIGBUS): the space is
        reserved first. What an earlier attempt left is read from the disk: after a failed
        write-back the page cache may hold what the disk does not. Its pages are taken, too,
        since a copy may share its space with another file. So are all where the file system
        cannot reserve, or (XFS) wants as much again for what is reserved already. On a network
        file system none is taken: a store finds no full disk there, the sync does, and a page
        that was taken would be written over what another host wrote meanwhile.

        Returns:
            The segment's rows, in the order and dtype of the target. To flush them is left to
            this attempt: see `flush`.

        Raises:
            ClaimLostError: Another attempt has the segment.
            StorageError: There is no space, or what is there cannot be read, written or mapped.
        """
        rows, layout = self.segment.rows, self.job.layout
        reserved = self._reserved(rows * layout.row_bytes)
        self._drop_cached_from(0)
        start, stop = self.segment.start, self.segment.stop
        window = Window(layout, self.job.data_offset, start, stop, layout.axis)
        with self._told("cannot map the segment"):
            mapped = window.map(self._target, "r+", self.job.path)
        self._mapped = mapped
        if (self.before.attempt or not reserved) and not self._ledger.on_network:
            self._take_pages()
        # Another attempt that claimed on the same knowledge, and was slow to write its claim,
        # has put it in the place of this one's first record: it must find a second.
        self._held().note()
        self._held().check()
        # Last, since nothing collects the circle that this makes: `let_go` opens it.
        self._mapped.base.flusher = self.flush
        return mapped

    def _take_pages(self) -> None:
        with self._told("cannot take the space of the segment; free some and run again"):
            if take_pages(self._mapped.base):
                return
        # An older system: another attempt may write between the look at the claim and this.
        for offset, chunk in self._chunks(0, self.segment.rows):
            with self._told("cannot read what is there; use write_segment()"):
                read_into(self._target, chunk, offset)
            self._held().check()
            self._write(chunk, offset)

    def let_go(self) -> None:
        """Take the mapping from whoever had it: read-only, and with nothing to flush."""
        self._mapped.flags.writeable = False
        self._mapped.base.flusher = _nothing

    def _reserved(self, nbytes: int) -> bool:
        with self._told("cannot reserve the space of the segment; look at the disk"):
            try:
                return reserve_range(self._target, self._byte(0), nbytes)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
        return False

    def flush(self) -> None:
        """Bring what was stored so far to the disk, as far as that may be.

        An error is reported once, so that a second sync may succeed for what is gone: one is
        kept, and the attempt fails. With `durability="end"` nothing is synced, since the error
        may be another segment's, and must be left for the validation.

        Raises:
            StorageError: The disk does not take it, or did not before.
        """
        first = self._byte(0)
        if self.job.durability == "end":
            start_writeback(self._target, first, self._byte(self.segment.rows) - first)
            return
        if self._unsynced is None:
            try:
                self._sync()
            except OSError as error:
                self._unsynced = error
        if self._unsynced is not None:
            with self._told("cannot sync the rows to disk; run again, and look at the disk"):
                raise self._unsynced

    def adopt(self) -> None:
        """Take what was stored through the mapping for the rows of the whole segment.

        Raises:
            ClaimLostError: Another attempt has the segment.
            StorageError: They cannot be synced.
        """
        self._held().check()
        mapping = self._mapped.base
        if self.job.durability == "segment":
            # First, since it lets other threads run meanwhile; the other is as POSIX has it.
            self.flush()
            with self._told("cannot sync the rows to disk; run again, and look at the disk"):
                mapping.sync()
        first, nbytes = mapping.pieces.first, self._byte(self.segment.rows) - self._byte(0)
        self._digest.update(np.frombuffer(mapping, np.uint8)[first : first + nbytes].data)
        self._rows = self.segment.rows

    def fail(self, error: BaseException) -> None:
        """Record why the attempt ended, and let go of the pages that it stored into."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            # Whoever keeps the array, or the error, must not keep the pages: see `drop_cached`.
            with contextlib.suppress(OSError):  # they are locked into memory
                self._mapped.base.madvise(mmap.MADV_DONTNEED)
        super().fail(error)


def _nothing() -> None:
    """Do nothing."""
