"""What a Prefect server needs that a flow starts for itself, where no other is set."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import re
import socket
import sqlite3
import tempfile
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from flowmap.errors import said
from flowmap.findings import Finding
from flowmap.settings_of_prefect import Settings
from flowmap.storage import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK: Final = "127.0.0.1,localhost"
"""The hosts that no proxy can reach for this machine, as NO_PROXY names them."""

_ROOM: Final = 1 << 20  # bytes: a new database takes three times as much
_SQLITE: Final = "sqlite+aiosqlite:///"
_REVISION: Final = re.compile(r"""^revision = ["'](\w+)["']""", re.MULTILINE)


def hindrance() -> Finding | None:
    """Return why no server can start here for a flow, None where one can or another is set."""
    with contextlib.suppress(Exception):  # Prefect will say what is wrong
        settings = Settings()
        url = settings.get("api", "url")
        if url is None or not url.value:
            findings = (*loopback(), *database(settings))
            return next((each for each in findings if each.level == "trouble"), None)
    return None


def loopback() -> Iterator[Finding]:
    """Look whether a server of this machine can be reached; say nothing where it can."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as there:
            socket.create_connection(there.getsockname(), timeout=4).close()
    except OSError as error:
        found = f"This machine has no loopback interface, 127.0.0.1 ({said(error)})."
        yield Finding("loopback", "trouble", found, "As root: ip link set lo up")


def proxy(settings: Settings) -> Iterator[Finding]:
    """Look whether Prefect would ask a proxy for the server of this machine."""
    url = settings.get("api", "url")
    host = "127.0.0.1" if url is None or not url.value else host_of(url.value) or ""
    proxies = urllib.request.getproxies()
    chosen = proxies.get("http") or proxies.get("all")
    if is_here(host) and chosen and not urllib.request.proxy_bypass(host):
        yield Finding(
            "proxy",
            "note",
            f"A flow asks the proxy {chosen.rpartition('@')[2]} for the Prefect server at "
            f"{host}, which no proxy reaches. `flowmap run` goes around it.",
            f"export NO_PROXY={LOOPBACK}",
        )


def go_around_proxy() -> None:
    """Let this process and its children ask no proxy for what is on this machine."""
    there = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    if LOOPBACK not in there:  # the name in lower case counts first
        os.environ["no_proxy"] = f"{there},{LOOPBACK}".lstrip(",")


def database(settings: Settings) -> Iterator[Finding]:
    """Look whether a server that starts here can open the database that it would take."""
    url = settings.get("api", "url")
    if url is not None and url.value and not is_here(host_of(url.value) or ""):
        return
    chosen = settings.get("server.database", "connection_url")
    text = f"{_SQLITE}{settings.home}/prefect.db" if chosen is None else str(chosen.value)
    path = Path(text.removeprefix(_SQLITE).partition("?")[0])
    if not text.startswith(_SQLITE) or ":memory:" in text:
        return
    if not (url is not None and url.value) and (why := _unwritable(path)):
        yield Finding(
            "database",
            "trouble",
            f"Prefect cannot write its database {path} ({why}), and without it no server "
            "starts.",
            "Make room there or get permission; or choose a folder of yours: "
            "export PREFECT_HOME=/a/folder/of/yours",
        )
        return
    known = _known_revisions()
    if not path.is_file() or not known:
        return
    revision = _revision(path)
    if revision is None or revision in known:
        yield Finding("database", "ok", f"This Prefect can use its database {path}.")
        return
    yield Finding(
        "database",
        "trouble",
        f"Prefect's database {path} was made by a newer Prefect: Prefect "
        f"{metadata.version('prefect')} cannot locate its revision {revision}, and with it no "
        "server or flow starts.",
        "pip install --upgrade prefect; or let this Prefect have a folder and database of its "
        "own: export PREFECT_HOME=$HOME/.prefect-other",
    )


def _unwritable(path: Path) -> str:
    """Return why Prefect cannot write its database; "" where it can. Nothing is left behind."""
    try:
        if path.exists():
            os.close(open_file(path, os.O_RDWR))
        # Prefect makes the folders that are missing.
        folder = next(each for each in path.parents if each.exists())
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _revision(path: Path) -> str | None:
    """Return the revision of a database, None where it is new; leave nothing beside it."""
    still = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    address = f"file:{quote(str(path.absolute()))}?mode=ro{still}"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master")}
        if "alembic_version" not in tables:
            return None
        row = database.execute("select version_num from alembic_version").fetchone()
    return None if row is None else str(row[0])


def _known_revisions() -> set[str]:
    """Return the revisions of databases that the installed Prefect knows."""
    found = importlib.util.find_spec("prefect")
    if found is None or found.origin is None:
        return set()
    folder = Path(found.origin).parent / "server/database/_migrations/versions/sqlite"
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    return {revision for text in texts for revision in _REVISION.findall(text)}


def host_of(url: Any) -> str | None:
    """Return the host of a server's address, None where it is not one."""
    try:
        parts = urlsplit(str(url))
    except ValueError:
        return None
    return parts.hostname if parts.scheme in ("http", "https") else None


def is_here(host: str) -> bool:
    """Tell whether a name or number is this machine's, as far as it can be told at once."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
