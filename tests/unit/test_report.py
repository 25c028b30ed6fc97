"""What the lake tells of its partitions: failures by cause, ranges, grids and their pictures."""

from __future__ import annotations

from datetime import date, timedelta
from xml.etree import ElementTree

import pytest

from ducklake_flows.cli import show
from ducklake_flows.lake.checks import Warned
from ducklake_flows.plan import Planned
from ducklake_flows.report.causes import Failed, causes, lines, next_steps
from ducklake_flows.report.grid import UNITS, make_grid
from ducklake_flows.report.svg import bars_svg, grid_svg
from ducklake_flows.report.words import count, ranges, spans
from ducklake_flows.states import State


def days(start: date, number: int) -> list[str]:
    return [(start + timedelta(n)).isoformat() for n in range(number)]


def failed(keys: list[str], error: str, fix: str = "", dataset: str = "flights") -> list[Failed]:
    return [
        Failed(dataset, key, "failed", error.format(key=key, n=number), fix) for number, key in enumerate(keys, start=7)
    ]


def test_failures_of_one_cause_are_one_line_whatever_their_order() -> None:
    march = days(date(2013, 3, 1), 38)
    found = failed(march, "{key}.csv: wrong header: lacks tailnum", "correct the file")
    found += failed(["2013-05-02", "2013-05-04"], "s3://b/{key}.csv.gz: line {n}: column hour: '{n}x' is not a number")
    told = lines(causes([*reversed(found), *found[:3]]))
    assert told == [
        "  flights: 38 of 40: wrong header: lacks tailnum (2013-03-01..04-07)",
        "  flights: 2 of 40: column hour: … is not a number (2013-05-02, 2013-05-04)",
        "      such as 2013-05-02: s3://b/2013-05-02.csv.gz: line 7: column hour: '7x' is not a number",
    ]
    assert next_steps(causes(found)).splitlines() == [
        "one step for each cause:",
        "  correct the file, then: lake backfill flights --start 2013-03-01 --end 2013-04-07",
        "  fix the cause, then: lake backfill flights --start 2013-05-02 --end 2013-05-04",
    ]
    first = causes(found)[0].to_json()
    assert (first["failed"], first["of"], first["ranges"]) == (38, 40, [["2013-03-01", "2013-04-07"]])
    assert first["example"] == {"partition": "2013-03-01", "error": "2013-03-01.csv: wrong header: lacks tailnum"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("wrong header: lacks tailnum", "wrong header: lacks dest"),
        ("HTTPError: 503 Server Error: for url: http://a/1", "HTTPError: 404 Server Error: for url: http://a/2"),
        ("KeyError: 'tailnum'", "KeyError: 'dest'"),
        ("column c2 is BIGINT", "column c3 is BIGINT"),
    ],
)
def test_different_causes_stay_apart(one: str, other: str) -> None:
    assert len(causes([*failed(["2013-01-01"], one), *failed(["2013-01-02"], other)])) == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("/data/{n}/x: No space left", "… No space left"),
        ("duplicate key: {n},000 rows", "duplicate key: … rows"),
        ("{n} rows are too few for {key}", "… rows are too few for …"),
        (
            "attempt 0a1b2c{n:02}-77 of DECIMAL(18,2) was lost at {key}T10:00:00Z",
            "attempt … of DECIMAL(18,2) was lost at …",
        ),
    ],
)
def test_files_days_ids_and_counts_do_not_make_another_cause(error: str, text: str) -> None:
    (cause,) = causes(failed(days(date(2013, 1, 30), 5), error))
    assert cause.text.removeprefix("… ") == text.removeprefix("… ")
    assert cause.line.endswith(" (2013-01-30..02-03)")


def test_a_single_failure_is_shown_in_full_and_a_full_dataset_has_no_range() -> None:
    (cause,) = causes([Failed("planes", "full", "rejected", "planes.csv: 3 rows are doubled")])
    assert lines([cause]) == ["  planes full: planes.csv: 3 rows are doubled"]
    assert cause.next_step == "fix the cause, then: lake backfill planes"
    (again,) = causes([Failed("planes", "full", "failed", "it changed", "run the same command again")])
    assert again.next_step == "lake backfill planes"


def test_contiguous_keys_of_every_grain_are_ranges() -> None:
    assert spans(["2012-12", "2013-01", "2013-03"]) == [("2012-12", "2013-01"), ("2013-03", "2013-03")]
    assert spans(["2012-02-28T23", "2012-02-29T00"]) == [("2012-02-28T23", "2012-02-29T00")]
    assert spans(["full"]) == [("full", "full")]
    assert ranges(spans(["2013-01-05T07", "2013-01-05T08", "2012-12-31", "2013-01-01"])) == (
        "2012-12-31..2013-01-01, 2013-01-05T07..T08"
    )
    assert ranges(spans(days(date(2013, 1, 1), 13)[::2])) == (
        "2013-01-01, 2013-01-03, 2013-01-05, 2013-01-07, 2013-01-09 and 2 more ranges"
    )
    assert [count(n, "row") for n in (0, 1, 1200)] == ["0 rows", "1 row", "1,200 rows"]


HOURS = [f"{day}T{hour:02}" for day in days(date(2013, 1, 1), 400) for hour in range(24)]


@pytest.mark.parametrize("width", [200, 80, 66, 45, 30])
@pytest.mark.parametrize(
    "keys", [HOURS, days(date(2010, 3, 15), 3000), [f"{y}-{m:02}" for y in range(1990, 2020) for m in range(1, 13)]]
)
def test_the_grid_stays_within_the_terminal(
    keys: list[str], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show.console, "width", width)
    bad = Planned("long", keys[77], State.failed, True, "", None)
    show.grid([bad if key == bad.partition else Planned("long", key, State.published, False, "", None) for key in keys])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert max(map(len, printed)) <= width
    assert len(printed) <= 61
    assert sum(line.count("✗") for line in printed) == 1


def test_a_mark_shows_that_one_of_its_partitions_has_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    keys = days(date(2010, 3, 15), 3000)
    planned = [Planned("long", key, State.published, False, "", None) for key in keys]
    warned = [Warned("long", "few", keys[7:9], "3", "at least 4"), Warned("gold.x", "low", keys[:7], "1 row", "0 rows")]
    show.status(planned, warnings=warned)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("▲") == 2  # a week, and the legend
    assert (
        "long: audit few warns of 2 partitions (2010-03-22..23): 3, expected at least 4 next: lake checks long" in shown
    )
    first = ", ".join(keys[:5])
    assert f"gold.x: audit low warns of 7 intervals ({first} and 2 more): 1 row, expected 0 rows" in shown


@pytest.mark.parametrize("unit", UNITS)
def test_every_partition_is_in_one_mark_of_any_unit(unit: str) -> None:
    for keys in (HOURS, days(date(2010, 3, 15), 3000), ["2012-12", "2013-01"], ["full"]):
        grid = make_grid([(key, "published") for key in keys], unit)
        assert sum(n for mark in grid.marks for _, n in mark.counts) == len(keys)
        assert len({(mark.line, mark.position) for mark in grid.marks}) == len(grid.marks)


def test_a_mark_stands_at_its_day_even_if_days_before_it_are_not_there() -> None:
    grid = make_grid([("2013-01-03", "published"), ("2013-01-06", "failed")])
    assert grid.lines == {"2013-01": [None, None, "published", None, None, "failed"]}


@pytest.mark.parametrize(
    "keys", [HOURS[:100], HOURS, days(date(2010, 3, 15), 3000), days(date(2013, 1, 1), 40), ["full"]]
)
@pytest.mark.parametrize("tips", [True, False])
def test_pictures_are_xml_whose_parts_lie_inside(keys: list[str], tips: bool) -> None:
    states = [state.value for state in State]
    picture = grid_svg(make_grid([(key, states[n % 7]) for n, key in enumerate(keys)]), tips=tips)
    root = ElementTree.fromstring(picture)  # noqa: S314 - our own
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    assert width <= 700
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (int(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= width - w and 0 <= y <= height - h, rect.attrib  # noqa: PT018
    assert len(picture) < (220_000 if tips else 40_000)
    ElementTree.fromstring(bars_svg([(key, n) for n, key in enumerate(keys)], "rows <b>"))  # noqa: S314 - our own


def test_watch_prints_again_until_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = iter(["first", "[second]"])

    def print_once() -> None:
        text = next(printed, None)
        if text is None:
            raise KeyboardInterrupt
        show.console.print(text)

    monkeypatch.setattr(show, "WATCH_SECONDS", 0.0)
    show.watch(print_once)
    shown = capsys.readouterr().out
    assert shown.index("first") < shown.index("[second]")
    assert shown.count("Ctrl-C ends") == 2
