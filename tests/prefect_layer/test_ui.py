"""What a person sees in the Prefect UI, in a real browser."""

from __future__ import annotations

import inspect
import re
import shutil
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright
from servers import until

from flowmap import fill_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Locator, Page
    from prefect_layer.conftest import Worker
    from servers import Server

# Root needs --no-sandbox; the others keep the browser from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=30_000)  # milliseconds, for a machine that is busy


@pytest.fixture
def page() -> Iterator[Page]:
    """Open a page in the Chromium of the system, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS
        )
        try:
            yield browser.new_page(viewport={"width": 1400, "height": 1000})
        finally:
            browser.close()


@pytest.mark.system("chromium", packages="chromium")
def test_segment_is_found_by_its_name(server: Server, tmp_path: Path, page: Page) -> None:
    """The search of a run's task runs leads to one segment, with its state."""
    fill_array(str(tmp_path / "out.npy"), shape=120, segments=12, executor="threads")
    run = server.newest_run()["id"]
    server.task_runs(run, 14)
    page.goto(f"{server.ui}/runs/flow-run/{run}")
    page.get_by_text("Task Runs", exact=True).click()
    page.get_by_placeholder("Search by run name").fill("segment 0007")
    expect(page.get_by_role("link", name="segment 0007 [70:80]")).to_be_visible()
    expect(page.get_by_role("link", name="segment 0003 [30:40]")).to_have_count(0)
    page.get_by_placeholder("Search by run name").fill("segment")
    expect(page.get_by_text("12 Task runs")).to_be_visible()


def accepted(page: Page, press: Callable[[], None], route: str) -> Any:
    """Press a button that posts to a route of the API, and return what the server answers.

    Where its database is busy it answers 503. Prefect's client then asks again by itself; in
    the UI, which says "Oops", a person presses again.
    """

    def look() -> Any:
        with page.expect_response(f"**/{route}") as answered:
            press()
        if answered.value.status == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        assert answered.value.ok, answered.value.text()
        return answered.value.json()

    return until(look, f"the server accepts {route}")


class Form:
    """The form that starts a run of the deployment."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        deployment = server.ask(
            "deployments/filter", deployments={"name": {"any_": ["fill-array"]}}
        )[0]
        page.goto(f"{server.ui}/deployments/deployment/{deployment['id']}/run")
        self.parameters = page.locator(".schema-form-property")
        count = len(inspect.signature(fill_array.fn).parameters)
        expect(self.parameters).to_have_count(count)

    def parameter(self, name: str) -> Locator:
        """Return the part of the form for one parameter."""
        label = self.page.locator(".schema-form-property__label")
        text = re.compile(rf"^{name}( \(Optional\))?$")
        return self.parameters.filter(has=label.get_by_text(text))

    def submit(self) -> None:
        """Press Submit; by a key, since what says "Oops" lies over it."""
        self.page.get_by_role("button", name="Submit").press("Enter")


@pytest.mark.system("chromium", packages="chromium")
def test_form_left_as_it_is_but_for_the_path(worker: Worker, page: Page) -> None:
    """The defaults fill an array of a million numbers."""
    form = Form(page, worker.server)
    form.parameter("path").locator("textarea").fill("form.npy")
    run = accepted(page, form.submit, "create_flow_run")
    worker.completed(run["id"])
    assert np.array_equal(np.load(worker.root / "form.npy"), np.arange(1_000_000.0))


@pytest.mark.system("chromium", packages="chromium")
def test_form_explains_itself(worker: Worker, page: Page) -> None:
    """Every parameter is described, choices are drop-downs, and limits are enforced."""
    form = Form(page, worker.server)
    for parameter in form.parameters.all():
        description = parameter.locator(".schema-form-property__description")
        expect(description).to_have_text(re.compile(r"\w+ \w+ .*\."))
    for name, choices in {
        "durability": ["segment", "end"],
        "executor": ["processes", "threads"],
        "exist": ["resume", "error", "overwrite"],
    }.items():
        form.parameter(name).get_by_role("button", name=choices[0], exact=True).press("Space")
        for choice in choices[1:]:
            expect(page.get_by_text(choice, exact=True)).to_be_visible()
        page.keyboard.press("Escape")
    form.parameter("path").locator("textarea").fill("never.npy")
    segments = form.parameter("segments")
    segments.get_by_role("button", name="int", exact=True).click()
    segments.locator("input").fill("0")
    form.submit()
    expect(segments.get_by_text("0 is not valid")).to_be_visible()
    assert not (worker.root / "never.npy").exists()


@pytest.mark.system("chromium", packages="chromium")
def test_cancel_button(worker: Worker, page: Page) -> None:
    """A run that is cancelled in the UI gives its job back."""
    arguments = {"gate": str(worker.root / "never.gate")}
    run = worker.server.begin(
        path="ui.npy", shape=100, filler="support:gated", arguments=arguments
    )
    lease = worker.root / "ui.npy.flowmap" / "run.json"
    until(lease.exists, "the run works")
    page.goto(f"{worker.server.ui}/runs/flow-run/{run}")
    page.get_by_role("button", name="Cancel").click()
    confirm = page.get_by_role("dialog").get_by_role("button", name="Confirm")
    accepted(page, confirm.click, "set_state")
    assert worker.server.ended(run)["state_type"] == "CANCELLED"
    assert not lease.exists()
