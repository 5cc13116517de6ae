"""Snakemake wrapper for flowmap: allocates one big .npy file, fills and validates it."""

__author__ = "The flowmap developers"
__copyright__ = "Copyright 2026, the flowmap developers"
__license__ = "BSD-3-Clause"

import json
import os
import shlex
from pathlib import Path

from snakemake.shell import shell

log = snakemake.log_fmt_shell(stdout=True, stderr=True)
options = dict(snakemake.params.items())
command, target = options.pop("command"), options.pop("target")
extra = options.pop("extra", "")

words = ["flowmap", command, target]
if command == "fill":
    words += ["--segment", snakemake.wildcards.scatteritem]
for name, value in options.items():
    text = value if isinstance(value, str) else json.dumps(value)
    words += [f"--{name.replace('_', '-')}", text]
if command != "validate":
    words += ["--sentinel", snakemake.output[0]]
call = shlex.join(words)
shell("{call} {extra} {log}")

if command == "validate":  # Snakemake would not replace a hard link: the array is read-only now
    output = Path(snakemake.output[0])
    to = os.path.relpath(Path(target).resolve(), output.parent.resolve())
    output.symlink_to(to)
