"""Grains: keys, bounds, ranges and neighbours of partitions, compared with the calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ducklake_flows.datasets.partitions import (
    EXAMPLES,
    Grain,
    grain_of,
    parse_partition,
    partition_at,
    partitions_between,
    position,
)
from ducklake_flows.datasets.scheme import Scheme
from ducklake_flows.errors import BadInput
from ducklake_flows.report.grid import make_grid
from ducklake_flows.report.words import following, span_text, spans
from ducklake_flows.sources.files import Files, matcher

TIMED = [grain for grain in Grain if grain is not Grain.full]
P = "published"
MOMENTS = st.datetimes(datetime(1000, 1, 1), datetime(9990, 12, 31))


@pytest.mark.parametrize("grain", TIMED)
@given(moment=MOMENTS)
def test_a_moment_is_in_exactly_the_partition_that_is_found_for_it(grain: Grain, moment: datetime) -> None:
    found = partition_at(moment, grain)
    assert found.start <= moment < found.end
    assert parse_partition(found.key, grain) == found
    assert grain_of(found.key) is grain
    assert partition_at(found.start, grain) == partition_at(found.end - timedelta(microseconds=1), grain) == found
    after = partition_at(found.end, grain)
    assert after.start == found.end
    assert after > found
    assert following(found.key) == after.key
    assert (
        position(after.start, grain) == position(moment, grain) + 1 == position(moment.replace(tzinfo=UTC), grain) + 1
    )


LENGTHS = {
    Grain.hour: ("2024-02-29T23", timedelta(hours=1)),
    Grain.day: ("2024-02-29", timedelta(days=1)),
    Grain.week: ("2020-W53", timedelta(days=7)),
    Grain.month: ("2024-02", timedelta(days=29)),
    Grain.quarter: ("2024-Q1", timedelta(days=91)),
    Grain.year: ("2024", timedelta(days=366)),
}


@pytest.mark.parametrize("grain", TIMED)
def test_a_partition_has_the_bounds_of_the_calendar(grain: Grain) -> None:
    key, length = LENGTHS[grain]
    found = parse_partition(key, grain)
    assert found.end - found.start == length


def test_an_iso_week_belongs_to_the_year_of_its_thursday() -> None:
    week = parse_partition("2020-W53", Grain.week)
    assert (week.start, week.end) == (datetime(2020, 12, 28), datetime(2021, 1, 4))
    assert (week.value, str(week)) == ("2020-12-28", "2020-W53")
    assert partition_at(datetime(2021, 1, 3, 23), Grain.week) == week
    assert following("2020-W53") == "2021-W01"


@pytest.mark.parametrize(
    ("grain", "start", "end", "keys"),
    [
        (Grain.week, date(2024, 12, 29), date(2025, 1, 6), ["2024-W52", "2025-W01", "2025-W02"]),
        (Grain.week, date(2024, 12, 30), date(2025, 1, 5), ["2025-W01"]),
        (Grain.month, date(2023, 12, 31), date(2024, 2, 1), ["2023-12", "2024-01", "2024-02"]),
        (Grain.quarter, date(2023, 12, 31), date(2024, 4, 1), ["2023-Q4", "2024-Q1", "2024-Q2"]),
        (Grain.quarter, date(2024, 1, 1), date(2024, 3, 31), ["2024-Q1"]),
        (Grain.year, date(2023, 12, 31), date(2024, 1, 1), ["2023", "2024"]),
        (Grain.hour, date(2024, 1, 1), date(2024, 1, 1), [f"2024-01-01T{hour:02}" for hour in range(24)]),
        (Grain.full, date(2024, 1, 1), date(2023, 1, 1), ["full"]),
    ],
)
def test_a_range_has_every_partition_that_it_touches(grain: Grain, start: date, end: date, keys: list[str]) -> None:
    assert [p.key for p in partitions_between(grain, start, end)] == keys


@pytest.mark.parametrize(
    ("key", "grain"),
    [
        ("2024-13", Grain.month),
        ("2023-02-29", Grain.day),
        ("2024-01-01T24", Grain.hour),
        ("2024-W53", Grain.week),
        ("2024-W00", Grain.week),
        ("2024-Q5", Grain.quarter),
        ("2024-01", Grain.quarter),
        ("0000", Grain.year),
        ("24", Grain.year),
        ("\N{FULLWIDTH DIGIT TWO}024", Grain.year),
        ("2024", Grain.full),
        ("full", Grain.day),
        ("2024-01-01\n", Grain.day),
    ],
)
def test_a_key_that_is_no_partition_is_refused_with_an_example(key: str, grain: Grain) -> None:
    with pytest.raises(BadInput) as refused:
        parse_partition(key, grain)
    assert grain is Grain.full or refused.value.fix == f"write it like this: {EXAMPLES[grain]}"


def test_ranges_of_weeks_and_quarters_are_written_short() -> None:
    assert spans(["2024-W52", "2025-W01", "2024-W50"]) == [("2024-W50", "2024-W50"), ("2024-W52", "2025-W01")]
    assert span_text("2024-W05", "2024-W09") == "2024-W05..W09"
    assert span_text("2023-Q4", "2024-Q2") == "2023-Q4..2024-Q2"
    assert span_text("2013", "2015") == "2013..2015"


@pytest.mark.parametrize(
    ("keys", "unit", "lines"),
    [
        (["2024-W01", "2024-W03", "2025-W01"], "week", {"2024": [P, None, P], "2025": [P]}),
        (["2023-Q4", "2024-Q1"], "quarter", {"2023": [None, None, None, P], "2024": [P]}),
        (["2023", "2024"], "year", {"2023": [P], "2024": [P]}),
    ],
)
def test_the_grid_shows_every_grain(keys: list[str], unit: str, lines: dict[str, list[str | None]]) -> None:
    grid = make_grid([(key, P) for key in keys])
    assert grid.unit == unit
    assert grid.lines == lines
    assert [mark.label for mark in grid.marks] == keys


def test_months_are_shown_by_quarter_and_weeks_by_month() -> None:
    months = make_grid([(f"2024-{month:02}", "published") for month in range(1, 13)], "quarter")
    assert [(mark.label, mark.counts) for mark in months.marks] == [
        (f"2024-Q{quarter}", (("published", 3),)) for quarter in range(1, 5)
    ]
    weeks = make_grid([("2024-W05", "published"), ("2024-W06", "published")], "month")
    assert [mark.label for mark in weeks.marks] == ["2024-01", "2024-02"], "a week counts where its Monday is"


@pytest.mark.parametrize(
    ("grain", "pattern", "path", "key"),
    [
        (Grain.week, "x/{partition}.csv", "x/2024-W05.csv", "2024-W05"),
        (Grain.week, "x/%Y/%m/%d.csv", "x/2024/01/29.csv", "2024-W05"),
        (Grain.week, "x/%Y/%m/%d.csv", "x/2024/01/30.csv", None),
        (Grain.quarter, "x/{partition}/*.csv", "x/2024-Q2/a.csv", "2024-Q2"),
        (Grain.quarter, "x/%Y/%m.csv", "x/2024/04.csv", "2024-Q2"),
        (Grain.quarter, "x/%Y/%m.csv", "x/2024/05.csv", None),
        (Grain.year, "x/%Y.csv", "x/2024.csv", "2024"),
        (Grain.day, "x/%Y/{partition}.csv", "x/2024/2024-01-05.csv", "2024-01-05"),
        (Grain.day, "x/%Y/{partition}.csv", "x/2023/2024-01-05.csv", None),
        (Grain.day, "x/%Y-%m-%d.csv", "x/2024-13-05.csv", None),
    ],
)
def test_files_belong_to_the_partition_that_their_path_names(
    grain: Grain, pattern: str, path: str, key: str | None
) -> None:
    Files(pattern, "csv").check("things", Scheme(grain))
    assert matcher(pattern, Scheme(grain))(path) == key
    if key is not None:
        assert Files(pattern.replace("*", "a"), "csv").origin(parse_partition(key, grain)) == path


@pytest.mark.parametrize(("grain", "pattern"), [(Grain.week, "x/%Y-%m.csv"), (Grain.quarter, "x/%Y.csv")])
def test_a_pattern_that_does_not_tell_partitions_apart_is_refused(grain: Grain, pattern: str) -> None:
    with pytest.raises(BadInput, match=f"does not say which {grain}"):
        Files(pattern, "csv").check("things", Scheme(grain))
