"""The hang of the first attempt: three partitions, three writers of one DuckLake, and retries without a cap."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest

from ducklake_flows.lake.connect import connect
from ducklake_flows.orchestration.server import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Lake

DAYS = ("2024-10-13", "2024-10-14", "2024-10-15")
RETRIES = {"max_retry_count": 200, "retry_wait_ms": 150, "retry_backoff": 2.5}
"""DuckLake's retry settings in the first attempt."""

LOSE = """
CREATE TABLE others_are_first (yes BOOLEAN);
CREATE SEQUENCE tries START 1;
CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM nextval('tries');
  IF EXISTS (SELECT FROM others_are_first) THEN
    RAISE unique_violation USING MESSAGE =
      'duplicate key value violates unique constraint "ducklake_snapshot_pkey"';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER lose BEFORE INSERT ON ducklake_snapshot FOR EACH ROW EXECUTE FUNCTION lose();
"""
"""While `others_are_first` has a row, every commit loses its race. A sequence counts tries: no rollback resets it."""


class Catalog:
    """The catalog's database, asked by another session."""

    def __init__(self, lake: Lake) -> None:
        assert lake.settings.catalog_password
        password = lake.settings.catalog_password.get_secret_value()
        self.con = psycopg.connect(lake.settings.catalog.removeprefix("postgres:"), password=password, autocommit=True)

    def run(self, sql: LiteralString) -> list[tuple[Any, ...]]:
        found = self.con.execute(sql)
        return found.fetchall() if found.description else []

    def tries(self) -> int:
        found: int = self.run("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tries")[0][0]
        return found

    def busy(self) -> list[tuple[Any, ...]]:
        """What the other sessions do or hold."""
        return self.run(
            "SELECT a.state, a.query FROM pg_stat_activity a LEFT JOIN pg_locks l USING (pid) "
            "WHERE a.datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
            "AND (a.state <> 'idle' OR l.pid IS NOT NULL)"
        )


@pytest.fixture
def catalog(lake: Lake) -> Iterator[Catalog]:
    catalog = Catalog(lake)
    catalog.run(LOSE)
    with contextlib.closing(catalog.con):
        yield catalog


@pytest.mark.parametrize("lake", ["postgres+folder"], indirect=True)
def test_the_hang_is_a_sleep_between_retries_and_the_gate_has_none(lake: Lake, catalog: Catalog) -> None:
    """Former fault: 0 of 3 partitions were done after 3 minutes; PostgreSQL's sessions were idle and held no lock.

    A writer that loses the race for the next snapshot sleeps `wait x backoff^losses`. Nine losses in a row are 381 s.
    """
    wait, backoff = RETRIES["retry_wait_ms"] / 1000, RETRIES["retry_backoff"]
    assert sum(wait * backoff**losses for losses in range(9)) == pytest.approx(381, 0.01)
    for day in DAYS:
        lake.land(f"records/{day}.json", [{"id": n, "text": "x"} for n in range(3)])
    with connect(lake.settings) as con:
        con.execute("CREATE TABLE lake.raw.direct (id BIGINT, record_date DATE)")
    done: list[str] = []

    def write(day: str) -> None:
        with connect(lake.settings) as con:
            for name, value in RETRIES.items():
                con.execute(f"SET GLOBAL ducklake_{name} = {value}")
            con.execute(f"INSERT INTO lake.raw.direct SELECT range, '{day}' FROM range(3)")
        done.append(day)

    catalog.run("INSERT INTO others_are_first VALUES (true)")
    before = catalog.tries()
    writers = [threading.Thread(target=write, args=(day,)) for day in DAYS]
    for writer in writers:
        writer.start()
    assert until(lambda: catalog.tries() >= before + 9, 60)
    assert until(lambda: not catalog.busy(), 60), catalog.busy()
    assert not done
    assert all(writer.is_alive() for writer in writers)
    catalog.run("DELETE FROM others_are_first")
    for writer in writers:
        writer.join(300)
    assert sorted(done) == list(DAYS)
    assert lake.column("SELECT count(*) FROM raw.direct") == [9]

    # The same three partitions in one transaction of ours: no race, so no try is lost.
    lake.load("records", DAYS[0])
    before = catalog.tries()
    published = lake.load("records", *DAYS[1:])
    assert len(published.receipts) == 2
    assert catalog.tries() == before + 1
    assert lake.column("SELECT count(*) FROM raw.records") == [9]
    assert lake.errors() == []
