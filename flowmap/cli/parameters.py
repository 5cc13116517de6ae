"""Parameters that several commands have."""

from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from flowmap.cli import readers

WholeNumber = Annotated[int, Parameter(converter=readers.whole_number)]
Size = Annotated[int, Parameter(converter=readers.nbytes, metavar="BYTES")]
Seconds = Annotated[float, Parameter(converter=readers.seconds, metavar="SECONDS")]
FilePath = Annotated[str, Parameter(converter=readers.path, metavar="FILE")]
TargetPath = Annotated[str, Parameter(converter=readers.path)]
Shape = Annotated[
    Any,
    Parameter(
        converter=readers.shape,
        metavar="N,N,...",
        help="Elements along each axis: 1000 or 1000,50; of a single value '()'.",
    ),
]
Segments = Annotated[
    Any,
    Parameter(
        converter=readers.segments,
        metavar="N",
        help="How many, or the rows of each: 64 or 500,300,200. Left out: by the size.",
    ),
]
DType = Annotated[
    Any,
    Parameter(
        converter=readers.dtype,
        metavar="DTYPE",
        help='Of one element: `"<f8"`, or fields in JSON: `[["t", "<f8"], ["v", "<f4", [3]]]`.',
    ),
]
FillerName = Annotated[
    str | None,
    Parameter(
        converter=readers.filler,
        metavar="NAME",
        help="module:function, or file.py:function, marked with @flowmap.filler; or arange, "
        "constant, copy, linspace, random.",
    ),
]
if TYPE_CHECKING:
    Arguments = dict[str, Any] | None
else:  # a list, so that the option can be given again; pydantic, if loaded, checks the dict
    Arguments = Annotated[
        list[str] | Any,
        Parameter(
            converter=readers.arguments,
            accepts_keys=False,
            json_list=False,
            metavar="NAME=VALUE",
            negative="",
            help="Of the filler: `seed=1`, again for each; all in JSON, `'{\"seed\": 1}'`; or "
            "`@FILE` with such JSON.",
        ),
    ]
SegmentNames = Annotated[
    list[str] | None,
    Parameter(
        negative="",
        json_list=False,
        metavar="N",
        help="A number as in status, 7; several, 10-19 or 1,5,7; or a share of all, 3-of-64, "
        "as Snakemake names a scattered item.",
    ),
]
SentinelPath = Annotated[
    str | None,
    Parameter(
        converter=readers.path,
        metavar="FILE",
        help="A file that is written once it is done: for Snakemake and its kind.",
    ),
]
_FLAG: Final = Parameter(negative="", show_default=False)
Flag = Annotated[bool, _FLAG]
All = Annotated[bool, _FLAG, Parameter(name="--all", help="All segments.")]
AsJson = Annotated[
    bool, _FLAG, Parameter(name="--json", help="Print one JSON object, for scripts.")
]
Yes = Annotated[
    bool, _FLAG, Parameter(name=("--yes", "-y"), help="Do not ask before it is done.")
]
Quiet = Annotated[bool, _FLAG, Parameter(name=("--quiet", "-q"))]
Watch = Annotated[bool, _FLAG, Parameter(name=("--watch", "-w"))]
