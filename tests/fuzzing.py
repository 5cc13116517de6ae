"""Runs the attacks under a coverage-guided fuzzer, atheris; each in a process of its own.

    python tests/fuzzing.py '[{"attack": "headers", "cases": 9}, ...]' FOLDER

prints a line of JSON for each: the cases that were done, and the fault that was found, if any,
with the case that shows it. In the end, for each module, how many lines the functions have that
the kept cases enter, and which of these they miss. A plan may also have a "seed", the "seconds"
that a case may take, a planted "bug", and one "case", in hexadecimal, to be done alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import random
import re
import resource
import signal
import sys
import traceback
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

import atheris

with atheris.instrument_imports(include=["flowmap", "numpy.lib._format_impl"]):
    from attacks import Attack, HarmError, Headers, Parameters, Values
    from attacks_on_jobs import Documents, Forged, Slots, Targets
from planted import BUGS

import flowmap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ATTACKS: Final[dict[str, type[Attack]]] = {
    "headers": Headers,
    "documents": Documents,
    "targets": Targets,
    "forged": Forged,
    "slots": Slots,
    "parameters": Parameters,
    "values": Values,
}
_ROOM: Final = 3 << 30  # bytes of memory beyond what the process has when it begins
_LONGEST: Final = 16_000  # bytes of a case
_FOUND: Final = 3  # the status of a process that has found a fault
_PLAIN: Final = {"seed": 1, "seconds": 10, "bug": None, "case": None}
_MODULES: Final = (
    *("npy", "dtypes", "windows", "mapping", "loading", "job", "ledger", "records", "lease"),
    *(
        "sealing",
        "target",
        "segments",
        "arguments",
        "storage",
        "documents",
        "alloc",
        "work",
        "flow",
    ),
    *("values", "sequences"),
)
"""Those whose lines are counted."""


def _fuzz(plan: dict[str, Any], folder: Path) -> None:
    """Do the cases of a plan; a fault ends the process."""
    attack = ATTACKS[plan["attack"]](folder / "files")
    for number, seed in enumerate(attack.seeds()):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
        with contextlib.suppress(HarmError):  # what is loaded at the first use
            attack.case(seed)
    if plan["bug"] is not None:
        BUGS[plan["bug"]].plant()
    done = 0

    def case(data: bytes) -> None:
        nonlocal done
        done += 1
        try:
            attack.case(data)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, it is a fault
            text = "".join(traceback.format_exception(error))
            (folder / "found").write_text(json.dumps([done, data.hex(), text]))
            os._exit(_FOUND)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.4:
            return bytes(atheris.Mutate(data, most))
        return attack.grow(rng, data)[:most]

    if plan["case"] is not None:
        case(bytes.fromhex(plan["case"]))
        return
    room = _ROOM + int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    options = {
        "runs": plan["cases"],
        "seed": plan["seed"],
        "timeout": plan["seconds"],
        "max_len": _LONGEST,
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{folder}/case-",
        "print_final_stats": 1,
    }
    command = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items())]
    atheris.Setup([*command, str(folder / "corpus")], case, custom_mutator=mutate)
    atheris.Fuzz()


def _reached(plan: dict[str, Any], folder: Path) -> dict[str, list[int]]:
    """Return the lines of each module that the kept cases of a plan reach."""
    reached: dict[str, set[int]] = {str(_file(module)): set() for module in _MODULES}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        lines = reached.get(frame.f_code.co_filename)
        if lines is None:
            return None
        lines.add(frame.f_lineno)
        return trace

    attack = ATTACKS[plan["attack"]](folder / "again")
    sys.settrace(trace)
    for unit in sorted((folder / "corpus").iterdir()):
        with contextlib.suppress(Exception):
            attack.case(unit.read_bytes())
    sys.settrace(None)
    return {Path(file).stem: sorted(lines) for file, lines in reached.items()}


def _file(module: str) -> Path:
    return Path(flowmap.__file__).with_name(f"{module}.py")


def _functions(code: CodeType) -> Iterator[set[int]]:
    """Yield the lines of each function in a code, without those that begin it."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 2:  # CO_NEWLOCALS: no class's body
                lines = {line for _, _, line in constant.co_lines() if line}
                yield lines - {constant.co_firstlineno}
            yield from _functions(constant)


def _forked(folder: Path, what: Any, plan: dict[str, Any]) -> int:
    """Do it in a fork, whose output goes into a file; return its status."""
    child = os.fork()
    if child == 0:
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            (folder / "lines").write_text(json.dumps(what(plan, folder)))
        except BaseException:  # noqa: BLE001 -- it must not go on as its parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _done(plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Do a plan; return it with what it came to."""
    for name in ("corpus", "files", "again"):
        (folder / name).mkdir(parents=True)
    status = _forked(folder, _fuzz, plan)
    log = (folder / "log").read_text(errors="replace")
    cases = re.findall(r"^#(\d+)|number_of_executed_units: (\d+)", log, re.MULTILINE)
    result = plan | {"done": max(int(a or b) for a, b in [("0", ""), *cases]), "fault": None}
    if status == _FOUND:
        result["done"], case, text = json.loads((folder / "found").read_text())
        result["fault"] = f"{text}\nThe case, in hexadecimal: {case}"
    elif status != 0:  # a case that takes too long, or too much memory
        kept = "\n".join(each.read_bytes().hex() for each in folder.glob("case-*"))
        result["fault"] = f"status {status}: {log[-3000:]}\nThe case, in hexadecimal: {kept}"
    return result


def main() -> None:
    """Do the plans that are told, one after the other."""
    logging.disable()  # Prefect tells of each parameter that it refuses
    reached: dict[str, set[int]] = {module: set() for module in _MODULES}
    for number, plan in enumerate(json.loads(sys.argv[1])):
        folder, whole = Path(sys.argv[2], str(number)), _PLAIN | plan
        result = _done(whole, folder)
        print(json.dumps(result), flush=True)  # noqa: T201 -- what it is for
        if result["fault"] is None:
            _forked(folder, _reached, whole)
            for module, lines in json.loads((folder / "lines").read_text()).items():
                reached[module].update(lines)
    counts = {}
    for module, lines in reached.items():
        functions = _functions(compile(_file(module).read_text(), module, "exec"))
        entered = set[int]().union(*(each for each in functions if each & lines))
        counts[module] = {"of": len(entered), "missed": sorted(entered - lines)}
    print(json.dumps(counts), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
