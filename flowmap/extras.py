"""Libraries that not everybody has: each is imported only when it is asked for."""

from __future__ import annotations

import importlib
import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from flowmap.errors import MissingExtraError, said

DISTRIBUTION: Final = "prefect-flowmap"
"""The name that pip knows this package by; `flowmap` is somebody else's."""


def extra(module: str, name: str) -> Any:
    """Import a module that not everybody has.

    Args:
        module: Its full name.
        name: Name of flowmap's extra that brings it.

    Raises:
        MissingExtraError: The module, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} cannot be imported ({said(error).rstrip('.')}). Install what it takes: "
            f"{pip_install(name)}."
        ) from error


def pip_install(name: str = "") -> str:
    """Return the command that installs flowmap from where this one came, with an extra.

    A plain name would replace a folder or a repository by what the package registry has.
    """
    extras = f"[{name}]" if name else ""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # it was only put on the path
        return f"pip install {shlex.quote(str(Path(__file__).parents[1]) + extras)}"
    source = json.loads(text) if text else {}
    if "dir_info" in source:
        option = "-e " if source["dir_info"].get("editable") else ""
        folder = unquote(urlsplit(source["url"]).path)
        return f"pip install {option}{shlex.quote(folder + extras)}"
    where = f" @ {source['url']}" if source else ""
    if "vcs_info" in source:
        tool, commit = (source["vcs_info"][key] for key in ("vcs", "commit_id"))
        where = f" @ {tool}+{source['url']}@{commit}"
    return f'pip install "{DISTRIBUTION}{extras}{where}"'
