"""Statistics that make DuckLake return wrong answers: how they arise, and that verify finds and repair fixes them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.repair import repair, settle
from ducklake_flows.lake.verify import Finding, verify
from tests.cases import DAYS, case
from tests.projects import PUBLISHED, READINGS, Project, load, model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from tests.conftest import Lake

TABLE = "raw.by_hand"


class ByHand:
    """A raw table into which files are registered without the product, and an open connection to it."""

    def __init__(self, lake: Lake, folder: Path) -> None:
        self.lake, self.folder, self.number = lake, folder, 0
        self.con = connect(lake.settings)

    def sql(self, statement: str) -> list[Any]:
        return [row[0] for row in self.con.execute(statement).fetchall()]

    def register(self, column: Sequence[Any], data_type: pa.DataType) -> None:
        self.number += 1
        file = self.folder / f"{self.number}.parquet"
        pq.write_table(pa.table({"c": pa.array(column, data_type)}), file)
        path = f"raw/by_hand/{self.number}.parquet"
        self.lake.data.put(file, path)
        self.con.execute(
            f"CALL ducklake_add_data_files('lake', 'by_hand', '{self.lake.data.url}{path}', schema => 'raw')"
        )

    def found(self, severity: str = "error") -> list[Finding]:
        return [f for f in verify(self.lake.settings) if f.severity == severity and f.subject == TABLE]


@pytest.fixture
def table(lake: Lake, tmp_path: Path) -> Iterator[ByHand]:
    by_hand = ByHand(lake, tmp_path)
    yield by_hand
    by_hand.con.close()


def test_ducklake_1308_widening_a_column_and_adding_a_file_in_one_transaction_gives_wrong_answers(
    table: ByHand,
) -> None:
    """Upstream fault: the first assertions fail once DuckLake keeps the statistics of a widened column.

    Then a schema change no longer needs its own commit.
    """
    table.con.execute(f"CREATE TABLE {TABLE} (c INTEGER)")
    table.register([1000, 2000], pa.int32())
    table.con.execute("BEGIN")
    table.con.execute(f"ALTER TABLE {TABLE} ALTER COLUMN c SET DATA TYPE BIGINT")
    table.register([5, 6], pa.int64())
    table.con.execute("COMMIT")
    assert [f.check for f in table.found("note")] == ["statistics"]
    table.register([9], pa.int64())
    assert table.sql(f"SELECT count(*) FROM {TABLE} WHERE c = 1000") == [0]
    assert table.sql(f"SELECT max(c) FROM {TABLE}") == [9]
    assert len(table.found()) == 2  # min and max

    assert len(repair(table.lake.settings)) == 1
    assert table.found() == table.found("note") == []
    table.register([1], pa.int64())
    for sql in (table.sql, table.lake.column):
        assert sql(f"SELECT count(*) FROM {TABLE} WHERE c = 1000") == [1]
        assert sql(f"SELECT c FROM {TABLE} ORDER BY c") == [1, 5, 6, 9, 1000, 2000]
        assert sorted(sql(f"SELECT c FROM {TABLE} GROUP BY c")) == [1, 5, 6, 9, 1000, 2000]
        assert sql(f"SELECT max(c) - min(c) FROM {TABLE}") == [1999]
    assert table.found() == []


def test_ducklake_1308_a_file_of_long_texts_without_bounds_gives_wrong_answers_after_the_next(table: ByHand) -> None:
    """Upstream fault: Arrow writes no bounds for texts over 4 KiB; DuckLake treats that as a column of nulls."""
    table.con.execute(f"CREATE TABLE {TABLE} (c VARCHAR)")
    table.register(["a" * 5000, "z" * 5000], pa.string())
    assert [f.check for f in table.found("note")] == ["statistics"]
    assert table.found() == []
    table.register(["m"], pa.string())
    assert table.sql(f"SELECT count(*) FROM {TABLE} WHERE c > 'y'") == [0]
    assert len(table.found()) == 2

    assert len(repair(table.lake.settings)) == 1
    assert table.found() == table.found("note") == []
    table.register(["n"], pa.string())
    for sql in (table.sql, table.lake.column):
        assert sql(f"SELECT count(*) FROM {TABLE} WHERE c > 'y'") == [1]
        assert sql(f"SELECT c[1] FROM {TABLE} ORDER BY c") == ["a", "m", "n", "z"]
    assert table.found() == []


def test_a_float_file_in_a_double_column_is_not_found_by_its_largest_value(table: ByHand) -> None:
    """Upstream fault: the bound of a float is stored as text, 0.2; its value as a double is 0.20000000298023224."""
    table.con.execute(f"CREATE TABLE {TABLE} (c DOUBLE)")
    table.register([5.5], pa.float64())
    table.register([0.1, 0.2], pa.float32())
    assert table.sql(f"SELECT count(*) FROM {TABLE} WHERE c = 0.2::FLOAT::DOUBLE") == [0]
    assert len(table.found()) == 2

    changed = repair(table.lake.settings)
    assert [c.after for c in changed] == ["min_value 0.10000000149011612, max_value 0.20000000298023224"]
    for sql in (table.sql, table.lake.column):
        assert sql(f"SELECT count(*) FROM {TABLE} WHERE c = 0.2::FLOAT::DOUBLE") == [1]
    assert table.found() == []


def bounds(con: DuckDBPyConnection, statement: str = "SELECT v FROM raw.things ORDER BY v") -> list[Any]:
    return [value for (value,) in con.execute(statement).fetchall()]


def by_day(con: DuckDBPyConnection) -> None:
    """Create an empty partitioned table, so that one INSERT writes a file for each day."""
    con.execute("CREATE OR REPLACE TABLE raw.things (day INTEGER, v INTEGER)")
    con.execute("ALTER TABLE raw.things SET PARTITIONED BY (day)")


def test_ducklake_loses_the_bounds_of_an_insert_whose_first_file_has_no_values(lake: Lake) -> None:
    """Upstream fault: a plain partitioned INSERT loses the bounds, and the bounds of the next become the table's.

    Once these assertions fail, `settle` no longer needs to write the statistics of a new table.
    """
    con = connect(lake.settings)
    by_day(con)
    con.execute("INSERT INTO raw.things VALUES (1, NULL), (2, -1)")
    con.execute("INSERT INTO raw.things VALUES (3, 5)")
    assert bounds(con)[0] == 5
    assert bounds(con, "SELECT count(*) FROM raw.things WHERE v = -1") == [0]

    by_day(con)
    assert [c.after for c in settle(lake.settings, {"raw.things"})] == ["no rows"]
    con.execute("INSERT INTO raw.things VALUES (1, NULL), (2, -1)")
    con.execute("INSERT INTO raw.things VALUES (3, 5)")
    assert bounds(con) == [-1, 5, None]
    assert bounds(con, "SELECT count(*) FROM raw.things WHERE v = -1") == [1]
    assert settle(lake.settings, {"raw.things"}) == []
    con.close()


def test_ducklake_loses_the_bounds_when_it_rewrites_files_and_maintenance_restores_them(lake: Lake) -> None:
    """The same upstream fault: a rewrite merges the statistics of all files again."""

    def half_deleted() -> None:
        by_day(con)
        settle(lake.settings)
        con.execute("INSERT INTO raw.things VALUES (1, NULL)")
        con.execute("INSERT INTO raw.things SELECT 2, range - 1 FROM range(10)")
        con.execute("DELETE FROM raw.things WHERE day = 2 AND v > 0 AND v < 8")

    con = connect(lake.settings)
    half_deleted()
    con.execute("CALL ducklake_rewrite_data_files('lake', 'things', schema => 'raw', delete_threshold => 0.1)")
    con.execute("INSERT INTO raw.things VALUES (3, 5)")
    assert bounds(con, "SELECT count(*) FROM raw.things WHERE v = -1") == [0]

    half_deleted()
    assert {s.subject: s.run() for s in steps(lake.settings, timedelta(days=30)) if s.name == "rewrite"} == {
        "raw.things": 1
    }
    con.execute("INSERT INTO raw.things VALUES (3, 5)")
    assert bounds(con) == [-1, 0, 5, 8, None]
    assert bounds(con, "SELECT count(*) FROM raw.things WHERE v = -1") == [1]
    assert lake.errors() == []
    con.close()


@pytest.mark.parametrize("contract", [None, {"v": "bigint", "w": "text"}])
def test_values_of_a_first_group_whose_first_days_lack_values_are_found(
    lake: Lake, contract: dict[str, str] | None
) -> None:
    things = case(lake, contract=contract)
    rows = {DAYS[0]: {"v": None, "w": "z"}, DAYS[1]: {"v": -1, "w": None}, DAYS[2]: {"v": 5, "w": "m"}}
    things.given |= {day: [row] for day, row in rows.items()}
    assert len(things.load(*DAYS[:2]).receipts) == 2
    assert len(things.load(DAYS[2]).receipts) == 1
    assert things.values("v", order="v") == [-1, 5, None]
    assert things.values("w", order="w") == ["m", "z", None]
    for condition in ("v = -1", "w > 'y'"):
        assert lake.column(f"SELECT count(*) FROM raw.things WHERE {condition}") == [1]
    assert things.errors() == []


def test_values_of_a_partitioned_model_whose_first_day_lacks_values_are_found(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "project", lake, monkeypatch)
    query = (
        "SELECT CASE WHEN value > 0 THEN value END AS v, day FROM raw.readings WHERE day BETWEEN @start_ds AND @end_ds"
    )
    project.write("models/m.sql", model("silver.m", query, "day", PUBLISHED, "partitioned_by day"))
    load(lake, "2024-01-01", value=0)
    load(lake, "2024-01-02", value=1)
    assert project.built("silver.m") == [("2024-01-01", "2024-01-02")]
    load(lake, "2024-01-03", value=5)
    assert project.built("silver.m") == [("2024-01-03", "2024-01-03")]
    assert lake.column("SELECT v FROM silver.m ORDER BY v") == [1, 5, None]
    assert lake.column("SELECT count(*) FROM silver.m WHERE v = 1") == [1]
    assert lake.errors() == []


def test_a_build_killed_between_a_new_table_and_its_statistics_is_repaired_by_the_next_build(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = connect(lake.settings)
    by_day(con)
    project = Project(tmp_path / "project", lake, monkeypatch)
    project.write("models/m.sql", model("silver.m", READINGS, "day", PUBLISHED))
    load(lake, "2024-01-01")
    project.build()
    con.execute("INSERT INTO raw.things VALUES (1, NULL), (2, -1)")
    con.execute("INSERT INTO raw.things VALUES (3, 5)")
    assert bounds(con) == [-1, 5, None]
    con.close()


def test_a_column_named_filename_does_not_break_verify(lake: Lake) -> None:
    rows = [{"filename": "a", "filename0": "b", "v": 1, "n": 2, "rows": 3, "path": "p"}]
    for day in ("2024-01-01", "2024-01-02"):
        lake.land(f"readings/{day}.jsonl", rows)
    assert len(lake.load("readings", "2024-01-01", "2024-01-02").receipts) == 2
    assert list(verify(lake.settings)) == []


@pytest.mark.parametrize("value", ["2024-01-01", "2024-01-01 00:00:00"])
def test_a_partition_column_that_is_text_in_the_file_is_compared_as_a_day(
    lake: Lake, tmp_path: Path, value: str
) -> None:
    con = connect(lake.settings)
    con.execute("CREATE TABLE raw.readings (id BIGINT, day DATE)")
    con.execute("ALTER TABLE raw.readings SET PARTITIONED BY (day)")
    pq.write_table(pa.table({"id": [1], "day": [value]}), tmp_path / "rows.parquet")
    for day in ("2024-01-01", "2024-01-02"):
        path = f"raw/readings/day={day}/rows.parquet"
        lake.data.put(tmp_path / "rows.parquet", path)
        con.execute(
            f"CALL ducklake_add_data_files('lake', 'readings', '{lake.data.url}{path}', schema => 'raw', "
            "hive_partitioning => true)"
        )
    con.close()
    wrong = [f.message for f in verify(lake.settings) if f.check == "partition column"]
    assert len(wrong) == 1
    assert "day=2024-01-02" in wrong[0]
