"""The plugin for Prefect's command line, against a real server and the real commands."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prefect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema

from flowmap import prefect_plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

SCRIPT = [str(Path(sys.executable).with_name("prefect"))]
MODULE = [sys.executable, "-m", "prefect"]
FLOWS = {"plugin-first": ["alone", "twin"], "plugin-second": ["twin"]}
BAD_NAME = "Invalid deployment name format"


def compute(number: int = 0, path: str = "") -> None:
    """Have the parameters of the deployments; nothing runs it."""


async def _make() -> dict[str, str]:
    """Make the deployments and the one work pool; return the ids by full name."""
    made = {}
    schema = parameter_schema(compute).model_dump_for_openapi()
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="plugin pool", type="process"))
        for flow, deployments in FLOWS.items():
            flow_id = await client.create_flow_from_name(flow)
            for name in deployments:
                made[f"{flow}/{name}"] = str(
                    await client.create_deployment(
                        flow_id, name, parameter_openapi_schema=schema
                    )
                )
    return made


async def _runs() -> list[Any]:
    """Return the runs of the deployments, the newest last."""
    flows = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_filter=flows)
    return sorted(runs, key=lambda run: run.created)


async def _remove() -> None:
    """Remove everything that `_make` and the tests have made."""
    flows = FlowFilter(name=FlowFilterName(any_=list(FLOWS)))
    runs = await _runs()
    async with get_client() as client:
        for run in runs:
            await client.delete_flow_run(run.id)
        for deployment in await client.read_deployments(flow_filter=flows):
            await client.delete_deployment(deployment.id)
        for flow in await client.read_flows(flow_filter=flows):
            await client.delete_flow(flow.id)
        await client.delete_work_pool("plugin pool")


@pytest.fixture(scope="module")
def deployments(server: Server) -> Iterator[dict[str, str]]:
    """Put the deployments of `FLOWS` on the server; take them away in the end."""
    try:
        yield asyncio.run(_make())
    finally:
        asyncio.run(_remove())


@pytest.fixture
def dead_url() -> str:
    """Return the address of an API that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/api"


def command(
    words: list[str], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a Prefect command in a folder, with plugins enabled unless told otherwise."""
    return subprocess.run(
        words,
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        timeout=90,
        env=os.environ | {"PREFECT_PLUGINS_ENABLED": "1", "COLUMNS": "200"} | environment,
    )


def after_hook(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """Return what the hook makes of the words after `prefect`."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/prefect", *words])
    asyncio.run(prefect_plugin.setup_environment())
    return sys.argv[1:]


class TestCommands:
    """The real commands, each in a process of its own."""

    def test_bare_name(self, deployments: dict[str, str], tmp_path: Path) -> None:
        """A name without its flow runs the one deployment that has it."""
        words = ["deployment", "run", "alone", "--param", "path=out.npy", "-p", "number=3"]
        done = command([*SCRIPT, *words], tmp_path)
        assert done.returncode == 0, done.stderr
        assert "plugin-first/alone" in done.stdout
        assert not done.stderr
        run = asyncio.run(_runs())[-1]
        assert str(run.deployment_id) == deployments["plugin-first/alone"]
        assert run.parameters == {"path": "out.npy", "number": 3}

    def test_profile_module_and_tag(
        self, deployments: dict[str, str], dead_url: str, tmp_path: Path
    ) -> None:
        """The chosen profile's server is asked; what only equals the name stays."""
        profiles = tmp_path / "profiles.toml"
        url = os.environ["PREFECT_API_URL"]
        profiles.write_text(f'active = "mine"\n[profiles.other]\nPREFECT_API_URL = "{url}"\n')
        words = ["-p", "other", "deployments", "run", "--tag", "alone", "-p", "path=a", "alone"]
        environment = {"PREFECT_PROFILES_PATH": str(profiles), "PREFECT_API_URL": dead_url}
        done = command([*MODULE, *words], tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        run = asyncio.run(_runs())[-1]
        assert str(run.deployment_id) == deployments["plugin-first/alone"]
        assert run.tags == ["alone"]
        assert run.parameters == {"path": "a"}

    @pytest.mark.parametrize(
        ("name", "enabled"), [("twin", "1"), ("nobody", "1"), ("alone", "0")]
    )
    def test_left_to_prefect(
        self, deployments: dict[str, str], tmp_path: Path, name: str, enabled: str
    ) -> None:
        """Two such deployments, none, or plugins that are disabled: Prefect's own words."""
        words = [*SCRIPT, "deployment", "run", name]
        done = command(words, tmp_path, PREFECT_PLUGINS_ENABLED=enabled)
        assert done.returncode == 1
        assert f"{BAD_NAME}: {name}." in done.stdout + done.stderr
        assert "prefect_plugin" not in done.stdout + done.stderr

    def test_no_server(self, dead_url: str, tmp_path: Path) -> None:
        """Without a server it is as with no plugin, but for the time to find that out."""
        words = [*SCRIPT, "deployment", "run", "alone"]
        done = command(words, tmp_path, PREFECT_API_URL=dead_url)
        assert done.returncode == 1
        assert f"{BAD_NAME}: alone." in done.stdout + done.stderr
        assert "prefect_plugin" not in done.stdout + done.stderr
        assert "ConnectError" not in done.stdout + done.stderr

    def test_enabled_by_a_file(self, deployments: dict[str, str], tmp_path: Path) -> None:
        """The project's `prefect.toml` enables plugins for whoever works in its folder."""
        shutil.copy(Path(__file__).parents[2] / "prefect.toml", tmp_path)
        words = [*SCRIPT, "deployment", "run", "alone"]
        environment = {k: v for k, v in os.environ.items() if "PLUGINS" not in k}
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "plugin-first/alone" in done.stdout

    def test_missing_pool(self, deployments: dict[str, str], tmp_path: Path) -> None:
        """Beside Prefect's error stands the line that makes the pool; it makes it."""
        (tmp_path / "flow.py").write_text("from prefect import flow\n@flow\ndef f(): pass\n")
        one = {"name": "a", "entrypoint": "flow.py:f", "work_pool": {"name": "no such"}}
        (tmp_path / "prefect.yaml").write_text(json.dumps({"deployments": [one]}))
        done = command([*SCRIPT, "deploy", "--all"], tmp_path)
        assert done.returncode == 1
        assert "does not exist" in done.stdout
        line = "prefect work-pool create 'no such' --type process"
        assert done.stderr == f"There is no work pool 'no such' yet; to make it: {line}\n"


class TestName:
    """What becomes of the name, seen in the process itself."""

    @pytest.mark.parametrize(
        "line",
        [
            "deployment run {}",
            "deployments run --watch {} --tag alone",
            "deployment run --flow-run-name alone {}",
            "--no-prompt deployment run --name={}",
        ],
    )
    def test_completed(
        self, deployments: dict[str, str], monkeypatch: pytest.MonkeyPatch, line: str
    ) -> None:
        """The deployment's name gets its flow, and nothing else does."""
        words = after_hook(monkeypatch, *line.format("alone").split())
        assert words == line.format("plugin-first/alone").split()

    @pytest.mark.parametrize(
        "line",
        [
            "deployment run twin",
            "deployment run nobody",
            "deployment run plugin-first/alone",
            "deployment run --id alone",
            "deployment run alone --id alone",
            "deployment run alone --no-such-option",
            "deployment run alone twin",
            "deployment run alone --help",
            "deployment run",
            "--profile alone deployment run",
            "--profile unknown deployment run alone",
            "deployment inspect alone",
            "deployment pause alone",
            "deployment resume alone",
            "deployment delete alone",
            "deployment run-once alone",
            "flow-run inspect run",
            "deploy",
            "deploy init",
            "run deploy alone",
            "",
        ],
    )
    def test_untouched(
        self,
        deployments: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        tmp_path: Path,
        line: str,
    ) -> None:
        """Whatever else is asked for stays as it is, and nothing is said."""
        monkeypatch.chdir(tmp_path)
        assert after_hook(monkeypatch, *line.split()) == line.split()
        assert capfd.readouterr() == ("", "")

    def test_server_that_is_not_there(
        self, dead_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """It takes no longer than Prefect's own attempts to connect."""
        begun = time.monotonic()
        with temporary_settings({PREFECT_API_URL: dead_url}):
            words = after_hook(monkeypatch, "deployment", "run", "alone")
        assert words == ["deployment", "run", "alone"]
        assert time.monotonic() - begun < 10
        assert capfd.readouterr() == ("", "")

    def test_server_that_does_not_answer(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Patience has an end."""
        monkeypatch.setattr(prefect_plugin, "PATIENCE", 0.2)
        begun = time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
            with temporary_settings({PREFECT_API_URL: url}):
                words = after_hook(monkeypatch, "deployment", "run", "alone")
        assert words == ["deployment", "run", "alone"]
        assert time.monotonic() - begun < 10
        assert capfd.readouterr() == ("", "")


NAMES = st.sampled_from(["run", "t", "n", "deployment", "fill-array", "a b", "1", "true", "é"])
REPEATABLE = st.sampled_from(["--tag", "--param", "-p", "--job-variable"])


@st.composite
def lines(draw: st.DrawFn) -> tuple[list[str], int, str]:
    """Make a command line with the name in any place; say where it is and what it is."""
    name = draw(NAMES)
    value = st.sampled_from([name, "x", f"a={name}", f"y{name}"])
    apart = st.tuples(REPEATABLE, value).map(list)
    joined = st.builds(lambda option, text: [f"{option}={text}"], REPEATABLE, value)
    options = st.lists(st.one_of(apart, joined), max_size=3).map(itertools.chain.from_iterable)
    session = [[], ["-p", name], ["--profile", name], [f"--profile={name}"], ["--no-prompt"]]
    group = draw(st.sampled_from(["deployment", "deployments"]))
    before = [*draw(st.sampled_from(session)), group, "run", *draw(options)]
    word = draw(st.sampled_from([name, f"--name={name}"]))
    after = [
        *draw(options),
        *draw(st.sampled_from([[], ["--watch"], ["--flow-run-name", name]])),
    ]
    return [*before, word, *after], len(before), name


@settings(max_examples=50)
@given(line=lines())
def test_renamed(line: tuple[list[str], int, str]) -> None:
    """Wherever the name stands, and whatever else equals it, it alone is replaced."""
    words, place, name = line
    word = words[place].removesuffix(name) + f"flow/{name}"
    expected = [*words[:place], word, *words[place + 1 :]]
    assert prefect_plugin._renamed(words, name, f"flow/{name}") == expected


@pytest.mark.parametrize(
    ("program", "original", "answer"),
    [
        ("/usr/bin/prefect", ["python", "/usr/bin/prefect"], True),
        ("prefect", ["prefect"], True),
        ("-m", ["python", "-m", "prefect"], True),
        ("-m", ["python", "-W", "error", "-mprefect"], True),
        ("-m", ["python", "-m", "prefect.engine"], False),
        ("-m", ["python", "-m", "uvicorn"], False),
        ("-c", ["python", "-c"], False),
        ("/home/me/prefect.py", ["python", "/home/me/prefect.py"], False),
        ("/usr/bin/pytest", ["python", "/usr/bin/pytest"], False),
    ],
)
def test_whose_command_line(
    monkeypatch: pytest.MonkeyPatch, program: str, original: list[str], answer: bool
) -> None:
    """Only Prefect's own command line is looked at, however it is called."""
    words = ["deployment", "run", "alone"]
    monkeypatch.setattr(sys, "argv", [program, *words])
    monkeypatch.setattr(sys, "orig_argv", [*original, *words])
    assert prefect_plugin._is_command_line() is answer


class TestPools:
    """The hint at work pools that are missing, seen in the process itself."""

    @pytest.mark.parametrize(
        ("words", "text", "missing"),
        [
            ("deploy", "deployments: [{work_pool: {name: plugin pool}}]", []),
            (
                "deploy --all",
                "deployments: [{work_pool: {name: b}}, {work_pool: {name: a}}]",
                "ba",
            ),
            (
                "deploy --all",
                "deployments: [{work_pool: {name: a}}, {work_pool: {name: a}}]",
                "a",
            ),
            ("deploy -n a", "deployments: [{name: a, work_pool: {name: plugin pool}}]", []),
            ("deploy f.py:f", "deployments: [{work_pool: {name: '{{ a }}'}}]", []),
            ("deploy", "deployments: [{}, {work_pool: null}, {work_pool: {name: null}}]", []),
            ("deploy --pool b", "deployments: [{work_pool: {name: a}}]", []),
            ("deploy init", "deployments: [{work_pool: {name: a}}]", []),
            ("deploy --help", "deployments: [{work_pool: {name: a}}]", []),
            ("deploy --prefect-file no.yaml", "deployments: [{work_pool: {name: a}}]", []),
            ("deploy", "deployments: [{work_pool: {name: 3}}]", []),
            ("deploy", "deployments: [{work_pool: a}]", []),
            ("deploy", "deployments: null", []),
            ("deploy", "- a", []),
            ("deploy", "", []),
            ("deploy", "a: [", []),
        ],
    )
    def test_hints(
        self,
        deployments: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        tmp_path: Path,
        words: str,
        text: str,
        missing: str,
    ) -> None:
        """One line a missing pool that the file names in plain; silence in all other cases."""
        monkeypatch.chdir(tmp_path)
        Path("prefect.yaml").write_text(text)
        assert after_hook(monkeypatch, *words.split()) == words.split()
        out, err = capfd.readouterr()
        said = [line.partition("to make it: ")[2] for line in err.splitlines()]
        assert said == [f"prefect work-pool create {pool} --type process" for pool in missing]
        assert not out

    def test_other_file_and_profile(
        self,
        deployments: dict[str, str],
        dead_url: str,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        """The file is the one that was named, and so is the server: in the hint as well."""
        profiles = tmp_path / "profiles.toml"
        url = os.environ["PREFECT_API_URL"]
        profiles.write_text(f'[profiles."my lab"]\nPREFECT_API_URL = "{url}"\n')
        (tmp_path / "a.yaml").write_text("deployments: [{work_pool: {name: it's}}]")
        monkeypatch.setenv("PREFECT_PROFILES_PATH", str(profiles))
        words = ["--profile", "my lab", "deploy", "--prefect-file", str(tmp_path / "a.yaml")]
        with temporary_settings(
            {PREFECT_API_URL: dead_url, prefect.settings.PREFECT_PROFILES_PATH: profiles}
        ):
            after_hook(monkeypatch, *words)
        line = """prefect --profile 'my lab' work-pool create 'it'"'"'s' --type process"""
        assert line in capfd.readouterr().err


def test_costs_nothing_elsewhere(tmp_path: Path) -> None:
    """In any other process the plugin loads itself, and nothing more: no numpy, no commands."""
    script = tmp_path / "prefect"  # by its name it might be the command line
    script.write_text(
        "import asyncio, json, sys\n"
        "import prefect, pluggy, prefect._internal.plugins.manager\n"
        "before = set(sys.modules)\n"
        "from flowmap import prefect_plugin\n"
        "asyncio.run(prefect_plugin.setup_environment())\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    words = [sys.executable, "-W", "error", str(script), "deployment", "inspect", "alone"]
    done = command(words, tmp_path, PREFECT_PLUGINS_ENABLED="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["flowmap", "flowmap._version", "flowmap.prefect_plugin"]
