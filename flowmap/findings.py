"""What `flowmap doctor` finds: a sentence, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal

from flowmap.errors import FlowmapError, StorageError, said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Level = Literal["ok", "note", "trouble"]


_LOOK: Final = "Look at what it names. The other checks do not depend on this one."


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        name: Of the check: "prefect", "lock", ...
        level: "ok"; "note" where flowmap works, but not as well as it might; "trouble".
        found: What is there, a sentence.
        remedy: What to do about it, with the line to type where there is one; "" if nothing.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""

    def document(self) -> dict[str, str]:
        """Return it as JSON values."""
        return asdict(self)


def refused(
    name: str, error: BaseException, remedy: str = _LOOK, level: Level = "trouble"
) -> Finding:
    """Return what an error tells.

    Args:
        name: Of the check.
        error: What was raised. flowmap's own say what to do after their first sentence.
        remedy: What to do where the error does not say.
        level: How bad that is.
    """
    if isinstance(error, StorageError):
        where = f": {error.filename}" if error.filename else ""
        return Finding(name, level, f"{error.strerror}{where}.", remedy)
    text = str(error) if isinstance(error, FlowmapError) else said(error)
    found, _, advice = text.partition(". ")
    return Finding(name, level, f"{found.rstrip('.')}.", advice or remedy)


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a check finds, and where it fails itself, what that tells.

    Args:
        name: Of the check that fails.
        check: Makes the findings; those from before a failure count.
    """
    findings: list[Finding] = []
    try:
        for finding in check():
            findings.append(finding)  # noqa: PERF402 -- what came before a failure is kept
    except Exception as error:  # noqa: BLE001 -- who looks for a fault needs the other checks
        findings.append(refused(name, error))
    return findings
