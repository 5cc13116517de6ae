"""What flowmap asks of the operating system."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from flowmap import storage

if TYPE_CHECKING:
    from pathlib import Path


class TestFileSystemTime:
    """The time that a file system gives a new file."""

    def test_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The time is the file system's, whatever the host's clock says."""
        monkeypatch.setattr("time.time", lambda: 0.0)
        (tmp_path / "before").touch()
        now = storage.file_system_time(tmp_path)
        (tmp_path / "after").touch()
        before, after = ((tmp_path / name).stat().st_mtime for name in ("before", "after"))
        assert before <= now <= after

    def test_file_was_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that must be free is made in the folder, and removed."""
        made = []
        real = os.open

        def noted(path: Path, flags: int, *rest: int, **options: Any) -> int:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                made.append(path)
            return real(path, flags, *rest, **options)

        monkeypatch.setattr(os, "open", noted)
        storage.file_system_time(tmp_path)
        assert [path.parent for path in made] == [tmp_path]
        assert not list(tmp_path.iterdir())

    def test_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is left, Ctrl-C included; a folder that is gone is an error."""

        def interrupted(_: int) -> os.stat_result:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", interrupted)
            with pytest.raises(KeyboardInterrupt):
                storage.file_system_time(tmp_path)
        assert not list(tmp_path.iterdir())
        with pytest.raises(FileNotFoundError):
            storage.file_system_time(tmp_path / "nowhere")
