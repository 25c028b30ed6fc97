"""The Prefect UI in a real browser: the form, a run started by a click, its graphs and its artifacts; the report.

With --screenshots, the run loads the demo's year, and the pictures go into docs/images.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, sync_playwright

from ducklake_flows.cli.demo import land
from ducklake_flows.orchestration.server import until
from ducklake_flows.storage import open_storage
from tests.conftest import DEMO, make_project
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
        # The UI's own choice is dark.
        page.add_init_script("localStorage.setItem('color-scheme', '\"light\"')")
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


def bad_morning(running: Running) -> None:
    """Two files of the year get a wrong value, six others change. A run meets the two."""
    landing = open_storage(running.settings.landing, running.settings)
    for day in range(16, 24):
        path = f"flights/2013-04-{day}.csv"
        with landing.fs.open_input_stream(landing.path(path)) as stream:
            lines = stream.read().decode().splitlines(keepends=True)
        last = lines.pop()
        if day in (20, 22):
            fields = last.split(",")
            fields[lines[0].split(",").index("flight")] = "xxx"
            lines.append(",".join(fields))
        running.land(path, "".join(lines))
    running.lake("backfill", "flights", "--start", "2013-04-20", "--end", "2013-04-22", "--mode", "stale", check=False)


@pytest.mark.timeout(1800)
def test_the_ui_starts_a_run_and_shows_its_form_graphs_and_artifacts(  # type: ignore[no-untyped-def]
    running: Running, page: Page, shoot, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pictures = request.config.getoption("--screenshots")
    if pictures:
        land(running.settings)
    else:
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
    state = running.ended(run, seconds=1200 if pictures else 300)[run]["state"]
    assert state["type"] == "COMPLETED", state["message"]

    page.goto(f"{running.stack.ui}/runs/flow-run/{run}")
    # The graph is drawn on a canvas; a separate tab shows the names of the two subflow runs.
    page.locator("canvas").first.wait_for()
    shoot("prefect-run")
    page.get_by_text("Subflow Runs").first.click()
    for name in ("ingest all first..last", "transform prod"):
        page.get_by_text(name).first.wait_for()

    def child(name: str) -> dict[str, Any]:
        return next(r for r in running.runs() if r["parent_task_run_id"] and r["name"].startswith(name))

    # A transform that an event triggered may have built the model before the pipeline's transform looked.
    built = {
        "task_runs": {"name": {"like_": "gold.carrier_daily"}},
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": 1,
    }
    (model,) = running.post("task_runs/filter", built)
    page.goto(f"{running.stack.ui}/runs/flow-run/{model['flow_run_id']}")
    page.locator("canvas").first.wait_for()
    shoot("prefect-graph")
    page.get_by_text("Task Runs", exact=True).first.click()
    page.get_by_role("link", name="gold.carrier_daily").first.wait_for()

    ingest = child("ingest all")
    assert ingest["state_type"] in FINAL
    page.goto(f"{running.stack.ui}/runs/flow-run/{ingest['id']}")
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text("every partition of this run", exact=False).first.wait_for()
    shoot("prefect-artifacts")
    summaries = {"flow_run_id": {"any_": [ingest["id"]]}, "key": {"any_": ["ingest-summary"]}}
    summary = running.post("artifacts/filter", {"artifacts": summaries})[0]
    page.goto(f"{running.stack.ui}/artifacts/artifact/{summary['id']}")
    page.get_by_text("extract and publish").first.wait_for()
    shoot("prefect-summary")

    if pictures:
        bad_morning(running)
    newest = {"artifacts": {"key": {"any_": ["flights-partitions"]}}, "sort": "CREATED_DESC"}
    grid = running.post("artifacts/filter", newest)[0]
    page.goto(f"{running.stack.ui}/artifacts/artifact/{grid['id']}")
    picture = page.locator("img[src^='data:image/svg+xml']")
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 400, "the UI shows the calendar"
    page.get_by_role("link", name=ingest["id"][:8]).wait_for()
    shoot("prefect-grid")

    report, project = tmp_path / "report.html", make_project(tmp_path / "flights", DEMO)
    running.stack.run("env", f"LAKE_PROJECT={project}", "lake", "report", "--out", str(report))
    page.set_viewport_size({"width": 1200, "height": 1240})
    page.goto(report.as_uri())
    page.get_by_role("heading", name="What needs a look").wait_for()
    shoot("lake-report")
