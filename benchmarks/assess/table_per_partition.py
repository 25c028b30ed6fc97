"""Option B: DuckLake with a table per day and a view over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.assess.common import Writer, csv_sql
from benchmarks.assess.ducklake_direct import DuckLakeDirect, LakeWriter, attach

if TYPE_CHECKING:
    from collections.abc import Sequence


class TableWriter(LakeWriter):
    """One transaction for each call: a table for each day."""

    def replace(self, days: Sequence[str]) -> None:
        self.con.execute("BEGIN")
        for day in days:
            self.con.execute(f"CREATE OR REPLACE TABLE lake.{day_table(day)} AS {csv_sql(self.place, [day])}")
        self.con.execute("COMMIT")


class TablePerPartition(DuckLakeDirect):
    name = "B: a table per day"
    how = "4 processes, CREATE OR REPLACE TABLE for each day, a UNION ALL view made at the end"

    def create(self) -> None:
        attach(self.place).close()

    def finish(self) -> None:
        with attach(self.place) as con:
            sql = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake' AND table_name LIKE 'flights_%'"
            tables = sorted(name for (name,) in con.execute(sql).fetchall())
            union = " UNION ALL BY NAME ".join(f"FROM lake.{name}" for name in tables)
            con.execute(f"CREATE OR REPLACE VIEW lake.flights AS {union}")

    def writer(self) -> Writer:
        return TableWriter(self.place)

    def mark(self) -> Any:
        return None  # A view has no versions: each of its tables would have to be asked.


def day_table(day: str) -> str:
    """The name of a day's table."""
    return f"flights_{day.replace('-', '')}"
