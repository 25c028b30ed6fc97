"""Values of more than 4 KiB: Arrow writes no min and max for them, and DuckLake would use those of other files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from ducklake_flows.lake import verify as verification
from tests.cases import case

if TYPE_CHECKING:
    from tests.conftest import Lake

LONG = "z" * 5000


@pytest.mark.parametrize(
    ("days", "together"), [(("long", "short"), False), (("short", "long"), True), (("long", "both"), False)]
)
def test_long_values_are_found(
    lake: Lake, days: tuple[str, str], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = case(lake, "notes", contract={"v": "text", "b": "binary", "j": "json"})
    monkeypatch.setattr(verification, "all_tables", lambda: [told.dataset])
    texts: dict[str, list[str | None]] = {"long": [LONG], "short": ["x"], "both": [LONG + "a", "y", None]}
    rows: list[dict[str, Any]] = []
    for key, kind in zip(("2024-01-01", "2024-01-02"), days, strict=True):
        told.given[key] = [
            {"v": text, "b": text and text.encode(), "j": {"text": text}, "t": None if text is None else [text]}
            for text in texts[kind]
        ]
        rows += told.given[key]
    for keys in [tuple(told.given)] if together else [(key,) for key in told.given]:
        assert told.load(*keys).failures == []
    there = sorted(row["v"] for row in rows if row["v"] is not None)
    table = told.dataset.table
    assert lake.column(f"SELECT v FROM {table} WHERE v IS NOT NULL ORDER BY v") == there
    assert lake.column(f"SELECT max(v) FROM {table}") == [there[-1]]
    assert lake.column(f"SELECT min(v) FROM {table}") == [there[0]]
    for text in there:
        assert lake.column(f"SELECT v FROM {table} WHERE v = '{text}'") == [text]
        assert lake.column(f"SELECT b FROM {table} WHERE b = '{text}'::BLOB") == [text.encode()]
        wanted = json.dumps({"text": text}, separators=(",", ":"))
        assert lake.column(f"SELECT j FROM {table} WHERE j = '{wanted}'::JSON") == [wanted]
        assert lake.column(f"SELECT v FROM {table} WHERE v >= '{text}' ORDER BY v") == [t for t in there if t >= text]
    assert told.types()["j"] == "JSON"
    assert lake.errors() == []


def test_long_values_in_arrow_tables_are_found(lake: Lake) -> None:
    told = case(lake, "notes")
    nested = pa.struct([("a", pa.string()), ("b", pa.list_(pa.string()))])
    for key, text in (("2024-01-01", LONG), ("2024-01-02", "x")):
        told.given[key] = pa.table({"v": [text], "s": pa.array([{"a": text, "b": [text, None]}], nested)})
        assert told.load(key).failures == []
    table = told.dataset.table
    assert lake.column(f"SELECT v FROM {table} WHERE v > 'y'") == [LONG]
    assert lake.column(f"SELECT s.a FROM {table} WHERE s.a > 'y'") == [LONG]
    assert lake.column(f"SELECT s.b[1] FROM {table} WHERE s.b[1] > 'y'") == [LONG]
    assert told.types() == {"v": "VARCHAR", "s": "STRUCT(a VARCHAR, b VARCHAR[])"}
