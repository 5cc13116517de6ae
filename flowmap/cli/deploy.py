"""`flowmap deploy`."""

from __future__ import annotations

import contextlib
import shlex
import sys

from flowmap.cli.exits import Exit
from flowmap.cli.output import say, say_json
from flowmap.cli.parameters import AsJson  # noqa: TC001 -- read when the command is called
from flowmap.cli.serving import needing_server
from flowmap.deploying import NAME
from flowmap.deploying import deploy as deploy_flow


def deploy(*, pool: str = "default", name: str = NAME, as_json: AsJson = False) -> Exit:
    """Deploy the flow fill-array to a work pool, which is made if there is none.

    Args:
        pool: The work pool, of type process where it is to be made.
        name: Of the deployment.
    """
    # On stdout Prefect tells of it in its own words.
    with needing_server(), contextlib.redirect_stdout(sys.stderr):
        made = deploy_flow(pool, name)
    if as_json:
        say_json({"deployment": f"{NAME}/{name}", "pool": pool, "pool_made": made})
        return Exit.DONE
    say(
        f"Deployed {NAME}/{name} to the work pool {pool}{', which was made' if made else ''}.",
        "Next, where the array is to lie:",
        f"    FLOWMAP_ROOT=$PWD prefect worker start --pool {shlex.quote(pool)}",
        "and from anywhere:",
        f"    prefect deployment run {shlex.quote(f'{NAME}/{name}')} --param path=out.npy",
    )
    return Exit.DONE
