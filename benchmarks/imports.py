"""A contestant of the case `import`: the statements that it names, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from typing import Final

from benchmarks.clock import arguments, say

STATEMENTS: Final = {
    "numpy": "import numpy",
    "flowmap": "import flowmap",
    "functions": "import flowmap; flowmap.allocate, flowmap.fill, flowmap.validate",
}
_PROGRAM: Final = """
import time
begun = time.perf_counter()
{}
print(time.perf_counter() - begun)
"""


def main() -> None:
    """Play the contestant that the command line names."""
    asked = arguments(times=20)
    program = _PROGRAM.format(STATEMENTS[asked.contestant])
    command = sys.executable, "-c", program
    taken = [
        float(subprocess.check_output(command))  # noqa: S603 -- our own
        for _ in range(max(2, int(asked.times * asked.scale)))
    ]
    say(milliseconds=median(taken[1:]) * 1e3)


if __name__ == "__main__":
    main()
