"""`flowmap doctor`: it sees what goes wrong, says what to do, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import http.server
import importlib.metadata
import json
import os
import platform
import signal
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mounts import mounted, small_disk
from support import ORDINARY, flip, ramp, run, script, snapshot, start

import flowmap
from flowmap import diagnosis_of_folders, doctor
from flowmap.documents import publish_json, read_json
from flowmap.findings import Finding
from flowmap.lease import holder, leased
from flowmap.machine import file_system_type
from flowmap.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALWAYS = (
    *("python", "packages", "prefect", "fastapi", "plugins", "server"),
    *("folder", "file system", "lock", "reservation", "links", "attributes"),
    *("space", "inodes", "processors", "memory", "open files", "file size"),
)
"""What is found of a folder in the file system of the tests, where nothing is wrong."""

DISK = pytest.mark.system("mkfs.ext4", "mount", "umount", packages="e2fsprogs mount", root=True)


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without any setting of Prefect's, in an empty folder."""
    for name in os.environ:
        if name.upper().startswith("PREFECT_"):
            monkeypatch.delenv(name)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))


@pytest.fixture
def target(tmp_path: Path) -> flowmap.Target:
    """Return a job of four segments."""
    return flowmap.allocate(tmp_path / "a.npy", 4096, "<f8", segments=4)


def examined(path: str | os.PathLike[str] | None = None) -> dict[str, Finding]:
    """Return what is found, by the name of the check; each has a remedy unless all is well."""
    findings = doctor.examine(path)
    by_name = {finding.name: finding for finding in findings}
    assert len(by_name) == len(findings)
    for finding in findings:
        assert finding.found.endswith(".")
        assert (finding.remedy == "") == (finding.level == "ok"), finding
    return by_name


def troubles(path: str | os.PathLike[str] | None = None) -> set[str]:
    """Return which checks found trouble."""
    return {name for name, each in examined(path).items() if each.level == "trouble"}


def fail(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises, whatever it is given."""

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing


class TestWhole:
    """What holds for all of it."""

    def test_order(self, tmp_path: Path) -> None:
        """The findings have a fixed order, and no trouble is found here."""
        found = examined(tmp_path)
        assert tuple(found) == ALWAYS
        assert not troubles(tmp_path)
        assert str(tmp_path) in found["folder"].found

    def test_working_directory(self) -> None:
        """Without a path it is the working directory."""
        assert str(Path.cwd()) in examined()["folder"].found

    def test_documents(self, tmp_path: Path) -> None:
        """Findings are JSON values as well."""
        (first, *_) = findings = doctor.examine(tmp_path)
        documents = json.loads(json.dumps([each.document() for each in findings]))
        assert [Finding(**document) for document in documents] == findings
        assert documents[0]["name"] == first.name == "python"

    @pytest.mark.parametrize("memory", [False, True], ids=["disk", "memory"])
    def test_leaves_nothing(self, tmp_path: Path, memory: bool) -> None:
        """Nothing is left in the folder, nor in the working directory."""
        folder = tmp_path
        if memory:
            if file_system_type("/dev/shm") != "tmpfs":
                pytest.skip("/dev/shm is no tmpfs: mount -t tmpfs tmpfs /dev/shm")
            folder = Path("/dev/shm") / f"flowmap-test-{os.getpid()}"
            folder.mkdir()
        try:
            found = examined(folder)
            assert not list(folder.iterdir())
            assert not list(Path.cwd().iterdir())
        finally:
            folder.rmdir()
        if memory:
            assert found["file system"].level == "note"
            assert "in memory" in found["file system"].found
            assert found["reservation"].level == found["lock"].level == "ok"

    def test_imports_no_prefect(self, tmp_path: Path) -> None:
        """Prefect takes seconds, and may be what does not work."""
        done = run(
            script(
                """
                import sys
                from flowmap.doctor import examine
                names = [finding.name for finding in examine(sys.argv[1])]
                assert "plugins" in names
                assert not {"prefect", "pydantic", "dask"} & set(sys.modules)
                """,
                tmp_path,
            )
        )
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(
        "call", ["header_lock", "created", "reserve_range", "link", "mark_job", "file_system"]
    )
    def test_interrupted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        """A Ctrl-C goes through, and leaves nothing behind."""
        monkeypatch.setattr(diagnosis_of_folders, call, fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            doctor.examine(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_really_interrupted(self, tmp_path: Path) -> None:
        """Also the signal itself, to a process that is at it."""
        child = start(
            script(
                """
                import sys, time
                from flowmap import diagnosis_of_folders, doctor
                def wait(*_):
                    print("waiting", flush=True)
                    time.sleep(600)
                diagnosis_of_folders.reserve_range = wait
                doctor.examine(sys.argv[1])
                """,
                tmp_path,
            )
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        assert [entry.name[:15] for entry in tmp_path.iterdir()] == [".flowmap-doctor"]
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
        assert not list(tmp_path.iterdir())

    def test_failing_check(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check that fails is a finding, and the others are made all the same."""
        monkeypatch.setattr(diagnosis_of_folders, "reserve_range", fail(RuntimeError("ouch")))
        monkeypatch.setattr(importlib.metadata, "metadata", fail(ValueError("no")))
        found = examined(tmp_path)
        assert tuple(found) == ALWAYS
        assert found["reservation"].found == "RuntimeError: ouch."
        assert troubles(tmp_path) == {"reservation", "python"}

    @pytest.mark.parametrize("path", [3, "a\0b", b"no/../\xff", ["a"]], ids=repr)
    def test_odd_paths(self, path: Any) -> None:
        """What is no path, or leads nowhere, is trouble and no exception."""
        assert examined(path)["folder"].level == "trouble"


class TestVersions:
    """What is installed."""

    @pytest.mark.parametrize(
        ("package", "version"),
        [("fastapi", "0.165.0"), ("fastapi", "0.100"), ("prefect", "3.4.1"), ("numpy", "1.26")],
    )
    def test_misfit(self, monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> None:
        """A version that does not fit is named, with the line that mends it."""
        real = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda n: version if n == package else real(n)
        )
        finding = examined()[package]
        assert finding.level == "trouble"
        assert f"{package} {version} is installed" in finding.found
        assert finding.remedy.startswith(f'pip install "{package}')
        assert ("does not start" in finding.found) == (package == "fastapi")
        assert troubles() == {package}

    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So is what is not installed."""
        real = importlib.metadata.version

        def version(name: str) -> str:
            if name in ("prefect", "xxhash"):
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        found = examined()
        assert tuple(found)[:4] == ("python", "xxhash", "prefect", "fastapi")
        assert found["xxhash"].found == "xxhash is not installed."
        assert troubles() == {"xxhash", "prefect"}

    def test_flowmap_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where flowmap is only imported, the line installs it."""
        error = importlib.metadata.PackageNotFoundError("prefect-flowmap")
        monkeypatch.setattr(importlib.metadata, "requires", fail(error))
        monkeypatch.setattr(importlib.metadata, "distribution", fail(error))
        finding = examined()["packages"]
        assert finding.level == "trouble"
        assert finding.remedy == f"pip install {Path(flowmap.__file__).parents[1]}"

    def test_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An old Python is named."""
        monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
        finding = examined()["python"]
        assert finding.level == "trouble"
        assert "3.9.1" in finding.found


SOURCES = ("profile", "pyproject.toml", "prefect.toml", ".env", "environment")
"""Where Prefect reads its settings, the strongest last."""


def put(source: str, monkeypatch: pytest.MonkeyPatch, url: str, plugins: str) -> None:
    """Make two settings in the working directory, in the home or in the environment."""
    lines = f"PREFECT_API_URL = '{url}'\nPREFECT_PLUGINS_ENABLED = '{plugins}'\n"
    if source == "profile":
        text = f"active = 'mine'\n[profiles.mine]\n{lines}"
        Path(os.environ["PREFECT_HOME"], "profiles.toml").write_text(text)
    elif source == ".env":
        Path(".env").write_text(lines)
    elif source == "environment":
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.setenv("prefect_plugins_enabled", plugins)
    else:
        above = "tool.prefect." if source == "pyproject.toml" else ""
        tables = f"[{above}api]\nurl = '{url}'\n[{above}plugins]\nenabled = {plugins}\n"
        Path(source).write_text(tables)


class TestSettings:
    """What Prefect's settings are."""

    @pytest.mark.parametrize("count", range(len(SOURCES) + 1))
    def test_as_prefect_reads_them(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        """Of any number of sources the same one counts as in Prefect itself."""
        for number, source in enumerate(SOURCES[:count]):
            plugins = "true" if number % 2 == 0 else "false"
            put(source, monkeypatch, f"http://{number}.invalid/api", plugins)
        done = run(
            script(
                """
                from prefect.settings import get_current_settings
                settings = get_current_settings()
                print(settings.api.url, settings.plugins.enabled)
                """
            )
        )
        assert done.returncode == 0, done.stderr
        url, enabled = done.stdout.split()
        found = examined()
        assert (found["plugins"].level == "ok") == (enabled == "True")
        assert (url == "None") == ("No PREFECT_API_URL" in found["server"].found)
        assert count == 0 or url in found["server"].found
        where = SOURCES[count - 1].replace("profile", "profile mine")
        assert count == 0 or where in found["plugins"].found

    def test_remedies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The line for plugins is one that changes what counts."""
        assert examined()["plugins"].remedy == "prefect config set PREFECT_PLUGINS_ENABLED=true"
        put("profile", monkeypatch, "", "false")
        assert examined()["plugins"].remedy == "prefect config set PREFECT_PLUGINS_ENABLED=true"
        put("prefect.toml", monkeypatch, "", "false")
        assert examined()["plugins"].remedy == "export PREFECT_PLUGINS_ENABLED=1"

    @pytest.mark.parametrize(
        ("name", "value", "on"),
        [
            ("PREFECT_PLUGINS_ALLOW", "other, flowmap", True),
            ("PREFECT_PLUGINS_ALLOW", "other", False),
            ("PREFECT_PLUGINS_DENY", "other,flowmap", False),
            ("PREFECT_PLUGINS_DENY", "other", True),
            ("PREFECT_PLUGINS_SAFE_MODE", "yes", False),
            ("PREFECT_EXPERIMENTS_PLUGINS_DENY", "flowmap", False),
        ],
    )
    def test_flowmaps_own_plugin(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, on: bool
    ) -> None:
        """Plugins that are on may leave flowmap's out."""
        monkeypatch.setenv("PREFECT_PLUGINS_ENABLED", "1")
        monkeypatch.setenv(name, value)
        finding = examined()["plugins"]
        assert finding.level == ("ok" if on else "note")
        assert on or name in finding.found

    def test_profiles(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The profile may be named by the environment, and the file of profiles too."""
        profiles = tmp_path / "profiles.toml"
        on = "PREFECT_PLUGINS_ENABLED = true"
        profiles.write_text(f"active = 'a'\n[profiles.a]\n[profiles.b]\n{on}\n")
        monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
        assert examined()["plugins"].level == "note"
        monkeypatch.setenv("PREFECT_PROFILE", "b")
        assert "profile b" in examined()["plugins"].found
        profiles.write_text("no TOML")  # Prefect goes on without
        assert examined()["plugins"].level == "note"

    def test_no_toml(self) -> None:
        """Beside a broken file Prefect does not start, and that is said."""
        Path("prefect.toml").write_text("enabled = = true")
        finding = examined()["settings"]
        assert finding.level == "trouble"
        assert str(Path("prefect.toml").absolute()) in finding.found
        assert finding.remedy.startswith("Mend it")


def put_database(path: Path, *revisions: str) -> None:
    """Write a SQLite database at a revision, as Prefect's migrations leave it."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.executemany("insert into alembic_version values (?)", zip(revisions))


NEWER = "ffffffffffff"


class TestDatabase:
    """The database of a server that starts here."""

    def test_newer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that a newer Prefect has made is named, with what to do; nothing is changed."""
        home = Path(os.environ["PREFECT_HOME"])
        put_database(home / "prefect.db", NEWER)
        before = snapshot(home)
        finding = examined()["database"]
        assert finding.level == "trouble"
        for part in (str(home / "prefect.db"), NEWER, importlib.metadata.version("prefect")):
            assert part in finding.found
        assert "PREFECT_HOME=" in finding.remedy
        assert snapshot(home) == before
        monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere.invalid/api")
        assert "database" not in examined()
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        assert examined()["database"].level == "trouble"

    def test_unwritable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder where Prefect cannot write is named, unless the server is another's."""
        monkeypatch.setenv("PREFECT_HOME", "/proc/nowhere")
        finding = examined()["database"]
        assert finding.level == "trouble"
        assert "cannot write its database /proc/nowhere/prefect.db" in finding.found
        assert "PREFECT_HOME=" in finding.remedy
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        assert "database" not in examined()

    def test_in_use(self) -> None:
        """What a server has not yet moved from its journal into the file counts too."""
        path = Path(os.environ["PREFECT_HOME"], "prefect.db")
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("pragma journal_mode=wal")
            put_database(path, NEWER)
            assert examined()["database"].level == "trouble"

    @pytest.mark.parametrize("revisions", [(), ("9725c1cbee35",)], ids=["new", "old"])
    def test_usable(self, tmp_path: Path, revisions: tuple[str, ...]) -> None:
        """Prefect brings an older one up to date. The setting says where it is."""
        put_database(tmp_path / "mine.db", *revisions)
        Path("prefect.toml").write_text(
            f"[server.database]\nconnection_url = 'sqlite+aiosqlite:///{tmp_path}/mine.db?a=b'\n"
        )
        finding = examined()["database"]
        assert finding.level == "ok"
        assert f"{tmp_path}/mine.db" in finding.found

    def test_damaged(self) -> None:
        """A file that is not a database is trouble, and the other checks are made."""
        Path(os.environ["PREFECT_HOME"], "prefect.db").write_bytes(b"no database" * 1000)
        found = examined()
        assert found["database"].level == "trouble"
        assert found["folder"].level == "ok"

    def test_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A database of a database server is not looked at."""
        name = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
        monkeypatch.setenv(name, "postgresql+asyncpg://me:secret@host/prefect")
        assert "database" not in examined()


class TestProxy:
    """A proxy that Prefect would ask for the server of this machine."""

    @pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
    def test_named(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """It is told without the password, with the line that mends it."""
        monkeypatch.setenv(name, "http://me:secret@127.0.0.1:9")
        finding = examined()["proxy"]
        assert finding.level == "note"
        assert "the proxy 127.0.0.1:9 " in finding.found
        variable, _, value = finding.remedy.removeprefix("export ").partition("=")
        monkeypatch.setenv(variable, value)
        assert "proxy" not in examined()

    def test_server_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server on another host may need the proxy."""
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere.invalid/api")
        assert "proxy" not in examined()

    def test_server_is_asked_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server of this machine is found all the same."""
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        with serving(good()) as url:
            monkeypatch.setenv("PREFECT_API_URL", url)
            assert examined()["server"].level == "ok"

    def test_no_loopback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine without the interface has its own finding."""
        unreachable = OSError(errno.ENETUNREACH, "Network is unreachable")
        monkeypatch.setattr(socket, "create_connection", fail(unreachable))
        assert "Network is unreachable" in examined()["loopback"].found


@contextlib.contextmanager
def serving(answers: dict[str, Any]) -> Iterator[str]:
    """Answer by HTTP for a `with` block; yield the address of the API.

    Args:
        answers: By path: values for JSON, bytes as they are, or an HTTP status.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.removeprefix("/api"), 404)
            refused = type(answer) is int
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(answer if refused else 200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api"
        finally:
            server.shutdown()
            thread.join()


def recorder(batch: int, read: int) -> dict[str, Any]:
    """Return a server's settings, as far as they are looked at."""
    sizes = {"batch_size": batch, "read_batch_size": read, "flush_interval": 5.0}
    return {"server": {"services": {"task_run_recorder": sizes}}}


def good(**changes: Any) -> dict[str, Any]:
    """Return the answers of a server with which nothing is wrong, but for changes."""
    return {
        "/health": True,
        "/admin/version": importlib.metadata.version("prefect"),
        "/admin/settings": recorder(200, 200),
    } | {f"/{name.replace('_', '/')}": value for name, value in changes.items()}


class TestServer:
    """What answers where PREFECT_API_URL leads."""

    def test_good(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server of the same version that records in batches."""
        with serving(good()) as url:
            monkeypatch.setenv("PREFECT_API_URL", f"{url}/")
            found = examined()
        assert found["server"].level == "ok"
        assert url in found["server"].found
        assert found["recorder"].level == "ok"
        assert tuple(found)[4:8] == ("plugins", "server", "recorder", "folder")

    @pytest.mark.parametrize(("batch", "read"), [(1, 1), (200, 1), (1, 200)])
    def test_slow_recorder(
        self, monkeypatch: pytest.MonkeyPatch, batch: int, read: int
    ) -> None:
        """One that records one at a time; the line to start it with sets what it takes."""
        with serving(good(admin_settings=recorder(batch, read))) as url:
            monkeypatch.setenv("PREFECT_API_URL", url)
            finding = examined()["recorder"]
        assert finding.level == "note"
        assert f"batch_size {batch}, read_batch_size {read}" in finding.found
        assert "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=200" in finding.remedy
        assert finding.remedy.endswith("prefect server start")

    @pytest.mark.parametrize(
        ("version", "where"), [("3.1.4", "where the server runs"), ("99.0.1", "here")]
    )
    def test_other_version(
        self, monkeypatch: pytest.MonkeyPatch, version: str, where: str
    ) -> None:
        """Of two minor versions, the older is to be brought to the newer."""
        with serving(good(admin_version=version)) as url:
            monkeypatch.setenv("PREFECT_API_URL", url)
            finding = examined()["server"]
        assert finding.level == "note"
        assert version in finding.found
        assert where in finding.remedy

    @pytest.mark.parametrize(
        "changes",
        [
            {"health": b"<html>"},
            {"health": 404},
            {"health": False},
            {"health": 500},
            {"admin_version": b"\xff\xfe"},
            {"admin_version": ["3"]},
            {"admin_version": "latest"},
        ],
        ids=str,
    )
    def test_no_prefect(self, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
        """Something else answers: most often the /api was forgotten."""
        with serving(good(**changes)) as url:
            monkeypatch.setenv("PREFECT_API_URL", url)
            found = examined()
        assert found["server"].level == "trouble"
        assert "is not Prefect's API" in found["server"].found
        assert "/api" in found["server"].remedy
        assert "recorder" not in found

    @pytest.mark.parametrize("answer", [404, [], {"server": {}}, b"x"], ids=repr)
    def test_no_settings(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        """A server that does not tell its settings is a finding, no exception."""
        with serving(good(admin_settings=answer)) as url:
            monkeypatch.setenv("PREFECT_API_URL", url)
            found = examined()
        assert found["server"].level == "ok"
        assert found["recorder"].level == "trouble"

    def test_no_http(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Something listens that speaks no HTTP."""

        def greet(listener: socket.socket) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"220 mail\r\n")

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=greet, args=(listener,))
            thread.start()
            port = listener.getsockname()[1]
            monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
            finding = examined()["server"]
            thread.join()
        assert finding.level == "trouble"

    def test_key_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that asks for a key is left alone; a password is not told."""
        with serving(good(admin_version=401)) as url:
            secret = url.replace("http://", "http://me:secret@")
            monkeypatch.setenv("PREFECT_API_URL", secret)
            found = examined()
        assert found["server"].level == "ok"
        assert not any("secret" in str(finding) for finding in found.values())

    def test_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No server is a note, since flowmap works without."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        finding = examined()["server"]
        assert finding.level == "note"
        assert "refused" in finding.found
        assert finding.remedy.endswith("prefect server start")
        monkeypatch.setenv("PREFECT_API_URL", "http://nowhere.invalid/api")
        finding = examined()["server"]
        assert finding.level == "note"
        assert "prefect config unset" in finding.remedy

    @pytest.mark.parametrize("url", ["localhost:4200", "file:///etc/passwd", "http://[", "//x"])
    def test_no_address(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        """What is no address of a server is not asked."""
        monkeypatch.setenv("PREFECT_API_URL", url)
        finding = examined()["server"]
        assert finding.level == "trouble"
        assert "no address" in finding.found

    def test_none_is_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without an address it is said how to have a server, and so for an empty one."""
        assert "prefect server start" in examined()["server"].remedy
        monkeypatch.setenv("PREFECT_API_URL", "")
        assert examined()["server"].found.startswith("No PREFECT_API_URL")


class TestFolder:
    """What can be done in a folder."""

    def test_missing(self, tmp_path: Path) -> None:
        """The line makes the folder; nothing more is looked at."""
        found = examined(tmp_path / "no folder/a.npy")
        assert found["folder"].level == "trouble"
        assert found["folder"].remedy == f"mkdir -p '{tmp_path}/no folder'"
        assert "lock" not in found
        assert not list(tmp_path.iterdir())

    def test_no_folder(self, tmp_path: Path) -> None:
        """A file is no folder."""
        (tmp_path / "file").touch()
        assert "no folder" in examined(tmp_path / "file/a.npy")["folder"].found

    @pytest.mark.system(*(["setpriv"] if os.geteuid() == 0 else []), packages="util-linux")
    def test_not_writable(self, tmp_path: Path) -> None:
        """A folder without the permission to write is trouble, and it is said whose it is."""
        command = script(
            """
            import sys
            from flowmap.doctor import examine
            for finding in examine(sys.argv[1]):
                if finding.name == "folder":
                    print(finding.level, finding.remedy)
            """,
            tmp_path,
        )
        tmp_path.chmod(0o500)
        done = run([*ORDINARY, *command] if os.geteuid() == 0 else command)
        tmp_path.chmod(0o700)
        assert done.stdout.startswith("trouble"), done.stderr
        assert done.stdout.endswith(f"ls -ld {tmp_path}\n")

    @pytest.mark.system("mount", "umount", packages="mount", root=True)
    def test_mount_for_reading_only(self, tmp_path: Path) -> None:
        """What cannot be tried out is left out; what can be read is told."""
        with mounted(tmp_path, "-t", "tmpfs", "-o", "ro", "tmpfs"):
            found = examined(tmp_path)
        assert found["folder"].level == "trouble"
        assert os.strerror(errno.EROFS) in found["folder"].found
        assert {"file system", "space", "inodes"} <= found.keys()
        assert not {"lock", "reservation", "links"} & found.keys()

    @DISK
    @pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
    def test_full(self, tmp_path: Path, kind: str) -> None:
        """On a full disk it is said what to free, and what little there is stays free."""
        with small_disk(tmp_path, kind) as disk:
            for left in (0, 1, 3):
                free = disk.leave(left)
                found = examined(disk.root)
                assert found["space"].level == "trouble"
                assert {"folder", "reservation"} & troubles(disk.root)
                assert [entry.name for entry in disk.root.glob(".*")] == []
                assert disk.free == free
            disk.leave(512)
            assert not {"folder", "lock", "reservation", "space"} & troubles(disk.root)

    @pytest.mark.system("mount", "umount", packages="mount", root=True)
    def test_few_inodes(self, tmp_path: Path) -> None:
        """A disk may also be out of files."""
        with small_disk(tmp_path, "inodes") as disk:
            for left in range(8):
                disk.leave(left)
                finding = examined(disk.root)["inodes"]
                assert finding.level == "trouble"
                assert [entry.name for entry in disk.root.glob(".*")] == []
            disk.leave(20)
            assert examined(disk.root)["inodes"].level == "ok"

    def test_lock_that_locks_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two descriptors that both get the lock are trouble."""
        monkeypatch.setattr("fcntl.flock", lambda *_: None)
        finding = examined(tmp_path)["lock"]
        assert finding.level == "trouble"
        assert "at once" in finding.found

    def test_no_lock(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """So is a file system that has none."""
        monkeypatch.setattr("fcntl.flock", fail(OSError(errno.ENOSYS, "no")))
        finding = examined(tmp_path)["lock"]
        assert finding.level == "trouble"
        assert "flock(2)" in finding.found
        assert "another file system" in finding.remedy

    def test_no_reservation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where space cannot be reserved, or only seems to be, it is said what that costs."""
        monkeypatch.setattr(diagnosis_of_folders, "reserve_range", lambda *_: False)
        finding = examined(tmp_path)["reservation"]
        assert finding.level == "note"
        assert "free space only" in finding.found
        monkeypatch.setattr(diagnosis_of_folders, "reserve_range", lambda *_: True)
        finding = examined(tmp_path)["reservation"]
        assert finding.level == "note"
        assert "takes no space" in finding.found

    def test_no_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without hard links to another folder a rename names; without both, nothing."""
        link = os.link

        def across(first: Any, second: Any, **given: Any) -> None:
            if Path(first).parent != Path(second).parent:
                raise OSError(errno.EXDEV, "not across folders")
            link(first, second, **given)

        monkeypatch.setattr(os, "link", across)
        assert "rename" in examined(tmp_path)["links"].found
        monkeypatch.setattr(os, "link", fail(PermissionError(errno.EPERM, "no")))
        finding = examined(tmp_path)["links"]
        assert finding.level == "ok"
        assert "rename" in finding.found
        monkeypatch.setattr(os, "link", fail(OSError(errno.EIO, "no")))
        assert examined(tmp_path)["links"].level == "trouble"

    def test_names_that_are_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A system that replaces a name that is taken is trouble."""
        monkeypatch.setattr(diagnosis_of_folders, "link", os.replace)
        assert "taken" in examined(tmp_path)["links"].found

    def test_no_attributes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Extended attributes are missed by nothing but the mark."""
        monkeypatch.setattr(os, "setxattr", fail(OSError(errno.EOPNOTSUPP, "no")))
        assert examined(tmp_path)["attributes"].level == "note"

    def test_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On NFS it is said what loses data, and whether its locks reach other hosts."""
        options = frozenset({"rw", "vers=4.2", "local_lock=none"})
        monkeypatch.setattr(diagnosis_of_folders, "file_system", lambda _: ("nfs4", options))
        found = examined(tmp_path)
        assert found["file system"].level == "note"
        assert "nfs4" in found["file system"].found
        assert "mount" not in found
        options = frozenset({"rw", "vers=3", "nolock", "local_lock=all"})
        finding = examined(tmp_path)["mount"]
        assert finding.level == "note"
        assert "local_lock=all" in finding.remedy

    def test_unknown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system does not tell the kind of a file system, none is guessed."""
        monkeypatch.setattr(diagnosis_of_folders, "file_system", lambda _: None)
        assert examined(tmp_path)["file system"].level == "ok"


class TestTarget:
    """What is said of a target, of which nothing changes."""

    def test_good(self, target: flowmap.Target) -> None:
        """A target, pending, half filled or sealed."""
        before = snapshot(target.path)
        found = examined(target)
        assert tuple(found) == (*ALWAYS[:-4], "target", "reserved", "lease", *ALWAYS[-4:])
        assert "4 segments, 0 of them filled" in found["target"].found
        assert found["reserved"].found == "What is left to fill has its space."
        assert found["lease"].found == "No run is filling it."
        flowmap.fill_segment(target.segments[1], ramp)
        assert "1 of them filled" in examined(target)["target"].found
        flowmap.fill(target, ramp, executor="threads")
        assert flowmap.validate(target).ok
        before = snapshot(target.path)
        assert not troubles(target.path)
        assert snapshot(target.path) == before

    def test_yet_to_be_made(self, tmp_path: Path) -> None:
        """Of a target that is not there its folder is looked at."""
        assert tuple(examined(tmp_path / "a.npy")) == ALWAYS
        assert not list(tmp_path.iterdir())

    def test_foreign(self, tmp_path: Path) -> None:
        """A file that flowmap did not make is a note."""
        np.save(tmp_path / "a.npy", np.arange(3))
        finding = examined(tmp_path / "a.npy")["target"]
        assert finding.level == "note"
        assert "not allocated by flowmap" in finding.found
        assert "overwrite" in finding.remedy

    @pytest.mark.parametrize("damage", ["header", "size", "job", "ledger"])
    def test_damaged(self, target: flowmap.Target, damage: str) -> None:
        """Damage is told as flowmap tells it, and nothing is mended."""
        sidecar = Sidecar.of(target.path)
        if damage == "header":
            flip(target.path, 20)
        elif damage == "size":
            os.truncate(target.path, target.job.size - 1)
        elif damage == "job":
            flip(sidecar.job, 30)
        else:
            sidecar.ledger.unlink()
        before = snapshot(target.path)
        found = examined(target.path)
        assert found["target"].level == "trouble"
        assert "lease" not in found
        assert snapshot(target.path) == before

    def test_network(self, target: flowmap.Target, monkeypatch: pytest.MonkeyPatch) -> None:
        """A target that came to NFS may have segments that share pages."""
        monkeypatch.setattr(doctor, "file_system_type", lambda _: "nfs4")
        assert examined(target)["pages"].level == "ok"
        other = flowmap.allocate(target.path.with_name("b.npy"), 4096, "<f8", segments=7)
        finding = examined(other)["pages"]
        assert finding.level == "trouble"
        assert "one host only" in finding.remedy
        assert "segments=None, which makes 8 segments" in finding.remedy

    @DISK
    def test_too_little_space(self, tmp_path: Path) -> None:
        """What has no space reserved, and finds none, is told before it is filled."""
        with small_disk(tmp_path, "ext4") as disk:
            disk.leave(600)
            path = disk.root / "a.npy"
            target = flowmap.allocate(path, 400 * 512, "<f8", segments=4, reserve=False)
            finding = examined(path)["reserved"]
            assert finding.level == "ok"
            assert "1.6 MiB of it have no space" in finding.found
            disk.leave(150)
            finding = examined(path)["reserved"]
            assert finding.level == "trouble"
            assert finding.remedy.startswith("Free ")
            disk.leave(600)
            flowmap.fill(target, ramp, executor="threads", workers=1)
            disk.leave(0)
            assert examined(path)["reserved"].level == "ok"

    def test_lease(self, target: flowmap.Target) -> None:
        """A run that fills is named, and one that died."""
        assert holder(target.job) is None
        with leased(target.job, "the first run"):
            document = read_json(Sidecar.of(target.path).run)
            assert holder(target.job) == document | {"live": True}
            finding = examined(target)["lease"]
            assert finding.level == "ok"
            assert f"the first run (process {os.getpid()} on" in finding.found
        void = document | {"refreshed": time.time() - 61}
        publish_json(Sidecar.of(target.path).run, void)
        before = snapshot(target.path)
        assert holder(target.job) == void | {"live": False}
        finding = examined(target)["lease"]
        assert finding.level == "note"
        assert "the first run" in finding.found
        assert snapshot(target.path) == before
        publish_json(Sidecar.of(target.path).run, document | {"job": "another"})
        assert holder(target.job) is None


class TestLimits:
    """What the system lets a process have."""

    def test_limits(self, target: flowmap.Target) -> None:
        """Few open files, and files smaller than the target."""
        done = run(
            script(
                """
                import json, resource, sys
                from flowmap.doctor import examine
                resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
                for path in sys.argv[1:]:
                    print(json.dumps([finding.document() for finding in examine(path)[-2:]]))
                """,
                target.path,
                target.path.parent,
            )
        )
        assert done.returncode == 0, done.stderr
        of_target, of_folder = map(json.loads, done.stdout.splitlines())
        assert [each["level"] for each in of_target] == ["note", "trouble"]
        assert [each["level"] for each in of_folder] == ["note", "note"]
        assert "256 files" in of_target[0]["found"]
        assert of_target[0]["remedy"].endswith("ulimit -n 1024")
        assert "19.5 KiB at most" in of_target[1]["found"]
        assert of_target[1]["remedy"] == "ulimit -f unlimited"

    def test_no_temporary_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Workers need a folder for temporary files."""
        monkeypatch.setattr("tempfile.gettempdir", fail(FileNotFoundError("none")))
        assert "TMPDIR" in examined()["memory"].remedy
