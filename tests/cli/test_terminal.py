"""The command as its user has it, on a terminal: progress, watching, Ctrl-C, questions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from cli.terminal import Terminal

import flowmap

if TYPE_CHECKING:
    from pathlib import Path

SLOW = ["fill", "out.npy", "--filler", "fillers.py:slow", "--workers", "2"]


def allocate(folder: Path, rows: int = 100, segments: int = 50) -> flowmap.Target:
    """Allocate segments of two rows, each a block."""
    return flowmap.allocate(folder / "out.npy", rows, "<f8", segments=segments, block_rows=1)


def test_progress(folder: Path) -> None:
    """Rows, bytes, rate, time left and segments are shown while it fills; then the result."""
    allocate(folder)
    with Terminal(SLOW, folder) as terminal:
        terminal.until("segments done")
        terminal.until(" left")
        assert terminal.code() == 0
        text = terminal.text
    assert "of 100 rows" in text
    assert " of 800 B" in text
    assert "B/s, " in text
    assert "2 running" in text
    assert "100 rows were filled" in text
    assert "Next: flowmap validate out.npy" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor is back"


def test_what_fillers_print_is_shown_whole(folder: Path) -> None:
    """Above the display, line by line, as they came, marks of rich included."""
    allocate(folder, 20, 10)
    words = ["fill", "out.npy", "--filler", "fillers.py:talkative", "--workers", "2"]
    with Terminal(words, folder) as terminal:
        assert terminal.code() == 0
        lines = [line.strip() for line in terminal.text.splitlines()]
    for row in range(20):
        assert f"row {row} says hello [bold]" in lines
    assert lines.count("and on stderr") == 20


LOUD = """
import os
import flowmap

@flowmap.filler
def loud(out, block):
    for _ in range(5):
        os.write(1, b"x" * 20_000 + b"\\n")
    out[...] = 1
"""


def test_terminal_that_goes_away(folder: Path) -> None:
    """A fill whose connection is lost goes on: no filler waits until its lines are shown."""
    target = allocate(folder, 20, 10)
    (folder / "loud.py").write_text(LOUD)
    main, terminal = os.openpty()
    words = ["fill", "out.npy", "--filler", "loud.py:loud", "--workers", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "flowmap", *words],
        cwd=folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as child:
        os.close(terminal)
        assert os.read(main, 1)
        os.close(main)
        try:
            assert child.wait(100) == 1, "what it came to cannot be said"
        finally:
            child.kill()
    assert target.pending() == []


def test_failure_is_shown_at_once(folder: Path) -> None:
    """As a number in the display, with its reason in the end."""
    allocate(folder)
    words = ["fill", "out.npy", "--filler", "fillers.py:broken", "--arguments", '{"at": 15}']
    with Terminal(words, folder) as terminal:
        assert terminal.code() == 1
        assert "1 of 50 segments" in terminal.text
        assert "row 15 cannot be computed" in terminal.text
        assert "Traceback" not in terminal.text


def test_interrupted(folder: Path) -> None:
    """Ctrl-C ends it within moments, says what is kept, and the same again goes on."""
    target = allocate(folder, 1000, 500)
    with Terminal(SLOW, folder) as terminal:
        terminal.until("2 running")
        while len(target.pending()) == 500:
            time.sleep(0.01)
        terminal.press("\x03")
        assert terminal.code() == 130
        text = terminal.text
    assert "Stopped. " in text
    assert " of 500 segments are done" in text
    assert "the same command goes on from there" in text
    assert "Traceback" not in text
    left = len(target.pending())
    assert 0 < left < 500
    words = ["fill", "out.npy", "--filler", "fillers.py:slow", "--arguments", '{"seconds": 0}']
    with Terminal(words, folder) as terminal:
        assert terminal.code() == 0
    assert target.pending() == []


def test_signal_of_a_batch_system(folder: Path) -> None:
    """The block in hand is finished, and the code says that it may be queued again."""
    allocate(folder, 1000, 500)
    with Terminal(SLOW, folder) as terminal:
        terminal.until("2 running")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.code() == 75
        assert "run again to go on" in " ".join(terminal.text.split())
        assert "Traceback" not in terminal.text


def test_watched_from_another_terminal(folder: Path) -> None:
    """Each segment's state, who fills it, how fast and how long still, until it is done."""
    allocate(folder)
    with Terminal(["status", "out.npy", "--watch", "--interval", "0.2"], folder) as watching:
        watching.until("50 pending")  # before the filling begins, which takes a few seconds
        with Terminal(SLOW, folder) as filling:
            watching.until("out.npy: running")
            watching.until(" left")
            assert "▒" in watching.text
            assert "Filled by flowmap fill (process " in watching.text
            assert " ago" in watching.text
            assert filling.code() == 0
            assert watching.code() == 0
            assert "100 %, 100 of 100 rows, 800 B of 800 B" in watching.text
            assert "slowest" in watching.text


def test_watching_is_left_by_ctrl_c(folder: Path) -> None:
    """Which harms nothing."""
    allocate(folder)
    with Terminal(["status", "out.npy", "--watch"], folder) as watching:
        watching.until("50 pending")
        watching.press("\x03")
        assert watching.code() == 130
        assert "Traceback" not in watching.text


def test_watching_what_validation_is_to_sync(folder: Path) -> None:
    """Ends when all is written, though nothing is done before it is validated."""
    target = flowmap.allocate(folder / "out.npy", 20, "<f8", segments=5, durability="end")
    flowmap.fill(target, "arange", executor="threads")
    with Terminal(["status", "out.npy", "--watch"], folder) as watching:
        assert watching.code() == 3
        assert "5 segments: 5 written" in watching.text


def test_watched_off_a_terminal(folder: Path) -> None:
    """A line for each change."""
    allocate(folder, 20, 10)
    words = [sys.executable, "-m", "flowmap", "status", "out.npy", "--watch", "--interval", "0"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("out.npy: incomplete, 0 %, 0 of 20 rows")
        flowmap.fill(folder / "out.npy", "arange", executor="threads")
        *_, last = watching.stdout
        assert last.startswith("out.npy: done, 100 %, 20 of 20 rows")
        assert watching.wait(60) == 0


def test_quiet(folder: Path) -> None:
    """No display on a terminal either, and none where stderr is no terminal."""
    allocate(folder, 20, 10)
    with Terminal([*SLOW, "--quiet"], folder) as terminal:
        assert terminal.code() == 0
        assert "segments done" not in terminal.text
        assert terminal.text.startswith("20 rows were filled")
    flowmap.reset(folder / "out.npy", range(10))
    words = [sys.executable, "-m", "flowmap", *SLOW]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("20 rows were filled")


def test_asked_before_rows_are_given_up(folder: Path) -> None:
    """Anything but yes is no."""
    target = allocate(folder, 20, 10)
    flowmap.fill(target, "arange", executor="threads")
    for answer, code, left in (("\n", 2, 0), ("n\n", 2, 0), ("y\n", 0, 1)):
        with Terminal(["reset", "out.npy", "3"], folder) as terminal:
            terminal.until("Go on? [y/N]")
            terminal.press(answer)
            assert terminal.code() == code
        assert len(target.pending()) == left
