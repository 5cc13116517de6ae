"""What the fault campaign shares: its two sizes, and the figures that it prints.

A test of `tests/faults` takes what `sizes` gives as a parameter: small by default, large with
`-m campaign`. It counts into the fixture `figures` what it did; the sums are printed at the
end, and `--figures docs/reliability.md` puts them into that page. A plugin of pytest.
"""

from __future__ import annotations

import fcntl
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

    def add(self, fault: str, what: str, count: int = 1) -> None:
        """Count cases.

        Args:
            fault: The class of fault, as docs/reliability.md names it: "power cut".
            what: What was counted: "cuts on ext4".
            count: How many.
        """
        self._counts[fault, what] += count

    def sums(self) -> list[tuple[str, str, int]]:
        """Return what was counted: arguments for `add` of the process that prints it."""
        return [(*key, count) for key, count in self._counts.items()]

    def rows(self) -> dict[str, str]:
        """Return the sums, by class of fault: how many, and how many of each."""
        rows = {}
        for fault in sorted({fault for fault, _ in self._counts}):
            cases = {what: n for (of, what), n in sorted(self._counts.items()) if of == fault}
            each = "; ".join(f"{what} {count:,}" for what, count in cases.items())
            rows[fault] = f"{sum(cases.values()):,} | {each}"
        return rows

    def write(self, page: Path) -> None:
        """Put the sums into a page, each in the place of the last ones of its class.

        Two parts of a campaign may do so at once.

        Args:
            page: With the two marks in it, and the table between them.
        """
        made = f"{time.strftime('%Y-%m-%d')} at {_commit()}"
        with page.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read()
            first, last = text.index(BEGIN) + len(BEGIN), text.index(END)
            old = set(text[first:last].splitlines()) - set(_HEAD)
            rows = dict(line.split(" | ", 1) for line in old if line.startswith("| "))
            rows |= {f"| {fault}": f"{made} | {sums} |" for fault, sums in self.rows().items()}
            table = [f"{fault} | {rows[fault]}" for fault in sorted(rows)]
            lines = ["", _MACHINE, "", *_HEAD, *table, ""]
            file.seek(0)
            file.write(text[:first] + "\n".join(lines) + text[last:])
            file.truncate()


def _commit() -> str:
    """Return the commit that the campaign runs on."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


_HEAD: Final = ["| fault | made on | times | of these |", "|---|---|---:|---|"]
_MACHINE: Final = (
    f"Made with {os.cpu_count()} processors, Linux {platform.release()}, Python "
    f"{platform.python_version()}, NumPy {np.__version__}."
)
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
    rows = figures.rows()
    if not rows:
        return
    terminalreporter.section("faults")
    for fault, sums in rows.items():
        terminalreporter.write_line(f"{fault} | {sums}")
    page = config.getoption("--figures")
    if page is not None and exitstatus == pytest.ExitCode.OK:
        figures.write(page)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand on what this process counted, where it runs but a share of the tests."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = session.config.stash[_FIGURES].sums()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process counted that has run its share of the tests."""
    for sums in getattr(node, "workeroutput", {}).get("figures", ()):
        node.config.stash[_FIGURES].add(*sums)


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """Return where a test counts what it did."""
    return pytestconfig.stash[_FIGURES]
