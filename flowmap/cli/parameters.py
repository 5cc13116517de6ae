"""Parameters that several commands have."""

from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from flowmap.cli import readers

WholeNumber = Annotated[int, Parameter(converter=readers.whole_number)]
Size = Annotated[int, Parameter(converter=readers.nbytes)]
Seconds = Annotated[float, Parameter(converter=readers.seconds)]
FilePath = Annotated[str, Parameter(converter=readers.path)]
TargetPath = FilePath
Shape = Annotated[
    Any,
    Parameter(
        converter=readers.shape,
        help="Elements along each axis: 1000 or 1000,50; of a single value '()'.",
    ),
]
Segments = Annotated[
    Any,
    Parameter(
        converter=readers.segments,
        help="How many, or the rows of each: 64 or 500,300,200. Left out: by the size.",
    ),
]
DType = Annotated[
    Any,
    Parameter(
        converter=readers.dtype,
        help='Of one element: `"<f8"`, or fields in JSON: `[["t", "<f8"], ["v", "<f4", [3]]]`.',
    ),
]
FillerName = Annotated[
    str | None,
    Parameter(
        converter=readers.filler,
        help="module:function, or file.py:function, marked with @flowmap.filler; or arange, "
        "constant, copy, linspace, random.",
    ),
]
if TYPE_CHECKING:
    Arguments = dict[str, Any] | None
else:  # which the reader makes of a list: cyclopts gathers what is given for several
    Arguments = Annotated[
        list[str] | None,
        Parameter(
            converter=readers.arguments,
            negative="",
            help="Of the filler: `seed=1`, again for each; all in JSON, `'{\"seed\": 1}'`; or "
            "`@FILE` with such JSON.",
        ),
    ]
SegmentNames = Annotated[
    list[str] | None,
    Parameter(
        negative="",
        help="A number as in status, 7; several, 10-19 or 1,5,7; or a share of all, 3-of-64, "
        "as Snakemake names a scattered item.",
    ),
]
SentinelPath = Annotated[
    str | None,
    Parameter(
        converter=readers.path,
        help="A file that is written once it is done: for Snakemake and its kind.",
    ),
]
_FLAG: Final = Parameter(negative="", show_default=False)
Flag = Annotated[bool, _FLAG]
All = Annotated[bool, _FLAG, Parameter(name="--all", help="The same as the word all.")]
AsJson = Annotated[
    bool, _FLAG, Parameter(name="--json", help="Print one JSON object, for scripts.")
]
Yes = Annotated[
    bool, _FLAG, Parameter(name=("--yes", "-y"), help="Do not ask before it is done.")
]
Quiet = Annotated[bool, _FLAG, Parameter(name=("--quiet", "-q"))]
Watch = Annotated[bool, _FLAG, Parameter(name=("--watch", "-w"))]
