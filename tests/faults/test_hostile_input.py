"""Hostile input: a fuzzer finds nothing that crashes, hangs, writes, executes or is untrue.

It is guided by the coverage of flowmap's code, and begins with a grammar of what is nearly
right. `tests/fuzzing.py` runs it, `tests/attacks.py` says what is done with each case.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from campaign import sizes
from planted import BUGS
from support import environment

if TYPE_CHECKING:
    from campaign import Figures

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="needs atheris: pip install atheris, for Python 3.11 to 3.13 on Linux on x86_64",
)

CASES = {
    "headers": (3_000, 9_250_000),
    "documents": (1_000, 500_000),
    "targets": (250, 150_000),
    "slots": (250, 80_000),
    "forged": (250, 60_000),
    "parameters": (100, 20_000),
    "values": (500, 200_000),
}
"""How many cases an attack has: by default, and for `-m campaign`."""

FLOOR = 0.7
"""The least share that is reached of the lines of functions that are entered."""


class Campaign(NamedTuple):
    """What the fuzzer came to: plans with their results, and lines by module."""

    plain: list[dict[str, Any]]
    planted: list[dict[str, Any]]
    modules: dict[str, Any]


@pytest.fixture(scope="module", params=sizes(short=False, whole=True))
def campaign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Campaign:
    """Run the fuzzer, in a process of its own: all attacks, then against planted bugs."""
    plain = [{"attack": name, "cases": cases[request.param]} for name, cases in CASES.items()]
    planted = [
        {"attack": bug.attack, "cases": 200_000, "bug": name, "seed": seed}
        | ({"seconds": 1} if bug.told == "timeout" else {})
        for name, bug in list(BUGS.items())[:: 1 if request.param else 3]
        for seed in range(1, 6 if request.param else 2)
    ]
    command = [sys.executable, str(Path(__file__).parents[1] / "fuzzing.py")]
    done = subprocess.run(
        [*command, json.dumps(plain + planted), str(tmp_path_factory.mktemp("fuzz"))],
        env=environment() | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *results, modules = map(json.loads, done.stdout.splitlines())
    return Campaign(results[: len(plain)], results[len(plain) :], modules)


def test_hostile_input_does_no_harm(campaign: Campaign, figures: Figures) -> None:
    """Each case is read soundly or refused with flowmap's own error, and changes nothing."""
    for plan in campaign.plain:
        assert plan["fault"] is None, f"{plan['attack']}: {plan['fault']}"
        assert plan["done"] >= plan["cases"]
        figures.add("hostile input", plan["attack"], plan["done"])


def test_hostile_input_reaches_the_code(campaign: Campaign, figures: Figures) -> None:
    """No attack ends at the first gate: most of each function that is entered is run."""
    lines, missed = 0, 0
    for module, counts in campaign.modules.items():
        assert counts["of"], f"{module} is not entered"
        lines, missed = lines + counts["of"], missed + len(counts["missed"])
        reached = counts["of"] - len(counts["missed"])
        figures.add("hostile input: lines reached", f"{module}, of {counts['of']}:", reached)
    assert lines - missed > FLOOR * lines


def test_planted_bugs_are_found(campaign: Campaign, figures: Figures) -> None:
    """The same attacks find each bug that was planted, as the fault that it is."""
    for plan in campaign.planted:
        assert plan["fault"] is not None, f"{plan['bug']} was not found"
        assert BUGS[plan["bug"]].told in plan["fault"], f"{plan['bug']}: {plan['fault']}"
        figures.add("hostile input: planted bugs", f"found, of {len(campaign.planted)}:")
        figures.add("hostile input", "until each planted bug was found", plan["done"])
