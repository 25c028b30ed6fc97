"""`lake sql` reads all of the lake and nothing else, and changes nothing (issue 17, case P8)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from ducklake_flows.errors import BadInput
from ducklake_flows.lake.query import answer, query

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake

on_both = pytest.mark.short("sqlite+folder", "postgres+s3")

USEFUL = (
    "FROM raw.readings",
    "SELECT n, count(*) FROM lake.raw.readings GROUP BY ALL ORDER BY n;",
    "WITH RECURSIVE i AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM i WHERE n < 3) FROM i -- to 3",
    "DESCRIBE raw.readings",
    "SUMMARIZE raw.readings",
    "SHOW ALL TABLES",
    "SHOW TABLES FROM raw",
    "EXPLAIN FROM raw.readings",
    "EXPLAIN (FORMAT JSON) FROM raw.readings",
    "explain analyze SELECT sum(n) FROM raw.readings",
    "SELECT count(*) FROM raw.readings AT (VERSION => {version})",
    "FROM lake.snapshots()",
    "FROM ducklake_list_files('lake', 'readings', schema => 'raw')",
    "FROM ducklake_table_info('lake')",
    "FROM ducklake_table_changes('lake', 'raw', 'readings', {version}, {version})",
    "FROM information_schema.columns",
    "FROM duckdb_tables()",
    "FROM ops.ledger",
    "FROM __ducklake_metadata_lake.ducklake_snapshot",
    "PIVOT raw.readings ON n IN (1, 2) USING count(*)",
    "SELECT * FROM range(3) AS r(i), json_each('[1, 2]'), (SELECT unnest([1, 2]))",
    "SELECT json_extract('{{\"a\": [1, 2]}}', '$.a[' || 1 || ']'), list_transform([1], lambda x: x + 1)",
    "SELECT r.n FROM raw.readings r JOIN ops.ledger l ON l.partition = r.day::VARCHAR QUALIFY row_number() OVER () = 1",
)

HOSTILE = (
    # Changes that bypass the read-only lake.
    "USE memory",
    "DETACH lake",
    "ATTACH 'ducklake:{catalog}' AS again (DATA_PATH '{data}')",
    "ATTACH 'ducklake:{catalog}' AS again (META_SECRET lake_catalog)",
    "USE memory; DETACH lake; ATTACH 'ducklake:{catalog}' AS lake; UPDATE lake.ops.ledger SET token = 7",
    "SELECT 1; UPDATE lake.ops.ledger SET token = 7",
    "UPDATE ops.ledger SET token = 7",
    "DELETE FROM raw.readings",
    "INSERT INTO ops.builds (token) VALUES (7)",
    "MERGE INTO ops.builds USING (SELECT 7 AS token) AS s ON true WHEN MATCHED THEN DELETE",
    "UPDATE __ducklake_metadata_lake.ducklake_metadata SET value = 'x'",
    "DROP TABLE raw.readings",
    "CREATE TEMP TABLE t AS FROM raw.readings",
    "WITH t AS (SELECT 1) DELETE FROM raw.readings",
    "EXPLAIN ANALYZE DELETE FROM raw.readings",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/out.csv'",
    "EXPLAIN ANALYZE FROM ducklake_expire_snapshots('lake', versions => [1])",
    "PRAGMA enable_profiling",
    "SET threads = 1",
    "RESET threads",
    "CALL ducklake_expire_snapshots('lake', versions => [1])",
    "CALL lake.set_option('expire_older_than', '1 day')",
    "LOAD httpfs",
    "INSTALL httpfs",
    "CREATE SECRET s (TYPE s3)",
    "DROP SECRET lake_s3",
    "EXPORT DATABASE '{folder}/out'",
    "IMPORT DATABASE '{folder}/out'",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE q AS SELECT 1",
    "EXECUTE q",
    # Writes inside a SELECT.
    "FROM ducklake_expire_snapshots('lake', versions => [1])",
    "FROM lake.expire_snapshots(versions => [1])",
    "SELECT (SELECT count(*) FROM ducklake_delete_orphaned_files('lake', cleanup_all => true))",
    "WITH t AS MATERIALIZED (FROM ducklake_cleanup_old_files('lake', cleanup_all => true)) SELECT 1",
    "SELECT 1 UNION ALL BY NAME FROM ducklake_merge_adjacent_files('lake')",
    "PIVOT (FROM ducklake_flush_inlined_data('lake')) ON rows IN (1) USING count(*)",
    "DESCRIBE FROM ducklake_add_data_files('lake', 'readings', 'x.parquet')",
    "FROM sqlite_query('__ducklake_metadata_lake', 'DELETE FROM ducklake_metadata RETURNING 1')",
    "FROM postgres_query('__ducklake_metadata_lake', 'DELETE FROM ducklake_metadata RETURNING 1')",
    "SELECT * FROM postgres_execute('__ducklake_metadata_lake', 'DELETE FROM ducklake_metadata')",
    "FROM query('FROM ducklake_expire_snapshots(''lake'', versions => [1])')",
    "FROM query_table('raw.readings')",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT json_serialize_plan('FROM ducklake_expire_snapshots(''lake'', versions => [1])')",
    # The machine's files, memory and secrets.
    "FROM read_text('{folder}/.env')",
    "SELECT 1 WHERE EXISTS (FROM read_blob('{folder}/.env'))",
    "FROM read_csv('/etc/passwd')",
    "FROM read_json_auto('{folder}/.env')",
    "FROM '{folder}/.env.csv'",
    "FROM '.env.csv'",
    "SUMMARIZE '.env.csv'",
    "FROM '{data}/x.parquet'",
    "FROM parquet_metadata('{folder}/*')",
    "FROM glob('{folder}/*')",
    "FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM raw.readings, LATERAL (FROM glob('*'))",
    "FROM sqlite_scan('{home}/catalog.sqlite', 'ducklake_metadata')",
    "FROM postgres_scan('host=127.0.0.1', 'public', 'ducklake_metadata')",
    "FROM duckdb_secrets()",
    "FROM which_secret('s3://lake', 's3')",
    "FROM duckdb_settings()",
    "SELECT current_setting('s3_secret_access_key')",
    "SELECT getenv('LAKE_S3_SECRET')",
    "FROM settings",
    "FROM sql",
    # Writes to files.
    "COPY (FROM raw.readings) TO '{folder}/out.csv'",
    "COPY (FROM raw.readings) TO '{data}out.csv'",
    "COPY raw.readings TO '{folder}/out.csv'",
    "COPY raw.readings FROM '{folder}/.env'",
    # Not a query.
    "",
    ";",
    "-- nothing",
    "EXPLAIN",
    "SELEC 1",
    "SELECT * FROM nowhere",
)


@pytest.fixture
def filled(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake with a day of readings, next to files with a secret; the environment holds another secret."""
    lake.land("readings/2024-01-01.jsonl", [{"n": 1}, {"n": 2}])
    lake.load("readings", "2024-01-01")
    for name in (".env", ".env.csv"):
        (tmp_path / name).write_text("LAKE_CATALOG_PASSWORD=hunter2\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    return lake


def contents(lake: Lake, folder: Path) -> dict[str, Any]:
    """What a query must not change: fences, ledger, snapshots, options, staged files, files of the folder."""
    tables = ("ops.builds", "ops.schema_changes", "ops.ledger", "raw.readings", "ducklake_options('lake')")
    return {
        **{table: lake.sql(f"FROM {table}") for table in (*tables, "lake.snapshots()")},
        "data": lake.data.list(),
        "files": {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith("catalog.sqlite")
        },
    }


@on_both
def test_a_hostile_query_is_one_error_and_changes_nothing(filled: Lake, tmp_path: Path) -> None:
    before = contents(filled, tmp_path)
    settings = filled.settings
    places = {
        "catalog": settings.catalog,
        "data": settings.data_path,
        "home": settings.home,
        "folder": tmp_path,
    }
    # All of them on the embedded lake; a third on PostgreSQL and S3, where each costs a connection.
    for hostile in HOSTILE if settings.embedded else HOSTILE[::3]:
        with pytest.raises(BadInput) as caught:
            query(settings, hostile.format(**places))
        assert caught.value.fix, hostile
        assert "hunter2" not in str(caught.value), hostile
    assert contents(filled, tmp_path) == before


@on_both
def test_common_read_queries_work(filled: Lake) -> None:
    version = max(filled.column("SELECT snapshot_id FROM lake.snapshots()"))
    for useful in USEFUL:
        assert answer(filled.settings, useful.format(version=version)).columns, useful
    assert query(filled.settings, "SELECT sum(n)::INT AS n FROM raw.readings") == [{"n": 3}]
    # Both of two columns with the same name are shown.
    joined = "SELECT a.n, b.n FROM raw.readings a JOIN raw.readings b ON a.n < b.n"
    assert query(filled.settings, joined) == [{"n": 1, "n_2": 2}]
    # DuckDB's httpfs copies AWS_* into its settings when it is loaded; pg_settings shows them.
    settings = {row["name"]: str(row["setting"]) for row in query(filled.settings, "FROM pg_catalog.pg_settings")}
    assert not [value for value in settings.values() if "hunter2" in value]
    # The lock leaves DuckDB its own temporary folder: a query larger than memory still spills.
    assert ".tmp" in settings["allowed_directories"]


@on_both
def test_an_export_is_written_only_to_the_requested_path(filled: Lake, tmp_path: Path) -> None:
    settings = filled.settings
    target = tmp_path / "it's.parquet"
    quoted = str(target).replace("'", "''")
    for options in ("", "(FORMAT parquet, COMPRESSION zstd);"):
        done = answer(settings, f"copy (FROM raw.readings -- all\n) to '{quoted}' {options}", allow_export=True)
        assert done.rows == [(2,)]
    answer(
        settings,
        f"COPY (FROM raw.readings) TO '{tmp_path}/days' (FORMAT parquet, PARTITION_BY (day))",
        allow_export=True,
    )
    for written in (quoted, f"{tmp_path}/days/day=2024-01-01/*.parquet"):
        assert duckdb.sql(f"SELECT sum(n)::INT FROM '{written}'").fetchall() == [(3,)]
    before = contents(filled, tmp_path)
    (tmp_path / "link").symlink_to(settings.home)
    for refused in (
        f"COPY (FROM raw.readings) TO '{settings.data_path}out.csv'",
        f"COPY (FROM raw.readings) TO '{settings.home}/data/out.csv'",
        f"COPY (FROM raw.readings) TO '{tmp_path}/link/landing/out.csv'",
        "COPY (FROM raw.readings) TO 's3://elsewhere/out.csv'",
        f"COPY (FROM raw.readings) TO '{tmp_path}/nowhere/out.csv'",
        f"COPY (FROM raw.readings) TO '{tmp_path}' (FORMAT csv, PARTITION_BY (day), OVERWRITE)",
        f"COPY (FROM read_text('.env')) TO '{tmp_path}/out.csv'",
        f"COPY (DELETE FROM raw.readings RETURNING 1) TO '{tmp_path}/out.csv'",
        f"COPY raw.readings TO '{tmp_path}/out.csv'",
        f"COPY (FROM raw.readings) TO '{tmp_path}/out.csv'; DELETE FROM raw.readings",
    ):
        with pytest.raises(BadInput):
            answer(settings, refused, allow_export=True)
    (tmp_path / "link").unlink()
    assert contents(filled, tmp_path) == before
