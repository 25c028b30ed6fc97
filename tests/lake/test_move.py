"""A move takes the whole lake, with its history, to another catalog and storage, and leaves the source as it is."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pydantic import SecretStr

from ducklake_flows.errors import BadInput, CatalogError, LakeError, NotInitialised, OldRelease, StorageError
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.maintenance import steps
from ducklake_flows.lake.move import MARK, Copied, Move
from ducklake_flows.models.state import copy_state, holds_models
from ducklake_flows.settings import Settings, file_settings, load_settings
from ducklake_flows.storage import check, open_storage
from tests.conftest import DATASETS, STORAGES, Lake, settings_from, write
from tests.projects import PUBLISHED, READINGS, Project, model

if TYPE_CHECKING:
    from tests.conftest import Services

pytestmark = pytest.mark.short("sqlite+folder")

LATER = datetime.now(UTC) + timedelta(days=3)

ORDERS = """
from ducklake_flows import Contract, Dataset, Files, Table

ORDERS = Dataset(
    "orders",
    Files("orders/{partition}.jsonl", "jsonl"),
    partition_column="day",
    primary_key=("id",),
    children={"items": Table()},
)
RULED = Dataset(
    "ruled",
    Files("ruled/{partition}.csv", "csv"),
    partition_column="day",
    contract=Contract({"id": "bigint", "n": "bigint"}, schema_contract={"data_type": "discard_row"}),
)
"""


def load(lake: Lake, day: int, rows: int, value: float = 1) -> None:
    """A day of two datasets: one with a child table, one with models, whose columns evolve."""
    key = f"2024-01-{day:02}"
    lake.land(f"orders/{key}.jsonl", [{"id": i, "items": [{"n": n} for n in range(i % 3)]} for i in range(rows)])
    lake.load("orders", key)
    lake.land(f"readings/{key}.jsonl", [{"id": i, "value": value} for i in range(rows)])
    lake.load("readings", key)


def maintain(lake: Lake, retention: timedelta) -> None:
    for step in steps(lake.settings, retention, LATER):
        if step.todo:
            step.run()


def fill(lake: Lake) -> None:
    """A lake with a past: expired snapshots, merged and replaced files, delete files, quarantine, inlined rows."""
    for day in (1, 2, 3):
        load(lake, day, 10 * day)
    maintain(lake, timedelta(0))
    load(lake, 2, 7)  # in a merged file: the rows are deleted from it
    load(lake, 4, 5, 1.5)  # widens a column
    lake.land("ruled/2024-01-01.csv", "id,n\n1,1\n2,x\n3,'é\n")
    lake.load("ruled", "2024-01-01")
    con = connect(lake.settings)
    con.execute("CREATE TABLE raw.gone AS SELECT range AS n, 'a' || range AS \"odd name\" FROM range(2000)")
    con.execute("DELETE FROM raw.gone WHERE n % 7 = 0")
    con.execute('ALTER TABLE raw.gone DROP COLUMN "odd name"')
    con.execute("DROP TABLE raw.gone")
    con.close()


def history(lake: Lake, *only: str) -> dict[Any, Any]:
    """Every row of every table, or of some, in every snapshot, and the snapshots themselves."""
    con = connect(lake.settings, read_only=True)
    con.execute("BEGIN")  # otherwise DuckLake looks for a newer snapshot before each query
    found: dict[Any, Any] = {"snapshots": con.execute("FROM lake.snapshots() ORDER BY 1").fetchall()}
    for snapshot, *_ in found["snapshots"]:
        names = con.execute(
            """SELECT s.schema_name, t.table_name FROM __ducklake_metadata_lake.ducklake_table t
               JOIN __ducklake_metadata_lake.ducklake_schema s USING (schema_id)
               WHERE t.begin_snapshot <= $1 AND (t.end_snapshot IS NULL OR t.end_snapshot > $1)
                     AND s.begin_snapshot <= $1 AND (s.end_snapshot IS NULL OR s.end_snapshot > $1)""",
            [snapshot],
        ).fetchall()
        for schema, table in names:
            if only and table not in only:
                continue
            query = f'SELECT rowid, * FROM lake.{schema}."{table}" AT (VERSION => {snapshot}) ORDER BY ALL'
            result = con.execute(query)
            columns = [(name, str(kind)) for name, kind, *_ in result.description or []]
            found[snapshot, schema, table] = columns, str(result.fetchall())
    con.close()
    return found


def bytes_of(settings: Settings) -> dict[str, str]:
    """Every file of a lake in a folder, and every row of its catalog in PostgreSQL, as a digest or text."""
    found = {}
    for base in (settings.home, Path(settings.data_path)):
        for path in base.rglob("*") if base.is_dir() else []:
            if path.is_file() and not path.is_relative_to(settings.home / "landing"):
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    if not settings.embedded:
        assert settings.catalog_password
        place = settings.catalog.removeprefix("postgres:")
        with psycopg.connect(place, password=settings.catalog_password.get_secret_value()) as con:
            tables = con.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
            for (table,) in tables.fetchall():
                rows = con.execute(f'SELECT t::text FROM "{table}" t ORDER BY 1').fetchall()
                found[table] = str(rows)
    return found


def target_file(services: Services, storage: str, home: Path, landing: str) -> Path:
    """The settings of a lake that does not exist yet, as a file."""
    values = services.environment("postgres+s3" if landing.startswith("s3://") else storage, home)
    if storage == STORAGES[0]:  # with the keys of the landing zone
        values = {
            k: v for k, v in values.items() if k not in ("LAKE_DATA_PATH", "LAKE_CATALOG", "LAKE_CATALOG_PASSWORD")
        }
    del values["LAKE_PROJECT"]
    values["LAKE_LANDING"] = landing
    if "LAKE_CATALOG" in values:
        name = values["LAKE_CATALOG"].rpartition("=")[2]
        values["LAKE_STATE"] = f"postgres://{name}@127.0.0.1:{services.postgres.port}/{name}"
        values["LAKE_STATE_PASSWORD"] = services.password
    home.mkdir(exist_ok=True)
    file = home.with_suffix(".env")
    file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return file


def taken_by_another(services: Services, storage: str, home: Path) -> Settings:
    """The settings of an empty lake."""
    with pytest.MonkeyPatch.context() as here:
        for name in [name for name in os.environ if name.startswith("LAKE_")]:
            here.delenv(name)
        return settings_from(services.lake(storage, home))


def use(monkeypatch: pytest.MonkeyPatch, file: Path) -> Lake:
    """Use a target's settings from now on."""
    for name in [name for name in os.environ if name.startswith("LAKE_") and name not in KEPT]:
        monkeypatch.delenv(name)
    for line in file.read_text().splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    return Lake(load_settings())


KEPT = ("LAKE_PROJECT", "LAKE_DATASETS", "LAKE_MODELS")


def test_there_and_back_again(
    lake: Lake,
    services: Services,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "orders.py").write_text(ORDERS)
    monkeypatch.setenv("LAKE_DATASETS", os.pathsep.join(map(str, (DATASETS, tmp_path / "own"))))
    # Not in a file: builds in this process keep that open.
    state = services.environment("postgres+folder", tmp_path / "state")["LAKE_CATALOG"].rpartition("=")[2]
    monkeypatch.setenv("LAKE_STATE", f"postgres://{state}@127.0.0.1:{services.postgres.port}/{state}")
    monkeypatch.setenv("LAKE_STATE_PASSWORD", services.password)
    lake.settings = load_settings()
    project = Project(tmp_path / "models", lake, monkeypatch)
    project.write("models/readings.sql", model("bronze.readings", READINGS, "day", PUBLISHED))
    daily = "SELECT day, count(*) AS n, sum(value) AS total FROM bronze.readings WHERE day BETWEEN @start_date "
    project.write("models/daily.sql", model("gold.daily", f"{daily} AND @end_date GROUP BY day", "day"))
    fill(lake)
    assert len(project.build()) == 2
    assert lake.errors() == []
    past, before = history(lake), bytes_of(lake.settings)

    def move(source: Settings, storage: str, name: str) -> tuple[Path, Lake]:
        file = target_file(services, storage, tmp_path / name, lake.settings.landing)
        target = file_settings(file)
        with closing(moved(source, target)) as moving:
            assert copy_state(source, target) > 2
            tables = {key[1:] for key in past if len(key) == 3}
            assert moving.compare().tables == len(tables)
            moving.finish()
        with closing(Move(source, target)) as moving:
            assert moving.is_done()
        return file, Lake(target)

    there, target = move(lake.settings, other(lake), "there")
    assert target.data.find(MARK) is None
    assert bytes_of(lake.settings) == before, "the source is as it was"
    assert history(target) == past
    back, returned = move(target.settings, request.node.callspec.params["lake"], "back")
    assert history(returned) == past

    for file, each in ((there, target), (back, returned)):
        use(monkeypatch, file)
        project.lake = each
        assert project.build() == [], "nothing changed, nothing is built"
        load(each, 5, 4)
        built = {(m["model"], m["start"][:10], m["end"][:10]) for m in project.build()}
        assert built == {(name, "2024-01-05", "2024-01-05") for name in ("bronze.readings", "gold.daily")}
        assert each.column("SELECT n FROM gold.daily ORDER BY day") == [10, 7, 30, 5, 4]
        if each is target:
            maintain(each, timedelta(days=30))
        assert each.errors() == []
    assert bytes_of(lake.settings) == before


def moved(source: Settings, target: Settings) -> Move:
    """A move up to the step that makes the target a lake."""
    moving = Move(source, target)
    check(target, create=True)
    assert not moving.is_done()
    moving.begin(holds_state=False)
    moving.copy_files(last=True)
    moving.copy_catalog()
    return moving


def other(lake: Lake) -> str:
    return STORAGES[2] if lake.settings.embedded else STORAGES[0]


VALUES = {
    "VARCHAR": ["'a''é' || chr(10)", "''"],
    "BLOB": ["'\\x00\\xFF'", "''"],
    "JSON": ["'{\"a\": 1.0}'"],
    "BOOLEAN": ["true", "false"],
    "TINYINT": ["-128"],
    "UTINYINT": ["255"],
    "SMALLINT": ["-32768"],
    "USMALLINT": ["65535"],
    "INTEGER": ["-2147483648"],
    "UINTEGER": ["4294967295"],
    "BIGINT": ["-9223372036854775808"],
    "UBIGINT": ["18446744073709551615"],
    "HUGEINT": ["-170141183460469231731687303715884105727"],
    "UHUGEINT": ["340282366920938463463374607431768211455"],
    "FLOAT": ["0.1", "'nan'", "'-inf'", "1e-45"],
    "DOUBLE": ["0.1", "'nan'", "'inf'", "5e-324", "1.7976931348623157e308", "-0.0"],
    "DECIMAL(18,3)": ["-123456789012345.678"],
    "DECIMAL(38,10)": ["1234567890123456789012345678.0123456789"],
    "DATE": ["'0044-01-01 (BC)'", "'infinity'", "'9999-12-31'"],
    "TIME": ["'23:59:59.999999'", "'24:00:00'"],
    "TIMETZ": ["'12:34:56.123456+02:30'"],
    "TIMESTAMP": ["'2024-02-29 00:00:00.000001'", "'-infinity'"],
    "TIMESTAMP_S": ["'2024-02-29 00:00:01'"],
    "TIMESTAMP_MS": ["'2024-02-29 00:00:01.001'"],
    "TIMESTAMP_NS": ["'2024-02-29 00:00:01.123456789'"],
    "TIMESTAMPTZ": ["'2024-02-29 00:00:01.5+05:30'", "'infinity'"],
    "INTERVAL": ["'1 month 2 days 3.5 seconds'", "'-14 months'"],
    "UUID": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    "VARCHAR[]": ["['a', 'b''c', NULL, 'é, \"x']", "[]"],
    "STRUCT(a INTEGER, b VARCHAR)": ["{'a': 1, 'b': 'z'}"],
    "MAP(VARCHAR, INTEGER)": ["MAP {'k': 1}"],
}
"""Values of every type that DuckLake keeps in the catalog, in SQL."""


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_rows_in_the_catalog_are_moved_exactly(lake: Lake, services: Services, tmp_path: Path) -> None:
    """And into columns of the types that DuckLake would have made."""
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(VALUES))
    names = ", ".join(f"c{number}" for number in range(len(VALUES)))
    most = max(map(len, VALUES.values()))

    def create(settings: Settings) -> None:
        con = connect(settings)
        con.execute("CALL lake.set_option('data_inlining_row_limit', '100')")
        con.execute(f"CREATE TABLE raw.every ({columns})")
        of = [[f"CAST({value} AS {kind})" for value in values] for kind, values in VALUES.items()]
        rows = [f"({', '.join(row)})" for row in zip_longest(*of, ["NULL"] * (most + 1), fillvalue="NULL")]
        con.execute(f"INSERT INTO raw.every SELECT * EXCLUDE more FROM (VALUES {', '.join(rows)}) v({names}, more)")
        con.execute("DELETE FROM raw.every WHERE c4 IS NOT NULL")
        con.execute("ALTER TABLE raw.every ADD COLUMN late VARCHAR DEFAULT 'x'")
        con.execute("INSERT INTO raw.every (c0) VALUES ('second')")
        con.close()

    create(lake.settings)
    load_readings(lake)
    con = connect(lake.settings)  # deletes a row of a file: in the catalog
    con.execute("DELETE FROM raw.readings WHERE id = 3")
    con.close()
    past = history(lake, "every", "readings", "ledger")
    file = target_file(services, other(lake), tmp_path / "there", lake.settings.landing)
    with closing(moved(lake.settings, file_settings(file))) as moving:
        moving.compare()
        moving.finish()
    target = Lake(file_settings(file))
    assert history(target, "every", "readings", "ledger") == past
    native = taken_by_another(services, other(lake), tmp_path / "native")
    create(native)
    for mine, theirs in zip(types_in(target.settings, "every"), types_in(native, "every"), strict=True):
        assert dict(mine).items() ^ dict(theirs).items() == set()
        assert mine == theirs


def types_in(settings: Settings, table: str) -> list[list[tuple[str, str]]]:
    """The columns of a table's inlined rows in the catalog, in the words of its database."""
    named = f"SELECT table_id FROM ducklake_table WHERE table_name = '{table}'"
    names = f"SELECT table_name FROM ducklake_inlined_data_tables WHERE table_id = ({named}) ORDER BY schema_version"
    if settings.catalog_file is not None:
        with closing(sqlite3.connect(settings.catalog_file)) as file:
            tables = file.execute(names).fetchall()
            return [
                file.execute(f"SELECT name, type FROM pragma_table_info('{name}')").fetchall() for (name,) in tables
            ]
    assert settings.catalog_password
    place = settings.catalog.removeprefix("postgres:")
    typed = (
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum"
    )
    with psycopg.connect(place, password=settings.catalog_password.get_secret_value()) as con:
        tables = con.execute(names).fetchall()
        return [con.execute(typed, [name]).fetchall() for (name,) in tables]


def test_a_wrong_target_is_refused_and_stays_as_it_is(lake: Lake, services: Services, tmp_path: Path) -> None:
    load_readings(lake)
    landing = lake.settings.landing
    file = target_file(services, other(lake), tmp_path / "there", landing)
    target = file_settings(file)

    # The source itself, or a part of it.
    same = {"catalog": lake.settings.catalog, "state": lake.settings.state}
    for name, value in {
        **same,
        "data_path": lake.settings.data_path,
        "DATA_PATH": f"{lake.settings.data_path}a/",
    }.items():
        changed = target.model_copy(update={name.lower(): value})
        if name.lower() == "data_path":
            changed = changed.model_copy(update={"s3_endpoint": lake.settings.s3_endpoint})
        with pytest.raises(BadInput, match=f"not apart from the source: LAKE_{name.upper()} "):
            Move(lake.settings, changed)
    # Files that are not of a move, and those of a move that began otherwise.
    check(target, create=True)
    write(open_storage(target.data_path, target), "raw/x.parquet", "x")
    with closing(Move(lake.settings, target)) as moving, pytest.raises(BadInput, match="is not empty"):
        moving.begin(holds_state=False)
    open_storage(target.data_path, target).remove("raw/x.parquet")
    with closing(Move(lake.settings, target)) as moving:
        with pytest.raises(BadInput, match="already holds a state of models"):
            moving.begin(holds_state=True)
        assert open_storage(target.data_path, target).list() == []
        moving.begin(holds_state=False)
    changed = target.model_copy(update={"state": str(tmp_path / "other.duckdb")})
    with closing(Move(lake.settings, changed)) as moving, pytest.raises(BadInput, match="files of another move"):
        moving.begin(holds_state=False)
    # Another lake.
    taken = taken_by_another(services, other(lake), tmp_path / "taken")
    before = bytes_of(taken)
    with closing(Move(lake.settings, taken)) as moving, pytest.raises(BadInput, match="already holds a lake"):
        moving.is_done()
    assert bytes_of(taken) == before
    # A catalog and a state that cannot be opened; no secret is shown.
    if not target.embedded:
        wrong = target.model_copy(
            update={"catalog_password": SecretStr("hunter2"), "state_password": SecretStr("hunter2")}
        )
        with closing(Move(lake.settings, wrong)) as moving, pytest.raises(CatalogError) as caught:
            moving.is_done()
        assert "hunter2" not in str(caught.value)
        with pytest.raises(LakeError, match="state cannot be") as refused:
            holds_models(wrong)
        assert "hunter2" not in str(refused.value)
    # The same lake, which has changed since.
    with closing(moved(lake.settings, target)) as moving:
        moving.finish()
    load_readings(lake, "2024-01-02")
    with closing(Move(lake.settings, target)) as moving, pytest.raises(BadInput, match="one of the two has changed"):
        moving.is_done()


def load_readings(lake: Lake, day: str = "2024-01-01") -> None:
    lake.land(f"readings/{day}.jsonl", [{"id": i, "value": 1} for i in range(10)])
    lake.load("readings", day)


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_a_source_that_cannot_be_moved_is_refused(lake: Lake, services: Services, tmp_path: Path) -> None:
    load_readings(lake)
    target = file_settings(target_file(services, other(lake), tmp_path / "there", lake.settings.landing))
    (path,) = lake.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")
    stored = lake.data.relative(path.removeprefix("s3://"))
    lake.data.remove(stored)
    with closing(Move(lake.settings, target)) as moving:
        check(target, create=True)
        assert moving.copy_files().files == 0
        with pytest.raises(StorageError, match="1 files of the source are missing"):
            moving.copy_files(last=True)
    con = connect(lake.settings)
    con.execute(f"COPY (SELECT 1 AS n) TO '{tmp_path}/away.parquet'")
    con.execute("CREATE TABLE raw.away (n INTEGER)")
    con.execute(f"CALL ducklake_add_data_files('lake', 'away', '{tmp_path}/away.parquet', schema => 'raw')")
    con.close()
    with (
        closing(Move(lake.settings, target)) as moving,
        pytest.raises(CatalogError, match=r"not below .*away\.parquet"),
    ):
        moving.files()
    con = connect(lake.settings)
    con.execute("CREATE TABLE ops.fence (n INTEGER)")
    con.close()
    with pytest.raises(OldRelease):
        Move(lake.settings, target)


def test_a_source_may_change_meanwhile(lake: Lake, services: Services, tmp_path: Path) -> None:
    """What is published before the catalog is copied is moved, too; what comes later is not."""
    load_readings(lake)
    target = Lake(file_settings(target_file(services, other(lake), tmp_path / "there", lake.settings.landing)))
    with closing(Move(lake.settings, target.settings)) as moving:
        check(target.settings, create=True)
        moving.begin(holds_state=False)
        assert moving.copy_files().files == 1
        load_readings(lake, "2024-01-02")
        assert moving.copy_files(last=True) == Copied(files=1, bytes=moving.files()[1].size, kept=0)
        moving.copy_catalog()
        past = history(lake, "readings", "ledger")
        load_readings(lake, "2024-01-03")
        moving.compare()
        moving.finish()
    assert history(target, "readings", "ledger") == past
    assert target.errors() == []


def test_a_difference_is_found_and_the_target_stays_no_lake(lake: Lake, services: Services, tmp_path: Path) -> None:
    """One value of one row of a file that no current snapshot names."""
    load_readings(lake)
    lake.land("readings/2024-01-01.jsonl", [{"id": i, "value": 2} for i in range(10)])
    lake.load("readings", "2024-01-01")
    target = file_settings(target_file(services, other(lake), tmp_path / "there", lake.settings.landing))
    with closing(moved(lake.settings, target)) as moving:
        change(moving.staged, "UPDATE {} SET rows_in = 11 WHERE row_id = 0")
        with pytest.raises(LakeError, match=r"The copied lake differs: ops\.ledger, snapshots 1 to 5"):
            moving.compare()
    # Go on, with another file of the same size in the place of one that no current snapshot names.
    (path,) = lake.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")
    storage = open_storage(target.data_path, target)
    (old,) = (file for file in storage.list("raw") if not path.endswith(file.path.rpartition("/")[2]))
    write(storage, storage.relative(old.path), b"x" * old.size)
    with closing(Move(lake.settings, target)) as moving:
        moving.begin(holds_state=True)
        assert moving.copy_files() == Copied(files=1, bytes=old.size, kept=1)
        moving.copy_catalog()
        write(storage, storage.relative(old.path), b"x" * old.size)
        with pytest.raises(LakeError, match=r"cannot be compared: raw\.readings, snapshots"):
            moving.compare()
    with pytest.raises(NotInitialised):
        connect(target)


def change(settings: Settings, sql: str) -> None:
    """Change the rows of the ledger that are in the catalog."""
    name = (
        "SELECT i.table_name FROM ducklake_inlined_data_tables i JOIN ducklake_table t ON t.table_id = i.table_id "
        "WHERE t.table_name = 'ledger'"
    )
    if settings.catalog_file is not None:
        with closing(sqlite3.connect(settings.catalog_file)) as file, file:
            assert file.execute(sql.format(file.execute(name).fetchone()[0])).rowcount == 1
    else:
        assert settings.catalog_password
        place, password = settings.catalog.removeprefix("postgres:"), settings.catalog_password.get_secret_value()
        with psycopg.connect(place, password=password) as con:
            (found,) = con.execute(name).fetchall()
            assert con.execute(sql.format(*found)).rowcount == 1
