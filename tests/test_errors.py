"""The errors: each is flowmap's own and the built-in it resembles, and travels whole."""

from __future__ import annotations

import errno
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

import flowmap
from flowmap import errors
from flowmap.errors import FlowmapError, StorageError

if TYPE_CHECKING:
    from types import ModuleType

CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, Exception)
]
RESEMBLED: dict[str, tuple[type[Exception], ...]] = {
    "InvalidArgumentError": (ValueError,),
    "WrongTypeError": (TypeError,),
    "FillerNotFoundError": (ValueError,),
    "FillerRefusedError": (ValueError,),
    "MissingExtraError": (ImportError,),
    "ClusterError": (ConnectionError, OSError),
    "TargetExistsError": (FileExistsError, OSError),
    "ForeignFileError": (FileExistsError, ValueError),
    "OtherJobError": (FileExistsError, ValueError),
    "OtherWorkError": (ValueError,),
    "DamagedJobError": (ValueError,),
    "NotValidatedError": (ValueError,),
    "SegmentDoneError": (ValueError,),
    "ClaimLostError": (RuntimeError,),
    "StoppedError": (RuntimeError,),
    "FillerError": (RuntimeError,),
    "WorkerDiedError": (RuntimeError,),
    "SegmentsFailedError": (RuntimeError,),
    "ValidationFailed": (ValueError,),
    "JobBusyError": (RuntimeError,),
    "LockTimeoutError": (TimeoutError, OSError),
    "NotDoneTimeoutError": (TimeoutError, OSError),
    "StorageError": (OSError,),
    "NotFoundError": (FileNotFoundError, OSError),
    "AccessDeniedError": (PermissionError, OSError),
}


def _make(kind: type[FlowmapError]) -> FlowmapError:
    """Make an error with fields, as the code that raises it does."""
    if issubclass(kind, StorageError):
        error: FlowmapError = kind(errno.ENOSPC, "no space; free some", "/data/a.npy")
        error.__dict__["segment"] = "segment 0001 [0:5]"
        return error
    fields: dict[str, Any] = {"path": "/data/a.npy", "segment": "segment 0001 [0:5]"}
    if kind is errors.SegmentsFailedError:
        fields["failures"] = {3: errors.StoppedError("stopped", segment="three")}
    return kind("wrong: 5 instead of 6; do better", **fields)


def _raise(name: str) -> None:
    raise _make(getattr(errors, name))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
class TestEvery:
    """What holds for every error there is."""

    def test_is_both(self, kind: type[FlowmapError]) -> None:
        """It is a FlowmapError and the built-in that it resembles, and listed here."""
        assert issubclass(kind, FlowmapError)
        for builtin in RESEMBLED.get(kind.__name__, ()):
            assert issubclass(kind, builtin)
        assert kind is FlowmapError or kind.__name__ in RESEMBLED

    @pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=lambda m: m.__name__)
    def test_pickles(self, kind: type[FlowmapError], pickler: ModuleType) -> None:
        """Its type, text, arguments and fields survive any pickler and protocol."""
        error = _make(kind)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickler.dumps(error, protocol))
            assert type(again) is kind
            assert (str(again), repr(again), again.args) == (
                str(error),
                repr(error),
                error.args,
            )
            assert again.__dict__.keys() == error.__dict__.keys()
            assert vars(again)["path"] == "/data/a.npy"
            assert vars(again)["segment"] == "segment 0001 [0:5]"
            if isinstance(error, OSError) and isinstance(again, OSError):
                assert (again.errno, again.filename) == (error.errno, error.filename)
        twice = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))
        assert str(twice) == str(error)

    def test_says_what_it_was_told(self, kind: type[FlowmapError]) -> None:
        """Its text holds the message, and for the system's errors number and file."""
        error = _make(kind)
        if isinstance(error, StorageError):
            assert str(error) == f"[Errno {errno.ENOSPC}] no space; free some: '/data/a.npy'"
        else:
            assert str(error) == "wrong: 5 instead of 6; do better"

    def test_documented(self, kind: type[FlowmapError]) -> None:
        """It says in its own words what has happened."""
        assert (kind.__dict__["__doc__"] or "").endswith((".\n", ".", "\n    "))


def test_nothing_is_forgotten() -> None:
    """The list above names what there is, no more and no less."""
    assert {kind.__name__ for kind in CLASSES} - {"FlowmapError"} == set(RESEMBLED)
    assert flowmap.FlowmapError is FlowmapError


def test_fields_of_failures_survive() -> None:
    """An error that holds errors brings them along."""
    error = _make(errors.SegmentsFailedError)
    again = pickle.loads(pickle.dumps(error))
    assert str(again.failures[3]) == "stopped"
    assert again.failures[3].segment == "three"


def test_from_a_worker() -> None:
    """They arrive whole from another process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for name in ("StorageError", "OtherJobError", "LockTimeoutError"):
            with pytest.raises(getattr(errors, name)) as caught:
                pool.submit(_raise, name).result()
            assert str(caught.value) == str(_make(getattr(errors, name)))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, errors.NotFoundError),
        (errno.EACCES, errors.AccessDeniedError),
        (errno.EPERM, errors.AccessDeniedError),
        (errno.EROFS, errors.AccessDeniedError),
        (errno.ENOSPC, StorageError),
        (errno.EIO, StorageError),
        (None, StorageError),
    ],
)
def test_storage_error(number: int | None, kind: type[StorageError]) -> None:
    """An error of the system becomes the one of ours with the same errno."""
    cause = OSError("odd") if number is None else OSError(number, "said the system")
    error = errors.storage_error(cause, "cannot write; try again", "/data/a.npy")
    assert type(error) is kind
    assert error.errno == (number or errno.EIO)
    assert error.filename == error.path == "/data/a.npy"
    assert "cannot write; try again" in str(error)


def test_exists_and_timeout_have_their_errno() -> None:
    """Whoever looks at the errno of a FileExistsError or TimeoutError finds it."""
    assert errors.OtherJobError("there").errno == errno.EEXIST
    assert errors.LockTimeoutError("held").errno == errno.ETIMEDOUT
    assert str(errors.OtherJobError("there")) == "there"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_full_disk_is_always_told_with_what_helps(number: int) -> None:
    """Whatever was being done, to free some space is what there is to do."""
    for doing in ("cannot write the lease", "cannot reserve it; free some space or wait"):
        message = str(errors.storage_error(OSError(number, "full"), doing, "/data/a.npy"))
        assert message.count("free some space") == 1
