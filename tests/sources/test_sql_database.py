"""`SqlDatabase` against PostgreSQL and SQLite: the rows of a window exactly, or refused with their column."""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
import struct
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ducklake_flows import Contract, Dataset, Secret, SqlDatabase
from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import BadInput, SourceError
from ducklake_flows.extract.chunk import extract
from ducklake_flows.staging.receipt import Failure, Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ducklake_flows.staging.receipt import Outcome
    from tests.conftest import Lake, Services

DAYS = [f"2024-01-{day:02}" for day in range(1, 5)]


@pytest.fixture
def shop(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, psycopg.Connection[Any]]]:
    """A PostgreSQL database: the URL of a source, and a connection of its owner, which commits each statement."""
    number = len(list(services.folder.glob("shop*"))) + 1
    (services.folder / f"shop{number}").touch()
    name = f"shop{number}"
    services.postgres.database(name, services.password)
    monkeypatch.setenv("SHOP_PASSWORD", services.password)
    place = f"host=127.0.0.1 port={services.postgres.port} dbname={name} user={name}"
    with psycopg.connect(place, password=services.password, autocommit=True) as con:
        yield f"postgresql+psycopg://{name}@127.0.0.1:{services.postgres.port}/{name}", con


def of(url: str, **options: Any) -> SqlDatabase:
    return SqlDatabase(url, password=Secret("SHOP_PASSWORD"), **options)


def dataset(source: SqlDatabase, **options: Any) -> Dataset:
    given = {"partition_column": "day", "start": date(2024, 1, 1), "retries": 0, **options}
    return Dataset("readings", source, **given)


def read(lake: Lake, source: SqlDatabase, *keys: str, **options: Any) -> list[Outcome]:
    return extract(dataset(source, **options), dict.fromkeys(keys or DAYS, ""), lake.settings)


def stored(lake: Lake, outcomes: list[Outcome], query: str) -> list[dict[str, Any]]:
    assert all(isinstance(outcome, Receipt) for outcome in outcomes), outcomes
    lake.publish(outcomes)
    assert lake.errors() == []
    return lake.sql(query)


def error(outcomes: list[Outcome]) -> str:
    (outcome,) = outcomes
    assert isinstance(outcome, Failure), outcome
    return outcome.error


VALUES: list[tuple[str, str, Any]] = [
    ("small", "smallint '-7'", -7),
    ("big", "bigint '9223372036854775807'", 9223372036854775807),
    ("free", "numeric '12345678901234567890.123456789'", Decimal("12345678901234567890.123456789")),
    ("scaled", "numeric(12, 2) '12.50'", Decimal("12.50")),
    ("real", "double precision '0.1'", 0.1),
    ("single", "real '0.1'", 0.1),
    ("flag", "true", True),
    ("text", "text 'größer ''x'''", "größer 'x'"),
    ("padded", "char(4) 'ab'", "ab  "),
    ("bytes", "bytea '\\x00ff'", b"\x00\xff"),
    ("early", "date '0001-01-01'", date(1, 1, 1)),
    ("late", "date '9999-12-31'", date(9999, 12, 31)),
    ("local", "timestamp '1600-02-29 23:59:59.999999'", datetime(1600, 2, 29, 23, 59, 59, 999999)),
    ("zoned", "timestamptz '2024-01-01 02:00:00+05'", datetime(2023, 12, 31, 21, tzinfo=UTC)),
    ("clock", "time '12:34:56.789'", time(12, 34, 56, 789000)),
    ("id", "uuid '6f1d6a3e-0000-4000-8000-000000000001'", "6f1d6a3e-0000-4000-8000-000000000001"),
    ("mood", "mood 'happy'", "happy"),
    ("list", "ARRAY[1, NULL, 3]", "[1,null,3]"),
    ("exact_list", "ARRAY[0.12345678901234567890]", "[0.12345678901234567890]"),
    ("json", "json '{\"a\":  0.12345678901234567890}'", '{"a":  0.12345678901234567890}'),
    ("jsonb", "jsonb '{\"a\": 12345678901234567890.5}'", '{"a": 12345678901234567890.5}'),
    ("json_null", "jsonb 'null'", "null"),
    ("nothing", "NULL::bigint", None),
]


def test_every_type_of_postgresql_is_stored_exactly(lake: Lake, shop: tuple[str, psycopg.Connection[Any]]) -> None:
    url, con = shop
    con.execute("CREATE TYPE mood AS ENUM ('happy', 'sad')")
    con.execute(f"CREATE TABLE things AS SELECT {', '.join(f'{sql} AS {name}' for name, sql, _ in VALUES)}")
    con.execute("ALTER TABLE things ADD COLUMN at timestamptz DEFAULT '2024-01-01 12:00+00'")
    outcomes = read(lake, of(url, table="things", window="at"), DAYS[0])
    (row,) = stored(lake, outcomes, "FROM raw.readings")
    for name, _, value in VALUES:
        if name != "nothing":  # a column without values is not in the table yet
            found = row[name]
            assert found == pytest.approx(value) if name == "single" else found == value, (name, found)


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("interval '1 month'", "column bad: datetime.timedelta(days=30) is a duration"),
        ("numeric 'NaN'", "column bad: Decimal('NaN') cannot be stored: a decimal must be finite"),
        ("numeric '1e40'", "41 digits are needed"),
        ("timestamptz 'infinity'", "column bad: timestamp too large"),
        ("date '4000-01-01 BC'", "column bad: date too small"),
        ("timetz '12:00+02'", "a time of day must not have a zone"),
        ("int4range(1, 5)", "which has no column type"),
        ("inet '10.0.0.1'", "which has no column type"),
    ],
)
@pytest.mark.short("sqlite+folder")
def test_a_value_without_an_exact_form_is_refused_with_its_column(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]], sql: str, text: str
) -> None:
    url, con = shop
    con.execute(f"CREATE TABLE things AS SELECT 1 AS good, {sql} AS bad, date '2024-01-01' AS at")
    found = error(read(lake, of(url, table="things", window="at"), DAYS[0]))
    assert text in found, found
    assert "bad" in found


EXTREMES: dict[str, list[Any]] = {
    "bigint": [-(2**63), 2**63 - 1, 0],
    "double precision": [5e-324, -1.7976931348623157e308, 0.1 + 0.2, float("nan"), float("-inf"), -0.0],
    "numeric(10, 2)": [Decimal("-99999999.99"), Decimal("99999999.99"), Decimal("0.01")],
    "numeric(38, 19)": [Decimal(f"{'9' * 19}.{'9' * 19}"), Decimal(f"-{'9' * 19}.{'9' * 19}"), Decimal("1e-19")],
    "numeric": [Decimal("-1e-18"), Decimal("98765432109876543210.000000000000000001")],
    "text": ["", "\U0001f600 'quoted' \"double\"", "a,b\nc\td\\N", "NULL"],
    "boolean": [True, False],
    "date": [date.min, date.max, date(1582, 10, 15)],
    "timestamp": [datetime.min, datetime.max, datetime(1969, 12, 31, 23, 59, 59, 999999)],
    "timestamptz": [
        datetime(1, 1, 2, tzinfo=UTC),
        datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
        datetime(2024, 10, 27, 1, 30, tzinfo=UTC),
    ],
    "bytea": [b"", bytes(range(256))],
}
"""Values at the limits of each type, and where a zone repeats an hour."""


def random_value(kind: str, chance: random.Random) -> Any:
    """A value of a type, sometimes None or one of `EXTREMES`."""
    if chance.random() < 0.3:
        return chance.choice([None, *EXTREMES[kind]])
    moment = datetime(1, 1, 2) + timedelta(microseconds=chance.randrange(315_537_724_800 * 10**6))
    return {
        "bigint": chance.randrange(-(2**63), 2**63),
        "double precision": struct.unpack("d", struct.pack("Q", chance.randrange(0x7FF << 52)))[0],
        "numeric(10, 2)": Decimal(chance.randrange(-(10**10) + 1, 10**10)).scaleb(-2),
        "numeric(38, 19)": Decimal(chance.randrange(10**38)).scaleb(-19, Context(prec=38)),
        "numeric": Decimal(chance.randrange(10**20)).scaleb(-chance.randrange(18)),
        "text": "".join(chr(chance.choice([*range(1, 0x500), 0x10FFFF])) for _ in range(chance.randrange(9))),
        "boolean": chance.random() < 0.5,
        "date": moment.date(),
        "timestamp": moment,
        "timestamptz": moment.replace(tzinfo=UTC),
        "bytea": chance.randbytes(chance.randrange(9)),
    }[kind]


def same(found: Any, given: Any) -> bool:
    """Whether a value is the given one: the same sign of a zero, NaN is NaN, the same moment."""
    if isinstance(given, float) and isinstance(found, float):
        both_nan = math.isnan(found) and math.isnan(given)
        return both_nan or struct.pack("d", found) == struct.pack("d", given)
    return type(found) is type(given) and bool(found == given)


@pytest.mark.short("sqlite+folder")
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_the_inserted_values_in_whichever_batches(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]], seed: int
) -> None:
    url, con = shop
    chance = random.Random(seed)
    columns = {f"c{number}": kind for number, kind in enumerate(EXTREMES)}
    con.execute(f"CREATE TABLE things (id int, at date, {', '.join(f'{n} {kind}' for n, kind in columns.items())})")
    given = [[random_value(kind, chance) for kind in columns.values()] for _ in range(200)]
    values = ", ".join(["%s"] * (2 + len(columns)))
    with con.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO things VALUES ({values})",
            [[number, DAYS[number % 2], *row] for number, row in enumerate(given)],
        )
    source = of(url, table="things", window="at", batch=chance.choice([1, 7, 100, 1000]))
    outcomes = read(
        lake, source, *DAYS[:2], timezone="Europe/Berlin", contract=Contract(columns={"c4": "decimal(38,18)"})
    )
    rows = stored(lake, outcomes, "FROM raw.readings ORDER BY id")
    assert [row["id"] for row in rows] == list(range(len(given)))
    for row, expected in zip(rows, given, strict=True):
        for (name, kind), value in zip(columns.items(), expected, strict=True):
            assert same(row[name], value), (kind, row[name], value)


@pytest.mark.short("sqlite+folder")
@pytest.mark.parametrize(
    ("bad", "text"),
    [("numeric 'NaN'", "row 25: column bad"), ("date 'infinity'", "column bad: date too large")],
)
def test_a_value_of_a_later_batch_is_refused_with_its_column_and_row(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]], bad: str, text: str
) -> None:
    url, con = shop
    kind = bad.partition(" ")[0]
    con.execute(
        f"CREATE TABLE things AS SELECT n AS id, date '2024-01-01' + n / 100 AS at, "
        f"CASE WHEN n = 24 THEN {bad} WHEN false THEN NULL::{kind} END AS bad FROM generate_series(0, 199) n"
    )
    outcomes = read(lake, of(url, table="things", window="at", batch=10), *DAYS[:2])
    assert text in error([outcomes[0]])
    assert isinstance(outcomes[1], Receipt), "the next partition is read over another connection"


@pytest.mark.short("sqlite+folder")
def test_a_query_may_have_percent_signs_colons_and_casts_with_and_without_bounds(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]]
) -> None:
    url, _ = shop
    text = "SELECT '50%'::text AS a, '%(start)s %s' AS b, 7 % 4 AS c, '12\\:30' AS d WHERE 'abc' LIKE 'a%'"
    expected = {"a": "50%", "b": "%(start)s %s", "c": 3, "d": "12:30"}
    bound = read(lake, of(url, query=f"{text} AND :end > timestamptz '2024-01-01'"), DAYS[0])
    (row,) = stored(lake, bound, "SELECT a, b, c, d FROM raw.readings")
    assert row == expected
    whole = of(url, query=text)
    full = parse_partition("full", Grain.full)
    (table,) = whole.read(full, Contract())
    assert table.to_pylist() == [expected]


def test_two_partitions_may_be_read_at_the_same_time_over_one_connection(
    shop: tuple[str, psycopg.Connection[Any]],
) -> None:
    url, con = shop
    con.execute("CREATE TABLE things AS SELECT n AS id, date '2024-01-01' + n % 2 AS at FROM generate_series(0, 9) n")
    days = [parse_partition(day, Grain.day) for day in DAYS[:2]]
    with of(url, table="things", window="at", columns=("id",), batch=2).chunk() as read_day:
        tables = list(zip(*(read_day(day, Contract()) for day in days), strict=True))
    assert [[table["id"].to_pylist() for table in pair] for pair in tables] == [
        [[n, n + 2], [n + 1, n + 3]] for n in (0, 4)
    ] + [[[8], [9]]]


def test_a_row_belongs_to_the_window_that_its_column_is_in(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]]
) -> None:
    """Whatever the type of the column and the zone of the server."""
    url, con = shop
    con.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET timezone = 'Pacific/Auckland'")
    moments = [
        datetime(2024, 1, day, hour, minute, second, tzinfo=UTC)
        for day in range(1, 5)
        for hour, minute, second in ((0, 0, 0), (11, 30, 0), (23, 59, 59))
    ]
    con.execute('CREATE TABLE "My Shop" (id int, zoned timestamptz, "local time" timestamp, plain date)')
    for number, moment in enumerate(moments):
        con.execute(
            'INSERT INTO "My Shop" VALUES (%s, %s, %s, %s)',
            [number, moment, moment.replace(tzinfo=None), moment.date()],
        )
    con.execute('INSERT INTO "My Shop" VALUES (99, NULL, NULL, NULL)')
    expected = Counter(moment.date().isoformat() for moment in moments)
    for window in ("zoned", "local time", "plain"):
        source = of(url, query=f'SELECT id, plain FROM "My Shop" WHERE "{window}" >= :start AND "{window}" < :end')
        found = {o.partition: o.rows for o in read(lake, source) if isinstance(o, Receipt)}
        assert found == expected, window
    con.execute('ALTER TABLE "My Shop" RENAME TO shop')
    outcomes = read(lake, of(url, table="shop", window="local time", columns=("id", "plain")))
    rows = stored(lake, outcomes, "SELECT id, plain, day FROM raw.readings ORDER BY id")
    assert [row["id"] for row in rows] == list(range(len(moments)))
    assert all(row["plain"] == row["day"] for row in rows)


@pytest.mark.short("sqlite+folder")
@pytest.mark.parametrize("grain", [Grain.hour, Grain.week, Grain.month])
def test_a_query_binds_the_bounds_of_every_grain(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]], grain: Grain
) -> None:
    url, con = shop
    con.execute(
        "CREATE TABLE ticks AS SELECT n, timestamptz '2024-01-01 00:00+00' + n * interval '1 hour' AS at "
        "FROM generate_series(0, 24 * 40) n"
    )
    key = {Grain.hour: "2024-01-03T07", Grain.week: "2024-W02", Grain.month: "2024-01"}[grain]
    partition = parse_partition(key, grain)
    source = of(url, query="SELECT n, :partition AS part FROM ticks WHERE at BETWEEN :start AND :last AND :end > at")
    (outcome,) = read(lake, source, key, grain=grain)
    assert isinstance(outcome, Receipt)
    assert outcome.rows == (partition.end - partition.start) / timedelta(hours=1)


def test_the_partitions_of_a_chunk_are_read_in_one_snapshot(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]]
) -> None:
    url, con = shop
    con.execute("CREATE TABLE moved (id int, at date)")
    con.execute("INSERT INTO moved SELECT n, date '2024-01-01' FROM generate_series(1, 10) n")

    class Moving(SqlDatabase):
        """After the first day was read, its rows move to the second."""

        @contextlib.contextmanager
        def chunk(self) -> Iterator[Any]:
            with super().chunk() as read:

                def then_move(partition: Any, contract: Any) -> Iterator[Any]:
                    yield from read(partition, contract)
                    con.execute("UPDATE moved SET at = date '2024-01-02'")

                yield then_move

    source = Moving(url, table="moved", window="at", password=Secret("SHOP_PASSWORD"))
    outcomes = read(lake, source, *DAYS[:2])
    assert {o.partition: o.rows for o in outcomes if isinstance(o, Receipt)} == {DAYS[0]: 10, DAYS[1]: 0}
    # A chunk that begins later sees the new state.
    outcomes = read(lake, source, *DAYS[:2])
    assert {o.partition: o.rows for o in outcomes if isinstance(o, Receipt)} == {DAYS[0]: 0, DAYS[1]: 10}


@pytest.mark.short("sqlite+folder")
def test_a_lost_connection_is_opened_again_for_the_retry(lake: Lake, shop: tuple[str, psycopg.Connection[Any]]) -> None:
    url, con = shop
    con.execute("CREATE TABLE things AS SELECT n AS id, date '2024-01-01' + n % 4 AS at FROM generate_series(1, 40) n")
    killed = list[int]()

    class Cut(SqlDatabase):
        """The server ends the connection in the middle of the second day."""

        @contextlib.contextmanager
        def chunk(self) -> Iterator[Any]:
            with super().chunk() as read:

                def cut(partition: Any, contract: Any) -> Iterator[Any]:
                    for table in read(partition, contract):
                        yield table
                        if partition.key == DAYS[1] and not killed:
                            killed.append(1)
                            con.execute(
                                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                            )

                yield cut

    source = Cut(url, table="things", window="at", password=Secret("SHOP_PASSWORD"), batch=3)
    outcomes = read(lake, source, retries=1, retry_delay=0)
    rows = stored(lake, outcomes, "SELECT id FROM raw.readings ORDER BY id")
    assert [row["id"] for row in rows] == list(range(1, 41))
    assert killed


def test_a_changed_added_or_deleted_row_makes_its_partition_stale_and_no_other(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]]
) -> None:
    url, con = shop
    con.execute(
        "CREATE TABLE things AS SELECT n AS id, date '2024-01-01' + n % 200 AS at, now() AS changed "
        "FROM generate_series(1, 1000) n"
    )
    things = dataset(of(url, table="things", window="at", version="changed"), end=date(2024, 7, 30))
    partitions = things.partitions()
    assert len(partitions) > 200

    def changed(sql: str) -> list[str]:
        before = things.versions(partitions)
        con.execute(sql)
        after = things.versions(partitions)
        assert list(after) == [partition.key for partition in partitions], "an empty one is there, too"
        return [key for key in after if after[key] != before[key]]

    assert changed("SELECT 1") == []
    assert changed("UPDATE things SET changed = clock_timestamp() WHERE id = 7") == ["2024-01-08"]
    assert changed("INSERT INTO things VALUES (0, '2024-07-30', now())") == ["2024-07-30"]
    assert changed("DELETE FROM things WHERE id = 8") == ["2024-01-09"]
    assert changed("UPDATE things SET at = '2024-01-02' WHERE id = 2") == ["2024-01-02", "2024-01-03"]
    broken = dataset(of(url, table="nope", window="at", version="changed"))
    with pytest.raises(SourceError, match='relation "nope" does not exist'):
        broken.versions(partitions)


@pytest.mark.short("sqlite+folder")
def test_a_refused_query_names_its_cause_and_no_secret(
    lake: Lake, shop: tuple[str, psycopg.Connection[Any]], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = shop
    found = read(lake, of(url, table="nope", window="at"), DAYS[0])
    assert error(found) == 'UndefinedTable: relation "nope" does not exist LINE 2: FROM nope ^'
    monkeypatch.setenv("SHOP_PASSWORD", "wrong-and-secret")
    refused = read(lake, of(url.replace("127.0.0.1", "localhost"), table="nope", window="at"), DAYS[0])
    assert "password authentication failed" in error(refused)
    gone = read(lake, of("postgresql+psycopg://x@127.0.0.1:9/x", table="nope", window="at"), DAYS[0])
    assert "Connection refused" in error(gone) or "connection failed" in error(gone)
    assert not any(secret in repr([found, refused, gone]) for secret in (services.password, "wrong-and-secret"))
    (missing,) = read(lake, of("oracle+nothing://x@db/x", table="nope", window="at"), DAYS[0])
    assert isinstance(missing, Failure)
    assert missing.error.startswith("The driver of oracle+nothing cannot be used")


def sqlite_shop(tmp_path: Path) -> str:
    """A SQLite database with times in each of the forms that one finds."""
    path = tmp_path / "my shop.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as con:
        con.execute(
            "CREATE TABLE orders "
            "(id INTEGER, amount REAL, big INTEGER, note, day DATE, at DATETIME, iso TEXT, s INTEGER)"
        )
        for number in range(24 * 4):
            moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=number)
            con.execute(
                "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    0.1,
                    2**62,
                    "ü",
                    f"{moment:%Y-%m-%d}",
                    f"{moment:%Y-%m-%d %H:%M:%S}",
                    f"{moment:%Y-%m-%dT%H:%M:%SZ}",
                    int(moment.timestamp()),
                ),
            )
        con.commit()
    return f"sqlite:///{path}"


def test_a_table_of_sqlite_is_read_by_day_and_by_hour(lake: Lake, tmp_path: Path) -> None:
    url = sqlite_shop(tmp_path)
    for window, form in (("day", ""), ("at", ""), ("iso", ""), ("s", "unix")):
        source = SqlDatabase(url, table="orders", window=window, format=form)
        found = {o.partition: o.rows for o in read(lake, source) if isinstance(o, Receipt)}
        assert found == dict.fromkeys(DAYS, 24), window
    for window, form in (("at", "%Y-%m-%d %H:%M:%S"), ("iso", "%Y-%m-%dT%H:%M:%SZ"), ("s", "unix")):
        source = SqlDatabase(url, table="orders", window=window, format=form, columns=("id",))
        (outcome,) = read(lake, source, "2024-01-03T07", grain=Grain.hour)
        assert isinstance(outcome, Receipt)
        assert outcome.rows == 1, window
    counted = SqlDatabase(url, table="orders", window="at", version="s").versions(
        dataset(source).partitions(end=date(2024, 1, 2))
    )
    assert counted == {DAYS[0]: "24:1704150000", DAYS[1]: "24:1704236400"}
    rows = stored(
        lake,
        read(lake, SqlDatabase(url, table="orders", window="at")),
        "SELECT count(*) AS n, min(big) AS big, min(amount) AS amount, min(note) AS note FROM raw.readings",
    )
    assert rows == [{"n": 96, "big": 2**62, "amount": 0.1, "note": "ü"}]


@pytest.mark.short("sqlite+folder")
def test_a_column_of_sqlite_with_values_of_two_kinds_is_refused(lake: Lake, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "x.sqlite")) as con:
        con.execute("CREATE TABLE things (day, v)")
        con.execute("INSERT INTO things VALUES ('2024-01-01', 1), ('2024-01-01', 'a')")
        con.commit()
    source = SqlDatabase(f"sqlite:///{tmp_path / 'x.sqlite'}", table="things", window="day")
    assert "row 2: column v: 'a' is text, but the earlier value 1 is an integer" in error(read(lake, source, DAYS[0]))


@pytest.mark.short("sqlite+folder")
def test_a_whole_table_is_one_partition(lake: Lake, tmp_path: Path) -> None:
    source = SqlDatabase(sqlite_shop(tmp_path), table="orders", columns=("id",))
    (outcome,) = read(lake, source, "full", grain=Grain.full, partition_column=None)
    assert isinstance(outcome, Receipt)
    assert (outcome.rows, list(outcome.columns)) == (96, ["id"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "shop"}, "is not a database URL"),
        ({"url": "postgresql://me:pw@host/x"}, "contains a password"),
        ({"url": "postgresql://me@host/x"}, "psycopg2 reads infinity"),
        ({"url": "postgresql+psycopg2://me@host/x"}, "psycopg2 reads infinity"),
        ({}, "reads a table or a query"),
        ({"table": "a", "query": "SELECT 1"}, "reads a table or a query"),
        ({"query": "SELECT 1 WHERE :start < :end", "window": "x"}, "belong to a table"),
        ({"table": "a; DROP TABLE b", "window": "x"}, "is not the name of a table"),
        ({"table": "a"}, "which day does a row of a belong to"),
        ({"query": "SELECT a::date FROM b"}, "does not say which day"),
        ({"table": "a", "window": "x", "columns": "id"}, "columns is 'id'"),
        ({"table": "a", "window": "x", "batch": 0}, "batch must be at least 1"),
        ({"query": "SELECT :start", "version": "x"}, "belong to a table"),
    ],
)
def test_a_wrong_description_is_refused_when_the_dataset_is_defined(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text) as refused:
        dataset(SqlDatabase(**{"url": "postgresql+psycopg://me@host/x", **options}))
    assert "pw" not in str(refused.value)


def test_sqlite_must_say_how_hours_are_written_and_a_whole_table_has_no_window() -> None:
    with pytest.raises(BadInput, match="SQLite has no type for times"):
        dataset(SqlDatabase("sqlite:///x", table="a", window="x"), grain=Grain.hour)
    dataset(SqlDatabase("sqlite:///x", table="a", window="x", format="unix"), grain=Grain.hour)
    for source in (SqlDatabase("sqlite:///x", "a", window="x"), SqlDatabase("sqlite:///x", query="SELECT :start")):
        with pytest.raises(BadInput, match="has no times"):
            dataset(source, grain=Grain.full, partition_column=None)
    origin = SqlDatabase("postgresql+psycopg://me@db.example.com/shop", table="a.b", window="x").origin(
        parse_partition("2024-01-31", Grain.day)
    )
    assert origin == "postgresql://db.example.com/shop: a.b, x from 2024-01-31 00:00:00 to 2024-02-01 00:00:00"
