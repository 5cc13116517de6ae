"""Work: a filler with its arguments, and the fingerprint that guards a resume."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import xxhash

from flowmap.allowed import check_allowed
from flowmap.callables import check_callable, open_partial
from flowmap.canonical import canonical
from flowmap.errors import InvalidArgumentError, WrongTypeError, cut, short
from flowmap.file_maps import by_file
from flowmap.fillers import find_filler
from flowmap.marks import mark_of, may_be_given
from flowmap.origin import Origin
from flowmap.root import LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

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

    def __getstate__(self) -> list[Any]:
        """Return the fields for a pickle; what maps a file goes as a place in the file."""
        arguments = {name: by_file(value) for name, value in self.arguments.items()}
        values = [getattr(self, known.name) for known in fields(self)]
        return [arguments if value is self.arguments else value for value in values]

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
        plain, bound = open_partial(function)
        check_callable(plain)
        signature = _signature_of(plain)
        chosen = _check_arguments(plain, signature, arguments, bound)
        mark = mark_of(plain)
        counted = {k: v for k, v in chosen.items() if k not in mark.volatile}
        fingerprint = _fingerprint(mark.name, mark.version, signature, counted)
        origin = Origin.of(plain)
        return cls(plain, chosen, mark.name, mark.version, fingerprint, origin, limits)

    def describe(self) -> dict[str, Any]:
        """Return what is recorded of it, as JSON values.

        Volatile arguments are left out: they are the place for a password, and differ
        between attempts at the same work. "values" are the others as JSON has them, to be
        called with again; None where JSON has no such values, or they are too long.
        """
        counted, place = self._counted(), mark_of(self.function).function
        return {
            "filler": self.name,
            "version": self.version,
            "arguments": {name: short(value, _LONGEST) for name, value in counted.items()},
            "values": _plain(counted),
            "fingerprint": self.fingerprint,
            "file": self.origin.file,
            "source": self.origin.source,
        } | ({} if place is None else {"function": place})

    def _counted(self) -> dict[str, Any]:
        """Return the arguments that count: those that are not volatile."""
        volatile = mark_of(self.function).volatile
        return {k: v for k, v in self.arguments.items() if k not in volatile}

    def hint_at_name(self, other: Mapping[str, Any] | None) -> str:
        """Say how to go on where a recorded work differs in the filler's module alone.

        Args:
            other: The recorded work, as `describe` gave it; None if it is unknown.

        Returns:
            A sentence, with a space before it; nothing where more, or nothing, differs.
        """
        name = None if other is None else other["filler"]
        if other is None or not isinstance(name, str) or not may_be_given(name):
            return ""
        places = place_of(other), mark_of(self.function).place
        if len({place.partition(":")[2] for place in places}) > 1:
            return ""
        signature = _signature_of(self.function)
        if _fingerprint(name, self.version, signature, self._counted()) != other.get(
            "fingerprint"
        ):
            return ""
        return (
            " The two differ only in the name of the filler, of which the name of its module "
            "or script is a part. If they are one filler, mark it: "
            f"@flowmap.filler(name={json.dumps(name, ensure_ascii=False)})."
        )

    def __call__(self, out: np.ndarray[Any, Any], block: Block) -> object:
        """Call the filler for one block, within the limits of its run."""
        function: Callable[..., object] = self.function
        before = LIMITS.set(self.limits)
        try:
            return function(out, block, **self.arguments)
        finally:
            LIMITS.reset(before)


def _fingerprint(
    name: str, version: str, signature: inspect.Signature | None, counted: dict[str, Any]
) -> str:
    try:
        form = json.dumps([name, version, *_forms(signature, counted)])
    except RecursionError as error:
        raise InvalidArgumentError(
            "arguments hold themselves, or too many levels; pass flat ones."
        ) from error
    return xxhash.xxh3_128_hexdigest(form.encode())


def _plain(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return arguments as JSON gives them back, where these are the same input."""
    try:
        text = json.dumps(arguments)
    except (TypeError, ValueError, RecursionError):
        return None
    if len(text) > _LONGEST:
        return None
    plain: dict[str, Any] = json.loads(text)
    same = canonical(plain, "arguments") == canonical(arguments, "arguments")
    return plain if same else None


def _forms(signature: inspect.Signature | None, arguments: dict[str, Any]) -> list[Any]:
    """Return arguments in canonical form, and their order where the filler can see it."""
    forms = [canonical({name: arguments[name] for name in sorted(arguments)}, "arguments")]
    seen = _collected(signature, arguments)
    return forms if seen == sorted(seen) else [*forms, seen]


def _collected(signature: inspect.Signature | None, arguments: dict[str, Any]) -> list[str]:
    """Return the names that a filler collects in its `**arguments`, in their order."""
    if signature is None:
        return list(arguments)
    parameters = signature.parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {each.name for each in parameters if each.kind in by_name}
    return [name for name in arguments if name not in named]


def place_of(work: Mapping[str, Any]) -> str:
    """Return where the filler of a recorded work was imported from: "module:function"."""
    place = work.get("function")
    return place if isinstance(place, str) else str(work["filler"])


def describe(work: dict[str, Any]) -> str:
    """Name a recorded work for a message: its filler, version and arguments."""
    arguments = ", ".join(f"{name}={cut(text)}" for name, text in work["arguments"].items())
    return f"{cut(work['filler'])}({cut(arguments)}) version {cut(work['version'])}"


def _check_arguments(
    function: Filler,
    signature: inspect.Signature | None,
    arguments: Mapping[str, Any] | None,
    bound: dict[str, Any],
) -> dict[str, Any]:
    """Return what a filler is called with: the arguments, and those a partial has bound.

    Raises:
        WrongTypeError: They are not a dict by name, or not what the filler takes.
    """
    if arguments is None:
        arguments = {}
    if not hasattr(arguments, "keys") or not all(isinstance(k, str) for k in arguments):
        raise WrongTypeError(
            f"arguments is {short(arguments)}; it takes a dict of the filler's arguments by "
            "name. In a Prefect .map, wrap it: arguments=unmapped({...})."
        )
    chosen = bound | dict(arguments)
    if signature is None:
        return chosen
    try:
        signature.bind(None, None, **chosen)
    except TypeError as error:
        raise WrongTypeError(
            f"The filler {mark_of(function).name}{signature} cannot be called as "
            f"filler(out, block{''.join(f', {k}=...' for k in chosen)}): {error}."
        ) from error
    return chosen


def _signature_of(function: Filler) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that tells nothing of itself
        return None
