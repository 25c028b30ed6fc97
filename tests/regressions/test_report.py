"""`lake report`: what the page shows, that it needs no network, and that no text in the lake becomes HTML."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright

from ducklake_flows.cli.main import app
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.ledger import append
from ducklake_flows.staging.layout import new_attempt
from ducklake_flows.staging.receipt import Checked, Failure
from tests.faults.conftest import staged
from tests.stack.test_browser import CHROMIUM, OFFLINE, QUIET

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake

EVIL = "<script>alert(1)</script><img src=http://a.example/x onerror=alert(2)> {{ 7*7 }} & 'a' \"b\" password=hunter2"


class Page(HTMLParser):
    """A page's tags, their attributes, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def written(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The report of a lake with two published, one stale and two failed partitions of readings."""
    days = ["2024-01-01", "2024-01-02", "2024-01-03"]
    for number, day in enumerate(days, start=1):
        lake.land(f"readings/{day}.jsonl", [{"n": n} for n in range(number)])
    lake.load("readings", *days)
    lake.land("readings/2024-01-02.jsonl", [{"n": 1}] * 9)
    warns = Checked(f"few {EVIL}", "warn", False, "9", "at most 8", None, "[]")
    good, bad = (Checked("positive", "reject", passed, "0 rows", "0 rows", 0, "[]") for passed in (True, False))
    lake.publish([replace(staged(lake, "2024-01-03", 3, 9), checks=(warns, good))])
    start = datetime(2024, 1, 3)
    interval = {"model": "gold.daily", "interval_start": start, "interval_end": start + timedelta(1), "token": 1}
    with connected(lake.settings) as con:
        of_model = [{"environment": "prod", **interval, **asdict(each)} for each in (replace(warns, name="low"), good)]
        append(con, "checks", of_model)
    failures = [Failure("readings", f"2024-01-0{n}", new_attempt(), "failed", f"line {n}: {EVIL}") for n in (4, 5)]
    failures[0] = replace(failures[0], checks=(bad,))
    lake.publish(failures)
    path = tmp_path / "out" / "page.html"
    path.parent.mkdir()
    app(["report", "--out", str(path), "--verify"], standalone_mode=False)
    assert f"Wrote {path} (" in capsys.readouterr().out
    assert list(path.parent.iterdir()) == [path]
    return path


def test_the_report_is_one_page_without_network_and_no_error_becomes_html(written: Path) -> None:
    html = written.read_text()
    page = Page(html)
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe", "link", "a", "object"} == set()
    assert [a for _, attributes in page.tags for a in attributes if a.startswith("on") or a in ("src", "href")] == []
    assert set(re.findall(r"https?://[^\s'\"<&]+", html)) == {"http://www.w3.org/2000/svg", "http://a.example/x"}
    # The cause, the last failures, and an audit in two places.
    assert page.text.count("<script>alert(1)</script>") == 4
    assert "{{ 7*7 }} & 'a' \"b\" password=***" in page.text
    assert "hunter2" not in html

    text = " ".join(page.text.split())
    for words in (
        "readings: all 2: <script>",
        "next: fix the cause, then: lake backfill readings --start 2024-01-04 --end 2024-01-05",
        "2 published, 1 stale, 2 failed, 26 no source",
        "1 partition: the source changed after the publish. lake backfill --mode stale",
        "readings: audit few <script>",
        "warns of 1 partition (2024-01-03): 9, expected at most 8 next: lake checks readings",
        "gold.daily: audit low warns of 1 interval (2024-01-03): 9, expected at most 8 next: lake checks gold.daily",
        "2024-01-03: published with a warning",
        "readings: positivereject112024-01-042024-01-03: 0 rows2024-01-04: 0 rows",
        "gold.daily: positivereject102024-01-03: 0 rows",
        "2024-01-03: 3 rows",
        "The lake is right: lake verify found nothing.",
    ):
        assert words in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the browser tests are left out")
def test_the_report_fits_a_phone_and_a_screen_in_light_and_dark(written: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{a}" for a in QUIET + OFFLINE])
        backgrounds, said = set(), list[str]()
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1400, "height": 900}, color_scheme=scheme)
            page.on("console", lambda message: said.append(message.text))
            page.goto(written.as_uri())
            for width in (400, 1400):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(backgrounds) == 2
        assert said == []
        browser.close()
