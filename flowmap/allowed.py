"""The fillers that a deployed run may look up by name."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from flowmap.errors import FillerRefusedError, cut, short
from flowmap.fillers import published

if TYPE_CHECKING:
    from collections.abc import Sequence

FILLERS: Final = "FLOWMAP_FILLERS"
"""The environment variable that names the packages, and modules, whose fillers may run."""


def check_allowed(filler: str, allowed: Sequence[str]) -> None:
    """Refuse, before its module is imported, a filler that is not allowed.

    Args:
        filler: Its name, "package.module:function" or a published one.
        allowed: Packages and modules, beside the published fillers.

    Raises:
        FillerRefusedError: Its module is neither one of them, nor in one, nor published.
    """
    module, colon, _ = filler.partition(":")
    if not colon:  # a published name, or none, which is found out when it is looked up
        return
    if any(f"{module}.".startswith(f"{name}.") for name in allowed):
        return
    names = published()
    if filler in names.values():
        return
    if not all(part.isidentifier() for part in module.split(".")):  # no line for a shell
        raise FillerRefusedError(
            f"{short(filler)} names no filler; write it as 'package.module:function', with a "
            f"module that whoever runs the worker allows with {FILLERS}."
        )
    allowing = ",".join([*allowed, cut(module)])
    raise FillerRefusedError(
        f"The filler {short(filler)} may not run here: it is not allowed in deployed runs. On "
        f"the worker, set: export {FILLERS}={shlex.quote(allowing)} "
        f"(it is {short(', '.join(allowed))} now; several are separated by commas). "
        f"Always allowed: {', '.join(sorted(names))}."
    )
