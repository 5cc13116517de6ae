"""A later attempt of a run goes on with the job that its first attempt allocated."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prefect import flow, runtime, task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Scheduled

import flowmap
from flowmap.errors import OtherJobError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("server")


def allocated(path: Path, **asked: Any) -> flowmap.Target:
    """Call the task with what all tests here ask for, and `exist="overwrite"`."""
    values: dict[str, Any] = {
        "shape": 8,
        "dtype": "<f8",
        "segments": 4,
        "exist": "overwrite",
    } | asked
    target: flowmap.Target = flowmap.alloc_task(path, **values)
    return target


class TestFlow:
    """A flow run that is tried again."""

    def test_fill_array(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The flow that comes along computes only what its first attempt did not."""
        (tmp_path / "counting.py").write_text(
            "from pathlib import Path\n"
            "import flowmap\n"
            "@flowmap.filler\n"
            "def filler(out, block, log):\n"
            "    out[:] = 1\n"
            "    with Path(log).open('a') as file:\n"
            "        file.write(f'{block.start}\\n')\n"
            "    if block.start == 4 and Path(log).read_text().count('4') == 1:\n"
            "        raise ValueError('once')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        log = tmp_path / "log"
        tried = flowmap.fill_array.with_options(retries=1, retry_delay_seconds=0)
        report = tried(
            str(tmp_path / "out.npy"),
            shape=8,
            filler=importlib.import_module("counting").filler,
            arguments={"log": str(log)},
            segments=4,
            executor="threads",
            workers=1,
            exist="overwrite",
        )
        assert report.ok
        assert sorted(log.read_text().split()) == ["0", "2", "4", "4", "6"]

    def test_own_flow(self, tmp_path: Path) -> None:
        """So does a flow of one's own; two allocations in one attempt are two jobs."""
        seen: list[tuple[int, str, int]] = []

        @flow(retries=2)
        def twice() -> None:
            for number in (1, 2):
                target = allocated(tmp_path / "a.npy")
                seen.append((number, target.id, len(target.pending())))
                for segment in target.pending()[: 2 if len(seen) == 1 else 4]:
                    flowmap.write_segment(segment, np.full(2, float(number)))
                if len(seen) in (1, 3):
                    raise ValueError("once more")

        twice()
        number, ids, pending = zip(*seen, strict=True)
        assert number == (1, 1, 2, 1, 2)
        assert pending == (4, 2, 4, 4, 4)
        assert [ids.index(each) for each in ids] == [0, 0, 2, 3, 4]
        assert np.load(tmp_path / "a.npy").tolist() == [2.0] * 8

    @pytest.mark.parametrize("resuming", [False, True])
    def test_scheduled_again(self, tmp_path: Path, *, resuming: bool) -> None:
        """So does one that begins again, or that resumes, when its run count stays the same."""
        seen: list[tuple[str, int, int]] = []

        @flow
        def once() -> None:
            target = allocated(tmp_path / "a.npy", exist="error" if resuming else "overwrite")
            seen.append((target.id, len(target.pending()), runtime.flow_run.run_count))
            flowmap.write_segment(target.segments[0], np.ones(2))

        with get_client(sync_client=True) as client:
            run = client.create_flow_run(once)
            run_flow(once, flow_run=run)
            client.set_flow_run_state(run.id, Scheduled(), force=True)
            run = client.read_flow_run(run.id)
            run.empirical_policy.resuming = resuming
            client.update_flow_run(run.id, empirical_policy=run.empirical_policy)
            run_flow(once, flow_run=run)
        (first, _, _), (second, pending, attempt) = seen
        assert second == first
        assert (pending, attempt) == (3, 1 if resuming else 2)


class TestTask:
    """A task that is tried again, in one attempt of its flow run."""

    def test_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The task that allocates, when it fails after it has."""
        targets: list[flowmap.Target] = []

        def failing(*_: Any) -> None:
            targets.append(flowmap.open_target(tmp_path / "a.npy"))
            if len(targets) == 1:
                flowmap.write_segment(targets[0].segments[0], np.ones(2))
                raise OSError(5, "the network")

        monkeypatch.setattr("flowmap.tasks.log_changes", failing)

        @flow
        def retried() -> flowmap.Target:
            tried = flowmap.alloc_task.with_options(retries=1)
            return tried(
                tmp_path / "a.npy", 8, "<f8", segments=4, exist="overwrite", filler="arange"
            )

        assert retried().id == targets[0].id == targets[1].id

    def test_around(self, tmp_path: Path) -> None:
        """A task that calls it; its next call in the same attempt is another job."""
        seen: list[tuple[str, int]] = []

        @task(retries=1)
        def around() -> None:
            target = allocated(tmp_path / "a.npy")
            seen.append((target.id, len(target.pending())))
            flowmap.write_segment(target.segments[0], np.ones(2))
            if len(seen) == 1:
                raise ValueError("once more")

        @flow
        def both() -> None:
            around()
            around()

        both()
        assert [pending for _, pending in seen] == [4, 3, 4]
        assert seen[0][0] == seen[1][0] != seen[2][0]


def test_subflow_of_a_flow_that_is_tried_again(tmp_path: Path) -> None:
    """It has another id then, and attaches all the same."""
    seen: list[tuple[str, str, int]] = []

    @flow
    def inner() -> None:
        target = allocated(tmp_path / "a.npy")
        seen.append((str(runtime.flow_run.id), target.id, len(target.pending())))
        flowmap.write_segment(target.segments[0], np.ones(2))
        if len(seen) == 1:
            raise ValueError("once more")

    @flow(retries=1)
    def outer() -> None:
        inner()

    outer()
    (first, made, _), (second, attached, pending) = seen
    assert first != second
    assert (attached, pending) == (made, 3)


def test_another_run_has_replaced_it(tmp_path: Path) -> None:
    """What a later run put there is not thrown away by a retry; a new run may."""
    made: list[str] = []

    @flow
    def other() -> None:
        made.append(allocated(tmp_path / "a.npy").id)

    @flow(retries=1)
    def first() -> None:
        allocated(tmp_path / "a.npy")
        made.append(flowmap.allocate(tmp_path / "a.npy", 8, "<f8", exist="overwrite").id)
        raise ValueError("once more")

    with pytest.raises(OtherJobError, match="replaced by another run"):
        first()
    assert flowmap.open_target(tmp_path / "a.npy").id == made[-1]
    other()
    assert flowmap.open_target(tmp_path / "a.npy").id == made[-1]
