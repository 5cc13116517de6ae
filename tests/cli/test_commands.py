"""The commands, as a script would call them: not on a terminal."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import flowmap
from flowmap.cli.app import make_app, run
from flowmap.lease import leased
from flowmap.locks import header_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli.conftest import Said

    Command = Callable[..., Said]

COMMANDS = ["alloc", "fill", "status", "validate", "reset", "info", "clean"]


def test_ten_minutes(command: Command, folder: Path) -> None:
    """Allocate, fill with a function of one's own, validate: each says what comes next."""
    said = command("alloc", "out.npy", "--shape", "1000", "--segments", "10")
    assert said.code == 0
    assert "Allocated: " in said.out
    assert "shape (1000,), dtype float64, 7.8 KiB in 10 segments" in said.out
    assert "Next: flowmap fill out.npy --filler FILE.py:FUNCTION" in said.out
    said = command("fill", "out.npy", "--filler", "fillers.py:square", "--workers", "1")
    assert (said.code, said.err) == (0, "")
    assert "1,000 rows were filled, 7.8 KiB in " in said.out
    assert "10 of 10 segments of out.npy are done." in said.out
    assert "Next: flowmap validate out.npy" in said.out
    said = command("validate", "out.npy")
    assert said.code == 0
    assert "is valid: digest" in said.out
    np.testing.assert_array_equal(np.load(folder / "out.npy"), np.arange(1000.0) ** 2)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("12", (12,)),
        ("12,3", (12, 3)),
        ("12x3x2", (12, 3, 2)),
        ("[12, 3]", (12, 3)),
        ("(12,)", (12,)),
        ("1_000", (1000,)),
        ("()", ()),
        ("[]", ()),
        ("0", (0,)),
    ],
)
def test_shapes(command: Command, text: str, shape: tuple[int, ...]) -> None:
    """They are written as numbers, as Python does, or as people do."""
    assert command("alloc", "out.npy", "--shape", text).code == 0
    assert flowmap.open_target("out.npy").shape == shape


def test_options_are_the_parameters(command: Command) -> None:
    """Each has the name that it has in `allocate`, and its meaning."""
    fields = [["t", "<f8"], ["v", "<f4", [3]]]
    said = command(
        *("alloc", "out.npy", "--shape", "100", "--dtype", json.dumps(fields)),
        *("--segments", "50,30,20", "--block-rows", "7", "--no-reserve", "--align", "8192"),
        *("--durability", "end", "--checkpoint-seconds", "5", "--exist", "error"),
        *("--filler", "constant", "--arguments", '{"value": 3}', "--json"),
    )
    job = flowmap.open_target("out.npy").job
    assert said.code == 0
    assert said.json["new"] is True
    assert said.json["dtype"] == fields
    assert job.layout.dtype == np.dtype([("t", "<f8"), ("v", "<f4", (3,))])
    assert [segment.rows for segment in job.segments()] == [50, 30, 20]
    assert (job.block_rows, job.reserve, job.durability) == (7, False, "end")
    assert (job.checkpoint_seconds, job.made["align"]) == (5, 8192)
    assert job.work is not None
    assert job.work["filler"] == "flowmap.fillers:constant"
    assert command("alloc", "f.npy", "--shape", "3,4", "--fortran-order").code == 0
    assert flowmap.open_target("f.npy").fortran_order


def test_alloc_again_attaches(command: Command) -> None:
    """And says how far it is."""
    words = ["alloc", "out.npy", "--shape", "100", "--segments", "4", "--filler", "arange"]
    command(*words)
    command("fill", "out.npy", "--segment", "2")
    said = command(*words)
    assert "Attached, 1 of 4 segments are done: " in said.out
    assert "Next: flowmap fill out.npy\n" in said.out
    assert command(*words, "--json").json["new"] is False


@pytest.mark.parametrize("apart", [-1200.0, 1200.0])
def test_alloc_compares_no_clocks(
    command: Command, monkeypatch: pytest.MonkeyPatch, apart: float
) -> None:
    """A host whose clock is wrong is told which job it made, and which was there."""
    words = ["alloc", "out.npy", "--shape", "100", "--json"]
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: now() + apart)
        assert command(*words).json["new"] is True
    assert command(*words).json["new"] is False
    assert command(*words, "--exist", "overwrite").json["new"] is True


def test_alloc_attaches_in_a_race(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that another process makes first, while this one looks, is not called new."""

    def late(folder: Path) -> Any:
        monkeypatch.setattr("flowmap.alloc.header_lock", header_lock)
        # As another process of the same number does, in another container.
        flowmap.allocate(folder.with_name("out.npy"), 100, "<f8")
        return header_lock(folder)

    monkeypatch.setattr("flowmap.alloc.header_lock", late)
    assert command("alloc", "out.npy", "--shape", "100", "--json").json["new"] is False


REFUSED: list[tuple[list[str], str]] = [
    (["alloc", "out.npy"], "--shape"),
    (["alloc", "out.npy", "--shape", "many"], "'many' is not a shape"),
    (["alloc", "out.npy", "--shape", "-3"], "-3"),
    (["alloc", "out.npy", "--shape", "10", "--dtype", "float99"], "float99"),
    (["alloc", "out.npy", "--shape", "10", "--dtype", "[[1"], "not a list of fields"),
    (["alloc", "out.npy", "--shape", "10", "--segments", "x"], "neither a count"),
    (["alloc", "out.npy", "--shape", "10", "--segments", "11"], "ask for 1 to 10"),
    (["alloc", "out.npy", "--shape", "10", "--exist", "maybe"], "maybe"),
    (["alloc", "out.npy", "--shape", "10", "--filler", "nowhere:f"], "nowhere"),
    (
        ["alloc", "out.npy", "--shape", "10", "--filler", "none.py:f"],
        "there is no file none.py",
    ),
    (["alloc", "out.npy", "--shape", "10", "--filler", "fillers:unmarked"], "not marked"),
    (["alloc", "out.npy", "--shape", "10", "--arguments", "{}"], "no filler"),
    (["alloc", "out.npy", "--shape", "9", "--filler", "arange", "--arguments", "3"], "object"),
    (["alloc", "out.npy", "--shape", "9", "--filler", "arange", "--arguments", "{a}"], "JSON"),
    (["alloc", "no/where.npy", "--shape", "10"], "make it first"),
    (["alloc", "foreign.npy", "--shape", "10"], "not allocated by flowmap"),
    (["fill", "out.npy"], "out.npy: there is no target here"),
    (["fill", "foreign.npy"], "not allocated by flowmap"),
    (["status", "out.npy", "--what"], "--what"),
    (["status"], "PATH"),
    (["validate", "out.npy"], "there is no target here"),
    (["reset", "out.npy", "1"], "there is no target here"),
    (["nonsense"], "nonsense"),
]


@pytest.mark.parametrize(
    ("words", "why"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED]
)
def test_what_cannot_be_is_refused(
    command: Command, folder: Path, words: list[str], why: str
) -> None:
    """With a reason, the code 2, no traceback, and nothing changed on the disk."""
    (folder / "foreign.npy").write_text("not an array")
    before = sorted(folder.iterdir())
    said = command(*words)
    assert said.code == 2
    assert why in " ".join((said.out + said.err).split())
    said = command(*words, "--json")
    assert said.code == said.json["error"]["code"] == 2
    assert why in " ".join(said.json["error"]["message"].split())
    assert sorted(entry for entry in folder.iterdir() if entry.name != "__pycache__") == before


def test_filler_is_recalled(command: Command) -> None:
    """Who has said it once need not say it again; arguments come back as they were."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4")
    said = command("fill", "out.npy")
    assert said.code == 2
    assert "No filler is given, and the job of" in said.err
    words = ["--filler", "linspace", "--arguments", '{"num": 40, "stop": 2.5}']
    assert command("fill", "out.npy", *words, "--segment", "1").code == 0
    assert command("fill", "out.npy").code == 0
    np.testing.assert_array_equal(np.load("out.npy"), np.linspace(0, 2.5, 40))


def test_records_that_others_may_write(command: Command, folder: Path) -> None:
    """The filler that they name runs only if it is named here, or with --trust."""
    words = ["--shape", "40", "--segments", "4", "--filler", "fillers:square"]
    command("alloc", "out.npy", *words)
    (folder / "out.npy.flowmap" / "job.json").chmod(0o666)
    for option in ("--quiet", "--pilot"):
        said = command("fill", "out.npy", option)
        assert said.code == 2
        place = folder / "out.npy"
        for way in ("--filler fillers:square", "--trust"):
            assert f"flowmap fill {place} {way}" in " ".join(said.err.split())
    assert command("fill", "out.npy", "--segment", "0", *words[-2:]).code == 0
    assert command("fill", "out.npy", "--trust", "--workers", "1").code == 0
    np.testing.assert_array_equal(np.load("out.npy"), np.arange(40.0) ** 2)


def test_what_cannot_be_recalled(command: Command) -> None:
    """Arguments that JSON cannot hold, or several works: then it is to be said."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4")
    target = flowmap.open_target("out.npy")
    flowmap.fill_segment(target.segments[0], "constant", {"value": np.float32(2.5)})
    said = command("fill", "out.npy")
    assert said.code == 2
    assert "all arguments of flowmap.fillers:constant(value=" in said.err
    flowmap.fill_segment(target.segments[1], "arange")
    said = command("fill", "out.npy")
    assert said.code == 2
    assert "was filled by 2 works" in said.err
    said = command("fill", "out.npy", "--arguments", "{}")
    assert "--arguments is given but no --filler; give both" in said.err


def test_failing_filler(command: Command) -> None:
    """The others are done; it says which failed and why; mended, the same again goes on."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4")
    words = ["fill", "out.npy", "--filler", "fillers:broken", "--arguments", '{"at": 15}']
    said = command(*words)
    assert said.code == 1
    assert "1 of 4 segments" in said.err
    assert "segment 0001 [10:20]" in said.err
    assert "ValueError: row 15 cannot be computed" in said.err
    said = command("status", "out.npy")
    assert said.code == 3
    assert "4 segments: 3 done, 1 failed" in said.out
    assert "failed  segment 0001 [10:20]  ValueError: row 15 cannot be computed" in said.out
    said = command("status", "out.npy", "--segment", "1", "--segment", "3-of-4")
    assert "segment 0001 [10:20]\n" in said.out
    assert "state        failed" in said.out
    assert "fillers:broken(at=15) version 1" in said.out
    assert "segment 0002 [20:30]\n" in said.out
    assert 'fillers.py", line ' in said.out, "the traceback says where"
    assert 'raise ValueError(f"row {at} cannot be computed")' in said.out
    open("mended", "w").close()  # noqa: PTH123 -- an empty file
    assert command("fill", "out.npy").code == 0
    said = command("fill", "out.npy", "--json")
    assert said.code == 0
    assert said.json["rows_filled"] == 0
    assert said.json["state"] == "done"
    assert "Nothing to do: 4 of 4" in command("fill", "out.npy").out


def test_shares_as_snakemake_names_them(command: Command) -> None:
    """Each segment is in one share, however many shares there are."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "10", "--filler", "arange")
    for item in range(1, 4):
        said = command("fill", "out.npy", "--segment", f"{item}-of-3", "--quiet")
        assert (said.code, said.out, said.err) == (0, "", "")
        done = command("status", "out.npy", "--json").json["counts"]["done"]
        assert done == [3, 6, 10][item - 1]
    command("alloc", "other.npy", "--shape", "40", "--segments", "3", "--filler", "arange")
    for item in range(1, 6):
        assert command("fill", "other.npy", "--segment", f"{item}-of-5").code == 0
    assert flowmap.open_target("other.npy").pending() == []


def test_rows_that_others_fill_meanwhile(command: Command, folder: Path) -> None:
    """Are not told as those of this share."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4")
    (folder / "beside.py").write_text(BESIDE)
    words = ["fill", "out.npy", "--segment", "1-of-4", "--filler", "beside.py:beside"]
    said = command(*words, "--json")
    assert said.json["rows_filled"] == 10
    assert said.json["counts"]["done"] == 2


BESIDE = """
import flowmap


@flowmap.filler
def beside(out, block):
    if block.start == 0:
        flowmap.fill_segment(flowmap.open_target("out.npy").segments[3], beside)
"""


def test_sentinels(command: Command, folder: Path) -> None:
    """They appear when it is done, and nothing is done where they cannot be."""
    alloc = ["alloc", "out.npy", "--shape", "40", "--segments", "4", "--filler", "arange"]
    said = command(*alloc, "--sentinel", "no/allocated.json")
    assert (said.code, "make it first" in said.err) == (2, True)
    assert not (folder / "out.npy").exists()
    assert command(*alloc, "--sentinel", "allocated.json").code == 0
    assert json.loads((folder / "allocated.json").read_text())["segments"] == {}
    said = command("fill", "out.npy", "--sentinel", "fillers.py")
    assert (said.code, "no sentinel" in said.err) == (2, True)
    assert len(flowmap.open_target("out.npy").pending()) == 4
    assert command("fill", "out.npy", "--sentinel", "all.json").code == 0
    vouched = json.loads((folder / "all.json").read_text())
    assert list(vouched["segments"]) == ["0", "1", "2", "3"]
    assert vouched["job"] == flowmap.open_target("out.npy").job.id


@pytest.mark.parametrize("name", ["10", "-1", "3-2", "x", "1-10", ""])
def test_names_of_no_segments(command: Command, name: str) -> None:
    """Are refused, with what a name looks like."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "10", "--filler", "arange")
    said = command("fill", "out.npy", f"--segment={name}")
    assert said.code == 2
    assert "names no segments of" in said.err
    assert len(flowmap.open_target("out.npy").pending()) == 10


def test_share_0(command: Command) -> None:
    """It is refused, with what a task of an array that counts from 0 writes."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "10", "--filler", "arange")
    said = command("fill", "out.npy", "--segment=0-of-4")
    assert said.code == 2
    assert 'from 0, write "$((SLURM_ARRAY_TASK_ID + 1))-of-4"' in said.err
    assert len(flowmap.open_target("out.npy").pending()) == 10


def test_one_segment_that_fails(command: Command) -> None:
    """Its own error, and the code that makes an engine try again or give up."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4")
    words = ["--filler", "fillers:broken", "--arguments", '{"at": 15}']
    said = command("fill", "out.npy", *words, "--segment", "1")
    assert said.code == 1
    assert said.err.startswith("flowmap: segment 0001 [10:20], rows 10 to 20: the filler")
    said = command("fill", "out.npy", *words, "--segment", "0-3")
    assert said.code == 1
    assert "1 of 4 segments" in said.err
    assert "3 are done" in said.err


def test_another_run_has_it(command: Command) -> None:
    """That is no error of the user's: later it may go."""
    command("alloc", "out.npy", "--shape", "40", "--filler", "arange")
    with leased(flowmap.open_target("out.npy").job, "the other run"):
        said = command("fill", "out.npy")
        assert said.code == 75
        assert "The run the other run is filling" in said.err
        said = command("status", "out.npy")
        assert said.code == 3
        assert "out.npy: running" in said.out
        assert "Filled by the other run (process " in said.out
        assert command("status", "out.npy", "--json").json["run"]["name"] == "the other run"
        assert command("fill", "out.npy", "--segment", "0").code == 0, "needs no lease"


def test_watch_shows_all(command: Command) -> None:
    """It is for people, and for the whole."""
    command("alloc", "out.npy", "--shape", "40")
    for option in ("--json", "--segment=1"):
        assert command("status", "out.npy", "--watch", option).code == 2


def test_status(command: Command, folder: Path) -> None:
    """In words and in JSON, with the code of what is missing."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", "--filler", "arange")
    said = command("status", "out.npy")
    assert said.code == 3
    assert said.out == (
        "out.npy: incomplete\n"
        "0 %, 0 of 40 rows, 0 B of 320 B\n"
        "4 segments: 4 pending\n"
        "····\n"
        "· pending\n"
        "To fill what is missing: flowmap fill out.npy\n"
    )
    command("fill", "out.npy", "--segment", "0-1")
    said = command("status", "out.npy", "--json")
    assert said.code == 3
    document = said.json
    assert document["path"] == str(folder / "out.npy")
    assert (document["shape"], document["dtype"], document["nbytes"]) == ([40], "<f8", 320)
    assert (document["rows_done"], document["bytes_done"]) == (20, 160)
    assert document["counts"] == {
        "pending": 2, "running": 0, "written": 0, "failed": 0, "damaged": 0, "done": 2,
    }  # fmt: skip
    assert [row["state"] for row in document["segment_list"]] == ["done"] * 2 + ["pending"] * 2
    assert document["segment_list"][0]["pid"] == os.getpid()
    command("fill", "out.npy")
    said = command("status", "out.npy")
    assert said.code == 0
    assert "out.npy: done\n100 %, 40 of 40 rows" in said.out
    assert "Next: flowmap validate out.npy" in said.out
    command("validate", "out.npy")
    said = command("status", "out.npy")
    assert said.code == 0
    assert said.out == (
        "out.npy: valid\n"
        "100 %, 40 of 40 rows, 320 B of 320 B\n"
        "4 segments: 4 done\n"
        "████\n"
        "█ done\n"
    )


def test_map_of_many_segments(command: Command) -> None:
    """A sign stands for several, and shows what is to be noticed among them."""
    command("alloc", "out.npy", "--shape", "4000", "--segments", "4000", "--filler", "arange")
    command("fill", "out.npy", "--segment", "0-9")
    lines = command("status", "out.npy").out.splitlines()
    assert len(lines[3]) == 80
    assert lines[3].startswith("█·")
    assert "(a sign is 7 segments)" in "\n".join(lines)


def damage(path: str) -> None:
    """Flip a bit of the data."""
    os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)  # noqa: PTH101
    with open(path, "r+b") as file:  # noqa: PTH123
        file.seek(-8, os.SEEK_END)
        byte = file.read(1)
        file.seek(-8, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def test_validation(command: Command) -> None:
    """Missing, damaged and valid have codes of their own; what is damaged is mended."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", "--filler", "arange")
    command("fill", "out.npy", "--segment", "0-2")
    said = command("validate", "out.npy")
    assert said.code == 3
    assert "segment 0003 [30:40] is not done but pending" in said.out
    assert "To fill what is missing: flowmap fill out.npy" in said.out
    assert command("validate", "out.npy", "--json").json["bad_segments"] == [3]
    command("fill", "out.npy")
    assert command("validate", "out.npy").code == 0
    damage("out.npy")
    said = command("validate", "out.npy", "--json")
    assert said.code == said.json["code"] == 4
    assert (said.json["ok"], said.json["marked"]) == (False, [3])
    assert command("status", "out.npy").code == 4
    assert command("validate", "out.npy").code == 4
    said = command("fill", "out.npy")
    assert said.code == 0
    assert "10 rows were filled" in said.out
    assert command("validate", "out.npy").code == 0


def test_values_that_are_not_finite(command: Command) -> None:
    """Are a failure, not a damage."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", "--filler", "constant",
            "--arguments", '{"value": "nan"}')  # fmt: skip
    command("fill", "out.npy")
    said = command("validate", "out.npy", "--finite")
    assert said.code == 1
    assert "NaN" in said.out
    assert command("validate", "out.npy").code == 0


def test_file_cut_short(command: Command) -> None:
    """Is damage to every command."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", "--filler", "arange")
    os.truncate("out.npy", 4100)
    for words in (["status"], ["fill"], ["validate"]):
        said = command(*words, "out.npy")
        assert said.code == 4, words
        assert "4100 bytes" in said.out + said.err


def test_mixed_works(command: Command) -> None:
    """Are refused, and taken when told."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4")
    command("fill", "out.npy", "--filler", "arange", "--segment", "0")
    command("fill", "out.npy", "--filler", "constant", "--segment", "1-3")
    said = command("validate", "out.npy")
    assert said.code == 4
    assert "2 different works" in said.out
    assert command("validate", "out.npy", "--mixed").code == 0


def test_reset(command: Command) -> None:
    """Off a terminal nobody can be asked: it wants to be told."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", "--filler", "arange")
    command("fill", "out.npy")
    said = command("reset", "out.npy", "1", "2-of-2")
    assert said.code == 2
    assert "3 segments of out.npy with 30 rows that are written" in said.err
    assert "say so with --yes" in said.err
    assert flowmap.open_target("out.npy").pending() == []
    said = command("reset", "out.npy", "1", "2-of-2", "--yes", "--json")
    assert said.code == 0
    assert said.json["reset"] == [1, 2, 3]
    assert len(flowmap.open_target("out.npy").pending()) == 3
    assert command("reset", "out.npy", "all", "-y").code == 0
    assert len(flowmap.open_target("out.npy").pending()) == 4
    assert command("reset", "out.npy").code == 2
    assert command("reset", "out.npy", "4", "--yes").code == 2
    assert "No segments have failed" in command("reset", "out.npy", "--failed").out


def test_reset_of_what_failed(command: Command) -> None:
    """Nothing that they have is taken over."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", "--block-rows", "3")
    words = ["--filler", "fillers:broken", "--arguments", '{"at": 15}']
    command("fill", "out.npy", *words)
    table = flowmap.open_target("out.npy").status()
    assert table["rows_done"].tolist() == [10, 3, 10, 10]
    said = command("reset", "out.npy", "--failed", "--yes")
    assert "1 segments are pending again" in said.out
    table = flowmap.open_target("out.npy").status()
    assert table["state"].tolist() == ["done", "pending", "done", "done"]
    assert table["rows_done"].tolist() == [10, 0, 10, 10]


def test_durability_end(command: Command) -> None:
    """What is written is told as filled, and validation is what comes next."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", "--durability", "end")
    said = command("fill", "out.npy", "--filler", "arange")
    assert said.code == 0
    assert "4 of 4 segments of out.npy" in said.out
    said = command("status", "out.npy")
    assert said.code == 3
    assert "4 segments: 4 written" in said.out
    assert "Next: flowmap validate out.npy" in said.out
    assert command("validate", "out.npy").code == 0
    assert command("status", "out.npy").code == 0


def test_info(command: Command, folder: Path) -> None:
    """Who filled it, with what, where and when; in a file it outlives the records."""
    command("alloc", "out.npy", "--shape", "40,2", "--dtype", "<i4", "--segments", "4")
    said = command("info", "out.npy")
    assert said.code == 0
    assert "state       incomplete, 0 of 4 segments done" in said.out
    words = ["--filler", "random", "--arguments", '{"seed": 7}']
    command("fill", "out.npy", *words)
    command("validate", "out.npy")
    said = command("info", "out.npy", "--export", "out.json")
    assert said.code == 0
    digest = flowmap.validate("out.npy").digest
    for text in (
        "out.npy\n",
        "state       valid, 4 of 4 segments done",
        "shape       (40, 2)",
        "dtype       int32",
        "filler      flowmap.fillers:random version 1",
        "arguments   seed=7",
        f"hosts       {os.uname().nodename}",
        f"digest      {digest} (xxh3_128)",
        f"versions    flowmap {flowmap.__version__}, NumPy {np.__version__}",
        "Written to out.json.",
    ):
        assert text in said.out
    assert json.loads((folder / "out.json").read_text())["summary"]["digest"] == digest
    document = command("info", "out.npy", "--json").json
    assert [row["state"] for row in document["segments"]] == ["done"] * 4
    said = command("clean", "out.npy", "--checksum")
    assert (said.code, said.err) == (0, "")
    assert "Written: " in said.out
    assert "Removed: " in said.out
    subprocess.run(["sha256sum", "-c", "--quiet", "out.npy.sha256"], check=True)
    assert not (folder / "out.npy.flowmap").exists()
    assert command("info", "out.npy").code == 2
    kept = command("info", "out.json")
    assert kept.code == 0
    assert f"digest      {digest} (xxh3_128)" in kept.out
    assert command("info", "out.json", "--json").json["summary"]["state"] == "valid"


def test_clean_wants_a_validation(command: Command, folder: Path) -> None:
    """What is not proven keeps its records; a program is told what was removed."""
    command("alloc", "out.npy", "--shape", "40", "--segments", "4", "--filler", "arange")
    command("fill", "out.npy")
    said = command("clean", "out.npy")
    assert said.code == 2
    assert "is not validated" in said.err
    assert command("clean", "out.npy", "--checksum").code == 2
    assert not (folder / "out.npy.sha256").exists()
    command("validate", "out.npy")
    said = command("clean", "out.npy", "--export", "out.json", "--json")
    assert said.code == 0
    assert said.json == {
        "removed": [str(folder / "out.npy.flowmap")],
        "written": ["out.json"],
    }
    assert sorted(entry.name for entry in folder.glob("out*")) == ["out.json", "out.npy"]


def test_doctor(command: Command, folder: Path) -> None:
    """Says what it looked at, and what is wrong, with the line that mends it."""
    command("alloc", "out.npy", "--shape", "40")
    said = command("doctor", "out.npy")
    assert said.code == 0
    assert "ok    lock" in said.out
    assert "No trouble was found." in said.out
    said = command("doctor", "none/out.npy")
    assert said.code == 1
    assert "trouble  folder" in said.out
    assert "Troubles found: 1." in said.out
    document = command("doctor", "none/out.npy", "--json").json
    assert document["troubles"] == 1
    (trouble,) = [each for each in document["findings"] if each["level"] == "trouble"]
    assert trouble["name"] == "folder"
    assert trouble["remedy"]


def test_pilot(command: Command, folder: Path) -> None:
    """One block tells how long all will take; nothing of it is kept."""
    command("alloc", "out.npy", "--shape", "4000", "--segments", "4", "--filler", "arange")
    before = (folder / "out.npy").read_bytes()
    said = command("fill", "out.npy", "--pilot", "--workers", "3")
    assert said.code == 0
    assert "One block of 1,000 rows" in said.out
    assert "4,000 rows are pending, in 4 segments" in said.out
    assert (folder / "out.npy").read_bytes() == before
    assert len(flowmap.open_target("out.npy").pending()) == 4
    assert "table" in command("fill", "out.npy", "--pilot", "--json").json
    command("fill", "out.npy")
    said = command("fill", "out.npy", "--pilot")
    assert said.code == 2
    assert "is pending" in said.err


def test_odd_names(command: Command) -> None:
    """Paths are shown as they are, and in lines to be pasted as a shell takes them."""
    name = "a [bold]b :smile: c.npy"
    said = command("alloc", name, "--shape", "40", "--segments", "4", "--filler", "arange")
    assert f"/{name}, shape (40,)" in said.out
    assert f"Next: flowmap fill '{name}'\n" in said.out
    said = command("status", name)
    assert f"{name}: incomplete\n" in said.out
    assert f"flowmap fill '{name}'\n" in said.out
    assert f"of {name} are done" in command("fill", name).out


def test_zero_rows(command: Command) -> None:
    """Have no segments, and are done."""
    assert command("alloc", "out.npy", "--shape", "0,3").code == 0
    assert command("status", "out.npy").code == 0
    assert command("fill", "out.npy", "--filler", "arange").code == 0
    assert command("validate", "out.npy").code == 0


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help(capsys: pytest.CaptureFixture[str], name: str | None) -> None:
    """Is there, and names the options as the parameters are."""
    assert run([*([name] if name else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: flowmap" in text
    assert "Exit codes: 0 done" in text
    wanted = {None: COMMANDS, "alloc": ["--shape", "--dtype", "--segments", "--filler"]}
    for word in wanted.get(name, ["PATH", "--json"]):
        assert word in text


def test_completion() -> None:
    """Each shell can complete commands and options."""
    for shell in ("bash", "zsh", "fish"):
        script = make_app().generate_completion(shell=shell)
        assert all(name in script for name in COMMANDS)
        assert "durability" in script


def python(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60, check=False,
        **options,
    )  # fmt: skip


def test_no_prefect(folder: Path) -> None:
    """What needs no server does not load Prefect."""
    program = """
import sys
from flowmap.cli.app import run
for words in ("alloc out.npy --shape 40 --filler arange", "fill out.npy", "status out.npy",
              "validate out.npy", "info out.npy", "reset out.npy 0 --yes", "--help"):
    assert run(words.split()) == 0, words
assert "prefect" not in sys.modules
"""
    done = python("-c", program, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_module_and_version(folder: Path) -> None:
    """`python -m flowmap` is the command."""
    assert python("-m", "flowmap", "--version").stdout.strip() == flowmap.__version__
    done = python("-m", "flowmap", "status", "none.npy", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("flowmap: ")


def test_reader_that_goes(folder: Path) -> None:
    """As `head` does: no traceback."""
    flowmap.allocate(folder / "out.npy", 100_000, "<f8", segments=5000)
    done = subprocess.run(
        f"{sys.executable} -m flowmap status out.npy --json | head -c 10",
        shell=True, cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout[:2], done.stderr) == ('{"', "")


def test_file_that_another_module_hides(command: Command, folder: Path) -> None:
    """A filler's file is never mistaken for a library of that name."""
    (folder / "json.py").write_text("")
    said = command("alloc", "out.npy", "--shape", "9", "--filler", "json.py:f")
    assert said.code == 2
    assert "cannot be imported as json" in said.err


@pytest.mark.parametrize(
    "words",
    [
        ["status", "out.npy"],
        ["fill", "out.npy", "--segment", "0"],
        ["fill", "out.npy", "--workers", "1"],
        ["fill", "out.npy", "--workers", "1", "--executor", "dask"],
    ],
)
def test_files_in_the_working_directory_are_no_libraries(
    tmp_path: Path, words: list[str]
) -> None:
    """A file that is named like a library is not imported, by workers that start neither."""
    flowmap.allocate(tmp_path / "out.npy", 10, "<f8", segments=2, filler="arange")
    absent = ("org", "msvcrt", "_winapi")  # which cloudpickle tries
    for name in (*absent, "multiprocessing", "numpy", "dask", "distributed"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w')")
    child = python("-P", "-m", "flowmap", *words, cwd=tmp_path)
    assert child.returncode in (0, 3), child.stderr
    assert not (tmp_path / "imported").exists()
    if "--workers" in words:
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.arange(10.0))


def test_fillers_in_the_working_directory(folder: Path) -> None:
    """A module there is found by its name, and recalled, as by `python -m`."""
    target = flowmap.allocate(folder / "out.npy", 10, "<f8", segments=2)
    for words in (["--segment", "0", "--filler", "fillers:square"], ["--segment", "1"]):
        child = python("-P", "-m", "flowmap", "fill", "out.npy", *words, cwd=folder)
        assert child.returncode == 0, child.stderr
    np.testing.assert_array_equal(np.load(target.path), np.arange(10.0) ** 2)
