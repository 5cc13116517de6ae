"""The header, against the oracle: what `np.save` writes and `np.load` reads."""

from __future__ import annotations

import ast
import enum
import io
import itertools
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy_format
from support import named

import flowmap
from flowmap.dtypes import dtype_from_descr
from flowmap.errors import InvalidArgumentError, WrongTypeError
from flowmap.npy import Layout, header_digest, read_header


def _wide(characters: int) -> np.dtype[Any]:
    """Return a record whose header takes about so many characters."""
    return np.dtype([(f"field_{number:05d}", "<f8") for number in range(characters // 24)])


NESTED = np.dtype([("inner", [("a", "<i2"), ("b", ">c16", (2, 3))], (4,)), ("flag", "?")])
TITLED = np.dtype([(("a title", "a"), "<f4"), (("another", "b"), "S3", (2,))])

DTYPES: dict[str, Any] = {
    **{code: code for code in ("<f8", ">f8", "<f4", "<f2", "<i8", ">i4", "|i1", "|u1", "?")},
    **{code: code for code in ("<c8", ">c16", "S5", "<U7", ">U2", "V3", "<M8[ns]", ">m8[25s]")},
    "longdouble": np.longdouble,
    "record": [("t", "<f8"), ("v", "<f4", (3,))],
    "record as JSON has it": [["t", "<f8"], ["v", "<f4", [3]]],
    "nested": NESTED,
    "aligned": np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True),
    "padded": np.dtype(
        {"names": ["a", "b"], "formats": ["<i4", "<f8"], "offsets": [4, 24], "itemsize": 48}
    ),
    "titled": TITLED,
    "unicode names": [("größe", "<f8"), ("温度", "<f4")],
    "latin names": [("é", "<f8")],
    "quoted names": [("a'b\"c\\d\n", "<f8")],
    "no proper text": [("\ud800", "<f8")],
    "names of NumPy's texts": [((np.str_("t"), np.str_("n")), [(np.str_("a"), "<f8")])],
    "title that is a number": [((5, "a"), "<f8")],
    "no fields": [],
    "subarrays of subarrays": [("a", ("<f8", (5,)), (2,)), ("b", ("<i2", (2, 1)))],
    "empty subarray": [("a", "<f8", (0,)), ("b", "i1")],
    "over 4096": _wide(5000),
    "over 8192": _wide(9000),
    "near 10000": _wide(9900),
}
SHAPES: list[tuple[int, ...]] = [
    *((), (0,), (1,), (5,), (2, 3), (3, 0), (0, 3), (2, 3, 4), (2, 1, 3, 2), (2, 1, 2, 3, 1))
]


def _saved(dtype: np.dtype[Any], shape: tuple[int, ...], *, fortran: bool) -> bytes:
    """Return what `np.save` makes of zeros."""
    buffer = io.BytesIO()
    order: Any = "F" if fortran else "C"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Stored array in format", UserWarning)
        npy_format.write_array(buffer, np.zeros(shape, dtype, order))
    return buffer.getvalue()


def _header_fields(data: bytes) -> tuple[Any, int]:
    """Return (shape, order, dtype) and where the data begins, read by the format's rules."""
    start = 10 if data[6] == 1 else 12
    end = start + int.from_bytes(data[8:start], "little")
    assert data[end - 1 : end] == b"\n"
    fields = ast.literal_eval(data[start:end].decode("utf-8" if data[6] == 3 else "latin-1"))
    assert sorted(fields) == ["descr", "fortran_order", "shape"]
    dtype = npy_format.descr_to_dtype(fields["descr"])
    return (fields["shape"], fields["fortran_order"], dtype), end


class TestAllocated:
    """A fresh target is what NumPy would have saved of zeros."""

    @pytest.mark.parametrize("fortran", [False, True], ids=["C", "F"])
    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    def test_dtypes(self, tmp_path: Path, dtype: Any, fortran: bool) -> None:
        """np.load finds shape, dtype, order and data; every dtype that can be saved."""
        target = flowmap.allocate(tmp_path / "a.npy", (3, 2), dtype, fortran_order=fortran)
        self._check(target, _as_numpy(dtype), (3, 2), fortran=fortran)

    @pytest.mark.parametrize("fortran", [False, True], ids=["C", "F"])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_shapes(self, tmp_path: Path, shape: tuple[int, ...], fortran: bool) -> None:
        """The same for every kind of shape: 0-d, empty, zero-width, up to five axes."""
        for dtype in (np.dtype("<i4"), TITLED):
            path = tmp_path / f"{dtype.kind}.npy"
            target = flowmap.allocate(path, shape, dtype, fortran_order=fortran)
            self._check(target, dtype, shape, fortran=fortran)

    @settings(max_examples=60)
    @given(
        dtype=st.one_of(
            hnp.scalar_dtypes(), hnp.array_dtypes(max_size=4, allow_subarrays=True)
        ),
        shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
        fortran=st.booleans(),
    )
    def test_anything(
        self, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool
    ) -> None:
        """The same for whatever hypothesis comes up with."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.npy"
            target = flowmap.allocate(path, shape, dtype, fortran_order=fortran, reserve=False)
            while dtype.subdtype is not None:
                dtype, inner = dtype.subdtype
                shape += inner
            self._check(target, dtype, shape, fortran=fortran)

    def _check(
        self,
        target: flowmap.Target,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        *,
        fortran: bool,
    ) -> None:
        data = target.path.read_bytes()
        (found_shape, found_fortran, found_dtype), offset = _header_fields(data)
        assert (found_shape, found_fortran, found_dtype) == (shape, fortran, dtype)
        assert (target.shape, target.fortran_order, target.dtype) == (shape, fortran, dtype)
        assert offset == target.job.data_offset
        assert offset % 64 == 0
        saved = _saved(target.dtype, shape, fortran=fortran)
        _, saved_offset = _header_fields(saved)
        assert data[offset:] == saved[saved_offset:]
        loaded = np.load(target.path)
        assert (loaded.shape, loaded.dtype) == (shape, dtype)
        assert loaded.flags.f_contiguous if fortran else loaded.flags.c_contiguous
        assert target.asarray().shape == shape
        assert target.asarray().dtype == dtype


def _as_numpy(dtype: Any) -> np.dtype[Any]:
    if dtype == DTYPES["record as JSON has it"]:
        dtype = DTYPES["record"]
    converted: np.dtype[Any] = np.dtype(dtype)
    return converted


class TestHeader:
    """The bytes before the data."""

    @pytest.mark.parametrize(
        ("characters", "version", "offset"),
        [
            (100, 1, 4096),
            (3900, 1, 4096),
            (5000, 1, 8192),
            (7900, 1, 8192),
            (12000, 1, 12288),
            (60000, 1, 61440),
            (62000, 2, 65536),
            (70000, 2, 73728),
        ],
    )
    def test_pages(self, characters: int, version: int, offset: int) -> None:
        """The data begins on a page, in the oldest version of the format that will do."""
        header = Layout.of(10, _wide(characters), fortran_order=False).header()
        assert len(header) == offset
        assert header[6] == version
        assert header.endswith(b" \n")

    def test_every_length(self) -> None:
        """From one page to the next it is a page, unless np.load would then refuse it."""
        for length in itertools.chain(range(3900, 4200), range(8100, 8300), range(9800, 10200)):
            header = Layout.of(1, [("x" * (length - 100), "<f8")], fortran_order=False).header()
            text = len(header) - 10
            if text > 10_000:
                assert length > 9880
            array = np.load(io.BytesIO(header + bytes(8)), max_header_size=max(text, 10_000))
            assert array.shape == (1,)
            assert len(header) % (64 if 8192 < len(header) <= 10_048 else 4096) == 0

    @pytest.mark.parametrize("length", [3000, *range(9880, 9960, 8), 12000, 70000])
    @pytest.mark.parametrize("letter", ["x", "温"])
    def test_beyond_what_is_loaded(self, tmp_path: Path, letter: str, length: int) -> None:
        """A header that np.load would refuse is refused at once, with its characters."""
        dtype = np.dtype([(letter * length, "<f8")])
        path = tmp_path / "a.npy"
        header = Layout.of(2, dtype, fortran_order=False).header()
        try:
            np.load(io.BytesIO(header + bytes(16)))
        except ValueError:
            assert length > 9880
        else:
            assert length < 9950
            assert np.load(flowmap.allocate(path, 2, dtype)).dtype == dtype
            return
        with pytest.raises(InvalidArgumentError, match=r"header of \d+ characters.*10000"):
            flowmap.allocate(path, 2, dtype)
        assert not list(tmp_path.iterdir())

    def test_a_job_with_such_a_header(self, tmp_path: Path, monkeypatch: Any) -> None:
        """A job that an earlier version allocated is still attached to and opened."""
        how: tuple[Any, ...] = (tmp_path / "a.npy", 2, _wide(12000))
        with monkeypatch.context() as earlier:
            earlier.setattr(Layout, "check_loadable", lambda _: None)
            target = flowmap.allocate(*how)
        assert flowmap.allocate(*how).id == target.id
        assert flowmap.open_target(target.path).dtype == target.dtype

    @pytest.mark.parametrize("letters", range(2700, 5000, 50))
    def test_version_3_counts_characters(self, letters: int) -> None:
        """np.load counts characters, not bytes: a header that it takes is never padded away."""
        dtype = np.dtype([("ß温" * (letters // 2), "<f8"), ("x" * 3000, "<f8")])
        header = Layout.of(1, dtype, fortran_order=False).header()
        assert header[6] == 3
        array = np.load(io.BytesIO(header + bytes(16)))
        assert array.dtype == dtype
        assert len(header) % 64 == 0

    def test_version_3_is_padded_to_a_page_where_it_can_be(self) -> None:
        """Many bytes for few characters leave room for the page."""
        dtype = np.dtype([("温" * 3000, "<f8")])
        assert len(Layout.of(1, dtype, fortran_order=False).header()) == 12288

    @pytest.mark.parametrize("fortran", [False, True])
    def test_text_is_numpys(self, fortran: bool) -> None:
        """But for the padding it is, byte for byte, the text that NumPy writes."""
        layout = Layout.of((4, 3), NESTED, fortran_order=fortran)
        saved = _saved(NESTED, (4, 3), fortran=fortran)
        assert layout.header()[10:].rstrip() == saved[10 : saved.index(b"\n")].rstrip()

    def test_digest(self) -> None:
        """The digest depends on each byte."""
        header = Layout.of(3, "<f8", fortran_order=False).header()
        assert len(header_digest(header)) == 32
        assert header_digest(header) != header_digest(header[:-2] + b"\n\n")

    @pytest.mark.parametrize("name", DTYPES)
    def test_descr_through_json(self, name: str) -> None:
        """What `job.json` says of a dtype is that dtype."""
        layout = Layout.of(1, DTYPES[name], fortran_order=False)
        assert dtype_from_descr(json.loads(json.dumps(layout.descr))) == layout.dtype

    def test_align_and_metadata_are_forgotten(self) -> None:
        """What no file keeps, an aligned struct's flag or metadata, does no harm."""
        dtype = np.dtype("<f8", metadata={"unit": "mV"})
        header = Layout.of(3, dtype, fortran_order=False).header()
        assert header == Layout.of(3, "<f8", fortran_order=False).header()


class TestLayout:
    """Shape, dtype and order, checked."""

    @given(
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0),
        fortran=st.booleans(),
        rows=st.integers(0, 9),
    )
    def test_rows(self, shape: tuple[int, ...], fortran: bool, rows: int) -> None:
        """Rows lie along the slow axis, and together they are the whole."""
        layout = Layout.of(shape, "<i2", fortran_order=fortran)
        assert layout.rows == (shape[-1 if fortran else 0] if shape else 1)
        assert layout.nbytes == math.prod(shape) * 2 == layout.rows * layout.row_bytes
        block = layout.block_shape(rows)
        if shape:
            assert math.prod(block) * 2 == rows * layout.row_bytes
            array = layout.as_array(np.zeros(rows * layout.row_bytes, np.uint8), rows)
            assert array.shape == block
            assert array.flags.f_contiguous if fortran else array.flags.c_contiguous

    @pytest.mark.parametrize(
        ("shape", "dtype", "expected"),
        [
            (5, ("<f8", (2,)), (5, 2)),
            ((), ("<f8", (2, 3)), (2, 3)),
            ((4,), np.dtype((np.dtype(("<f8", (2,))), (3,))), (4, 3, 2)),
        ],
    )
    def test_subarray(self, shape: Any, dtype: Any, expected: tuple[int, ...]) -> None:
        """A bare subarray adds its axes to the shape, as it does for NumPy."""
        layout = Layout.of(shape, dtype, fortran_order=False)
        assert layout.shape == expected == np.empty(shape, dtype).shape
        assert layout.dtype == np.dtype("<f8")

    def test_shapes_of_other_types(self) -> None:
        """Whole numbers of any type become plain ones, which the header can hold."""

        class Size(enum.IntEnum):
            WIDE = 4

        for shape in (4, np.int64(4), Size.WIDE, [Size.WIDE], np.array([4]), np.array(4)):
            layout = Layout.of(shape, "<f8", fortran_order=np.False_)
            assert layout.shape == (4,)
            assert type(layout.shape[0]) is int
            assert np.load(io.BytesIO(layout.header() + bytes(32))).shape == (4,)

    @pytest.mark.parametrize(
        ("shape", "kind"),
        [
            (-1, InvalidArgumentError),
            ((3, -2), InvalidArgumentError),
            (2**63, InvalidArgumentError),
            ((2**32, 2**31), InvalidArgumentError),
            ((0, 2**63), InvalidArgumentError),
            (2**60, InvalidArgumentError),
            (2**60 - 1, InvalidArgumentError),  # the header must have its place too
            ((1,) * 65, InvalidArgumentError),
            (2.5, WrongTypeError),
            (4.0, WrongTypeError),
            ((4, 2.0), WrongTypeError),
            (float("nan"), WrongTypeError),
            (True, WrongTypeError),
            ((3, False), WrongTypeError),
            (None, WrongTypeError),
            ("10", WrongTypeError),
            (b"10", WrongTypeError),
            (["3"], WrongTypeError),
            ({3, 4}, WrongTypeError),
            ({3: 4}, WrongTypeError),
            ([[3], [4]], WrongTypeError),
            (np.array(2.5), WrongTypeError),
            (iter([3]), WrongTypeError),
            (object(), WrongTypeError),
        ],
    )
    def test_shapes_refused(self, shape: Any, kind: type[Exception]) -> None:
        """What is no shape, or of no file that can be, is refused."""
        with pytest.raises(kind, match=r"[Ss]hape"):
            Layout.of(shape, "<f8", fortran_order=False)

    def test_64_axes(self) -> None:
        """As many axes as NumPy has are allowed, and load."""
        header = Layout.of((1,) * 64, "<f8", fortran_order=False).header()
        assert np.load(io.BytesIO(header + bytes(8))).ndim == 64

    def test_biggest(self) -> None:
        """The last size that an offset can hold is allowed."""
        assert Layout.of(2**63 - 1 - 4096, "u1", fortran_order=False).nbytes == 2**63 - 4097
        with pytest.raises(InvalidArgumentError, match="at most"):
            Layout.of(2**63 - 4096, "u1", fortran_order=False)

    @pytest.mark.parametrize("order", [0, 1, None, "F", "C"])
    def test_orders_refused(self, order: object) -> None:
        """The order is True or False, and nothing that only counts as such."""
        with pytest.raises(WrongTypeError, match="fortran_order"):
            Layout.of(3, "<f8", fortran_order=order)

    @pytest.mark.parametrize(
        ("dtype", "message"),
        [
            (object, "Python objects"),
            ("O", "Python objects"),
            ([("a", "O")], "Python objects"),
            ([("a", [("b", "<f8"), ("c", "O", (2,))])], "Python objects"),
            (dict, "Python objects"),
            ("S", "no length"),
            ("U", "no length"),
            ("V", "no length"),
            (str, "no length"),
            (bytes, "no length"),
            (np.void, "no length"),
            ("S0", "no length"),
            ([("a", "<f8"), ("b", "S")], "no length"),
            ([("a", [("b", "<f8"), ("c", "U")], (2,))], "no length"),
            ({"names": ["a", "b"], "formats": ["<f8", "<f8"], "offsets": [0, 4]}, "cannot be"),
            ({"names": ["a", "b"], "formats": ["<f8", "<f8"], "offsets": [8, 0]}, "cannot be"),
            ([((object(), "a"), "<f8")], "cannot be"),
            ([((b"x", "a"), "<f8")], "cannot be"),
            ([(((1, 2), "a"), "<f8")], "cannot be"),
            ("nonsense", "does not take"),
            ("<f3", "does not take"),
            (5, "does not take"),
            ([1, 2], "does not take"),
            ([("a",)], "does not take"),
            ([("a", "<f8"), ("a", "<f8")], "does not take"),
            ({"names": ["a"]}, "does not take"),
            (("<f8", -1), "does not take"),
            (("<f8", (2**40, 2**40)), "does not take"),
            ("(2,", "does not take"),
            ("f8,(", "does not take"),
            (b"\xff", "does not take"),
            (None, "name one"),
        ],
        ids=named,
    )
    def test_dtypes_refused(self, dtype: Any, message: str) -> None:
        """What a file cannot hold, or NumPy does not know, is refused; it says which."""
        with pytest.raises((InvalidArgumentError, WrongTypeError), match=message):
            Layout.of(3, dtype, fortran_order=False)

    def test_variable_strings_refused(self) -> None:
        """NumPy 2's strings of any length have no place in the file."""
        with pytest.raises(InvalidArgumentError, match="Python objects"):
            Layout.of(3, np.dtypes.StringDType(), fortran_order=False)

    @settings(max_examples=200)
    @given(
        st.recursive(
            st.none() | st.integers(-3, 3) | st.text(max_size=4) | st.floats(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.lists(inner, max_size=3).map(tuple)
                | st.dictionaries(st.sampled_from(["names", "formats", "x"]), inner)
            ),
        )
    )
    @pytest.mark.filterwarnings("ignore")  # of NumPy's, on what it may not take any more
    def test_nonsense(self, nonsense: Any) -> None:
        """Nonsense for a dtype or a shape gives an error of ours, or something sensible."""
        for shape, dtype in ((3, nonsense), (nonsense, "<f8")):
            try:
                layout = Layout.of(shape, dtype, fortran_order=False)
            except (InvalidArgumentError, WrongTypeError):
                continue
            assert np.load(io.BytesIO(layout.header() + bytes(layout.nbytes))) is not None


class TestRead:
    """`read_header`, of what nobody should have written."""

    @pytest.mark.parametrize(
        ("version", "text"),
        [
            *((3, "\\'\U0001f600" * 3000), (3, "(3L,)"), (2, "\\'\xe9" * 3000), (1, "\xe9 3L")),
            *((1, "{" + " " * 9000 + "\0"), (1, "{" + " " * 4000 + "$ 3L}"), (2, "\\'" * 4000)),
        ],
        ids=["long", "Python 2's", "Latin-1", "short", "zero", "spaces", "quotes"],
    )
    def test_not_python(self, monkeypatch: pytest.MonkeyPatch, version: int, text: str) -> None:
        """Only what Python 2 can have written is tokenised, in ever longer a time, as such."""
        tokenised: list[Any] = []

        def tokenise(readline: Any) -> list[Any]:
            tokenised.append(readline)
            return []

        encoded = text.encode("utf-8" if version == 3 else "latin-1")
        length = len(encoded).to_bytes(2 if version == 1 else 4, "little")
        file = io.BytesIO(npy_format.magic(version, 0) + length + encoded)
        with monkeypatch.context() as patch:
            patch.setattr("tokenize.generate_tokens", tokenise)
            with pytest.raises(ValueError, match=r"Cannot parse header|null bytes"):
                read_header(file)
        assert not tokenised

    @pytest.mark.parametrize(
        "name", [r"'\é'", r"r'é'", r"r'\é'", r"'\\\é'", r"'\\é'", "(..., 'é')"]
    )
    @pytest.mark.filterwarnings("ignore:invalid escape")
    def test_escapes(self, name: str) -> None:
        """A name beyond ASCII is read as NumPy reads it, however it is written."""
        text = f"{{'descr': [({name}, '<f8')], 'fortran_order': False, 'shape': (3,)}}\n"
        file = io.BytesIO(len(text).to_bytes(2, "little") + text.encode("latin-1"))
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(file)
        header = npy_format.magic(1, 0) + file.getvalue()
        assert read_header(io.BytesIO(header)) == Layout(shape, dtype, fortran_order)

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize(
        "shape", ["(3L, 20L)", "(3L,)", "(3L , 20)", "(3 L, 0x1FL)", "(1_0L,)", "(3\tL, )"]
    )
    @pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
    def test_python_2(self, version: int, shape: str) -> None:
        """What that wrote, or NumPy takes for such, is read as NumPy reads it."""
        text = (
            f"{{'descr': [('10L', '<f8', (2L,))], 'fortran_order': False, 'shape': {shape}}}\n"
        )
        length = len(text).to_bytes(2 if version == 1 else 4, "little")
        file = io.BytesIO(npy_format.magic(version, 0) + length + text.encode() + bytes(5000))
        layout, array = read_header(file), np.load(io.BytesIO(file.getvalue()))
        assert layout == Layout(array.shape, array.dtype, fortran_order=False)
