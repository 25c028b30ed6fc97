"""Column types in contracts, DuckDB and Arrow, and the quoting of identifiers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.contract import DECIMAL, DataType

if TYPE_CHECKING:
    import pyarrow as pa

    from ducklake_flows.datasets.dataset import Dataset

_DECLARED: dict[DataType, str] = {
    "text": "VARCHAR",
    "json": "JSON",
    "bigint": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMP WITH TIME ZONE",
    "timestamp_ntz": "TIMESTAMP",
    "date": "DATE",
    "time": "TIME",
    "decimal": "DECIMAL(38,9)",
    "binary": "BLOB",
}


def declared_type(data_type: DataType) -> str:
    """The DuckDB type that a contract's type is staged and stored as."""
    if found := DECIMAL.fullmatch(data_type):
        return f"DECIMAL({int(found[1])},{int(found[2])})"
    return _DECLARED[data_type]


def declared_types(dataset: Dataset) -> dict[str, str]:
    """The DuckDB type of each declared column, then of those that are added; empty if no column is declared."""
    columns = {name: declared_type(data_type) for name, data_type in dataset.contract.columns.items()}
    return columns | {name: kind for name, kind in dataset.added_columns.items() if kind} if columns else {}


def is_nested(data_type: str) -> bool:
    """Whether a DuckDB type is a list, a struct or a map."""
    return data_type.endswith("]") or data_type.startswith(("STRUCT(", "MAP("))


def quoted(name: str) -> str:
    """A SQL identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


_ARROW = {
    "BOOLEAN": "bool",
    "TINYINT": "int8",
    "SMALLINT": "int16",
    "INTEGER": "int32",
    "BIGINT": "int64",
    "UTINYINT": "uint8",
    "USMALLINT": "uint16",
    "UINTEGER": "uint32",
    "UBIGINT": "uint64",
    "FLOAT": "float",
    "DOUBLE": "double",
    "VARCHAR": "string",
    "BLOB": "binary",
    "DATE": "date32[day]",
    "TIME": "time64[us]",
    "TIMESTAMP": "timestamp[us]",
    "TIMESTAMP WITH TIME ZONE": "timestamp[us, tz=UTC]",
    '"NULL"': "null",
}
"""DuckDB's types, each with the name of the Arrow type that it is staged as."""

_DUCKDB = {arrow: duckdb for duckdb, arrow in _ARROW.items()}


@cache
def duckdb_type(data_type: pa.DataType) -> str:
    """The DuckDB type of a column that is stored as this Arrow type; see `ducklake_flows.sources.values.storable`."""
    import duckdb
    import pyarrow as pa

    if known := _DUCKDB.get(str(data_type)):
        return known
    if isinstance(data_type, pa.BaseExtensionType):
        return "JSON"
    if pa.types.is_decimal(data_type):
        return f"DECIMAL({data_type.precision},{data_type.scale})"
    if pa.types.is_list(data_type):
        return f"{duckdb_type(data_type.value_type)}[]"
    if pa.types.is_map(data_type):
        text = f"MAP({duckdb_type(data_type.key_type)}, {duckdb_type(data_type.item_type)})"
    else:
        text = f"STRUCT({', '.join(f'{quoted(field.name)} {duckdb_type(field.type)}' for field in data_type)})"
    return str(duckdb.sqltype(text))


@cache
def arrow_type(data_type: str) -> pa.DataType | None:
    """The Arrow type that a column of this DuckDB type is staged as; None if there is none."""
    import duckdb
    import pyarrow as pa

    if data_type == "JSON":
        return pa.json_(pa.string())
    if known := _ARROW.get(data_type):
        return _arrow_of(known)
    kind = duckdb.sqltype(data_type)
    inner: dict[str, Any] = dict(kind.children) if kind.id in ("decimal", "list", "map", "struct") else {}
    if kind.id == "decimal":
        return pa.decimal128(inner["precision"], inner["scale"])
    types = {name: arrow_type(str(child)) for name, child in inner.items()}
    if not types or None in types.values():
        return None
    if kind.id == "list":
        return pa.list_(types["child"])
    return pa.map_(types["key"], types["value"]) if kind.id == "map" else pa.struct(list(types.items()))


def _arrow_of(text: str) -> pa.DataType:
    import pyarrow as pa

    if text.startswith("timestamp"):
        return pa.timestamp("us", tz="UTC" if "tz" in text else None)
    return {"date32[day]": pa.date32(), "time64[us]": pa.time64("us")}.get(text) or pa.type_for_alias(text)
