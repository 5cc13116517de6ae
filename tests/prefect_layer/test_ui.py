"""What a person sees in the Prefect UI, in a real browser."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect, sync_playwright

import flowmap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Page
    from prefect_layer.conftest import Server

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
    flowmap.fill_array(str(tmp_path / "out.npy"), shape=120, segments=12, executor="threads")
    run = server.newest_run()["id"]
    server.task_runs(run, 14)
    page.goto(f"{server.url.removesuffix('/api')}/runs/flow-run/{run}")
    page.get_by_text("Task Runs", exact=True).click()
    page.get_by_placeholder("Search by run name").fill("segment 0007")
    expect(page.get_by_role("link", name="segment 0007 [70:80]")).to_be_visible(timeout=30_000)
    expect(page.get_by_role("link", name="segment 0003 [30:40]")).to_have_count(0)
    page.get_by_placeholder("Search by run name").fill("segment")
    expect(page.get_by_text("12 Task runs")).to_be_visible(timeout=30_000)
