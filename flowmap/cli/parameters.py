"""Parameters that several commands have, and how their texts are read."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from flowmap.filenames import check_filename
from flowmap.origin import look_in_working_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token


def _path(_type: Any, tokens: Sequence[Token]) -> Path:
    """Read the path of a target, as it is: `Path` drops a slash at its end."""
    return Path(check_filename(tokens[0].value))


def _whole_numbers(text: str) -> int | list[int]:
    """Read "1000", "1000,50", "1000x50" or "[1000, 50]"; "()" and "[]" are no axes."""
    plain = text.strip()
    inner = plain.strip("[]()").removesuffix(",").strip()
    numbers = [int(part) for part in re.split("[,x]", inner)] if inner else []
    if inner == plain:
        return numbers[0] if len(numbers) == 1 else numbers
    if not numbers and plain not in ("()", "[]"):
        raise ValueError(text)
    return numbers


def _shape(_type: Any, tokens: Sequence[Token]) -> int | list[int]:
    text = tokens[0].value
    try:
        return _whole_numbers(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no shape; write it as 1000 or 1000,50 (no axes at all: '()')"
        ) from None


def _segments(_type: Any, tokens: Sequence[Token]) -> int | list[int]:
    text = tokens[0].value
    try:
        return _whole_numbers(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither a count of segments, 64, nor the rows of each, 500,300,200"
        ) from None


def _dtype(_type: Any, tokens: Sequence[Token]) -> Any:
    text = tokens[0].value
    if not text.lstrip().startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no list of fields in JSON ({error}); write it as "
            """'[["t", "<f8"], ["v", "<f4", [3]]]'"""
        ) from None


def _arguments(_type: Any, tokens: Sequence[Token]) -> dict[str, Any]:
    text = tokens[0].value
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"""{text!r} is no JSON ({error}); write them as '{{"seed": 1}}'"""
        ) from None
    if not isinstance(arguments, dict):
        raise ValueError(  # noqa: TRY004 -- of which cyclopts makes its message
            f"""{text!r} is no JSON object; write the arguments as '{{"seed": 1}}'"""
        )
    return arguments


def _filler(_type: Any, tokens: Sequence[Token]) -> str:
    """Return a filler's name; of one in a file, "path/to/file.py:function", the module's."""
    text = tokens[0].value
    file, colon, function = text.partition(":")
    if not (colon and file.endswith(".py")):
        if colon:
            look_in_working_directory(file)
        return text
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {file} that would have the filler {function}")
    sys.path.append(os.fspath(path.parent))
    found = importlib.util.find_spec(path.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != path:
        raise ValueError(
            f"{file} cannot be imported as {path.stem}, since another module has that name; "
            "rename the file"
        )
    return f"{path.stem}:{function}"


TargetPath = Annotated[Path, Parameter(converter=_path)]
Shape = Annotated[
    Any, Parameter(converter=_shape, help="Elements along each axis: 1000 or 1000,50.")
]
Segments = Annotated[
    Any,
    Parameter(
        converter=_segments,
        help="How many, or the rows of each: 64 or 500,300,200. Left out: by the size.",
    ),
]
DType = Annotated[
    Any,
    Parameter(
        converter=_dtype,
        help='Of one element: `"<f8"`, or fields in JSON: `[["t", "<f8"], ["v", "<f4", [3]]]`.',
    ),
]
FillerName = Annotated[
    str | None,
    Parameter(
        converter=_filler,
        help="module:function, or file.py:function, marked with @flowmap.filler; or arange, "
        "constant, copy, linspace, random.",
    ),
]
Arguments = Annotated[
    Any, Parameter(converter=_arguments, help='Of the filler, in JSON: `{"seed": 1}`.')
]
SegmentNames = Annotated[
    list[str] | None,
    Parameter(
        negative="",
        help="A number as in status, 7; several, 10-19; or a share of all, 3-of-64, as "
        "Snakemake names a scattered item.",
    ),
]
SentinelPath = Annotated[
    Path | None,
    Parameter(help="A file that is written once it is done: for Snakemake and its kind."),
]
_FLAG: Final = Parameter(negative="", show_default=False)
Flag = Annotated[bool, _FLAG]
AsJson = Annotated[
    bool, _FLAG, Parameter(name="--json", help="Print one JSON object, for scripts.")
]
Yes = Annotated[
    bool, _FLAG, Parameter(name=("--yes", "-y"), help="Do not ask before it is done.")
]
Quiet = Annotated[bool, _FLAG, Parameter(name=("--quiet", "-q"))]
Watch = Annotated[bool, _FLAG, Parameter(name=("--watch", "-w"))]
