"""Partitions in zones and of segments, compared with DuckDB's calendar (ICU's zones, not Python's)."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain, Partition
from ducklake_flows.datasets.scheme import Scheme
from ducklake_flows.errors import BadInput
from ducklake_flows.report.causes import backfill
from ducklake_flows.report.words import following, span_text, spans
from ducklake_flows.sources.files import Files, matcher
from ducklake_flows.sources.placeholders import filled
from ducklake_flows.sources.rest_api import RestApi
from ducklake_flows.sources.sql_database import SqlDatabase

TIMED = [grain for grain in Grain if grain is not Grain.full]
ZONES = (
    *("UTC", "Europe/Brussels", "America/New_York", "America/St_Johns", "Asia/Kolkata", "Asia/Kathmandu"),
    # Clocks that are set at midnight, so that a day begins at 01:00, and some that are not set any more.
    *("America/Sao_Paulo", "Asia/Beirut", "Africa/Cairo", "Australia/Sydney", "Pacific/Auckland", "Africa/Casablanca"),
)
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2037, 12, 31))
FORMS = {
    Grain.hour: "strftime(c, '%Y-%m-%dT%H')",
    Grain.day: "strftime(c, '%Y-%m-%d')",
    Grain.week: "strftime(c, '%G-W%V')",
    Grain.month: "strftime(c, '%Y-%m')",
    Grain.quarter: "strftime(c, '%Y-Q') || quarter(c)",
    Grain.year: "strftime(c, '%Y')",
}
BRUSSELS = Scheme(Grain.hour, "Europe/Brussels")


@pytest.mark.parametrize("grain", TIMED)
@given(moment=MOMENTS, timezone=st.sampled_from(ZONES), segment=st.sampled_from(["", "eu"]))
def test_a_moment_is_in_exactly_one_partition_of_a_zone(
    grain: Grain, moment: datetime, timezone: str, segment: str
) -> None:
    scheme = Scheme(grain, timezone, bool(segment))
    found = scheme.at(moment, segment)
    assert found == scheme.at(moment.replace(tzinfo=UTC), segment)
    assert found.start <= moment < found.end
    assert scheme.parse(found.key) == found
    assert (found.segment, found.grain, found.timezone) == (segment, grain, timezone)
    after = scheme.at(found.end, segment)
    assert (after.start, after.low) == (found.end, found.high)
    assert scheme.at(found.start, segment) == scheme.at(found.end - timedelta(microseconds=1), segment) == found
    assert scheme.holding(found.low, segment) == found
    assert scheme.count(found.low, found.low) == 1
    assert scheme.count(found.low, after.low) == 2
    local = duckdb.execute(
        f"SELECT {FORMS[grain]} FROM (SELECT timezone(?, timezone('UTC', ?::TIMESTAMP)) AS c)", [timezone, moment]
    ).fetchall()[0][0]
    assert found.period[: len(local)] == local


@pytest.mark.parametrize(
    ("timezone", "day", "hours"),
    [
        ("Europe/Brussels", "2026-03-29", 23),
        ("Europe/Brussels", "2026-10-25", 25),
        ("Europe/Brussels", "2026-07-01", 24),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        ("America/Sao_Paulo", "2018-11-04", 23),
        ("Asia/Kolkata", "2026-03-29", 24),
    ],
)
def test_a_day_has_as_many_hours_as_its_zones_clocks_show(timezone: str, day: str, hours: int) -> None:
    found = Scheme(Grain.day, timezone).parse(day)
    assert found.end - found.start == timedelta(hours=hours)
    by_hour = Scheme(Grain.hour, timezone).between(date.fromisoformat(day), date.fromisoformat(day))
    assert len(by_hour) == hours == len({p.key for p in by_hour})
    assert (by_hour[0].start, by_hour[-1].end) == (found.start, found.end)
    assert all(one.end == next_.start for one, next_ in itertools.pairwise(by_hour))
    assert found.value == day


def test_the_hour_that_comes_twice_is_told_apart() -> None:
    first, second = BRUSSELS.parse("2026-10-25T02+0200"), BRUSSELS.parse("2026-10-25T02+0100")
    assert (first.start, second.start) == (datetime(2026, 10, 25), datetime(2026, 10, 25, 1))
    assert (first.value, second.value) == ("2026-10-25 00:00:00", "2026-10-25 01:00:00")
    keys = [p.key for p in BRUSSELS.between(date(2026, 10, 25), date(2026, 10, 25))]
    assert keys[1:5] == ["2026-10-25T01", "2026-10-25T02+0200", "2026-10-25T02+0100", "2026-10-25T03"]
    assert BRUSSELS.parse("2026-10-25T05").start == datetime(2026, 10, 25, 4)
    with pytest.raises(BadInput, match=r"(?s)T02 comes twice in Europe/Brussels.*T02\+0200, 2026-10-25T02\+0100"):
        BRUSSELS.parse("2026-10-25T02")
    with pytest.raises(BadInput, match=r"no hour 2026-10-25T02\+0300"):
        BRUSSELS.parse("2026-10-25T02+0300")
    with pytest.raises(BadInput, match="There is no hour 2026-03-29T02 in Europe/Brussels: its clocks are set forward"):
        BRUSSELS.parse("2026-03-29T02")
    # The offset of any other hour is understood, and left out.
    assert BRUSSELS.parse("2026-07-01T05+0200").key == "2026-07-01T05"
    with pytest.raises(BadInput, match=r"write it like this: 2026-07-01T05\+0200"):
        BRUSSELS.parse("2026-07-01T05+0100")
    with pytest.raises(BadInput, match="not a partition of grain hour"):
        Scheme(Grain.hour).parse("2026-10-25T02+0000")


def test_samoa_had_no_30th_of_december() -> None:
    samoa = Scheme(Grain.day, "Pacific/Apia")
    found = samoa.between(date(2011, 12, 28), date(2012, 1, 1))
    assert [p.key[5:] for p in found] == ["12-28", "12-29", "12-31", "01-01"]
    with pytest.raises(BadInput, match="There was no 2011-12-30 in Pacific/Apia"):
        samoa.parse("2011-12-30")


@pytest.mark.parametrize("timezone", ["Europe/Brussels", "America/New_York"])
def test_the_range_of_a_dataset_ends_with_the_last_complete_partition_of_its_zone(timezone: str) -> None:
    before = datetime.now(UTC)
    dataset = Dataset("a", lambda _: [], Grain.hour, "at", timezone=timezone, start=before.date() - timedelta(days=3))
    last = dataset.partitions()[-1]
    after = datetime.now(UTC)
    ends = [now.replace(minute=0, second=0, microsecond=0, tzinfo=None) for now in (before, after)]
    assert last.end in ends
    daily = Dataset("a", lambda _: [], Grain.day, "at", timezone=timezone, start=before.date() - timedelta(days=3))
    yesterdays = [
        (now.astimezone(ZoneInfo(timezone)).date() - timedelta(days=1)).isoformat() for now in (before, after)
    ]
    assert daily.partitions()[-1].key in yesterdays


def test_the_partitions_of_segments_are_those_of_each() -> None:
    dataset = Dataset("a", lambda _: [], Grain.day, "day", segment_column="region", segments=("us", "eu"))
    found = dataset.partitions(date(2024, 1, 1), date(2024, 1, 2))
    assert [p.key for p in found] == ["eu/2024-01-01", "eu/2024-01-02", "us/2024-01-01", "us/2024-01-02"]
    assert dataset.partition("eu/2024-01-01").place == ("eu", datetime(2024, 1, 1))
    assert dataset.partition_values(found[2]) == {"region": "us", "day": "2024-01-01"}
    alone = Dataset("a", lambda _: [], Grain.full, segment_column="tenant", segments=lambda: ["b", "a", "b"])
    assert [p.key for p in alone.partitions()] == ["a", "b"]
    assert alone.partition("a").place == ("a", datetime.min)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("2024-01-01", "a segment and a slash are missing"),
        ("/2024-01-01", "'' is not a segment"),
        ("a/b/2024-01-01", "'a/b' is not a segment"),
        ("full/2024-01-01", "'full' is not a segment"),
        ("__HIVE_DEFAULT_PARTITION__/2024-01-01", "is not a segment"),
        ("eu /2024-01-01", "'eu ' is not a segment"),
        ("e*/2024-01-01", "is not a segment"),
        ("Null/2024-01-01", "'Null' is not a segment"),
        ("eu/2024-13-01", "'2024-13-01' is not a partition of grain day"),
        (f"{'x' * 101}/2024-01-01", "is not a segment"),
    ],
)
def test_a_key_that_is_none_of_a_dataset_with_segments_is_refused(key: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Scheme(Grain.day, segmented=True).parse(key)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"segments": ("a",)}, "in which column are the segments"),
        ({"segment_column": "region"}, "the source cannot list its segments"),
        ({"segment_column": "region", "segments": "eu"}, "segments is 'eu'"),
        ({"segment_column": "region", "segments": ("e/u",)}, "'e/u' is not a segment"),
        ({"segment_column": "day", "segments": ("eu",)}, "need a column of their own"),
        ({"segment_column": "Re gion", "segments": ("eu",)}, "'Re gion' is not a column name"),
        ({"timezone": "Mars/Olympus"}, "'Mars/Olympus' is not a time zone"),
        ({"timezone": "Australia/Lord_Howe", "grain": "hour"}, "set by half an hour"),
        ({"schedule": "6"}, "schedule is '6'"),
        ({"schedule": "0 25 * * *"}, "schedule is '0 25"),
        ({"schedule": "0 6 * * * *"}, "schedule is '0 6 "),
        (
            {"segment_column": "region", "segments": ("eu",), "contract": Contract({"region": "bigint"})},
            "partition column region is declared as bigint",
        ),
    ],
)
def test_a_wrong_division_is_refused_at_its_definition(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Dataset("a", lambda _: [], **{"grain": Grain.day, "partition_column": "day", **arguments})


SALES = Scheme(Grain.day, segmented=True)


@pytest.mark.parametrize(
    ("scheme", "pattern", "path", "key"),
    [
        (SALES, "x/{partition}.csv", "x/eu/2024-01-05.csv", "eu/2024-01-05"),
        (SALES, "x/{period}/{segment}.csv", "x/2024-01-05/eu.csv", "eu/2024-01-05"),
        (SALES, "x/{segment}/%Y/%m/%d/*.csv", "x/e u/2024/01/05/a.csv", "e u/2024-01-05"),
        (SALES, "x/{segment}/{segment}-{period}.csv", "x/eu/us-2024-01-05.csv", None),
        (SALES, "x/{segment}-{period}.csv", "x/eu-west-2024-01-05.csv", "eu-west-2024-01-05"[:7] + "/2024-01-05"),
        (SALES, "x/{segment}/{period}.csv", "x/full/2024-01-05.csv", None),
        (Scheme(Grain.full, segmented=True), "x/{partition}.csv", "x/eu.csv", "eu"),
        (Scheme(Grain.full, segmented=True), "x/{segment}/*.csv", "x/eu/1.csv", "eu"),
        (Scheme(Grain.full), "x/*.csv", "x/eu.csv", "full"),
        (BRUSSELS, "x/{partition}.csv", "x/2026-10-25T02+0200.csv", "2026-10-25T02+0200"),
        (BRUSSELS, "x/{partition}.csv", "x/2026-10-25T02.csv", None),
        (BRUSSELS, "x/{partition}*.csv", "x/2026-07-25T02-0001.csv", "2026-07-25T02"),
        (BRUSSELS, "x/{partition}*.csv", "x/2026-10-25T02+0100-1.csv", "2026-10-25T02+0100"),
        (Scheme(Grain.hour), "x/{partition}*.csv", "x/2026-10-25T02-0001.csv", "2026-10-25T02"),
        (Scheme(Grain.day, "Europe/Brussels"), "x/%Y%m%d.csv", "x/20261025.csv", "2026-10-25"),
        (Scheme(Grain.day, "America/New_York"), "x/%Y%m%d.csv", "x/20261025.csv", "2026-10-25"),
    ],
)
def test_a_path_names_its_segment_and_its_period(scheme: Scheme, pattern: str, path: str, key: str | None) -> None:
    files = Files(pattern, "csv")
    files.check("things", scheme)
    assert matcher(pattern, scheme)(path) == key
    if key is not None and "*" not in pattern:
        assert files.origin(scheme.parse(key)) == path


@pytest.mark.parametrize(
    ("source", "scheme", "why"),
    [
        (Files("x/{period}.csv", "csv"), SALES, "does not say which segment"),
        (Files("x/{segment}.csv", "csv"), SALES, "does not say which day"),
        (Files("x/{segment}/{partition}.csv", "csv"), Scheme(Grain.day), "has a segment, the dataset has none"),
        (Files("x/{segment}/{period}.csv", "csv"), Scheme(Grain.full, segmented=True), "grain full has only one"),
        (Files("x/%Y-%m-%d-%H.csv", "csv"), BRUSSELS, "does not tell the hours apart that come twice"),
        (RestApi("http://a/{period}"), SALES, "which segment"),
        (RestApi("http://a/{segment}"), SALES, "which day"),
        (RestApi("http://a/{segment}/{partition}"), Scheme(Grain.day), "no segments"),
        (RestApi("http://a/{segment}/{start}"), Scheme(Grain.full, segmented=True), "stands for a time"),
        (SqlDatabase("sqlite:///a", "t", window="day"), SALES, "which segment does a row of t belong to"),
        (SqlDatabase("sqlite:///a", "t", segment="region"), SALES, "which day does a row of t belong to"),
        (SqlDatabase("sqlite:///a", "t", window="day", segment="r"), Scheme(Grain.day), "has no segments"),
        (SqlDatabase("sqlite:///a", query="SELECT :start"), SALES, "which segment it asks for"),
        (SqlDatabase("sqlite:///a", query="SELECT :segment"), SALES, "which day it asks for"),
    ],
)
def test_a_source_that_does_not_tell_partitions_apart_is_refused(source: Any, scheme: Scheme, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        source.check("things", scheme)


def test_a_request_names_moments_in_utc_and_days_of_the_zone() -> None:
    day = Scheme(Grain.day, "Europe/Brussels", segmented=True).parse("eu/2026-10-25")
    asked = filled(["{start}", "{end}", "{start:%Y-%m-%d %H}", "{last}", "{start:unix}", "{segment} {period}"], day)
    assert asked == [
        "2026-10-24T22:00:00Z",
        "2026-10-25T23:00:00Z",
        "2026-10-25 00",
        "2026-10-25",
        int(datetime(2026, 10, 24, 22, tzinfo=UTC).timestamp()),
        "eu 2026-10-25",
    ]


def test_ranges_of_keys_are_told_by_segment() -> None:
    keys = ["us/2024-01-31", "eu/2024-01-31", "eu/2024-02-01", "us/2024-02-02"]
    found = spans(keys)
    assert [span_text(*span) for span in found] == ["eu/2024-01-31..02-01", "us/2024-01-31", "us/2024-02-02"]
    assert following("eu/2024-W52") == "eu/2025-W01"
    assert following("eu") == ""
    assert backfill("sales", keys[1:3]) == 'lake backfill sales --partition "eu/*" --start 2024-01-31 --end 2024-02-01'
    assert backfill("sales", keys) == "lake backfill sales --start 2024-01-31 --end 2024-02-02"
    assert backfill("sales", ["eu"]) == 'lake backfill sales --partition "eu"'
    assert backfill("sales", ["eu", "us"]) == "lake backfill sales"
    assert backfill("sales", ["2024-W01", "2024-W05"]) == "lake backfill sales --start 2024-01-01 --end 2024-01-29"
    assert backfill("sales", ["2024-10-27T02+0200"]) == "lake backfill sales --start 2024-10-27 --end 2024-10-27"


def test_every_hour_of_a_year_of_a_zone_has_a_key_of_its_own() -> None:
    found = BRUSSELS.between(date(2026, 1, 1), date(2026, 12, 31))
    assert len(found) == 365 * 24
    assert Counter(len(p.key) for p in found) == {13: 365 * 24 - 2, 18: 2}
    assert len({p.key for p in found}) == len({p.low for p in found}) == len(found)
    assert [BRUSSELS.parse(p.key).start for p in found] == [
        found[0].start + timedelta(hours=number) for number in range(len(found))
    ]
    assert isinstance(found[0], Partition)
