"""What Prefect stores of the flow's parameters, and what the filler gets."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import stable_id

import flowmap
from flowmap.deployed import work_of
from flowmap.errors import WrongTypeError
from flowmap.work import Work

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

ENTROPY = 2**127 + 1
MANY: dict[str, Any] = {
    "seed": ENTROPY,
    "low": -(2**63) - 1,
    "nested": [{"x": (2**63, np.uint64(2**64 - 1))}],
    "plain": [1, -(2**63), 2**63 - 1, True, None, 0.5, np.int8(3), np.float64(0.25), "text"],
    "nan": [float("nan"), float("-inf"), np.float32("inf")],
    "text": "a\0b\udc80",
    "others": [1 + 2j, dt.date(2026, 1, 31), b"\xff", {1}],
    "keys": {2**64: 1, "\0": 2},
    "long": "x" * 600_000,
}
"""Arguments of which many do not survive in JSON, in a database or in a browser."""


@flowmap.filler
def first_of(out: np.ndarray[Any, Any], block: flowmap.Block, **arguments: Any) -> None:
    """Fill with one, if the arguments are those of the test."""
    assert arguments["seed"] == ENTROPY
    assert np.isnan(arguments["nan"][0])
    assert arguments["text"] == MANY["text"]
    out[...] = 1


def numbers(value: Any) -> list[int]:
    """Return the whole numbers within JSON values."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [number for part in parts for number in numbers(part)]
    return [value] if isinstance(value, int) else []


def test_stored_parameters(server: Server, tmp_path: Path) -> None:
    """A real server takes any arguments; the filler and the fingerprint have the true ones."""
    path = tmp_path / "out.npy"
    asked: dict[str, Any] = {"shape": 10, "segments": 1, "executor": "threads"}
    flowmap.fill_array(path, **asked, filler=first_of, arguments=MANY)
    (fingerprint,) = {row["work"] for row in flowmap.open_target(path).status()}
    assert fingerprint == Work.of(first_of, MANY).fingerprint
    flowmap.fill_array(
        tmp_path / "\udc80.npy", **asked, filler="random", arguments={"seed": ENTROPY}
    )
    stored = server.newest_run()["parameters"]["arguments"]
    assert stored == {"seed": str(ENTROPY)}


def test_shown_parameters() -> None:
    """Whole numbers beyond 64 bits and what JSON does not have are texts, in all depths."""
    shown = flowmap.fill_array.serialize_parameters({"path": "out.npy", "arguments": MANY})
    assert len(shown["arguments"]) <= 100_000, "it is cut"
    few = {name: value for name, value in MANY.items() if name != "long"}
    shown = flowmap.fill_array.serialize_parameters({"path": "out.npy", "arguments": few})
    plain = shown["arguments"]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert all(-(2**63) <= number < 2**63 for number in numbers(plain))
    assert plain["seed"] == str(ENTROPY)
    assert plain["low"] == "-9223372036854775809"
    assert plain["nested"] == [{"x": [str(2**63), str(2**64 - 1)]}]
    assert plain["plain"] == [1, -(2**63), 2**63 - 1, True, None, 0.5, 3, 0.25, "text"]
    assert plain["nan"] == ["nan", "-inf", "inf"]
    assert plain["text"] == "a\\x00b\\udc80"
    assert plain["others"][0] == "(1+2j)"
    assert plain["keys"] == {str(2**64): 1, "\\x00": 2}


def test_parameters_that_hold_themselves() -> None:
    """Arguments that contain themselves are text."""
    endless: dict[str, Any] = {}
    endless["x"] = endless
    shown = flowmap.fill_array.serialize_parameters({"path": "out.npy", "arguments": endless})
    assert shown["arguments"] == "{'x': {...}}"


@flowmap.filler
def choosing(
    out: np.ndarray[Any, Any],
    block: flowmap.Block,
    rate: float,
    most: int | None = 5,
    x: Any = 0,
) -> None:
    """Take numbers, one of which may be None."""


@pytest.mark.parametrize(
    ("filler", "arguments"),
    [
        ("arange", {"step": None}),
        ("linspace", {"num": 10, "stop": None}),
        ("random", {"seed": None}),
        ("random", {"high": None}),
        (choosing, {"rate": None}),
    ],
    ids=stable_id,
)
def test_null_for_a_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, filler: Any, arguments: dict[str, Any]
) -> None:
    """A deployed run refuses null, as which NaN arrives, before it allocates anything."""
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "00000000-0000-0000-0000-000000000000")
    with pytest.raises(WrongTypeError, match=r"is null.*write the text 'nan', 'inf' or '-inf'"):
        flowmap.alloc_task.fn(
            tmp_path / "out.npy", 10, "<f8", filler=filler, arguments=arguments
        )
    assert not list(tmp_path.iterdir())


def test_null_that_says_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """None stays where no other value says the same, and in runs that are not deployed."""
    assert Work.of("arange", {"step": None}).arguments == {"step": None}
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "00000000-0000-0000-0000-000000000000")
    arguments = {"rate": 1, "most": None, "x": None}
    assert work_of(choosing, arguments).arguments == arguments


def test_null_as_a_value(tmp_path: Path) -> None:
    """The filler `constant` says what to write in place of null, and takes that."""
    target = flowmap.allocate(tmp_path / "out.npy", 2, "<f8", segments=1)
    with pytest.raises(flowmap.FillerError, match="write the text 'nan', 'inf' or '-inf'"):
        flowmap.fill_segment(target.segments[0], "constant", {"value": None})
    flowmap.fill_segment(target.segments[0], "constant", {"value": "-inf"})
    assert np.load(target.path).tolist() == [-np.inf, -np.inf]
