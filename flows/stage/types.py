"""Names and types: dlt's, DuckDB's, and how identifiers are quoted."""

from __future__ import annotations

from flows.datasets.model import DataType, Grain

DUCKDB_TYPES: dict[DataType, str] = {
    "text": "VARCHAR",
    "json": "VARCHAR",
    "bigint": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMP WITH TIME ZONE",
    "date": "DATE",
    "time": "TIME",
    "decimal": "DECIMAL(38,9)",
    "binary": "BLOB",
}
"""The DuckDB type of each of dlt's data types, as dlt writes it to Parquet."""

DLT_TYPES: dict[str, DataType] = {duckdb: dlt for dlt, duckdb in reversed(DUCKDB_TYPES.items())}
"""The other way round; what both text and json become is text."""


def partition_type(grain: Grain) -> str:
    """The DuckDB type of a partition column."""
    return "TIMESTAMP" if grain is Grain.hour else "DATE"


def quoted(name: str) -> str:
    """A SQL identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'
