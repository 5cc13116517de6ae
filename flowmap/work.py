"""Work: a filler with its arguments, and the fingerprint that guards a resume."""

from __future__ import annotations

import enum
import functools
import inspect
import json
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from flowmap.allowed import check_allowed
from flowmap.errors import InvalidArgumentError, WrongTypeError, cut, short
from flowmap.fillers import find_filler, mark_of, name_of
from flowmap.origin import Origin
from flowmap.root import LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowmap.fillers import Filler
    from flowmap.segments import Block

_LONGEST: Final = 10_000  # characters of an argument that are recorded


@dataclass(frozen=True, slots=True)
class Work:
    """A filler with its arguments.

    Attributes:
        function: The filler.
        arguments: What it is called with, by name.
        name: The filler's name.
        version: The filler's version.
        fingerprint: xxh3_128, in hexadecimal, of name, version and the arguments in a canonical
            form, without those declared volatile.
        origin: The file and the source of the filler, as the process that made the work found
            them: a worker process may find neither.
        limits: The files and fillers that the filler may reach in whatever process it runs:
            the limits of the process that made the work.
    """

    function: Filler = field(repr=False)
    arguments: Mapping[str, Any] = field(repr=False)  # volatile ones are told nowhere
    name: str
    version: str
    fingerprint: str
    origin: Origin = field(repr=False)
    limits: Limits = field(repr=False)

    def __setstate__(self, state: list[Any]) -> None:
        """Take the fields of a pickle; an earlier version's has no origin and no limits."""
        values = [*state, Origin(None, None), Limits()]
        for known, value in zip(fields(self), values, strict=False):
            object.__setattr__(self, known.name, value)

    @classmethod
    def of(cls, function: Filler | str, arguments: Mapping[str, Any] | None = None) -> Work:
        """Check a filler with its arguments, and fingerprint them.

        Raises:
            WrongTypeError: Not a filler, not a dict, or arguments that it does not take.
            FillerNotFoundError: The name leads to no filler.
            FillerRefusedError: A filler that is running names one that its run may not have.
            InvalidArgumentError: An argument of a kind that cannot be fingerprinted.
        """
        limits = Limits.current()
        if isinstance(function, str):
            if limits.fillers is not None:
                check_allowed(function, limits.fillers)
            function = find_filler(function)
        if not callable(function):
            raise WrongTypeError(
                f"filler is {short(function)}; it takes a function or its name."
            )
        _refuse_odd(function)
        chosen = _check_arguments(function, arguments)
        mark = mark_of(function)
        counted = {k: v for k, v in chosen.items() if k not in mark.volatile}
        try:
            form = json.dumps([mark.name, mark.version, _canonical(counted, "arguments")])
        except RecursionError as error:
            raise InvalidArgumentError(
                "arguments hold themselves, or too many levels; pass flat ones."
            ) from error
        fingerprint = xxhash.xxh3_128_hexdigest(form.encode())
        origin = Origin.of(function)
        return cls(function, chosen, mark.name, mark.version, fingerprint, origin, limits)

    def describe(self) -> dict[str, Any]:
        """Return what is recorded of it, as JSON values.

        Volatile arguments are left out: they are the place for a password, and differ
        between attempts at the same work. "values" are the others as JSON has them, to be
        called with again; None where JSON has no such values, or they are too long.
        """
        volatile = mark_of(self.function).volatile
        counted = {k: v for k, v in self.arguments.items() if k not in volatile}
        return {
            "filler": self.name,
            "version": self.version,
            "arguments": {name: short(value, _LONGEST) for name, value in counted.items()},
            "values": _plain(counted),
            "fingerprint": self.fingerprint,
            "file": self.origin.file,
            "source": self.origin.source,
        }

    def __call__(self, out: np.ndarray[Any, Any], block: Block) -> object:
        """Call the filler for one block, within the limits of its run."""
        function: Callable[..., object] = self.function
        before = LIMITS.set(self.limits)
        try:
            return function(out, block, **self.arguments)
        finally:
            LIMITS.reset(before)


def _plain(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return arguments as JSON gives them back, where these are the same input."""
    try:
        text = json.dumps(arguments)
    except (TypeError, ValueError, RecursionError):
        return None
    if len(text) > _LONGEST:
        return None
    plain: dict[str, Any] = json.loads(text)
    same = _canonical(plain, "arguments") == _canonical(arguments, "arguments")
    return plain if same else None


def describe(work: dict[str, Any]) -> str:
    """Name a recorded work for a message: its filler, version and arguments."""
    arguments = ", ".join(f"{name}={cut(text)}" for name, text in work["arguments"].items())
    return f"{cut(work['filler'])}({cut(arguments)}) version {cut(work['version'])}"


def _refuse_odd(function: Filler) -> None:
    """Refuse what can be called but fills nothing, or has arguments that no one would see."""
    if isinstance(function, functools.partial):
        raise WrongTypeError(
            "filler is a functools.partial, whose arguments no fingerprint would guard; "
            "pass the function, and its arguments in `arguments`."
        )
    lazy = (inspect.iscoroutinefunction, inspect.isgeneratorfunction)
    if inspect.isclass(function) or any(test(function) for test in lazy):
        raise WrongTypeError(
            f"filler is {short(function)}, a class, coroutine or generator, which would not "
            "fill when it is called; pass a plain function."
        )


def _check_arguments(function: Filler, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    if arguments is None:
        arguments = {}
    if not hasattr(arguments, "keys") or not all(isinstance(k, str) for k in arguments):
        raise WrongTypeError(
            f"arguments is {short(arguments)}; it takes a dict of the filler's arguments by "
            "name. In a Prefect .map, wrap it: arguments=unmapped({...})."
        )
    chosen = dict(arguments)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that tells nothing of itself
        return chosen
    try:
        signature.bind(None, None, **chosen)
    except TypeError as error:
        raise WrongTypeError(
            f"The filler {mark_of(function).name}{signature} cannot be called as "
            f"filler(out, block{''.join(f', {k}=...' for k in chosen)}): {error}."
        ) from error
    return chosen


def _canonical(value: Any, where: str) -> Any:
    """Return JSON values that are equal exactly where `value` is the same input."""
    match value:
        case list() | tuple():
            return ["list", *(_canonical(v, f"{where}[{i}]") for i, v in enumerate(value))]
        case dict() if all(isinstance(key, str) for key in value):
            return {k: _canonical(value[k], f"{where}[{k!r}]") for k in sorted(value)}
        case np.void() | np.ndarray() if _is_plain(value):
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return [kind, repr(value.dtype), list(value.shape), _digest(np.asarray(value))]
    atom = _canonical_atom(value)
    if atom is not None or value is None:
        return atom
    raise InvalidArgumentError(
        f"{where} is a {type(value).__name__}, which has no fingerprint, so that a resume "
        "could not tell whether it changed. Pass numbers, texts, lists, dicts or NumPy arrays, "
        "or declare the argument volatile: @flowmap.filler(volatile=(...,))."
    )


def _is_plain(value: np.ndarray[Any, Any] | np.void) -> bool:
    """Return whether the bytes of an array are its values, and all of them."""
    return not (value.dtype.hasobject or isinstance(value, np.ma.MaskedArray))


def _digest(array: np.ndarray[Any, Any]) -> str:
    """Hash the values of an array, and none of the padding between them."""
    if array.dtype.names is not None:
        parts = [_digest(array[name]) for name in array.dtype.names]
        return xxhash.xxh3_128_hexdigest("".join(parts).encode())
    if array.dtype.char in "gG":  # long doubles, which have padding of their own
        return xxhash.xxh3_128_hexdigest(" ".join(map(str, array.ravel())).encode())
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).tobytes())


def _canonical_atom(value: Any) -> Any:
    """Return JSON values for what holds nothing else; None for what cannot be told apart."""
    atom: Any = None
    if isinstance(value, enum.Enum):
        # A flag that combines others may have no name.
        which = value.value if isinstance(value, enum.Flag) else value.name
        atom = ["enum", name_of(type(value)), which]
    elif isinstance(value, bool | np.bool_):
        atom = bool(value)
    elif isinstance(value, str):
        atom = str(value)
    elif isinstance(value, int | np.integer) and not isinstance(value, np.timedelta64):
        atom = ["int", hex(value)]
    elif isinstance(value, float | np.float32 | np.float16):
        atom = ["float", float(value).hex()]
    elif isinstance(value, complex | np.generic):
        atom = ["scalar", np.asarray(value).dtype.str, str(value)]
    elif isinstance(value, bytes | os.PathLike):
        kind = "bytes" if isinstance(value, bytes) else "path"
        atom = [kind, os.fsencode(value).hex()]
    return atom
