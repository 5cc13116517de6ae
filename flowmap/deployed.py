"""What a deployed run may do: where its files lie, and which fillers it may import.

Whoever starts a deployed run gives its parameters, often through a form; whoever runs the
worker decides in its environment what they may reach: `FLOWMAP_ROOT`, the folder of the
files, and `FLOWMAP_FILLERS`, packages of fillers separated by commas. Outside deployed runs
whoever runs the program may import what they like.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any, Final

from prefect import context

from flowmap.errors import FillerRefusedError, InvalidArgumentError, cut, short
from flowmap.fillers import published
from flowmap.root import ROOT, root, rooted

if TYPE_CHECKING:
    from pathlib import Path

FILLERS: Final = "FLOWMAP_FILLERS"
"""The environment variable that names the packages, and modules, whose fillers may run."""


def is_deployed() -> bool:
    """Say whether the current flow run was started through a deployment."""
    if os.environ.get("PREFECT__FLOW_RUN_ID"):  # set by workers, and by a serving process
        return True
    # Of the outermost flow run, since a subflow's has none of its own; private in Prefect.
    outermost = getattr(context, "_deployment_id", None)
    if outermost is not None and outermost.get():
        return True
    flow = context.FlowRunContext.get()
    run = flow.flow_run if flow is not None else None
    return run is not None and run.deployment_id is not None


def place(path: str | os.PathLike[str]) -> Path:
    """Return where a target of a flow run lies.

    Args:
        path: Of the target. A relative one is taken from `FLOWMAP_ROOT`; without it from
            the working directory, unless the run is a deployed one.

    Raises:
        InvalidArgumentError: It leads out of `FLOWMAP_ROOT`; or it is relative, the run
            deployed and no root set.
        WrongTypeError: It is no path.
    """
    full = rooted(path)
    if root() is None and not full.is_absolute() and is_deployed():
        raise InvalidArgumentError(
            f"path is {short(path)}, which is relative, and the folder where a deployed run "
            "works may be gone when it ends. Give an absolute path; or let whoever runs the "
            f"worker set the folder that relative paths are taken from, as in: "
            f"export {ROOT}=/data/arrays"
        )
    return full


def check_filler(filler: Any) -> None:
    """Refuse, before its module is imported, a filler that a deployed run may not have.

    Args:
        filler: Its name, "package.module:function" or a published one. A function is
            allowed: the flow's own code gave it.

    Raises:
        FillerRefusedError: Its module is neither beneath `FLOWMAP_FILLERS` nor published.
    """
    if not isinstance(filler, str) or not is_deployed():
        return
    module, colon, _ = filler.partition(":")
    if not colon:  # a published name, or none, which is found out when it is looked up
        return
    prefixes = [name.strip() for name in os.environ.get(FILLERS, "").split(",")]
    if any(name and f"{module}.".startswith(f"{name}.") for name in prefixes):
        return
    names = published()
    if filler in names.values():
        return
    if not all(part.isidentifier() for part in module.split(".")):  # no line for a shell
        raise FillerRefusedError(
            f"{short(filler)} names no filler; write it as 'package.module:function', with a "
            f"module that whoever runs the worker allows with {FILLERS}."
        )
    allowing = [name for name in prefixes if name] + [cut(module)]
    raise FillerRefusedError(
        f"The filler {short(filler)} may not run here: whoever runs the worker must allow its "
        f"module to deployed runs, as in: export {FILLERS}={shlex.quote(','.join(allowing))} "
        f"(it is {short(os.environ.get(FILLERS, ''))} now; several are separated by commas). "
        f"Always allowed: {', '.join(sorted(names))}."
    )
