"""What all tests share: markers that skip with the line that helps, and no skips in CI."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from flowmap import boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytest_plugins = ["campaign", "servers"]

# Under `nohup ... &` SIGINT is ignored, which the programs that tests interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("flowmap", deadline=None, print_blob=True)
hypothesis.settings.load_profile("flowmap")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Before Prefect is first imported, since its threads read the settings of the process: a
# home of its own, and the address where tests that need a server will start one.
_HOME = tempfile.TemporaryDirectory(prefix="prefect-")
os.environ["PREFECT_HOME"] = _HOME.name
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{_free_port()}/api"
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[Any]]:
    """Return the parts of targets that Dask's tasks read from now on, in this process."""
    read, seen = boxes.read_part, list[Any]()

    def look(*arguments: Any) -> Any:
        seen.append(read(*arguments))
        return seen[-1]

    monkeypatch.setattr(boxes, "read_part", look)
    return seen


NO_SKIPS = os.environ.get("FLOWMAP_TEST_NO_SKIPS") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root or a program that is not there, and say what would install it."""
    for item in items:
        marker = item.get_closest_marker("system")
        if marker is None:
            continue
        missing = [program for program in marker.args if shutil.which(program) is None]
        if missing:
            packages = marker.kwargs["packages"]
            reason = f"needs {', '.join(missing)}: apt-get install {packages}"
            item.add_marker(pytest.mark.skip(reason=reason))
        elif marker.kwargs.get("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: sudo make test"))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run on any skip where that was asked for, as CI does."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if NO_SKIPS and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
