"""Read the lake: one query, with errors a user can act on."""

from __future__ import annotations

from typing import Any

from flows.errors import BadInput
from flows.lake.connect import connected, rows
from flows.settings import Settings


def query(settings: Settings, sql: str) -> list[dict[str, Any]]:
    """Run one query on the attached lake, read-only.

    Args:
        settings: Where the lake is.
        sql: The query; ``raw.flights``, ``gold.carrier_performance`` and so on need no prefix.

    Returns:
        The rows, as dicts by column name.

    Raises:
        BadInput: the query is wrong, or would change the lake.
    """
    import duckdb

    with connected(settings, read_only=True) as con:
        try:
            return rows(con, sql)
        except duckdb.Error as error:
            raise BadInput(f"The query failed: {error}", "mend the query; tables: lake sql 'SHOW ALL TABLES'") from None
