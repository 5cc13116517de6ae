"""What commands say comes next works as it is printed; why segments failed is said once."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import flowmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cli.conftest import Said

    Command = Callable[..., Said]

RAMP = """
import flowmap
import beside

@flowmap.filler
def ramp(out, block, by=1):
    out[...] = [by * row for row in range(block.start, block.stop)]
"""


def fill_commands(said: Said) -> list[list[str]]:
    """Return the words of each `flowmap fill` that a command advises."""
    return [
        shlex.split(words)
        for words in re.findall(r"^.*: flowmap (fill .*)$", said.out, re.MULTILINE)
    ]


@pytest.fixture
def as_new(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Yield a function that makes this process forget what a command imported."""
    path = list(sys.path)

    def forget() -> None:
        monkeypatch.setattr(sys, "path", list(path))
        for name in ("my", "beside", "steps", "steps.my"):
            sys.modules.pop(name, None)

    yield forget
    forget()


@pytest.mark.parametrize("package", [False, True])
def test_filler_of_another_folder_is_found_again(
    command: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_new: Callable[[], None],
    package: bool,
) -> None:
    """The records know its file, so that the command need not be called beside it."""
    there = folder / "d"
    (there / "steps").mkdir(parents=True)
    (there / "steps" / "__init__.py").touch()
    (there / "beside.py").touch()
    if package:
        (there / "steps" / "my.py").write_text(RAMP)
        monkeypatch.chdir(there)
        named = "steps.my:ramp"
    else:
        (there / "my.py").write_text(RAMP)
        named = "d/my.py:ramp"
    path = str(folder / "f.npy")
    words = ["alloc", path, "--shape", "40", "--filler", named, "--segments", "4"]
    said = command(*words, "--arguments", '{"by": 2}')
    (advised,) = fill_commands(said)
    assert advised == ["fill", path]
    as_new()
    monkeypatch.chdir(folder)
    assert command("fill", "f.npy", "--segment", "0").code == 0
    as_new()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    said = command(*advised, "--workers", "1")
    assert (said.code, said.err) == (0, "")
    np.testing.assert_array_equal(np.load(path), np.arange(0.0, 80, 2))


def test_advice_on_a_job_without_a_filler(command: Command) -> None:
    """To fill it takes a filler: the command says so, and works with one in its place."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4")
    flowmap.reset("out.npy", [1])
    for words in (["status", "out.npy"], ["validate", "out.npy"], ["reset", "out.npy", "1"]):
        (advised,) = fill_commands(command(*words))
        assert advised == ["fill", "out.npy", "--filler", "FILE.py:FUNCTION"]
    advised[-1] = "fillers.py:square"
    assert command(*advised, "--segment", "1").code == 0
    for words in (["status", "out.npy"], ["validate", "out.npy"]):
        (advised,) = fill_commands(command(*words))
        assert advised == ["fill", "out.npy"]
    assert command(*advised, "--workers", "1").code == 0


def test_advice_on_a_job_of_several_fillers(command: Command) -> None:
    """Neither is taken for the other."""
    target = flowmap.allocate("out.npy", 40, "<f8", segments=4)
    flowmap.fill_segment(target.segments[0], "constant")
    flowmap.fill_segment(target.segments[1], "arange")
    (advised,) = fill_commands(command("status", "out.npy"))
    assert advised[2:] == ["--filler", "FILE.py:FUNCTION"]


def test_advice_on_a_job_of_values(command: Command) -> None:
    """What `write_segment` has written no filler completes."""
    target = flowmap.allocate("out.npy", 40, "<f8", segments=4)
    flowmap.write_segment(target.segments[0], np.zeros(10))
    for name in ("status", "validate"):
        said = command(name, "out.npy")
        assert "To fill what is missing: flowmap.write_segment() in Python" in said.out
        assert not fill_commands(said)


@pytest.mark.parametrize("chosen", [[], ["--segment", "2"], ["--segment", "1-3"]])
def test_failing_fill_names_the_command_for_its_traceback(
    command: Command, chosen: list[str]
) -> None:
    """That command shows it, and `status` names it, too."""
    words = ["--filler", "fillers:broken", "--arguments", '{"at": 25}']
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", *words)
    said = command("fill", "out.npy", "--workers", "1", *chosen)
    assert said.code == 1
    assert "Traceback" not in said.err
    asked = "For the traceback: flowmap status out.npy --segment 2"
    assert said.err.splitlines()[-1] == asked
    assert asked in command("status", "out.npy").out.splitlines()
    said = command(*asked.partition("flowmap ")[2].split())
    assert 'raise ValueError(f"row {at} cannot be computed")' in said.out
    assert re.search(r'File ".*/fillers\.py", line \d+, in broken', said.out)
    document = command("fill", "out.npy", "--workers", "1", *chosen, "--json").json
    assert document["error"]["message"].endswith(asked)


def test_pilot_of_a_failing_filler(command: Command) -> None:
    """Shows the lines at once, as it records nothing."""
    words = ["--filler", "fillers:broken", "--arguments", '{"at": 25}']
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", *words)
    said = command("fill", "out.npy", "--pilot")
    assert said.code == 1
    (traced,) = re.findall(r'File ".*/fillers\.py", line \d+, in broken\n +(.*)', said.err)
    assert traced == 'raise ValueError(f"row {at} cannot be computed")'
    assert said.err.count('File "') == 1


def test_no_traceback_is_promised_where_there_is_none(command: Command) -> None:
    """Work that is refused fails no segment."""
    command("alloc", "out.npy", "--shape", "40", "--filler", "arange")
    for chosen in ([], ["--segment", "0"]):
        said = command("fill", "out.npy", "--filler", "constant", *chosen)
        assert said.code == 2
        assert "the traceback" not in said.err


FAULTS = """
import flowmap

@flowmap.filler
def faulty(out, block):
    number = block.start // 10
    if number == 7:
        raise ValueError("of its own")
    if number == 9:
        out[...] = 1
        return
    raise FileNotFoundError("/a/folder/whose/name/is/rather/long/" + "ab"[number % 2])
"""


def test_status_groups_segments_by_cause(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cause is shown once, whole, with the segments that it failed."""
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "faults.py").write_text(FAULTS)
    words = ["--segments", "10", "--filler", "faults.py:faulty"]
    command("alloc", "out.npy", "--shape", "100", *words)
    said = command("fill", "out.npy", "--segment", "all")
    assert "  - 5 segments (0, 2, 4, 6, 8): the filler faults:faulty raised" in said.err
    assert len(said.err.splitlines()) < 9
    lines = command("status", "out.npy").out.splitlines()
    shown = [line.split("  ") for line in lines if line.startswith("failed")]
    missing = "FileNotFoundError: /a/folder/whose/name/is/rather/long/"
    assert [[part.strip() for part in line if part] for line in shown] == [
        ["failed", "5 segments (0, 2, 4, 6, 8)", f"{missing}a"],
        ["failed", "3 segments (1, 3, 5)", f"{missing}b"],
        ["failed", "segment 0007 [70:80]", "ValueError: of its own"],
    ]
