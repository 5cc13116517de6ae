"""What to say of a command that cannot be understood, beyond what cyclopts says."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cyclopts import UnknownCommandError, UnusedCliTokensError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import CycloptsError

_SEGMENTS: Final = re.compile(r"\d+(-\d+|-of-\d+)?|all")
_WITH_SEGMENTS: Final = frozenset({"fill", "status", "reset"})
_BOTH_WAYS: Final = frozenset({"--mark", "--no-mark", "--reserve", "--no-reserve"})
_TRUTH: Final = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0"})


def explain(mistake: CycloptsError, words: Sequence[str], commands: Sequence[str]) -> str:
    """Return what is wrong, and what to type.

    Args:
        mistake: What cyclopts raised.
        words: What was typed after `flowmap`.
        commands: The names of all commands.
    """
    said = str(mistake)
    if isinstance(mistake, UnknownCommandError):
        said = said.partition(" Available commands:")[0]
        return f"{said} The commands are {', '.join(commands)}; see flowmap --help."
    if isinstance(mistake, UnusedCliTokensError) and mistake.unused_tokens:
        said = _explain_leftover(mistake.unused_tokens, words)
    said = said if said.endswith(("?", ".")) else f"{said}."
    return f"{said} See flowmap {words[0]} --help." if words[0] in commands else said


def _explain_leftover(unused: Sequence[str], words: Sequence[str]) -> str:
    """Explain words that nothing takes, by the option before them."""
    first = unused[0]
    for option, word in pairwise(words):
        if word == first and option in _BOTH_WAYS and word.lower() in _TRUTH:
            name = option.removeprefix("--").removeprefix("no-")
            return f"{option} takes no value: write --{name}, or --no-{name} for the opposite."
    option, values = _run_of(first, words)
    numbers = all(re.fullmatch(r"[\d_]+,?", value) for value in values)
    together = ",".join(value.strip(",") for value in values)
    if option in ("--shape", "--segments") and numbers:
        return f"{option} takes one word: write {option} {together}."
    if option == "--arguments":
        return f"{first!r} is left over: write --arguments before each, --arguments {first}."
    if words[0] in _WITH_SEGMENTS and _SEGMENTS.fullmatch(first):
        chosen = together if option == "--segment" else ",".join(unused)
        return f"{first!r} is left over: to name segments write --segment {chosen}."
    return f"{' '.join(unused)!r} is left over: nothing takes it."


def _run_of(leftover: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the option that a word which is left over follows, and all words after it."""
    option, values = "", list[str]()
    for word in words:
        if word.startswith("-") and not word[1:].isdigit():
            if leftover in values[1:]:
                break
            option, _, value = word.partition("=")
            values = [value] if value else []
        else:
            values.append(word)
    return option, values
