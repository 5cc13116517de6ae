"""Run the flow `fill-array` here, serve it, or deploy it to a work pool.

    python flows/fill_array.py --param path=out.npy --param 'shape=[1000,1000]'
    python flows/fill_array.py --serve
    python flows/fill_array.py --deploy default

A parameter is given as to `prefect deployment run`: its value is JSON, or else a text.
"""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

from prefect.exceptions import ParameterTypeError
from prefect.types.entrypoint import EntrypointType

from flowmap import FlowmapError, fill_array
from flowmap.deploying import NAME, deploy


def parameter(text: str) -> tuple[str, Any]:
    """Split "name=value" into the name and the value that it stands for."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def run(parameters: dict[str, Any]) -> None:
    """Run the flow in this process; its log tells how a failure came about."""
    try:
        fill_array(**parameters)
    except (FlowmapError, ParameterTypeError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--param", action="append", default=[], type=parameter, metavar="NAME=VALUE"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--serve", action="store_true", help="deploy, and run what is asked for")
    how.add_argument("--deploy", metavar="POOL", help="deploy to a work pool, for its workers")
    asked = parser.parse_args()
    if asked.param and (asked.serve or asked.deploy):
        parser.error(
            "--param goes with neither --serve nor --deploy; give it to "
            "`prefect deployment run`"
        )
    if asked.deploy:
        try:
            deploy(asked.deploy)
        except FlowmapError as error:
            raise SystemExit(str(error)) from None
    elif asked.serve:
        fill_array.serve(NAME, entrypoint_type=EntrypointType.MODULE_PATH)
    else:
        try:
            inspect.signature(fill_array.fn).bind(**dict(asked.param))
        except TypeError as error:
            parser.error(f"--param: {error}")
        run(dict(asked.param))


if __name__ == "__main__":
    main()
