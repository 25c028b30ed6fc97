"""Datasets that are divided by segments, or in a zone: published, replaced, merged, verified, restored and repaired."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.lake.connect import connect, connected
from ducklake_flows.lake.lookup import held
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.restore import stage_previous, stage_published
from ducklake_flows.lake.verify import _paths
from tests.cases import Case, case

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Lake

ODD = ("007", "1e5", "None", "nan", "true", "2024-01-01", "New York", "são", "a.b", "x+y", "50@home", "eu-west-1", "_")
"""Segments that DuckDB could take for a value of another type, or write into a path in another way."""

pytestmark = pytest.mark.short("sqlite+folder")


def by_key(things: Case) -> dict[str, list[int]]:
    """The values of each partition by the columns' values, read from the table."""
    columns = list(things.dataset.partition_columns)
    found = things.lake.sql(
        f"SELECT {', '.join(f'{name}::VARCHAR AS {name}' for name in columns)}, list(v ORDER BY v) AS v "
        "FROM raw.things GROUP BY ALL"
    )
    return {"/".join(row[name] for name in columns): row["v"] for row in found}


def merge(lake: Lake) -> None:
    for step in steps(lake.settings, timedelta(30)):
        if step.name == "merge" and step.todo:
            step.run()


def segments(lake: Lake, grain: Grain, names: Sequence[str]) -> Case:
    return case(lake, grain=grain, divided={"segment_column": "region", "segments": names})


@pytest.mark.short("sqlite+folder", "postgres+s3")
@pytest.mark.parametrize("partitioned", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_segments_are_stored_exactly_and_replaced_alone(lake: Lake, partitioned: bool) -> None:
    things = segments(lake, Grain.full, ODD)
    things.dataset = replace(things.dataset, partitioned=partitioned)
    right = {name: [number] for number, name in enumerate(ODD)}
    things.given |= {name: [{"v": v} for v in values] for name, values in right.items()}
    assert len(things.load(*ODD).receipts) == len(ODD)
    assert by_key(things) == right
    for again in range(2):
        for name in ODD[again::3]:
            right[name] = [*right[name], 100 * (again + 1)]
            things.given[name] = [{"v": v} for v in right[name]]
        changed = ODD[again::3]
        assert len(things.load(*changed).receipts) == len(changed)
        assert by_key(things) == right
        assert things.errors() == []
        merge(lake)
        assert by_key(things) == right
    assert things.load(*ODD).receipts == []
    assert things.errors() == []
    assert things.columns["region"] == "VARCHAR"


@pytest.mark.short("sqlite+folder", "postgres+s3")
@pytest.mark.parametrize(
    "grain",
    [pytest.param(Grain.hour, marks=pytest.mark.soak), Grain.day, pytest.param(Grain.week, marks=pytest.mark.soak)],
)
def test_segments_and_periods_are_replaced_alone(lake: Lake, grain: Grain) -> None:
    names = ("eu", "New York", "007")
    things = segments(lake, grain, names)
    periods = things.dataset.periods(date(2024, 12, 27), date(2025, 1, 31))[:5]
    keys = [p.key for p in things.dataset.scheme.of_segments(periods, names)]
    things.given |= {key: [{"v": number}] for number, key in enumerate(keys)}
    assert len(things.load(*keys).receipts) == len(keys)
    right = {things.dataset.partition(key).place: [number] for number, key in enumerate(keys)}

    def there() -> dict[tuple[str, datetime], list[int]]:
        found = lake.sql("SELECT region, day::TIMESTAMP AS day, list(v ORDER BY v) AS v FROM raw.things GROUP BY ALL")
        return {(row["region"], row["day"]): row["v"] for row in found}

    assert there() == right
    # One partition, those of a day, those of a segment, and some that are no rectangle.
    groups = [keys[:1], keys[1::5], keys[5:10], [keys[0], keys[6], keys[12], keys[13]]]
    for number, group in enumerate(itertools.chain(groups, groups), start=1):
        for key in group:
            right[things.dataset.partition(key).place] = [1000 * number, 1000 * number + 1]
            things.given[key] = [{"v": 1000 * number}, {"v": 1000 * number + 1}]
        assert len(things.load(*group).receipts) == len(group)
        assert there() == right
        assert things.errors() == []
        if number == len(groups):
            merge(lake)
            assert there() == right
    assert things.load(*keys).receipts == []


def test_a_look_up_finds_the_segments_that_are_there(lake: Lake) -> None:
    things = segments(lake, Grain.day, ("eu", "New York", "us"))
    keys = [f"{name}/2024-01-0{day}" for name in ("eu", "New York") for day in (1, 2)]
    things.given |= {key: [{"v": 1}] for key in keys}
    things.load(*keys[:2])
    things.load(keys[2])
    things.load(keys[3])
    asked = [things.dataset.partition(key) for key in (*keys, "us/2024-01-01", "eu/2024-01-03", "New York/2024-01-03")]
    for merged in (False, True):
        if merged:
            merge(lake)
        with connect(lake.settings) as con:
            con.execute("BEGIN")
            found = held(con, lake.settings, things.dataset, asked)
            con.execute("ROLLBACK")
        assert {p.key for p in found.partitions} == set(keys)
        assert bool(found.rows) is merged


def test_a_column_of_the_source_must_hold_its_segment(lake: Lake) -> None:
    things = segments(lake, Grain.day, ("eu", "us"))
    things.given |= {
        "eu/2024-01-01": [{"v": 1, "region": "eu", "day": date(2024, 1, 1)}],
        "us/2024-01-01": [{"v": 1, "region": "us"}, {"v": 2, "region": "eu"}],
        "us/2024-01-02": [{"v": 1, "region": None}],
        "us/2024-01-03": [{"v": 1, "region": 7}],
    }
    result = things.load(*things.given)
    assert [r.partition for r in result.receipts] == ["eu/2024-01-01"]
    errors = {f.partition: f.error for f in result.failures}
    assert "region differs from the partition: 1 row" in errors["us/2024-01-01"]
    assert "region differs from the partition: 1 row" in errors["us/2024-01-02"]
    assert "region" in errors["us/2024-01-03"]


def test_a_segments_earlier_rows_are_restored(lake: Lake) -> None:
    things = segments(lake, Grain.day, ("eu", "us"))
    keys = [f"{name}/2024-01-01" for name in ("eu", "us")]
    for number in (1, 2):
        things.given |= {key: [{"v": number}] for key in keys}
        things.load(*keys)
    merge(lake)
    partition = things.dataset.partition(keys[0])
    things.publish([stage_previous(lake.settings, things.dataset, partition)])
    assert by_key(things) == {"eu/2024-01-01": [1], "us/2024-01-01": [2]}
    assert things.errors() == []
    # Rows are lost, and published again from the last snapshot that has them.
    with connect(lake.settings) as con:
        con.execute("DELETE FROM lake.raw.things WHERE region = 'us'")
    assert things.damaged() == ["us/2024-01-01"]
    receipt = stage_published(lake.settings, things.dataset, things.dataset.partition(keys[1]))
    repairing = Publisher(lake.settings, [things.dataset], "test", recheck=True)
    assert repairing.publish([receipt]).receipts
    repairing.close()
    assert by_key(things) == {"eu/2024-01-01": [1], "us/2024-01-01": [2]}
    assert things.errors() == []


def test_the_path_of_a_segment_must_be_that_of_its_rows(lake: Lake) -> None:
    things = segments(lake, Grain.day, ("eu", "us"))
    keys = [f"{name}/2024-01-01" for name in ("eu", "us")]
    things.given |= {key: [{"v": 1}] for key in keys}
    things.load(*keys)
    with connected(lake.settings, read_only=True) as con:
        files = [
            row["path"] for row in lake.sql("SELECT filename AS path FROM (SELECT DISTINCT filename FROM raw.things)")
        ]
        dataset = replace(things.dataset, segments=("eu", "us"))
        assert list(_paths(con, dataset, things.columns, files, None)) == []


NIGHT = ["2026-10-25T01", "2026-10-25T02+0200", "2026-10-25T02+0100", "2026-10-25T03"]


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_the_hour_that_comes_twice_is_two_partitions(lake: Lake) -> None:
    """Times without zone are read in the dataset's, each of the two hours in its own half."""
    things = case(
        lake,
        grain=Grain.hour,
        divided={"timezone": "Europe/Brussels"},
        contract={"v": "bigint", "seen": "timestamp"},
    )
    local = ["01:30", "02:30", "02:30", "03:30"]
    for number, (key, text) in enumerate(zip(NIGHT, local, strict=True)):
        things.given[key] = [{"v": number, "seen": f"2026-10-25 {text}:00"}]
    assert len(things.load(*NIGHT).receipts) == 4
    rows = lake.sql("SELECT day, v, seen::VARCHAR AS seen FROM raw.things ORDER BY v")
    assert [row["day"] for row in rows] == [datetime(2026, 10, 24, 23) + timedelta(hours=n) for n in range(4)]
    assert [row["seen"] for row in rows] == [
        f"2026-10-2{d} {t}:30:00+00" for d, t in ((4, 23), (5, "00"), (5, "01"), (5, "02"))
    ]
    things.given[NIGHT[1]] = [{"v": 10, "seen": "2026-10-25 02:59:59"}]
    assert things.load(*NIGHT).unchanged
    assert things.values(order="day") == [0, 10, 2, 3]
    merge(lake)
    things.given[NIGHT[2]] = [{"v": 20, "seen": "2026-10-25 02:00:00"}]
    assert [r.partition for r in things.load(*NIGHT).receipts] == [NIGHT[2]]
    assert things.values(order="day") == [0, 10, 20, 3]
    assert things.errors() == []


def test_a_day_of_a_zone_refuses_a_local_time_that_comes_twice(lake: Lake) -> None:
    things = case(lake, divided={"timezone": "Europe/Brussels"}, contract={"seen": "timestamp"})
    things.given |= {
        "2026-10-24": [{"seen": "2026-10-24 02:30:00"}],
        "2026-10-25": [{"seen": "2026-10-25 02:30:00"}],
        "2026-03-29": [{"seen": "2026-03-29 02:30:00"}],
    }
    result = things.load(*things.given)
    assert [r.partition for r in result.receipts] == ["2026-10-24"]
    assert lake.column("SELECT seen::VARCHAR FROM raw.things") == ["2026-10-24 00:30:00+00"]
    errors: dict[str, Any] = {f.partition: f.error for f in result.failures}
    assert all("occurs twice or never in Europe/Brussels" in errors[key] for key in ("2026-10-25", "2026-03-29"))


@pytest.mark.parametrize("grain", [Grain.day, Grain.month])
def test_partitions_of_a_zone_keep_its_own_days(lake: Lake, grain: Grain) -> None:
    things = case(lake, grain=grain, divided={"timezone": "America/New_York"})
    keys = [p.key for p in things.dataset.periods(date(2026, 10, 30), date(2026, 11, 3))]
    for number, key in enumerate(keys):
        things.given[key] = [{"v": number}]
    things.load(*keys)
    merge(lake)
    things.given[keys[1]] = [{"v": 10}]
    assert [r.partition for r in things.load(*keys).receipts] == [keys[1]]
    days = lake.sql("SELECT day::VARCHAR AS day, v FROM raw.things ORDER BY day")
    assert [row["day"] for row in days] == [f"{key}-01"[:10] for key in keys]
    assert [row["v"] for row in days] == [0, 10, *range(2, len(keys))]
    assert things.errors() == []
