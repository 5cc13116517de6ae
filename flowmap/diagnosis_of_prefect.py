"""What goes wrong for people with Prefect: versions, plugins off, a slow server, or none."""

from __future__ import annotations

import functools
import http.client
import json
import platform
import urllib.error
import urllib.request
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flowmap.batches import BATCHES
from flowmap.diagnosis_of_own_server import database, host_of, is_here, loopback, proxy
from flowmap.errors import said, short
from flowmap.extras import DISTRIBUTION, pip_install
from flowmap.findings import Finding, guarded
from flowmap.settings_of_prefect import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE: Final = 4.0
"""Seconds for a server to answer."""

_LONGEST: Final = 1 << 24  # bytes of an answer; a server's settings are some tens of thousands
_PLUGIN: Final = "flowmap"
_DEFAULT_URL: Final = "http://127.0.0.1:4200/api"
_SET_URL: Final = f"prefect config set PREFECT_API_URL={_DEFAULT_URL}"
_START: Final = f"In a terminal of its own: prefect server start; and here: {_SET_URL}"
_REFUSED: Final = (401, 403)  # HTTP's statuses for those who do not say who they are
_WHY: Final = {
    "fastapi": ", since the server of Prefect 3.8 does not start with the newest",
}
"""What a version that does not fit costs, where it is known."""

_WITH_FINDINGS: Final = ("prefect", "fastapi")
"""The packages that have a finding each, also where they fit."""


def versions() -> Iterator[Finding]:
    """Compare the versions of what flowmap needs with what its own metadata ask for."""
    try:
        needed = {
            requirement.name: requirement
            for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or ())
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        }
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages",
            "trouble",
            "flowmap is imported, but not installed, so that Prefect knows nothing of it.",
            pip_install(),
        )
        return
    yield from guarded("python", _python)
    fitting: list[Finding] = []
    misfits: list[Finding] = []
    for name in needed.keys() - _WITH_FINDINGS:
        for finding in guarded(name, functools.partial(_package, needed[name])):
            (fitting if finding.level == "ok" else misfits).append(finding)
    if not misfits:
        there = ", ".join(sorted(finding.found.rstrip(".") for finding in fitting))
        misfits = [Finding("packages", "ok", f"{there}: as flowmap needs them.")]
    yield from sorted(misfits, key=lambda finding: finding.name)
    for name in _WITH_FINDINGS:
        yield from guarded(name, functools.partial(_package, needed[name]))


def _python() -> Iterator[Finding]:
    there = platform.python_version()
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if SpecifierSet(wanted).contains(there, prereleases=True):
        yield Finding("python", "ok", f"Python {there}.")
    else:
        yield Finding(
            "python",
            "trouble",
            f"This is Python {there}, and flowmap needs {wanted}.",
            "Install a Python that fits, and flowmap in it.",
        )


def _package(requirement: Requirement) -> Iterator[Finding]:
    """Compare an installed package with what is required."""
    name, line = requirement.name, f'pip install "{requirement}"'
    try:
        there = metadata.version(name)
    except metadata.PackageNotFoundError:
        yield Finding(name, "trouble", f"{name} is not installed.", line)
        return
    if requirement.specifier.contains(there, prereleases=True):
        yield Finding(name, "ok", f"{name} {there}.")
        return
    wanted = f"flowmap needs {requirement.specifier}{_WHY.get(name, '')}"
    yield Finding(name, "trouble", f"{name} {there} is installed, and {wanted}.", line)


def prefect() -> Iterator[Finding]:
    """Look at Prefect's settings, and at the server that they lead to.

    Raises:
        InvalidArgumentError: The settings cannot be read.
    """
    settings = Settings()
    yield from guarded("plugins", functools.partial(_plugins, settings))
    yield from guarded("database", functools.partial(database, settings))
    yield from guarded("loopback", loopback)
    yield from guarded("proxy", functools.partial(proxy, settings))
    yield from guarded("server", functools.partial(_server, settings))


def _plugins(settings: Settings) -> Iterator[Finding]:
    """Say whether Prefect loads flowmap's plugin."""
    enabled, safe, allow, deny = (
        settings.get("plugins", field) for field in ("enabled", "safe_mode", "allow", "deny")
    )
    costs = "so that `prefect deployment run fill-array` must name the flow too"
    if enabled is None or not enabled.is_true:
        where = "nothing enables them" if enabled is None else enabled.where
        outright = enabled is None or enabled.by_profile
        yield Finding(
            "plugins",
            "note",
            f"Prefect's plugins are off ({where}), {costs}.",
            "prefect config set PREFECT_PLUGINS_ENABLED=true"
            if outright
            else "export PREFECT_PLUGINS_ENABLED=1",
        )
        return
    hindrances = [
        setting.where
        for setting, hinders in (
            (safe, safe is not None and safe.is_true),
            (allow, allow is not None and bool(allow.words) and _PLUGIN not in allow.words),
            (deny, deny is not None and _PLUGIN in deny.words),
        )
        if setting is not None and hinders
    ]
    if hindrances:
        found = f"Prefect's plugins are on, but not flowmap's ({hindrances[0]}), {costs}."
        yield Finding("plugins", "note", found, f"Let {_PLUGIN} be loaded there.")
    else:
        yield Finding("plugins", "ok", f"Prefect's plugins are on ({enabled.where}).")


def _server(settings: Settings) -> Iterator[Finding]:
    """Look for the server, and at how it records."""
    setting = settings.get("api", "url")
    if setting is None or not setting.value:
        found = "No PREFECT_API_URL is set: a flow starts a server, which ends with it."
        yield Finding("server", "note", found, _START)
        return
    named = f"PREFECT_API_URL ({setting.where})"
    host = host_of(setting.value)
    if host is None:
        found = f"{named} is {short(setting.value)}, which is no address of a server."
        yield Finding("server", "trouble", found, _SET_URL)
        return
    parts = urlsplit(str(setting.value))
    # Without a name and password, if it has them: they must not get into anybody's report.
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    try:
        finding = _answering(place)
    except urllib.error.HTTPError as error:
        finding = _no_prefect(place, f"HTTP status {error.code}")
        if error.code in _REFUSED:
            found = f"A server answers at {place}, and tells no more to those without a key."
            finding = Finding("server", "ok", found)
        yield finding
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        found = f"No server answers at {place} ({reason}), where {named} leads."
        yield Finding("server", "note", found, _remedy_without(host))
        return
    except (ValueError, http.client.HTTPException) as error:
        yield _no_prefect(place, str(error) or said(error))
        return
    yield finding
    if is_here(host):
        yield from guarded("recorder", functools.partial(_recorder, place))


def _remedy_without(host: str) -> str:
    if is_here(host):
        return "In a terminal of its own: prefect server start"
    return (
        "See whether it runs, and can be reached from here; to do without it: "
        "prefect config unset PREFECT_API_URL"
    )


def _no_prefect(place: str, why: str) -> Finding:
    return Finding(
        "server",
        "trouble",
        f"What answers at {place} is not Prefect's API ({why.rstrip('.')}).",
        f"The address of a server ends in /api, as in: {_SET_URL}",
    )


def _answering(place: str) -> Finding:
    """Return what the server at an address says of itself.

    Raises:
        OSError: It does not answer; or it does, with an error (HTTPError).
        ValueError, HTTPException: What answers is no such server.
    """
    if _ask(f"{place}/health") is not True:
        raise ValueError("its health is not 'true'")
    version = _ask(f"{place}/admin/version")
    if not isinstance(version, str):
        raise ValueError("its version is no text")  # noqa: TRY004 -- the server's fault
    theirs, ours = Version(version), Version(metadata.version("prefect"))
    if theirs.release[:2] == ours.release[:2]:
        return Finding("server", "ok", f"Prefect {version} answers at {place}.")
    newer = max(theirs, ours)
    where = "here" if newer == theirs else "where the server runs, and start it again"
    return Finding(
        "server",
        "note",
        f"The server at {place} is Prefect {version}, and this is {ours}.",
        f'Bring both to one version, {where}: pip install "prefect=={newer}"',
    )


def _recorder(place: str) -> Iterator[Finding]:
    """Look whether the server on this machine records task runs in batches."""
    recorder = _ask(f"{place}/admin/settings")["server"]["services"]["task_run_recorder"]
    sizes = {name: int(recorder[name]) for name in ("batch_size", "read_batch_size")}
    told = ", ".join(f"{name} {size}" for name, size in sizes.items())
    if min(sizes.values()) > 1:
        yield Finding("recorder", "ok", f"The server records task runs in batches ({told}).")
        return
    chosen = " ".join(f"{name}={value}" for name, value in BATCHES.items())
    yield Finding(
        "recorder",
        "note",
        f"The server records task runs one at a time ({told}), at five times the cost.",
        f"End it, and start it with: {chosen} prefect server start",
    )


def _ask(url: str) -> Any:
    """Return the JSON values that an address answers with.

    Raises:
        OSError: Nobody answers; or somebody does, with an error (HTTPError).
        ValueError, HTTPException: The answer is no JSON, or not even HTTP.
    """
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 -- http(s)
    try:
        with _opener(url).open(request, timeout=PATIENCE) as answer:
            text = answer.read(_LONGEST)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError("its answer is no JSON") from error


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return what opens an address: without a proxy if it is on this machine."""
    proxies: dict[str, str] | None = {} if is_here(host_of(url) or "") else None
    return urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
