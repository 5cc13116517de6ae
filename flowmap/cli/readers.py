"""How the texts of options become values: what is plain is taken, the rest explained.

Each reader is a converter of cyclopts, which makes its own message of a `ValueError`: it puts
the option's name before what that says.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowmap.arguments import seconds as checked_seconds
from flowmap.errors import short
from flowmap.fillers import published
from flowmap.origin import look_in_working_directory
from flowmap.storage import opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token

_MOST_DIGITS: Final = 30  # of a whole number: more would only cost time and memory
_UNITS: Final = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_NAMED: Final = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)
_BARE: Final = re.compile(r"[^\s,={}\[\]\"']+")


def _whole(text: str) -> int | None:
    """Return a whole number: "1000", "1_000", "1e6", "-5"; None for anything else."""
    plain = text.strip()
    if len(plain) > _MOST_DIGITS or not plain.isascii():
        return None
    try:
        return int(plain)
    except ValueError:
        if "e" not in plain.lower():  # 1.5 is no whole number, and 1.0 may be a slip
            return None
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    whole = value.is_finite() and value.adjusted() < _MOST_DIGITS and value == int(value)
    return int(value) if whole else None


def _whole_numbers(text: str) -> int | list[int]:
    """Read "1000", "1000,50", "1000x50", "(1000, 50)"; "()" and "[]" are none.

    Raises:
        ValueError: It is none of these; its message, if it has one, says why.
    """
    plain = text.strip()
    enclosed = (plain[:1], plain[-1:]) in {("(", ")"), ("[", "]")}
    inner = plain[1:-1].strip().removesuffix(",") if enclosed else plain
    if enclosed and not inner:
        return []
    parts = [part.strip() for part in re.split("[,x×]", inner)]  # noqa: RUF001 -- people type it
    if any(re.fullmatch(r"0\d+", part) for part in parts):  # as in 100,000
        grouped = re.fullmatch(r"\d{1,3}(,\d{3})+", inner)
        hint = f"; write {''.join(parts)} for one number" if grouped else ""
        raise ValueError(f"a number begins with a zero{hint}")
    numbers = [number for part in parts if (number := _whole(part)) is not None]
    if len(numbers) < len(parts):
        raise ValueError
    return numbers if enclosed or len(parts) > 1 else numbers[0]


def _numbers_or(text: str, what: str, example: str) -> int | list[int]:
    try:
        return _whole_numbers(text)
    except ValueError as error:
        why = f" ({error})" if str(error) else ""
        raise ValueError(f"{short(text)} is {what}{why}; {example}") from None


def shape(_type: Any, tokens: Sequence[Token]) -> int | list[int]:
    """Read a shape."""
    return _numbers_or(
        tokens[0].value,
        "not a shape",
        "write it as 1000 or 1000,50, or '()' for a single value",
    )


def segments(_type: Any, tokens: Sequence[Token]) -> int | list[int]:
    """Read a count of segments, or the rows of each."""
    return _numbers_or(
        tokens[0].value,
        "neither a count of segments nor the rows of each",
        "write 64, or 500,300,200",
    )


def whole_number(_type: Any, tokens: Sequence[Token]) -> int:
    """Read a whole number."""
    text = tokens[0].value
    number = _whole(text)
    if number is None:
        raise ValueError(f"{short(text)} is not a whole number; write it as 1000 or 1_000")
    return number


def nbytes(_type: Any, tokens: Sequence[Token]) -> int:
    """Read a number of bytes."""
    text = tokens[0].value
    found = re.fullmatch(r"\s*(\d+)\s*([KMG]iB)\s*", text, re.ASCII)
    number = _whole(found[1]) if found else _whole(text)
    if number is None:
        raise ValueError(f"{short(text)} is not a number of bytes; write it as 4096 or 64KiB")
    return number * _UNITS[found[2]] if found else number


def seconds(_type: Any, tokens: Sequence[Token]) -> float:
    """Read a number of seconds."""
    text = tokens[0].value
    try:
        return checked_seconds("it", float(text))
    except ValueError:
        raise ValueError(
            f"{short(text)} is not a number of seconds; write it as 30 or 0.5"
        ) from None


def path(_type: Any, tokens: Sequence[Token]) -> str:
    """Read the name of a file, as it is typed."""
    text = tokens[0].value
    if not text:
        raise ValueError("a path is empty; write the name of a file, such as out.npy")
    return text


def dtype(_type: Any, tokens: Sequence[Token]) -> Any:
    """Read a dtype: its name, or a list of fields as JSON or as NumPy writes it."""
    text = tokens[0].value.strip()
    if not text:
        raise ValueError('it is empty; write a dtype, such as "<f8"')
    if text[0] not in "[{":
        return re.sub(r"^(np|numpy)\.", "", text)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        fields = _literal(text)
        if fields is None:
            raise ValueError(
                f"{short(text)} is not a list of fields ({error}); {_FIELDS}"
            ) from None
    if not isinstance(fields, list):
        raise ValueError(f"{short(text)} is not a list of fields; {_FIELDS}")  # noqa: TRY004
    return fields


_FIELDS: Final = """write it as '[["t", "<f8"], ["v", "<f4", [3]]]'"""


def _literal(text: str) -> Any:
    """Return what a text is in Python; None where it is not plain data."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def arguments(_type: Any, tokens: Sequence[Token]) -> dict[str, Any]:
    """Read a filler's arguments: a JSON object, @FILE with one, NAME=VALUE, or several such."""
    chosen: dict[str, Any] = {}
    for token in tokens:
        for name, value in _some_arguments(token.value).items():
            if name in chosen:
                raise ValueError(f"the argument {name} is given twice; give it once")
            chosen[name] = value
    return chosen


def _some_arguments(text: str) -> dict[str, Any]:
    if named := _NAMED.fullmatch(text.strip()):
        return {named[1]: _value(named[1], named[2].strip())}
    where = short(text)
    if text.startswith("@"):
        where = f"the file {text[1:]}"
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{where} cannot be read: {why}") from None
    try:
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        hint = f", or @{text} for that file" if text.endswith(".json") else ""
        raise ValueError(f"{where} is not JSON ({error}); {_ARGUMENTS}{hint}") from None
    if not isinstance(found, _Pairs):
        raise ValueError(f"{where} is not a JSON object; {_ARGUMENTS}")  # noqa: TRY004
    return dict(_plain(found))


_ARGUMENTS: Final = """write seed=1, or '{"seed": 1}'"""


class _Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object, a name that is there twice included."""


def _plain(value: Any) -> Any:
    """Return a JSON value with its objects as dicts."""
    if isinstance(value, _Pairs):
        plain = {name: _plain(each) for name, each in value}
        if len(plain) < len(value):
            names = [name for name, _ in value]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice} is given twice; give it once")
        return plain
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _value(name: str, text: str) -> Any:
    """Return the value of NAME=VALUE: JSON, or else a text that needs no quotes."""
    try:
        return _plain(json.loads(text, object_pairs_hook=_Pairs))
    except (json.JSONDecodeError, RecursionError):
        quoted = f"'{name}={json.dumps(text)}'"
        if not _BARE.fullmatch(text):
            raise ValueError(
                f"{short(text)}, the value of {name}, is not JSON; write a text in quotes: "
                f"{quoted}"
            ) from None
    if _is_pythons(text):
        raise ValueError(
            f"{text}, the value of {name}, is not JSON; write a number as 1000, 0.5 or NaN, "
            f"and true, false or null; a text in quotes: {quoted}"
        )
    return text


def _is_pythons(text: str) -> bool:
    """Return whether Python would read a text as a number or a constant."""
    try:
        float(text)
    except ValueError:
        return text == "None" or _literal(text) is not None
    return True


def filler(_type: Any, tokens: Sequence[Token]) -> str:
    """Return a filler's name; of one in a file, "path/to/file.py:function", the module's."""
    text = tokens[0].value
    file, colon, function = text.partition(":")
    if not function and (colon or file.endswith(".py") or not file):
        example = file or "FILE.py"
        raise ValueError(f"{short(text)} names no function; write {example}:FUNCTION")
    if not (colon and file.endswith(".py")):
        if colon:
            look_in_working_directory(file)
        elif "." in file and file not in published():
            module, _, last = file.rpartition(".")
            raise ValueError(f"{short(text)} is not a filler's name; write {module}:{last}")
        return text
    try:
        place = Path(os.path.realpath(file, strict=True))
        with opened(place):
            pass
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {file} that would have the filler {function}"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{file}, which would have the filler {function}, cannot be read: {error.strerror}"
        ) from None
    sys.path.append(os.fspath(place.parent))
    found = importlib.util.find_spec(place.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != place:
        raise ValueError(
            f"{file} cannot be imported as {place.stem}, since another module has that name; "
            "rename the file"
        )
    return f"{place.stem}:{function}"
