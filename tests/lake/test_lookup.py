"""Look-ups in the catalog's own tables find what DuckLake finds."""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.errors import CommitConflict
from ducklake_flows.lake import maintenance
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.fence import META, next_token
from ducklake_flows.lake.ledger import append
from ducklake_flows.lake.lookup import LEDGER, held, ledger_rows, results_before
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.project import all_datasets, get_dataset
from ducklake_flows.staging.layout import new_attempt, new_chunk
from ducklake_flows.staging.receipt import Failure
from tests.faults.conftest import staged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duckdb import DuckDBPyConnection

    from tests.conftest import Lake

DAYS = [f"2024-01-{day:02}" for day in range(1, 13)]


@contextlib.contextmanager
def transaction(lake: Lake) -> Iterator[tuple[DuckDBPyConnection, int]]:
    """A connection with a transaction open that has read the lake, and its token."""
    with contextlib.closing(connect(lake.settings)) as con:
        con.execute("BEGIN")
        yield con, next_token(con)
        con.execute("ROLLBACK")


def run(lake: Lake, *names: str) -> None:
    for step in maintenance.steps(lake.settings, timedelta(30)):
        if step.todo and step.name in names:
            step.run()


def fail(lake: Lake, day: str, error: str) -> None:
    attempt = staged(lake, day, 1, 0).attempt_id
    lake.publish([Failure("readings", day, attempt, "failed", error, "", 0.25)])


def compare(lake: Lake, *, looked_up: bool = True) -> int:
    """Compare look-ups of random partitions with what DuckLake reads. Returns the number of rows compared."""
    columns = ", ".join(LEDGER)
    compared = 0
    with transaction(lake) as (con, token):
        for size in (1, 2, 5, len(DAYS)):
            keys = [*random.Random(size).sample(DAYS, size), "it's", "full"]
            found = ledger_rows(con, lake.settings, token, keys)
            assert (found is not None) is looked_up
            if found is not None:
                wanted = ", ".join(f"'{key}'" for key in keys if key != "it's")
                answer = con.execute(f"SELECT {columns} FROM {found} ORDER BY ALL")
                types = [str(column[1]) for column in answer.description or []]
                got = answer.fetchall()
                right = con.execute(f"SELECT {columns} FROM lake.ops.ledger WHERE partition IN ({wanted}) ORDER BY ALL")
                assert types == [str(column[1]) for column in right.description or []]
                assert got == right.fetchall()
                compared += len(got)
    return compared


def test_a_look_up_of_the_ledger_finds_what_the_lake_has(lake: Lake) -> None:
    for number, day in enumerate(DAYS[:8]):
        lake.publish([staged(lake, day, 1 + number, number)])
    fail(lake, DAYS[8], "file 'a\"b'.csv, line 3: größer \\x41 \\ \n\t 'x'")
    fail(lake, DAYS[0], "")
    assert compare(lake) > 10, "rows in the catalog"
    run(lake, "flush")
    assert compare(lake) > 10, "rows in a file"
    lake.publish([staged(lake, DAYS[1], 3, 7), staged(lake, DAYS[9], 3, 7)])
    assert compare(lake) > 12, "rows in a file and in the catalog"
    run(lake, "flush")
    assert compare(lake) > 12, "rows in two files"
    run(lake, "merge")
    assert compare(lake) > 12, "rows in a merged file"
    lake.publish([replace(staged(lake, DAYS[1], 3, 8), source_version="v'2")])
    assert compare(lake) > 12
    assert lake.errors() == []


LONG = "é'" * 2000
"""Longer than PostgreSQL takes into an index."""


def test_a_look_up_of_results_finds_the_last_ones_before_a_partition(lake: Lake) -> None:
    """Compared with what Python finds in all rows: in the catalog, in files, in both."""
    chance = random.Random(7)
    names, on_fails = ("n", LONG, f"{LONG}2"), ("warn", "reject")
    keys = [f"{segment}{day}" for segment in ("", "eu/", "it's/") for day in DAYS] + ["full"]
    dataset, whole = get_dataset("readings"), get_dataset("airlines")
    made: list[tuple[str, str, str, bool, str, str, int]] = []

    def more(number: int) -> None:
        made[len(made) :] = [
            (
                chance.choice(("readings", "airlines")),
                chance.choice(keys),
                chance.choice(names),
                chance.random() < 0.6,
                chance.choice(on_fails),
                str(len(made) + n),
                len(made) + n,
            )
            for n in range(number)
        ]
        columns = ("dataset", "partition", "name", "passed", "on_fail", "observed", "token")
        with contextlib.closing(connect(lake.settings)) as con:
            append(con, "checks", [dict(zip(columns, row, strict=True)) for row in made[-number:]])

    def compare_all() -> int:
        found = 0
        with transaction(lake) as (con, token):
            for one, key, name in [
                (dataset, key, name) for key in (DAYS[5], "eu/" + DAYS[3], "it's/" + DAYS[9]) for name in names
            ] + [(whole, "full", "n")]:
                segment = key[: -len(DAYS[0])] if one is dataset else ""
                right: dict[Any, tuple[int, str]] = {}
                for of, partition, audit, passed, on_fail, observed, at in made:
                    before = (
                        partition == key if one is whole else partition[: -len(DAYS[0])] == segment and partition < key
                    )
                    if of == one.key and audit == name and before and (passed or on_fail == "warn"):
                        group = at if one is whole else partition
                        right[group] = max(right.get(group, (-1, "")), (at, observed))
                wanted = [observed for _, (_, observed) in sorted(right.items())[-3:]]
                by = "token" if one is whole else "partition"
                rows = results_before(con, lake.settings, token, one, name, key, 3)
                last = f"SELECT arg_max(observed, token) FROM {rows} GROUP BY {by} ORDER BY {by} DESC LIMIT 3"
                assert [value for (value,) in con.execute(last).fetchall()][::-1] == wanted
                found += len(wanted)
        return found

    more(500)
    assert compare_all() > 20
    run(lake, "flush")
    assert compare_all() > 20
    more(300)
    assert compare_all() > 20


def test_a_look_up_refuses_a_state_that_is_newer_than_its_transaction(lake: Lake) -> None:
    lake.publish([staged(lake, DAYS[0], 1, 0)])
    with transaction(lake) as (con, token):
        lake.publish([staged(lake, DAYS[1], 1, 0)])
        with pytest.raises(CommitConflict, match="Another writer changed the lake first"):
            ledger_rows(con, lake.settings, token, DAYS)


def test_the_rows_of_an_older_ledger_are_found(lake: Lake) -> None:
    """DuckLake keeps rows from before a new column in a table of their own, until they are written to a file."""
    first = staged(lake, DAYS[0], 1, 0)
    lake.publish([first])
    with contextlib.closing(connect(lake.settings)) as con:
        con.execute("ALTER TABLE lake.ops.ledger ADD COLUMN added_by_a_later_release VARCHAR")
    lake.publish([staged(lake, DAYS[1], 1, 0)])
    compare(lake, looked_up=False)
    assert lake.publish([first]).snapshot_id is None, "it is in the ledger already"
    run(lake, "flush")
    bootstrap(lake.settings, all_datasets().values())
    lake.publish([staged(lake, DAYS[2], 1, 0)])
    assert compare(lake) > 2


def with_rows(lake: Lake, days: Sequence[str]) -> set[str]:
    """The days of which the table has rows, counted without a look-up."""
    listed = ", ".join(f"'{day}'" for day in days)
    return set(lake.column(f"SELECT DISTINCT day::VARCHAR AS day FROM raw.readings WHERE day IN ({listed})"))


def looked_up(lake: Lake, days: Sequence[str] = DAYS) -> set[str]:
    """The days of which a look-up says that there may be rows. It may never miss one."""
    dataset = get_dataset("readings")
    with transaction(lake) as (con, _):
        found = held(con, lake.settings, dataset, [parse_partition(day, dataset.grain) for day in days])
    keys = {partition.key for partition in found.partitions}
    assert keys >= with_rows(lake, days)
    return keys


def by_hand(lake: Lake, *statements: str) -> None:
    with contextlib.closing(connect(lake.settings)) as con:
        for statement in statements:
            con.execute(statement)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("partitioned", [False, True])
def test_a_look_up_of_partitions_finds_those_with_rows(lake: Lake, partitioned: bool, together: bool) -> None:
    chunk = new_chunk() if together else ""
    even, odd = DAYS[::2], DAYS[1::2]
    lake.publish([staged(lake, even[0], 1, 0)])
    if partitioned:
        by_hand(lake, "DELETE FROM raw.readings", "ALTER TABLE raw.readings SET PARTITIONED BY (day)")
    lake.publish([staged(lake, day, 2, 1, chunk) for day in even])
    assert looked_up(lake) == set(even)
    run(lake, "partition", "merge")
    assert len(lake.column("FROM ducklake_list_files('lake', 'readings', schema => 'raw')")) == 1
    assert looked_up(lake) == set(even), "a day between those of a merged file is not in it"
    lake.publish([staged(lake, even[1], 1, 2, chunk), staged(lake, odd[0], 0, 2, chunk)])
    assert looked_up(lake) == set(even), "one day in a file of its own and deleted in the merged one, one empty"
    by_hand(lake, f"DELETE FROM raw.readings WHERE day = '{even[2]}'")
    assert looked_up(lake) - set(even) == set()
    run(lake, "merge", "rewrite")
    lake.publish([staged(lake, day, 1, 3) for day in DAYS])
    assert lake.column("SELECT count(*) FROM raw.readings") == [len(DAYS)]
    assert lake.errors() == []


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO raw.readings VALUES (7, 7, DATE '2024-01-03')",
        "CALL lake.set_option('data_inlining_row_limit', '10'); INSERT INTO raw.readings VALUES (7, 7, '2024-01-03')",
        "INSERT INTO raw.readings SELECT range, 7, DATE '2024-01-01' + range::INT FROM range(20)",
        "COPY (SELECT 7::BIGINT AS id, 7::BIGINT AS value, DATE '2024-01-03' AS day) TO '{path}'; "
        "CALL ducklake_add_data_files('lake', 'readings', '{path}', schema => 'raw')",
        "INSERT INTO raw.readings VALUES (7, 7, DATE '2024-01-03'), (7, 7, NULL)",
        "UPDATE raw.readings SET day = '2024-01-03', value = 7 WHERE day = '2024-01-01'",
        "ALTER TABLE raw.readings SET PARTITIONED BY (year(day)); INSERT INTO raw.readings VALUES (7, 7, '2024-01-03')",
    ],
)
@pytest.mark.parametrize("merged", [False, True])
def test_rows_that_came_by_another_way_are_replaced_too(
    lake: Lake, statement: str, merged: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lake.publish([staged(lake, day, 1, 0) for day in ("2024-01-01", "2024-01-02")])
    path = (
        lake.settings.data_path + "odd.parquet" if lake.settings.in_s3 else tmp_path_factory.mktemp("odd") / "x.parquet"
    )
    by_hand(lake, *statement.format(path=path).split("; "))
    if merged:
        run(lake, "flush", "merge")
    assert lake.column("SELECT count(*) FROM raw.readings WHERE day = '2024-01-03' AND value = 7") == [1]
    lake.publish([staged(lake, "2024-01-03", 1, 1)])
    assert lake.column("SELECT value FROM raw.readings WHERE day = '2024-01-03'") == [1]


@pytest.mark.parametrize("partitioned", ["hour_at", "day(hour_at)"])
def test_an_hour_in_a_folder_that_ducklake_named_is_replaced_too(lake: Lake, partitioned: str) -> None:
    by_hand(
        lake,
        f"ALTER TABLE raw.hourly SET PARTITIONED BY ({partitioned})",
        "INSERT INTO raw.hourly VALUES ('by hand', 7, TIMESTAMP '2024-01-03 05:00:00'), "
        "('by hand', 7, TIMESTAMP '2024-01-03 06:00:00')",
    )
    for hour in ("2024-01-03T05", "2024-01-03T07"):
        lake.land(f"hourly/{hour}/a.csv", "name,count\na,1\n")
        assert lake.load("hourly", hour).receipts
    assert lake.column("SELECT name FROM raw.hourly ORDER BY hour_at") == ["a", "by hand", "a"]


@pytest.mark.parametrize("lake", ["sqlite+folder", "postgres+folder"], indirect=True)
def test_very_many_partitions_are_published_together(lake: Lake) -> None:
    """More than SQLite takes in one condition: they are not looked up."""
    first, one = date(2020, 1, 1), staged(lake, "2020-01-01", 0, 0)
    days = [(first + timedelta(n)).isoformat() for n in range(1_001)]
    for number in range(2):
        empty = [
            replace(one, partition=day, attempt_id=new_attempt(), files=(), source_version=str(number)) for day in days
        ]
        assert len(lake.publish(empty).receipts if number == 0 else lake.publish(empty).unchanged) == len(days)
    found = lake.column("SELECT source_version FROM ops.ledger ORDER BY token, partition")
    assert found == ["0"] * len(days) + ["1"] * len(days)


@dataclass
class Heard:
    """A connection that notes what is sent through it to the catalog."""

    con: DuckDBPyConnection
    sent: list[str] = field(default_factory=list)

    def execute(self, sql: str) -> DuckDBPyConnection:
        for found in re.findall(rf"(?:sqlite|postgres)_query\('{META}', '((?:[^']|'')*)'\)", sql):
            self.sent.append(found.replace("''", "'"))
        return self.con.execute(sql)


def in_catalog(lake: Lake, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements in the catalog's database, without DuckDB. Returns the rows of the last."""
    if (file := lake.settings.catalog_file) is not None:
        with contextlib.closing(sqlite3.connect(file)) as con:
            return [con.execute(statement).fetchall() for statement in statements][-1]
    secret = lake.settings.catalog_password
    assert secret is not None
    target = lake.settings.catalog.removeprefix("postgres:")
    with psycopg.connect(target, password=secret.get_secret_value(), autocommit=True) as postgres:
        cursors = [postgres.execute(statement) for statement in statements]
        return cursors[-1].fetchall() if cursors[-1].description else []


def plans(lake: Lake) -> str:
    """How the catalog answers the look-ups of a publish, with indexes wherever they are possible."""
    days = [parse_partition(day, get_dataset("readings").grain) for day in DAYS[:2]]
    with transaction(lake) as (con, token):
        heard = Heard(con)
        rows = ledger_rows(heard, lake.settings, token, DAYS[:2])  # type: ignore[arg-type]
        heard.execute(f"FROM {rows}")
        held(heard, lake.settings, get_dataset("readings"), days)  # type: ignore[arg-type]
        heard.execute(f"FROM {results_before(heard, lake.settings, token, get_dataset('readings'), 'a', DAYS[1], 3)}")  # type: ignore[arg-type]
    assert len(heard.sent) >= 5
    explain = "EXPLAIN QUERY PLAN" if lake.settings.embedded else "EXPLAIN"
    only = () if lake.settings.embedded else ("SET enable_seqscan = off",)
    return "\n".join(str(row[-1]) for sql in heard.sent for row in in_catalog(lake, *only, f"{explain} {sql}"))


def test_the_catalog_answers_a_look_up_by_index(lake: Lake) -> None:
    """Also in a lake that an earlier release has made: `lake init` makes the indexes."""
    lake.publish([staged(lake, day, 1, 0) for day in DAYS])
    of = "sqlite_master WHERE type = 'index' AND" if lake.settings.embedded else "pg_indexes WHERE"
    name = "name" if lake.settings.embedded else "indexname"
    find = f"SELECT {name} FROM {of} {name} LIKE 'lake#_%' ESCAPE '#'"
    names = {found for (found,) in in_catalog(lake, find)}
    assert len(names) == (6 if lake.settings.embedded else 7)
    for_ducklake = names & {"lake_file_begun"}
    # Without them: in a table of a few rows, PostgreSQL may take any index.
    in_catalog(lake, "SELECT 1", *(f"DROP INDEX {found}" for found in for_ducklake))
    used, seen = names - for_ducklake, plans(lake)
    assert [found for found in sorted(used) if found not in seen] == [], seen

    in_catalog(lake, *(f"DROP INDEX {found}" for found in used))
    assert in_catalog(lake, find) == []
    assert not any(found in plans(lake) for found in names)
    bootstrap(lake.settings, all_datasets().values())
    assert {found for (found,) in in_catalog(lake, find)} == names
    assert lake.errors() == []
