"""Writes what an attacker would write: headers of `.npy` files, and documents in JSON."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import random

EDGES: Final = (0, 1, 4, 5, 8, 255, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
"""Numbers at the edges of what a field, a shape or a slot can hold."""


def _words(text: str, *others: str) -> tuple[str, ...]:
    return (*text.split(), *others)


_KINDS: Final = _words(r"""
<f8 >i4 |u1 ? <c16 |S5 <U3 <M8[ns] |V7 |O T S V0 <M8[7us] m8 U536870911 V2147483647 V2147483648
S-1 i4,f8 2i4 (2,)i4 O,i4 < f16 float a5 <M8[2s/3] ((( i4\x00 \ud800 \u0416
""")

_PLAIN: Final = _words("<f8 <i4 u1 S3")

_ATOMS: Final = _words(
    r"""
None True False 1.0 1e999 1j b'x' '' () [] {} {1} ... x -1 --1 1+1j 3L f'{1}' __import__('os')
'a''b' '\N{COMMA}' lambda:1 [1][0] 1_0 0o17 00 [x]*9 print(1) (y:=1) open('w','w') {'a':1,'a':2}
""",
    "0x" + "f" * 40,
    "1" * 4400,
)

_NAMES: Final = ("a", "b", "f0", "", "a b", r"\ud800", r"\x00", "ü", "descr", "'", r"\'")

_VALUES: Final = [
    *json.loads(r"""[
        null, true, false, 0, 1, 2, 3, 8, -1, 0.5, 1.0, -0.0, 1e308, NaN, Infinity, "", "x",
        "\ud800", "\u0000", "00000000000000000000000000000000", "<f8", "|O", "T", "../../x",
        "segment", "end", [], {}, [[]], [[1, 8]], [[1000000000000000000, 1]], [["a", "|O"]],
        [["a", [["b", [["c", "<f8"]]]]]], ["<f8", [2]], [8.0], [true], [0], [8, 0], {"": {}},
        {"filler": 1}, {"arguments": {"a": []}, "filler": "", "version": "", "fingerprint": ""}
    ]"""),
    *(*EDGES, 10**30, 10**400, -(10**400), "é" * 40, "x" * 5000),
]
"""What a value of a document may be replaced by."""

_TOKENS: Final = (
    *(b"", b"NaN", b"-Infinity", b"1e400", b"1" * 5000, b"-0", b"0.1e-999", b'"\\ud800"'),
    *(b"\xff", b"\0", b"[" * 2000, b'{"a":' * 500, b'"id":1,', b"null", b"//", b'"', b"}"),
    b"\xef\xbb\xbf",
)


def header(rng: random.Random) -> bytes:
    """Return a file that begins with a header, whole or not, and a few bytes of data."""
    if rng.random() < 0.003:
        deep = rng.choice(["(", "[", "-", "'", "\\'", "é", "~", "not ", "{1:", "[('a',"])
        return encoded(rng, deep * rng.randrange(6000))
    keys = [("descr", _descr(rng, 0)), ("fortran_order", _flag(rng)), ("shape", _shape(rng))]
    if rng.random() < 0.1:
        keys.insert(rng.randrange(4), rng.choice([*keys, ("x", "1")]))
    if rng.random() < 0.05:
        keys.pop(rng.randrange(len(keys)))
    if rng.random() < 0.2:
        rng.shuffle(keys)
    space = rng.choice(["", " ", " ", " ", "\n", "\t", " # x\n", "\\\n", "\f"])
    text = "{" + ",".join(f"{space}'{key}':{space}{value}" for key, value in keys)
    odd = ["", ",,}", "}}", "} }", "};", "}\0", "} #"]
    text += rng.choice(odd if rng.random() < 0.1 else [", }", "}", ",}"])
    text += " " * rng.choice([0, 0, 1, 63, 64, 4000]) + rng.choice(["\n", "", "\n\n"])
    return encoded(rng, text)


def encoded(rng: random.Random, text: str) -> bytes:
    """Return the bytes of a header with such a text, mostly as the format asks."""
    version = rng.choice([1, 1, 2, 3, 3, rng.randrange(256)])
    encoding = "utf-8" if (version == 3) ^ (rng.random() < 0.05) else "latin-1"
    payload = text.encode(encoding, "replace")
    length = len(payload)
    if rng.random() < 0.08:
        length = max(0, rng.choice([length - 1, length + 1, length + 2, *EDGES]))
    size = 2 if version == 1 else 4
    minor = int(rng.random() > 0.98)
    magic = b"\x93NUMPY" + bytes([version, minor])
    packed = (length % (1 << 8 * size)).to_bytes(size, "little")
    return magic + packed + payload + bytes(rng.choice([0, 1, 8, 64, 4096]))


def _descr(rng: random.Random, depth: int) -> str:
    which = rng.random()
    if depth == 0 and which < 0.02:
        first, last = rng.choice(
            [("[('a', ", ")]"), ("(", ", (1,))"), ("[", "]"), ("[('a', ", ", 2)]")]
        )
        levels = rng.randrange(120)
        return first * levels + "'<i4'" + last * levels
    if which < 0.5 or depth > 5:
        return f"'{rng.choice(_KINDS if rng.random() < 0.5 else _PLAIN)}'"
    if which < 0.55:
        return rng.choice(_ATOMS)
    if which < 0.67:
        return f"({_descr(rng, depth + 1)}, {_shape(rng)})"
    count = 300 if depth == 0 and which > 0.995 else rng.choice([0, 1, 1, 2, 3])
    fields = [_field(rng, depth + 1) for _ in range(count)]
    return "[" + "".join(f"{field}, " for field in fields) + "]"


def _field(rng: random.Random, depth: int) -> str:
    name = f"'{rng.choice(_NAMES)}'"
    if rng.random() < 0.25:
        title = f"'t{depth}'" if rng.random() < 0.8 else rng.choice(_ATOMS)
        name = f"({title}, {name})"
    parts = [name, _descr(rng, depth)]
    if rng.random() < 0.25:
        parts.append(_shape(rng))
    if rng.random() < 0.03:
        parts.append("1")
    return f"({', '.join(parts)})"


def _shape(rng: random.Random) -> str:
    which = rng.random()
    if which < 0.1:
        return rng.choice(_ATOMS)
    count = rng.choice([0, 1, 1, 1, 2, 3, 3, 33, 65])
    few = (1, 2, 3, 0) if which < 0.6 else (*EDGES, 2**62, -1)
    axes = [str(rng.choice(few)) for _ in range(count)]
    if which > 0.93 and axes:
        axes[rng.randrange(count)] = rng.choice(["True", "1.0", "2L", "'1'", "None", "-0"])
    return "(" + "".join(f"{axis}, " for axis in axes) + ")"


def _flag(rng: random.Random) -> str:
    odd = rng.random() < 0.1
    return rng.choice(["0", "1", "2", "None", "'F'"] if odd else ["True", "False", "False"])


def changed(rng: random.Random, document: Any) -> Any:
    """Return a document in which one value, at any depth, is another, missing or moved."""
    document = json.loads(json.dumps(document))
    where, holder = document, None
    key: Any = None
    while isinstance(where, dict | list) and where and (holder is None or rng.random() < 0.6):
        holder = where
        key = rng.choice([*where] if isinstance(where, dict) else range(len(where)))
        where = holder[key]
    value = rng.choice(_VALUES)
    if holder is None:
        return value
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [where]
        case 2 if type(where) is int:
            holder[key] = where + rng.choice([-1, 1, 4096, 2**32, -(2**63)])
        case 3 if isinstance(where, int):
            holder[key] = rng.choice([float(where % 2**53), str(where % 2**53), bool(where)])
        case _:
            holder[key] = value
    return document


def torn(rng: random.Random, text: bytes) -> bytes:
    """Return a text that is cut, or has something else in it."""
    first = rng.randrange(len(text) + 1)
    last = min(len(text), first + rng.choice([0, 0, 1, 5, len(text)]))
    return text[:first] + rng.choice(_TOKENS) + text[last:]


def slot(rng: random.Random, record: bytes) -> bytes:
    """Return a slot of the ledger of which some numbers are at the edges of what can be."""
    packed = bytearray(record)
    for _ in range(rng.choice([0, 0, 1, 1, 3])):
        struct.pack_into(
            "<Q", packed, 4 * rng.randrange(len(record) // 4 - 1), rng.choice(EDGES)
        )
    return bytes(packed)
