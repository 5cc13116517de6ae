"""Canonical forms: JSON values that are equal exactly where two arguments are the same input.

The fingerprint that guards a resume is made of them. So the form of a value does not change
from one version of flowmap to the next, unless it stood for two different inputs.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
import types
from collections import OrderedDict, defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from flowmap.advice import ON_ARGUMENTS, advice_on
from flowmap.errors import InvalidArgumentError
from flowmap.marks import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Form = Callable[[Any, str], Any]

_PIECE: Final = 1 << 24
"""Bytes of an array that are copied at a time, where it is not contiguous."""

_HEAP_TYPE: Final = 1 << 9
"""The flag of classes that a `class` statement made, in `type.__flags__`."""

_OF_PYTHON: Final = frozenset(np.dtype(each) for each in (bool, int, float, complex))
"""Dtypes whose scalars count as the number of Python that is equal to them."""

_ARRAYS: Final = frozenset({np.ndarray, np.memmap, np.recarray})
"""Classes of arrays whose objects hold dtype, shape and elements, and nothing else."""


def canonical(value: Any, where: str) -> Any:
    """Return JSON values that are equal exactly where `value` is the same input.

    Args:
        value: An argument of a filler, or a part of one.
        where: How a message names it.

    Raises:
        InvalidArgumentError: Its class has no canonical form.
        RecursionError: It contains itself.
    """
    kind = type(value)
    form: Form | None = _FORMS.get(f"{kind.__module__}.{kind.__qualname__}")
    if form is not None:
        return form(value, where)
    if isinstance(value, enum.Enum):
        return _enum_member(value, where)
    if isinstance(value, np.generic | np.ndarray):
        found = _of_numpy(value, where)
    elif isinstance(value, np.dtype):
        found = ["dtype", repr(value)]
    elif isinstance(value, type):
        found = _type(value)
    else:
        found = _object(value, where)
    if found is None:
        raise InvalidArgumentError(
            f"{where} has the type {kind.__name__}, and a later run could not tell whether it "
            f"has changed. {advice_on(value, _as_written(where), ON_ARGUMENTS)}"
        )
    return found


def _as_written(where: str) -> str:
    """Return how a caller's code may name an argument, or a part of one: rates[0]."""
    written = re.fullmatch(r"arguments\['(\w+)'\](.*)", where)
    return "x" if written is None else written[1] + written[2]


def _list(value: Iterable[Any], where: str) -> list[Any]:
    # A tuple, too: a deployment's parameters are JSON, which turns it into a list.
    return ["list", *(canonical(v, f"{where}[{i}]") for i, v in enumerate(value))]


def _dict(value: Mapping[Any, Any], where: str) -> Any:
    """Return the form of a dict in its order; the sorted order of texts is a JSON object."""
    pairs = [(key, canonical(each, f"{where}[{key!r}]")) for key, each in value.items()]
    keys = [key for key, _ in pairs]
    if all(type(key) in (str, np.str_) for key in keys) and keys == sorted(keys):
        return dict(pairs)
    return ["dict", *([canonical(key, f"a key of {where}"), form] for key, form in pairs)]


def _set(value: Iterable[Any], where: str) -> list[Any]:
    # The order in which Python goes through a set is another one in each process.
    forms = (canonical(each, f"an element of {where}") for each in value)
    return [type(value).__name__, *sorted(forms, key=json.dumps)]


def _integers(name: str, *attributes: str) -> Form:
    """Return what makes the form of an object that is a few whole numbers."""
    return lambda value, _where: [name, *(hex(getattr(value, each)) for each in attributes)]


def _text(name: str) -> Form:
    return lambda value, _where: [name, str(value)]


def _time(name: str) -> Form:
    """Return what makes the form of a `datetime` or a `time`."""

    def form(value: Any, where: str) -> list[Any]:
        zone = canonical(value.tzinfo, f"{where}.tzinfo")
        return [name, value.replace(tzinfo=None).isoformat(), zone, value.fold]

    return form


def _timezone(value: Any, _where: str) -> list[Any]:
    return ["timezone", str(value.utcoffset(None)), value.tzname(None)]


def _zone_info(value: Any, where: str) -> list[Any]:
    if value.key is None:
        raise InvalidArgumentError(f"{where} is a ZoneInfo without a key; pass one with a key.")
    return ["zoneinfo", value.key]


def _slice(value: slice, where: str) -> list[Any]:
    return ["slice", *(canonical(v, where) for v in (value.start, value.stop, value.step))]


def _path(value: os.PathLike[str], _where: str) -> list[Any]:
    return ["path", os.fsencode(value).hex()]


_FORMS: Final[dict[str, Form]] = {
    # By name: `import flowmap` need not import decimal, fractions, uuid and zoneinfo.
    "builtins.NoneType": lambda value, _where: value,
    "builtins.bool": lambda value, _where: value,
    "builtins.str": lambda value, _where: value,
    "builtins.int": lambda value, _where: ["int", hex(value)],
    "builtins.float": lambda value, _where: ["float", value.hex()],
    "builtins.complex": lambda value, _where: ["scalar", np.dtype(complex).str, str(value)],
    "builtins.bytes": lambda value, _where: ["bytes", value.hex()],
    "builtins.list": _list,
    "builtins.tuple": _list,
    "builtins.dict": _dict,
    "collections.OrderedDict": _dict,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.range": _integers("range", "start", "stop", "step"),
    "builtins.slice": _slice,
    "builtins.ellipsis": lambda _value, _where: ["ellipsis"],
    "pathlib.PosixPath": _path,
    "pathlib.PurePosixPath": _path,
    "pathlib._local.PosixPath": _path,  # their module in Python 3.13
    "pathlib._local.PurePosixPath": _path,
    "datetime.datetime": _time("datetime"),
    "datetime.time": _time("time"),
    "datetime.date": _text("date"),
    "datetime.timedelta": _integers("timedelta", "days", "seconds", "microseconds"),
    "datetime.timezone": _timezone,
    "zoneinfo.ZoneInfo": _zone_info,
    "decimal.Decimal": _text("decimal"),
    "fractions.Fraction": _integers("fraction", "numerator", "denominator"),
    "uuid.UUID": _text("uuid"),
}


def _enum_member(value: enum.Enum, where: str) -> list[Any]:
    """Return the form of an Enum member: its class, its name, and what that stands for."""
    form: list[Any] = ["enum", name_of(type(value))]
    content = value._value_
    if isinstance(value, enum.Flag):  # one that combines others may have no name
        return [*form, content]
    form.append(value.name)
    attributes = _attributes(value).items()
    others = {k: v for k, v in attributes if not (k.startswith("_") and k.endswith("_"))}
    # An object() is a mark only, and a text that repeats the name adds nothing to it.
    adds_nothing = type(content) is object or (type(content) is str and content == value.name)
    if adds_nothing and not others:
        return form
    return [*form, canonical(content, f"{where}.value"), _members(others, where)]


def _of_numpy(value: Any, where: str) -> Any:
    """Return the form of an array or a scalar; None if its elements are not all that it is."""
    if isinstance(value, np.void) or type(value) in _ARRAYS:
        if value.dtype.hasobject:
            raise InvalidArgumentError(
                f"{where} is an array of objects. Pass a list, {_as_written(where)}.tolist(), "
                "or an array of another dtype."
            )
        kind = "scalar" if isinstance(value, np.void) else "array"
        return [kind, repr(value.dtype), list(value.shape), _digest(np.asarray(value))]
    if isinstance(value, np.ndarray) or type(value) is not value.dtype.type:
        return None
    if value.dtype in _OF_PYTHON or isinstance(value, np.str_):
        return canonical(value.item(), where)
    return ["scalar", value.dtype.str, str(value)]


def _type(value: type) -> list[Any] | None:
    """Return the form of a type that people pass as a dtype; None for any other class."""
    if value.__module__ == "builtins" or issubclass(value, np.generic):
        return ["type", name_of(value)]
    return None


def _object(value: Any, where: str) -> Any:
    """Return the form of an object of a class that a `class` statement made.

    It is one of a dataclass, or of a subclass of what `_PLAIN` lists. All that it holds are its
    attributes, and the elements or the value that it has from the class above.

    Returns:
        None if it is neither.
    """
    kind = type(value)
    above = next(each for each in kind.__mro__ if not each.__flags__ & _HEAP_TYPE)
    attributes = _attributes(value)
    if above is object:
        if not dataclasses.is_dataclass(value):
            return None
        names = [each.name for each in dataclasses.fields(value) if each.name in attributes]
        ordered = [[name, canonical(attributes.pop(name), f"{where}.{name}")] for name in names]
        return ["dataclass", name_of(kind), ordered, _members(attributes, where)]
    if above not in _PLAIN:
        return None
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        attributes["_fields"] = value._fields
    if isinstance(value, defaultdict):
        attributes["default_factory"] = value.default_factory
    plain = canonical(_PLAIN[above](value), where)
    return ["subclass", name_of(kind), plain, _members(attributes, where)]


# Methods of the class itself: a subclass may have others of these names.
_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    int: int.__int__,
    float: float.__float__,
    complex: complex.__complex__,
    list: list.copy,
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    dict: lambda value: dict(dict.items(value)),
    OrderedDict: lambda value: dict(OrderedDict.items(value)),
    defaultdict: lambda value: dict(dict.items(value)),
}


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object of a `class`, without what it caches of them."""
    kind = type(value)
    found = {
        name: each
        for name, each in getattr(value, "__dict__", {}).items()
        if not isinstance(getattr(kind, str(name), None), cached_property)
    }
    for each in kind.__mro__:
        if not each.__flags__ & _HEAP_TYPE:
            continue
        for name, member in vars(each).items():
            if isinstance(member, types.MemberDescriptorType):  # one of its __slots__
                try:
                    found[name] = member.__get__(value)
                except AttributeError:  # it is not set
                    continue
    return found


def _members(attributes: dict[str, Any], where: str) -> dict[str, Any]:
    return {
        name: canonical(attributes[name], f"{where}.{name}")
        for name in sorted(attributes, key=str)
    }


def _digest(array: np.ndarray[Any, Any]) -> str:
    """Hash the values of an array in C order, and none of the padding between them."""
    if array.dtype.names is not None:
        parts = [_digest(array[name]) for name in array.dtype.names]
        return xxhash.xxh3_128_hexdigest("".join(parts).encode())
    hasher = xxhash.xxh3_128()
    if array.dtype.char in "gG":  # long doubles, which have padding of their own
        for i, number in enumerate(array.flat):
            hasher.update((f" {number}" if i else str(number)).encode())
    elif array.nbytes:
        for piece in _pieces(array):
            hasher.update(piece.view(np.uint8).data)
    return hasher.hexdigest()


def _pieces(array: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield an array, contiguous, in C order; it may be a map of a file larger than memory."""
    if array.flags.c_contiguous or array.nbytes <= _PIECE:
        yield np.ascontiguousarray(array).reshape(-1)
        return
    rows = _PIECE // (array.nbytes // len(array))
    if rows > 1 or array.ndim == 1:
        for first in range(0, len(array), max(rows, 1)):
            yield from _pieces(array[first : first + max(rows, 1)])
    else:
        for each in array:
            yield from _pieces(each)
