"""Deploying the flow `fill-array`, and the work pool that it needs, to a Prefect server."""

from __future__ import annotations

from typing import Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType
from prefect.workers.process import ProcessWorker

from flowmap.errors import InvalidArgumentError
from flowmap.flow import fill_array

NAME: Final = "fill-array"
"""Of the flow, and of its deployment unless another is asked for."""


def deploy(pool: str = "default", name: str = NAME) -> bool:
    """Deploy the flow as installed code: a worker needs flowmap, but no copy of any file.

    Args:
        pool: The work pool, which is made, of type process, where there is none.
        name: Of the deployment.

    Returns:
        Whether the pool was made.

    Raises:
        InvalidArgumentError: No server is set to deploy to.
    """
    if not get_current_settings().api.url:
        raise InvalidArgumentError(
            "No Prefect server is set to deploy to. Start one, prefect server start, and tell "
            "Prefect of it: prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    made = False
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(
                WorkPoolCreate(name=pool, type="process", base_job_template=template)
            )
            made = True
    fill_array.deploy(
        name,
        work_pool_name=pool,
        build=False,
        push=False,
        ignore_warnings=True,  # that a serving process would do on one machine
        print_next_steps=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return made
