"""The README is executed: each script is saved under its name, each command is run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

import numpy as np
from markdown_it import MarkdownIt
from prefect_layer.conftest import ROOT, prefect
from servers import BIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from servers import Server


def executed(command: str) -> str:
    """Run a command to its end, and return what it printed."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def in_background(command: str) -> Iterator[None]:
    """Keep a command running, as `&` does, and end it and what it started."""
    process = subprocess.Popen(
        command, shell=True, start_new_session=True, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(40)


def test_every_snippet_of_the_readme_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who pastes the snippets in order gets arrays that are right."""
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    for file in ("prefect.yaml", "prefect.toml"):
        shutil.copy(ROOT / file, tmp_path)
    monkeypatch.chdir(tmp_path)
    prefect("--no-prompt", "work-pool", "delete", "default")  # if other tests made it
    parsed = MarkdownIt().parse((ROOT / "README.md").read_text())
    printed = ""
    with contextlib.ExitStack() as background:
        for fence in (token for token in parsed if token.type == "fence"):
            if fence.info == "python":
                name = re.match(r"# (\w+\.py)\n", fence.content)
                assert name is not None, "the first line of a script is its name"
                Path(name[1]).write_text(fence.content)
                continue
            assert fence.info == "console", f"nothing executes {fence.info!r}"
            for line in fence.content.splitlines():
                command = line.removeprefix("$ ")
                if command.endswith(" &"):
                    background.enter_context(in_background(command.removesuffix(" &")))
                else:
                    printed += executed(command)
    assert "squares.npy is valid: digest" in printed
    assert "segment 0002" in printed, "what was reset is missing"
    assert "[7. 0.]\n(10, 50)\n" in printed, "the windows are not those rows"
    assert np.load("mapped.npy")[999, 49] == np.sqrt(999)
    assert re.search(r"of \d{7,8} rows that are done\n", printed)
    assert "the last one was segment" in printed
    assert f"\n{0.5 * 9_999_999.0**2}\n" in printed, "the largest of the last rows"
    assert np.load("squares.npy", mmap_mode="r")[-1] == 0.5 * 9_999_999.0**2
    assert np.load("sweep.npy", mmap_mode="r").shape == (1_000_000,)
    assert np.load("table.npy", mmap_mode="r")[-1, 0] == 1999
    assert np.load("deployed.npy", mmap_mode="r")[-1, 0] == 999
    assert np.array_equal(np.load("twice.npy"), np.tile(np.load("dice.npy"), (2, 1)))


def test_make_targets_of_the_readme_exist() -> None:
    """The two commands that the README begins with are targets of the Makefile."""
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    commands = re.findall(r"^    make (\w+)$", readme, re.MULTILINE)
    assert commands == ["run", "test"]
    for target in commands:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
