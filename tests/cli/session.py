"""Records a session at a terminal as a picture: `python tests/cli/session.py docs/session.svg`.

Everything in it is what the commands showed when this ran: a fill that is killed, what is known
of it then, and how it goes on.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from cli.terminal import Terminal
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS: Final = 88

FILLER: Final = """\
import numpy as np
import flowmap


@flowmap.filler
def waves(out, block, length=1e4):
    rows = np.arange(block.start, block.stop)
    out[...] = np.sin(rows / length) * np.exp(-rows / 1e9)
"""

_FRAME: Final = re.compile(r"(?:\r?\x1b\[2K(?:\x1b\[1A)?)+")
"""What a live display sends before it draws itself again."""

_HALF: Final = re.compile(r" [456]\d %")

_WITHOUT_FONTS: Final = re.sub(r"@font-face {{.*?}}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""A picture that fetches nothing."""

_CURSOR: Final = re.compile(r"\x1b\[\?25[lh]|\r")


def shown(terminal: Terminal) -> str:
    """Return what a terminal shows at the end, colours included."""
    return _CURSOR.sub("", _FRAME.split(terminal.raw)[-1]).strip("\n")


def main() -> None:
    """Play the session, and write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)

    def say(command: str, output: str) -> None:
        console.print(Text.assemble(("$ ", "bright_black"), (command, "bold")))
        console.print(Text.from_ansi(output))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "waves.py").write_text(FILLER)
        words = "alloc waves.npy --shape 150000000 --segments 240 --filler waves.py:waves"
        with Terminal(words.split(), folder, COLUMNS) as terminal:
            terminal.code()
            say(f"flowmap {words}", shown(terminal).replace(f"{folder}/", ""))
        with Terminal(["fill", "waves.npy"], folder, COLUMNS) as terminal:
            while not _HALF.search(shown(terminal)) and terminal.read():
                pass
            say("flowmap fill waves.npy", shown(terminal))
            terminal.process.kill()
        console.print(Text("Killed", "red"))
        for words in ("status waves.npy", "fill waves.npy", "validate waves.npy"):
            with Terminal(words.split(), folder, COLUMNS) as terminal:
                terminal.code()
                say(f"flowmap {words}", shown(terminal).replace(f"{folder}/", ""))
    console.save_svg(sys.argv[1], title="flowmap", code_format=_WITHOUT_FONTS)


if __name__ == "__main__":
    main()
