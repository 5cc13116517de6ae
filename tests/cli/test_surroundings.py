"""Surroundings that are not tidy: a command says so in a line, or works all the same."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from cli.conftest import FILLERS
from support import as_user, environment, forked, let_others_in, stable_id

import flowmap
from flowmap.cli.app import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.conftest import Said

EACH_IN_A_CHILD = """
import json, os, sys
from flowmap.cli import alloc, app, doctor, fill, info, status, validate
folder, *lines = sys.argv[1:]
if "gone" in os.environ:
    os.chdir(f"{folder}/gone")
    os.rmdir(f"{folder}/gone")
for number, line in enumerate(lines):
    child = os.fork()
    if child == 0:
        if "err" in os.environ:
            os.dup2(os.open(f"{folder}/err{number}", os.O_RDWR | os.O_CREAT), 2)
        sys.argv = ["flowmap", *line.split()]
        app.main()
    with open(f"{folder}/codes", "a") as codes:
        codes.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n")
"""

COMMANDS = (
    "--version",
    "--help",
    "alloc {0}/a.npy --shape 40 --segments 4 --filler fillers:square",
    "fill {0}/a.npy --executor threads --quiet",
    "status {0}/a.npy",
    "status {0}/a.npy --json",
    "status {0}/a.npy --watch",
    "status {0}/a.npy --segment 1",
    "info {0}/a.npy",
    "validate {0}/a.npy",
    "reset {0}/a.npy 0 --yes",
    "fill {0}/a.npy --pilot",
    "doctor",
)
"""Commands that all have something to say."""


class Told(NamedTuple):
    """The exit codes of commands, and what each said on stderr."""

    codes: list[int]
    errors: list[str]


@pytest.fixture
def fillers(tmp_path: Path) -> Path:
    """Return a folder with a module of fillers, and a folder for targets."""
    (tmp_path / "fillers.py").write_text(FILLERS)
    return tmp_path


def told(folder: Path, redirections: str, *lines: str, **extra: str) -> Told:
    """Run commands in a shell's redirections, each in a process that is forked from one."""
    # One process for all, since to import the command takes longer than most commands.
    shell = f'exec "$0" "$@" {redirections}'
    lines = tuple(line.format(folder) for line in lines)
    command = ["sh", "-c", shell, sys.executable, "-c", EACH_IN_A_CHILD, str(folder), *lines]
    variables = environment() | {"PREFECT_HOME": str(folder / "prefect")} | extra
    variables["PYTHONPATH"] = f"{variables['PYTHONPATH']}{os.pathsep}{folder}"
    subprocess.run(command, env=variables, cwd=folder, timeout=170, check=True)
    codes = [int(code) for code in (folder / "codes").read_text().split()]
    places = [folder / f"err{number}" for number in range(len(lines))]
    return Told(codes, [each.read_text() if each.exists() else "" for each in places])


@pytest.mark.parametrize("stdout", [">/dev/full", ">&-", "<&- >&-"])
def test_stdout_takes_nothing(fillers: Path, stdout: str) -> None:
    """Every command exits with 1 and one line on stderr, and has done its work."""
    codes, errors = told(fillers, stdout, *COMMANDS, err="1")
    assert codes == [1] * len(COMMANDS)
    for error in errors:
        assert error.startswith("flowmap: Cannot write to the standard output ("), error
        assert error.count("\n") == 1
    np.testing.assert_array_equal(np.load(fillers / "a.npy"), np.arange(40.0) ** 2)


def test_stdout_without_a_buffer(fillers: Path) -> None:
    """Nor does it matter whether Python buffers what it writes."""
    codes, errors = told(
        fillers, ">/dev/full", "--version", "doctor", err="1", PYTHONUNBUFFERED="1"
    )
    assert codes == [1, 1]
    assert all(
        "No space left on device" in error and error.count("\n") == 1 for error in errors
    )


def test_reader_has_had_enough(fillers: Path) -> None:
    """As in `flowmap status | head -1`: the command ends without a word."""
    codes, errors = told(fillers, "| true", *COMMANDS[:3], "status {0}/no.npy --json", err="1")
    assert set(codes) == {1}
    assert set(errors) == {""}


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "0<&- 1>&2 2>&-"])
def test_stderr_takes_nothing(fillers: Path, stderr: str) -> None:
    """What a command would say there is lost; its exit code is not."""
    lines = COMMANDS[2], COMMANDS[3], "status {0}/no.npy", "nonsense", "reset {0}/a.npy 1"
    codes, _ = told(fillers, f">/dev/null {stderr}", *lines)
    assert codes == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("size", ["0", "²", "9" * 20, "1"], ids=stable_id)
def test_size_of_the_terminal(fillers: Path, size: str) -> None:
    """A number of columns that is none is not looked at."""
    done = told(fillers, ">out", *COMMANDS[:7], COLUMNS=size, LINES=size)
    assert done.codes == [0] * 7
    assert size == "1" or flowmap.__version__ in (fillers / "out").read_text()


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=["stream", "locale"],
)
@pytest.mark.parametrize("name", [b"caf\xc3\xa9", b"caf\xe9"], ids=["letter", "byte"])
def test_terminal_without_the_letters(
    fillers: Path, name: bytes, variables: dict[str, str]
) -> None:
    """A path that the terminal's encoding has no letters for is written with escapes."""
    folder = fillers / os.fsdecode(name)
    folder.mkdir()
    lines = [line.replace("{0}", str(folder)) for line in COMMANDS[2:-1]]
    done = told(fillers, ">out", *lines, f"status {folder}/no.npy", **variables)
    assert done.codes == [0] * 10 + [2]
    out = (fillers / "out").read_bytes()
    assert out.isascii()
    assert b"caf\\" in out


def test_no_working_directory(fillers: Path) -> None:
    """What needs none works where it was deleted; what does is refused in a line."""
    refused = (
        "fill {0}/a.npy",
        "alloc {0}/b.npy --shape 4 --filler fillers.py:square",
        "alloc b.npy --shape 4",
        "run {0}/b.npy --shape 4 --filler arange --executor threads",
    )
    (fillers / "gone").mkdir()
    done = told(fillers, ">out", *COMMANDS[:3], *refused, *COMMANDS[3:10], err="1", gone="1")
    assert done.codes == [0] * 3 + [2] * 4 + [0] * 7
    for error in done.errors[3:7]:
        assert error.count("\n") == 1, error
    assert "executor threads" in done.errors[3]
    assert "was deleted" in done.errors[6]


def test_import_without_a_working_directory(tmp_path: Path) -> None:
    """The package can be imported and used there, too."""

    def act() -> str:
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        target = flowmap.allocate(tmp_path / "a.npy", 4, "<f8")
        flowmap.fill(target, "arange", executor="threads", workers=1)
        return str(flowmap.validate(target.path).ok)

    assert forked(act) == "True"


def test_prefect_gets_no_bytes_for_text(command: Callable[..., Said], folder: Path) -> None:
    """Prefect records the path as text: one that is none is refused before a server starts."""
    said = command("run", f"{folder}/caf\udce9.npy", "--shape", "4")
    assert said.code == 2
    assert "alloc" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("folder.py", "not a regular file"),
        ("pipe.py", "not a regular file"),
        ("loop.py", "Too many levels"),
        ("dangling.py", "there is no file"),
        ("latin.py", "SyntaxError"),
        ("secret.py", "Permission denied"),
        ("closed/fillers.py", "Permission denied"),
    ],
)
def test_filler_that_cannot_be_read(folder: Path, name: str, why: str) -> None:
    """The command says in a line what is the matter with the file, and allocates nothing."""
    let_others_in(folder)
    folder.chmod(0o777)
    (folder / "folder.py").mkdir()
    os.mkfifo(folder / "pipe.py")
    (folder / "loop.py").symlink_to("loop.py")
    (folder / "dangling.py").symlink_to("nowhere.py")
    (folder / "latin.py").write_bytes(b'name = "caf\xe9"\n')
    (folder / "closed").mkdir()
    for secret in ("secret.py", "closed/fillers.py"):
        (folder / secret).write_text(FILLERS)
    (folder / "secret.py").chmod(0)
    (folder / "closed").chmod(0)

    def act() -> str:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = run(["alloc", "a.npy", "--shape", "4", "--filler", f"{name}:square"])
        return f"{code} {said.getvalue()}"

    answer = as_user(65534, act) if os.geteuid() == 0 else forked(act)
    (folder / "closed").chmod(0o700)
    assert answer.startswith("2 flowmap: "), answer
    assert why in answer
    assert answer.count("\n") == 1
    assert not (folder / "a.npy.flowmap").exists()
