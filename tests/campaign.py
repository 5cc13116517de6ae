"""What the fault campaign shares: its two sizes, and the figures that it prints.

A test of `tests/faults` takes what `sizes` gives as a parameter: small by default, large with
`-m campaign`. It counts into the fixture `figures` what it did; the sums are printed at the
end, and `--figures docs/reliability.md` puts them into that page. A plugin of pytest.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.terminal import TerminalReporter

BEGIN: Final = "<!-- figures: written by make campaign -->"
END: Final = "<!-- end of figures -->"


def sizes(short: Any, whole: Any, *, hours: float = 2) -> list[Any]:
    """Return the two values of a test's parameter: by default, and for `-m campaign`.

    Args:
        short: So large in `make test`.
        whole: So large in `make campaign`.
        hours: The time limit of the latter.
    """
    limit = pytest.mark.timeout(hours * 3600)
    return [
        pytest.param(short, id="short"),
        pytest.param(whole, id="whole", marks=[pytest.mark.campaign, limit]),
    ]


class Figures:
    """Counts what was done to flowmap, by class of fault."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._began = time.monotonic()

    def add(self, fault: str, what: str, count: int = 1) -> None:
        """Count cases.

        Args:
            fault: The class of fault, as docs/reliability.md names it: "power cut".
            what: What was counted: "cuts on ext4".
            count: How many.
        """
        self._counts[fault, what] += count

    def lines(self) -> Iterator[str]:
        """Yield the lines of a Markdown table, a row a fault; none if nothing was counted."""
        if not self._counts:
            return
        yield "| fault | times | of these |"
        yield "|---|---:|---|"
        for fault in sorted({fault for fault, _ in self._counts}):
            cases = {what: n for (of, what), n in sorted(self._counts.items()) if of == fault}
            each = "; ".join(f"{what} {count:,}" for what, count in cases.items())
            yield f"| {fault} | {sum(cases.values()):,} | {each} |"

    def write(self, page: Path, form: str) -> None:
        """Put the table into a page, in the place of the last one.

        Args:
            page: With the two marks in it.
            form: Of the campaign, "whole" or "short".
        """
        text = page.read_text()
        first, last = text.index(BEGIN) + len(BEGIN), text.index(END)
        minutes = (time.monotonic() - self._began) / 60
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        today = time.strftime("%Y-%m-%d")
        made = (
            f"The {form} campaign, made on {today} at {commit} in {minutes:.0f} minutes: "
            f"{os.cpu_count()} processors, Linux {platform.release()}, Python "
            f"{platform.python_version()}, NumPy {np.__version__}."
        )
        table = "\n".join(self.lines())
        page.write_text(f"{text[:first]}\n{made}\n\n{table}\n{text[last:]}")


_FIGURES = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the figures into a page."""
    parser.addoption(
        "--figures", type=Path, metavar="PAGE", help="put the campaign's figures into PAGE"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[_FIGURES] = Figures()


def pytest_terminal_summary(
    terminalreporter: TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Print the figures; write them where that was asked for and nothing failed."""
    figures = config.stash[_FIGURES]
    lines = list(figures.lines())
    if not lines:
        return
    terminalreporter.section("faults")
    for line in lines:
        terminalreporter.write_line(line)
    page = config.getoption("--figures")
    if page is not None and exitstatus == pytest.ExitCode.OK:
        figures.write(page, "whole" if config.option.markexpr == "campaign" else "short")


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """Return where a test counts what it did."""
    return pytestconfig.stash[_FIGURES]
