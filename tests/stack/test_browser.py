"""The Prefect UI in a real browser: the form, a run started by a click, its task graph and its artifacts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, sync_playwright

from ducklake_flows.orchestration.server import until
from tests.flows.test_ingest import flights
from tests.stack.conftest import FINAL, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
OFFLINE = ("disable-background-networking", "disable-component-update")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the browser tests are left out")


@pytest.fixture
def page(running: Running) -> Iterator[Page]:
    """A page of the UI, logged in."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{a}" for a in QUIET + OFFLINE])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{running.stack.ui}/deployments")
        page.locator("input[type=password]").fill(running.stack.environment["PREFECT_API_AUTH_STRING"])
        page.get_by_role("button", name="Login").click()
        page.wait_for_url("**/deployments")
        yield page
        browser.close()


@pytest.fixture
def shoot(request: pytest.FixtureRequest, page: Page, tmp_path: Path) -> Callable[[str], None]:
    """Takes a screenshot into docs/images with --screenshots, else into the temporary folder of the test."""
    keep = request.config.getoption("--screenshots")
    folder = Path(__file__).parents[2] / "docs" / "images" if keep else tmp_path

    def take(name: str) -> None:
        page.wait_for_load_state("networkidle")
        # Close the notifications from before the login.
        for close in page.get_by_role("button", name="Close").all():
            if close.is_visible():
                close.click()
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png")

    return take


def test_the_ui_starts_a_run_and_shows_its_form_graph_and_artifacts(running: Running, page: Page, shoot) -> None:  # type: ignore[no-untyped-def]
    for day in (1, 2, 3):
        running.land(f"flights/2013-05-{day:02}.csv", flights(day, 4).replace("2013,1,", "2013,5,"))
    deployment = running.deployment("pipeline")
    before = {r["id"] for r in running.runs()}
    page.goto(f"{running.stack.ui}/deployments/deployment/{deployment['id']}/run")
    for label in ("datasets", "start", "end", "mode", "workers", "environment"):
        page.get_by_text(f"{label} (Optional)").first.wait_for()
    page.get_by_text("Which partitions: missing, failed, missing_failed, stale or all; or several of them.").wait_for()
    shoot("prefect-form")
    page.get_by_role("button", name="Submit").click()

    def clicked() -> list[str]:
        return [r["id"] for r in running.runs() if r["id"] not in before and r["name"].startswith("pipeline")]

    assert until(clicked)
    run = clicked()[0]
    state = running.ended(run)[run]["state"]
    assert state["type"] == "COMPLETED", state["message"]

    page.goto(f"{running.stack.ui}/runs/flow-run/{run}")
    # The graph is drawn on a canvas; a separate tab shows the names of the two subflow runs.
    page.locator("canvas").first.wait_for()
    shoot("prefect-run")
    page.get_by_text("Subflow Runs").first.click()
    for name in ("ingest all first..last", "transform prod"):
        page.get_by_text(name).first.wait_for()
    ingest = next(r for r in running.runs() if r["parent_task_run_id"] and r["name"].startswith("ingest all"))
    assert ingest["state_type"] in FINAL
    page.goto(f"{running.stack.ui}/runs/flow-run/{ingest['id']}")
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text("every partition of this run", exact=False).first.wait_for()
    shoot("prefect-artifacts")
    grids = {"flow_run_id": {"any_": [ingest["id"]]}, "key": {"any_": ["flights-partitions"]}}
    grid = running.post("artifacts/filter", {"artifacts": grids})[0]
    page.goto(f"{running.stack.ui}/artifacts/artifact/{grid['id']}")
    picture = page.locator("img[src^='data:image/svg+xml']")
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 400, "the UI shows the calendar"
    page.get_by_role("link", name=ingest["id"][:8]).wait_for()
    shoot("prefect-grid")
    summaries = {"flow_run_id": {"any_": [ingest["id"]]}, "key": {"any_": ["ingest-summary"]}}
    summary = running.post("artifacts/filter", {"artifacts": summaries})[0]
    page.goto(f"{running.stack.ui}/artifacts/artifact/{summary['id']}")
    page.get_by_text("extract and publish").first.wait_for()
    shoot("prefect-summary")
