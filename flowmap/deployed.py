"""What a deployed run may do: where its files lie, and which fillers it may import.

Whoever starts a deployed run gives its parameters, often through a form; whoever runs the
worker decides in its environment what they may reach: `FLOWMAP_ROOT`, the folder of the
files, and `FLOWMAP_FILLERS`, packages of fillers separated by commas. Outside deployed runs
whoever runs the program may import what they like. The work of a run carries both to wherever
its filler runs, since a worker on another machine has other variables.
"""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect import context

from flowmap.allowed import FILLERS, check_allowed
from flowmap.errors import InvalidArgumentError, WrongTypeError, short
from flowmap.root import ROOT, root, rooted
from flowmap.values import ON_NULL
from flowmap.work import Work

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flowmap.fillers import Filler


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


def check_place(path: Path) -> None:
    """Refuse a target that is open already and that a flow run may not have.

    Args:
        path: Its absolute path, links resolved.

    Raises:
        InvalidArgumentError: It leads out of `FLOWMAP_ROOT`, or a folder is a link now.
    """
    if (real := place(path)) != path:
        raise InvalidArgumentError(
            f"path is {short(path)}, and leads to {short(real)} by now. Open it again."
        )


def check_filler(filler: Any) -> None:
    """Refuse, before its module is imported, a filler that a deployed run may not have.

    Args:
        filler: Its name, "package.module:function" or a published one. A function is
            allowed: the flow's own code gave it.

    Raises:
        FillerRefusedError: Its module is neither beneath `FLOWMAP_FILLERS` nor published.
    """
    if isinstance(filler, str) and is_deployed():
        check_allowed(filler, _allowed())


def work_of(filler: Filler | str, arguments: Mapping[str, Any] | None) -> Work:
    """Return the work of a flow run, with the limits that hold wherever its filler runs.

    Args:
        filler: The filler, or its name.
        arguments: The filler's arguments by name.

    Raises:
        FillerRefusedError: As in `check_filler`.
        WrongTypeError: A null where the filler takes a number: Prefect stores NaN as null.
        FlowmapError: As in `Work.of`.
    """
    check_filler(filler)
    work = Work.of(filler, arguments)
    if not is_deployed():
        return work
    _check_nulls(work)
    return replace(work, limits=replace(work.limits, fillers=_allowed()))


def _check_nulls(work: Work) -> None:
    """Refuse None for a number, unless it says more than to leave the argument out."""
    nulls = [name for name, value in work.arguments.items() if value is None]
    try:
        parameters = inspect.signature(work.function).parameters if nulls else {}
    except (TypeError, ValueError):  # a builtin function, which has none
        return
    for name in parameters.keys() & nulls:
        kind, default = str(parameters[name].annotation), parameters[name].default
        says_more = re.search(r"\b(None|Optional)\b", kind) and default is not None
        if re.search(r"\b(int|float|complex)\b", kind) and not says_more:
            raise WrongTypeError(
                f"arguments[{name!r}] is null, and {work.name} takes a number. {ON_NULL} For "
                "its default, leave it out."
            )


def _allowed() -> tuple[str, ...]:
    names = (name.strip() for name in os.environ.get(FILLERS, "").split(","))
    return tuple(name for name in names if name)
