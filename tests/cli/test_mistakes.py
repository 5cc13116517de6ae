"""Typical mistakes on the command line: what is plain is taken, the rest is explained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import flowmap
from flowmap.cli import readers
from flowmap.documents import without_nan

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.conftest import Said

    Command = Callable[..., Said]


class Token:
    """A word as cyclopts hands it to a reader."""

    def __init__(self, value: str) -> None:
        self.value = value


def read(reader: Callable[..., Any], *texts: str) -> Any:
    """Return what a reader makes of some words."""
    return reader(None, [Token(text) for text in texts])


@pytest.mark.parametrize(
    ("reader", "text", "value"),
    [
        (readers.shape, "1e6", 10**6),
        (readers.shape, "1_000,5", [1000, 5]),
        (readers.shape, "( 10 , 3 )", [10, 3]),
        (readers.shape, "100,0", [100, 0]),
        (readers.shape, "0", 0),
        (readers.segments, "64", 64),
        (readers.segments, "[5]", [5]),
        (readers.whole_number, " 1e3 ", 1000),
        (readers.whole_number, "-5", -5),
        (readers.nbytes, "64KiB", 65536),
        (readers.nbytes, "4096", 4096),
        (readers.seconds, "0.5", 0.5),
        (readers.dtype, "np.float64", "float64"),
        (readers.dtype, "[('t', '<f8')]", [("t", "<f8")]),
        (readers.arguments, "power=0.25", {"power": 0.25}),
        (readers.arguments, 'name="0.25"', {"name": "0.25"}),
        (readers.arguments, "source=a/b.npy", {"source": "a/b.npy"}),
        (readers.arguments, "day=2024-10-11", {"day": "2024-10-11"}),
        (readers.arguments, 'tree={"a": [1, {"b": null}]}', {"tree": {"a": [1, {"b": None}]}}),
    ],
)
def test_plain_texts(reader: Callable[..., Any], text: str, value: object) -> None:
    """They are taken for what everybody takes them for."""
    assert read(reader, text) == value
    assert type(read(reader, text)) is type(value)


@pytest.mark.parametrize(
    ("reader", "text", "why"),
    [
        (readers.shape, "100,000", "write 100000 for one number"),
        (readers.shape, "1,000,000", "write 1000000 for one number"),
        (readers.shape, "10,05", "begins with a zero"),
        (readers.shape, "007", "begins with a zero"),
        (readers.shape, "", r"or '\(\)' for a single value"),
        (readers.shape, " ", "not a shape"),
        (readers.shape, "(10,3", "not a shape"),
        (readers.shape, "10,", "not a shape"),
        (readers.shape, "10,,3", "not a shape"),
        (readers.shape, "1.5", "not a shape"),
        (readers.shape, "10 3", "write it as 1000 or 1000,50"),
        (readers.segments, "1,000", "write 1000 for one number"),
        (readers.segments, "", "neither a count"),
        (readers.whole_number, "1.5", "not a whole number"),
        (readers.whole_number, "1.0", "not a whole number"),
        (readers.whole_number, "1.5e0", "not a whole number"),
        (readers.whole_number, "1e999999999", "not a whole number"),
        (readers.whole_number, "9" * 5000, "not a whole number"),
        (readers.whole_number, "nan", "not a whole number"),
        (readers.whole_number, "1,000", "write it as 1000 or 1_000"),
        (readers.whole_number, "", "not a whole number"),
        (readers.nbytes, "64kb", "64KiB"),
        (readers.seconds, "5m", "write it as 30"),
        (readers.seconds, "-1", "not a number of seconds"),
        (readers.seconds, "nan", "not a number of seconds"),
        (readers.seconds, "inf", "not a number of seconds"),
        (readers.path, "", "is empty"),
        (readers.dtype, " ", "is empty"),
        (readers.dtype, '{"names": ["a"]}', "not a list of fields"),
        (readers.dtype, "[" * 100_000, "not a list of fields"),
        (readers.arguments, "", "seed=1"),
        (readers.arguments, "{'seed': 1}", "not JSON"),
        (readers.arguments, "[1]", "not a JSON object"),
        (readers.arguments, "seed.json", "or @seed.json for that file"),
        (readers.arguments, "@none.json", "none.json cannot be read: No such file"),
        (readers.arguments, '{"a": 1, "a": 2}', "a is given twice"),
        (readers.arguments, 'b={"a": 1, "a": 2}', "a is given twice"),
        (readers.arguments, "{" * 100_000, "not JSON"),
        (readers.arguments, "flag=True", "true, false or null"),
        (readers.arguments, "n=1_000", "write a number as 1000"),
        (readers.arguments, "n=0x10", "write a number as 1000"),
        (readers.arguments, "x=.5", "write a number as 1000"),
        (readers.arguments, "x=nan", "0.5 or NaN"),
        (readers.arguments, "a=1,b=2", "write a text in quotes"),
        (readers.arguments, "text=two words", """'text="two words"'"""),
        (readers.filler, "my.py", "write my.py:FUNCTION"),
        (readers.filler, "my.py:", "write my.py:FUNCTION"),
        (readers.filler, "package.module.square", "write package.module:square"),
        (readers.filler, "", "names no function"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_texts_that_are_explained(reader: Callable[..., Any], text: str, why: str) -> None:
    """Nothing is guessed; the message shows how to write it."""
    with pytest.raises(ValueError, match=why):
        read(reader, text)


def test_arguments_of_several_words(tmp_path: Path) -> None:
    """A file and NAME=VALUE go together; a name that comes twice is refused."""
    file = tmp_path / "few.json"
    file.write_text('{"seed": 1}')
    assert read(readers.arguments, f"@{file}", "name=x", '{"y": 2}') == {
        "seed": 1, "name": "x", "y": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="seed is given twice"):
        read(readers.arguments, f"@{file}", "seed=2")


ALLOC = ("alloc", "out.npy", "--shape", "40", "--segments", "4")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("alloc", "out.npy", "--shape", "1000", "3"), "write --shape 1000,3."),
        (("alloc", "out.npy", "--shape=1000", "3"), "write --shape 1000,3."),
        (("alloc", "out.npy", "--shape", "9", "3", "--segments", "3"), "write --shape 9,3."),
        (("alloc", "out.npy", "b.npy", "--shape", "9"), "'b.npy' is left over"),
        (
            (*ALLOC, "--filler", "linspace", "--arguments", "num=9", "stop=2"),
            "write --arguments before each, --arguments stop=2.",
        ),
        ((*ALLOC, "--block-rows", "1.5"), "--block-rows: '1.5' is not a whole number"),
        ((*ALLOC, "--blocks", "5"), "Did you mean --block-rows?"),
        ((*ALLOC, "--arguments.seed=1"), "Did you mean --arguments?"),
        (("alloc", "", "--shape", "9"), "a path is empty"),
        (("fill", "out.npy", "--segment", "1", "2"), "write --segment 1,2."),
        (("fill", "out.npy", "--workers", "1.5"), "not a whole number"),
        (("status", "out.npy", "7"), "write --segment 7."),
        (("status", "out.npy", "--interval", "x"), "not a number of seconds"),
        (("validate", "out.npy", "--mark", "false"), "or --no-mark for the opposite"),
        (("validate", "out.npy", "7"), "'7' is left over: nothing takes it."),
        (("run", "out.npy", "--workers", "1.5"), "not a whole number"),
        (("vaildate", "out.npy"), "deploy, doctor; see flowmap --help."),
        (("status",), "See flowmap status --help."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes(command: Command, folder: Path, words: tuple[str, ...], why: str) -> None:
    """Each is said like any other error, in one line, with what to type."""
    said = command(*words)
    assert said.code == 2
    assert said.err.startswith("flowmap: ")
    assert why in said.err
    assert said.err.count("\n") == 1
    assert not (folder / "out.npy").exists()


def test_arguments_are_given_one_by_one(command: Command) -> None:
    """They are the same work as in JSON, whatever other libraries are loaded."""
    words = (*ALLOC, "--filler", "linspace", "--arguments")
    assert command(*words, "num=40", "--arguments", "stop=2.5").code == 0
    assert command(*words, '{"num": 40, "stop": 2.5}').code == 0
    child = "import pydantic, sys; from flowmap.cli.app import run; sys.exit(run(sys.argv[1:]))"
    again = [sys.executable, "-c", child, *words, '{"num": 40, "stop": 2.5}']
    subprocess.run(again, check=True, capture_output=True)


def test_segments_in_a_row(command: Command) -> None:
    """Commas name several; `reset` takes the option that the other commands have."""
    command(*ALLOC, "--filler", "arange")
    assert command("fill", "out.npy", "--segment", "0,2-3").code == 0
    assert [segment.index for segment in flowmap.open_target("out.npy").pending()] == [1]
    said = command("reset", "out.npy", "--segment", "3", "--yes", "--json")
    assert said.json["reset"] == [3]
    said = command("reset", "out.npy", "--all", "--yes", "--json")
    assert said.json["reset"] == [0, 1, 2, 3]
    said = command("fill", "out.npy", "--segment", "9" * 5000)
    assert said.code == 2
    assert "names no segments" in said.err


def test_help_as_a_command(command: Command) -> None:
    """`flowmap help fill` is what many type."""
    assert "Usage: flowmap fill" in command("help", "fill").out
    assert "Usage: flowmap COMMAND" in command("help").out


def flip(path: str) -> None:
    """Change a byte of the data."""
    Path(path).chmod(0o600)
    data = bytearray(Path(path).read_bytes())
    data[-1] ^= 1
    Path(path).write_bytes(data)


def test_damage_that_is_not_marked(command: Command) -> None:
    """It has the code of damage, and the program is told which segments it is."""
    command(*ALLOC, "--filler", "arange")
    command("fill", "out.npy", "--segment", "all")
    flip("out.npy")
    said = command("validate", "out.npy", "--no-mark", "--json")
    assert said.code == said.json["code"] == 4
    assert (said.json["damaged"], said.json["marked"]) == ([3], [])
    assert command("validate", "out.npy", "--no-mark").code == 4
    command("reset", "out.npy", "0", "--yes")
    assert command("validate", "out.npy", "--no-mark").code == 4, "worse than what is missing"


def strict(text: str) -> Any:
    """Parse JSON as the standard has it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_no_nan(command: Command, folder: Path) -> None:
    """NaN and infinities are texts that `float` reads, printed and exported."""
    words = (
        "--filler",
        "fillers:hold",
        "--arguments",
        '{"values": [NaN, Infinity, -Infinity]}',
    )
    (folder / "fillers.py").write_text(HOLD)
    assert command(*ALLOC, *words).code == 0
    assert command("fill", "out.npy", "--segment", "0").code == 0
    wanted = ["NaN", "Infinity", "-Infinity"]
    document = strict(command("info", "out.npy", "--json").out)
    assert document["job"]["work"]["values"]["values"] == wanted
    assert command("info", "out.npy", "--export", "job.export").code == 0
    exported = strict((folder / "job.export").read_text())
    (work,) = exported["works"].values()
    assert work["values"]["values"] == wanted
    assert [str(float(each)) for each in wanted] == ["nan", "inf", "-inf"]
    assert "incomplete, 1 of 4" in command("info", "job.export").out, "under any name"
    assert command("fill", "out.npy", "--segment", "1").code == 0, "the records have the number"


HOLD = """
import flowmap


@flowmap.filler
def hold(out, block, values):
    out[...] = values[0]
"""


def test_values_that_json_has() -> None:
    """They stay as they are, at any depth; tuples become lists."""
    value = {"a": [1, 2.5, None, True, "NaN", (float("nan"), {"b": float("-inf")})]}
    assert without_nan(value) == {
        "a": [1, 2.5, None, True, "NaN", ["NaN", {"b": "-Infinity"}]],
    }  # fmt: skip


def test_killed_run(command: Command, folder: Path) -> None:
    """After `kill -9` nothing is said to be running."""
    command(*ALLOC, "--block-rows", "5")
    target = flowmap.open_target("out.npy")
    words = [sys.executable, "-m", "flowmap", "fill", "out.npy", "--executor", "threads"]
    words += ["--filler", "fillers:slow", "--arguments", "seconds=60"]  # volatile: not recorded
    with subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL) as child:
        while not (target.status()["state"] == "running").any():
            assert child.poll() is None
            time.sleep(0.05)
        assert command("status", "out.npy", "--json").json["counts"]["running"] > 0
        child.send_signal(signal.SIGKILL)
    said = command("status", "out.npy")
    assert said.code == 3
    assert "out.npy: incomplete\n" in said.out
    assert "running" not in said.out
    assert "4 segments: 4 pending" in said.out
    assert "its process died" in command("status", "out.npy", "--segment", "all").out
    assert np.all(target.status()["state"] == "pending")


def test_no_server(folder: Path) -> None:
    """Where no Prefect server answers, the command says what to do, without a traceback."""
    words = [sys.executable, "-m", "flowmap", "run", "out.npy", "--shape", "9", "--json"]
    variables = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(
        words, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "No Prefect server answers" in strict(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr
