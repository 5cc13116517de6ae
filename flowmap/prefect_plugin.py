"""Two services to Prefect's command line, wherever Prefect's plugins are enabled.

`prefect deployment run fill-array` does without the flow's name where one deployment has that
name; `prefect deploy` adds the line that makes a missing work pool. All else is Prefect's.

Plugins are enabled by `export PREFECT_PLUGINS_ENABLED=1`, for good by `prefect config set
PREFECT_PLUGINS_ENABLED=true`, or by `enabled = true` under `[plugins]` in the `prefect.toml`
of the working directory. Every process that imports Prefect then calls `setup_environment`:
it may cost nothing but in the two commands, so functions import what they alone need.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect.plugins import register_hook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prefect.client.orchestration import PrefectClient

PATIENCE: Final = 10  # seconds for the server to answer; after 20, Prefect complains


@register_hook
async def setup_environment(**_context: object) -> None:
    """Complete the name given to `prefect deployment run`; hint at pools to be made."""
    with contextlib.suppress(Exception):  # Prefect will say what is wrong
        if _is_command_line() and not {"run", "deploy"}.isdisjoint(sys.argv):
            function, options, profile = _parse(sys.argv[1:])
            if function.endswith(".deployment.run") and "deployment_id" not in options:
                await _complete(options["name"], profile)
            elif function.endswith(".deploy") and "work_pool_name" not in options:
                await _hint(_pools(options), profile)


def _is_command_line() -> bool:
    """Tell whether this process is `prefect ...` or `python -m prefect ...`."""
    if sys.argv[0] == "-m":  # as long as the package is being imported
        return sys.orig_argv[-len(sys.argv)] in {"prefect", "-mprefect"}
    return Path(sys.argv[0]).name == "prefect"


def _parse(words: list[str]) -> tuple[str, dict[str, Any], str | None]:
    """Return the function, its options and the profile that Prefect will take them for."""
    from prefect.cli import _app as cli  # noqa: PLC0415 -- for the two commands only

    quiet: Any = {"exit_on_error": False, "print_error": False}
    words = cli._normalize_top_level_flags(words)  # noqa: SLF001 -- nothing public parses
    session = cli._app.meta.parse_args(words, **quiet)[1]  # noqa: SLF001 -- likewise
    called, bound, _ = cli._app.parse_args(session.args, **quiet)  # noqa: SLF001 -- likewise
    function = f"{called.__module__}.{called.__name__}"
    return function, bound.arguments, session.kwargs.get("profile")


@contextlib.asynccontextmanager
async def _server(profile: str | None) -> AsyncIterator[PrefectClient]:
    """Connect to the server that the command will ask."""
    from prefect import context  # noqa: PLC0415 -- as in _parse
    from prefect.client.orchestration import get_client  # noqa: PLC0415 -- likewise

    with contextlib.ExitStack() as settings:
        if profile and profile != context.get_settings_context().profile.name:
            chosen = context.use_profile(profile, override_environment_variables=True)
            settings.enter_context(chosen)
        async with get_client() as client, asyncio.timeout(PATIENCE):
            yield client


async def _complete(name: str, profile: str | None) -> None:
    """Put the flow before a deployment's bare name, if only one deployment bears it."""
    from prefect.client.schemas import filters  # noqa: PLC0415 -- as in _parse

    if "/" not in name:
        wanted = filters.DeploymentFilter(name=filters.DeploymentFilterName(any_=[name]))
        async with _server(profile) as client:
            (deployment,) = await client.read_deployments(deployment_filter=wanted, limit=2)
            flow = await client.read_flow(deployment.flow_id)
        sys.argv[1:] = _renamed(sys.argv[1:], name, f"{flow.name}/{name}")


def _renamed(words: list[str], name: str, full: str) -> list[str]:
    """Put `full` in place of `name` where Prefect then takes it for the deployment's name."""
    for place, word in enumerate(words):
        renamed = [*words[:place], word.removesuffix(name) + full, *words[place + 1 :]]
        with contextlib.suppress(Exception):  # that word was something else
            if word.endswith(name) and _parse(renamed)[1].get("name") == full:
                return renamed
    return words


def _pools(options: dict[str, Any]) -> list[str]:
    """Return the pools that the deployments of the file name, unless by a template."""
    import yaml  # noqa: PLC0415 -- as in _parse

    file = options.get("prefect_file", Path("prefect.yaml"))
    deployments = yaml.safe_load(file.read_text())["deployments"]
    names = [(deployment.get("work_pool") or {}).get("name") for deployment in deployments]
    return [name for name in dict.fromkeys(names) if name and "{{" not in name]


async def _hint(pools: list[str], profile: str | None) -> None:
    """Say how to make those of the pools that the server does not have."""
    from prefect.client.schemas import filters  # noqa: PLC0415 -- as in _parse

    if pools:
        wanted = filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=pools))
        async with _server(profile) as client:
            there = await client.read_work_pools(work_pool_filter=wanted)
        words = ["prefect", *(["--profile", profile] if profile else []), "work-pool", "create"]
        for pool in [pool for pool in pools if pool not in {known.name for known in there}]:
            line = shlex.join([*words, pool, "--type", "process"])
            sys.stderr.write(f"There is no work pool {pool!r} yet; to make it: {line}\n")
