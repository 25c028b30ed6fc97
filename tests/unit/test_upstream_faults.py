"""Faults of other libraries that this project works around: a test fails when an upgrade has fixed its fault.

docs/upstream.md lists them with the workarounds. Remove a workaround with its test and its line there.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import duckdb_extensions
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dlt.common.normalizers.naming.snake_case import NamingConvention
from pyarrow import csv as pa_csv
from sqlmesh.core.engine_adapter.duckdb import DuckDBEngineAdapter
from sqlmesh.utils.connection_pool import create_connection_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tokens import TokenStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckLake in a DuckDB file, without anything of this project."""
    with duckdb.connect(config={"allow_unsigned_extensions": True}) as con:
        duckdb_extensions.import_extension("ducklake")
        con.execute(f"LOAD ducklake; ATTACH 'ducklake:{tmp_path}/c.ducklake' AS lake (DATA_PATH '{tmp_path}/data/')")
        con.execute("USE lake")
        yield con


def both(stock: duckdb.DuckDBPyConnection, one: str, other: str) -> int:
    """Run two transactions at once, the first one's COMMIT last. Returns how many of them commit."""
    with stock.cursor() as first, stock.cursor() as second:
        for con, statements in ((first, one), (second, other)):
            con.execute(f"USE lake; BEGIN; {statements}")
        second.execute("COMMIT")
        try:
            first.execute("COMMIT")
        except duckdb.TransactionException:
            return 1
        return 2


def test_ducklake_1393_two_writers_of_an_empty_day_both_commit(stock: duckdb.DuckDBPyConnection) -> None:
    """lake/fence.py. Once one of the two cannot commit, the fence is only needed for repairs."""
    stock.execute("CREATE TABLE t (day DATE)")
    replace = "DELETE FROM t WHERE day = '2024-01-01'; INSERT INTO t VALUES ('2024-01-01')"
    assert both(stock, replace, replace) == 2
    assert stock.execute("SELECT count(*) FROM t").fetchall() == [(2,)]


def test_replacing_two_different_days_of_a_table_is_a_conflict(stock: duckdb.DuckDBPyConnection) -> None:
    """The gate: conflicts are detected per table. Once both commit, publishers of one table need not wait."""
    stock.execute("CREATE TABLE t (day DATE); ALTER TABLE t SET PARTITIONED BY (day)")
    for day in (1, 2):
        stock.execute(f"INSERT INTO t SELECT '2024-01-0{day}' FROM range(20)")
    one, other = (
        f"DELETE FROM t WHERE day = '2024-01-0{d}'; INSERT INTO t SELECT '2024-01-0{d}' FROM range(20)" for d in (1, 2)
    )
    assert both(stock, one, other) == 1


def test_a_path_can_be_registered_twice_and_wins_over_its_rows(
    stock: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """staging/layout.py: a path is registered once in its life. staging/inspect.py: rows are compared with the path."""
    file = tmp_path / "data" / "day=2024-01-01" / "one.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"day": [date(1999, 9, 9)]}), file)
    stock.execute("CREATE TABLE t (day DATE); ALTER TABLE t SET PARTITIONED BY (day)")
    for _ in range(2):
        stock.execute(f"CALL ducklake_add_data_files('lake', 't', '{file}', hive_partitioning => true)")
    assert stock.execute("FROM t").fetchall() == [(date(2024, 1, 1),)] * 2


def test_ducklake_1234_year_and_month_of_one_column_share_a_partition_key(
    stock: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """datasets/partitions.py: a dataset is partitioned by one column as it is."""
    file = tmp_path / "data" / "year=2024" / "month=1" / "one.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"day": [date(2024, 1, 1)]}), file)
    stock.execute("CREATE TABLE t (day DATE); ALTER TABLE t SET PARTITIONED BY (year(day), month(day))")
    stock.execute(f"CALL ducklake_add_data_files('lake', 't', '{file}', hive_partitioning => true)")
    keys = stock.execute(
        "SELECT partition_key_index FROM __ducklake_metadata_lake.ducklake_file_partition_value ORDER BY ALL"
    ).fetchall()
    assert keys == [(1,), (1,)]


def test_a_registered_file_without_a_column_is_not_found_by_is_null(
    stock: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """lake/evolve.py: such a file is inserted instead."""
    file = tmp_path / "one.parquet"
    pq.write_table(pa.table({"a": [1]}), file)
    stock.execute("CREATE TABLE t (a BIGINT, b BIGINT); INSERT INTO t SELECT range, range FROM range(20)")
    stock.execute(f"CALL ducklake_add_data_files('lake', 't', '{file}', allow_missing => true)")
    assert stock.execute("SELECT count(*) FROM t WHERE b IS NULL").fetchall() == [(0,)]


def test_ducklake_writes_integers_of_128_bits_as_doubles(stock: duckdb.DuckDBPyConnection) -> None:
    """staging/lattice.py: DECIMAL(38, 0) instead."""
    stock.execute("CREATE TABLE t (v HUGEINT)")
    stock.execute("INSERT INTO t SELECT 12345678901234567890123 + range FROM range(20)")
    assert stock.execute("SELECT count(DISTINCT v) FROM t").fetchall() == [(1,)]


def test_ducklake_cannot_look_up_a_text_with_a_nul(stock: duckdb.DuckDBPyConnection) -> None:
    """sources/values.py: such a text is refused."""
    stock.execute("CREATE TABLE t (v VARCHAR); INSERT INTO t SELECT 'a' || chr(0) || range FROM range(20)")
    try:
        found = stock.execute("SELECT count(*) FROM t WHERE v = 'a' || chr(0) || '7'").fetchall()
    except duckdb.Error:
        found = []
    assert found != [(1,)]


def test_httpfs_adds_the_token_of_the_environment_to_a_secret(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lake/connect.py: the secret names a token, also if it is empty."""
    key_id, key = store.issue(token=False)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stray")
    with duckdb.connect(config={"allow_unsigned_extensions": True}) as con:
        duckdb_extensions.import_extension("httpfs")
        con.execute("LOAD httpfs")
        where = f"ENDPOINT '{store.endpoint}', URL_STYLE 'path', USE_SSL false, REGION 'us-east-1'"
        con.execute(f"CREATE SECRET (TYPE s3, KEY_ID '{key_id}', SECRET '{key.secret}', {where})")
        with pytest.raises(duckdb.HTTPException):
            con.execute("FROM 's3://lake/a.parquet'")
    assert {request.refusal for request in store.seen} == {"InvalidToken"}


def test_duckdb_try_cast_raises_for_a_timestamp_out_of_range() -> None:
    """staging/lattice.py: the range is checked first."""
    with duckdb.connect() as con, pytest.raises(duckdb.Error):
        con.execute("SELECT TRY_CAST(TIMESTAMP '9999-01-01' AS TIMESTAMP_NS)").fetchall()


def test_duckdb_22750_long_integers_in_csv_are_guessed_as_doubles(tmp_path: Path) -> None:
    """sources/csv_files.py: every value is read as text, then converted exactly."""
    (tmp_path / "a.csv").write_text("id\n12345678901234567890\n12345678901234567891\n")
    with duckdb.connect() as con:
        sql = f"SELECT typeof(any_value(id)), count(DISTINCT id) FROM read_csv('{tmp_path}/a.csv')"
        assert con.execute(sql).fetchall() == [("DOUBLE", 1)]


def test_arrow_51368_a_quoted_line_break_at_the_end_of_a_block_loses_a_byte(tmp_path: Path) -> None:
    """sources/csv_files.py: DuckDB reads every file with quotes."""
    block = 1 << 12
    head = b"a\n" + b"x" * (block - 6) + b'\n"A\r'
    assert len(head) == block
    (tmp_path / "a.csv").write_bytes(head + b'\nB"\n')
    table = pa_csv.read_csv(
        tmp_path / "a.csv",
        pa_csv.ReadOptions(block_size=block),
        pa_csv.ParseOptions(newlines_in_values=True),
    )
    assert table["a"][1].as_py() == "A\rB"


def test_dlt_423_names_that_differ_in_case_or_signs_become_one() -> None:
    """extract/dlt_run.py: dlt gets Arrow tables, with names that sources/rows.py has checked."""
    normalize = NamingConvention().normalize_identifier
    assert normalize("Order ID") == normalize("order_id")
    assert normalize("na!e") == normalize("na%e")


def test_sqlmesh_3866_the_duckdb_adapter_has_no_transactions() -> None:
    """models/adapter.py: an interval would be replaced in two snapshots."""
    assert not DuckDBEngineAdapter.SUPPORTS_TRANSACTIONS


def test_sqlmesh_takes_a_transaction_whose_commit_failed_for_open() -> None:
    """models/adapter.py: the next interval would begin no transaction."""
    with duckdb.connect() as database:
        database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY)")
        pool = create_connection_pool(database.cursor, multithreaded=False)
        pool.begin()
        pool.get_cursor().execute("INSERT INTO t VALUES (1)")
        database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(duckdb.Error):
            pool.commit()
        assert pool.is_transaction_active
        pool.get_cursor().execute("BEGIN")  # there is none


def test_every_test_that_the_page_of_upstream_faults_names_exists() -> None:
    page = (ROOT / "docs" / "upstream.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", page))
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()
