"""Hostile names and contents: none is executed, none writes outside its folder, and values are published unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import BadInput
from ducklake_flows.plan import make_plan
from ducklake_flows.project import get_datasets

if TYPE_CHECKING:
    from tests.conftest import Lake

DAY = "2024-01-01"
HOSTILE = [
    "'; DROP TABLE ops.ledger; --",
    '"; DROP SCHEMA ops CASCADE; --',
    "') TO '/tmp/out' (FORMAT csv); --",
    "../../../etc/passwd",
    "a\x00b",
    "\u202egnp.exe",
    "ключ",
    "🦆" * 40,
    "x" * 5_000,
    "{{ 7 * 7 }}",
    "@macro(",
    "%s %(day)s",
    "day=1/../..",
    "line\nbreak\r\ttab",
    "day",
    "_dlt_id",
    "rowid",
    "",
    " ",
]
only_once = pytest.mark.parametrize("lake", ["sqlite+folder"], indirect=True)
text = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))
values = st.one_of(text, st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans())
rows = st.lists(st.dictionaries(text, values, max_size=4), min_size=1, max_size=4)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@only_once
def test_hostile_contents_become_rows_or_one_failure(lake: Lake, tmp_path: Path) -> None:
    home = lake.settings.home
    outside = {path for path in files(tmp_path) if home not in path.parents}
    tables = lake.column("SELECT table_name FROM duckdb_tables() ORDER BY 1")
    count = 0

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(rows)
    def check(content: list[dict[str, Any]]) -> None:
        nonlocal count
        count += 1
        lines = [{"n": number, **row} for number, row in enumerate(content)]
        lake.land(f"readings/{DAY}.jsonl", lines)
        result = lake.load("readings", DAY)
        assert len(result.receipts) + len(result.unchanged) + len(result.failures) == 1
        if result.receipts:
            assert lake.column("SELECT count(*) FROM raw.readings") == [len(lines)]
        assert set(lake.column("SELECT table_name FROM duckdb_tables()")) <= {*tables, "readings"}

    check()
    assert count >= 15
    assert lake.errors() == []
    assert {path for path in files(tmp_path) if home not in path.parents} == outside


@only_once
def test_hostile_values_are_stored_unchanged(lake: Lake) -> None:
    """Except a NUL: DuckLake truncates a text there, so the text is refused with its column."""
    lake.land(f"readings/{DAY}.jsonl", [{"n": n, "text": value} for n, value in enumerate(HOSTILE)])
    assert "column text: text with a NUL character" in lake.load("readings", DAY).failures[0].error
    kept = [value for value in HOSTILE if "\0" not in value]
    lake.land(f"readings/{DAY}.jsonl", [{"n": n, "text": value} for n, value in enumerate(kept)])
    lake.load("readings", DAY)
    assert lake.column("SELECT text FROM raw.readings ORDER BY n") == kept


@only_once
def test_hostile_file_names_match_no_partition(lake: Lake) -> None:
    lake.land(f"readings/{DAY}.jsonl", [{"n": 1}])
    folder = Path(lake.settings.landing, "readings")
    for name in (f"{DAY}'; DROP TABLE ops.ledger; --", f"{DAY}\n", f"..{DAY}", "🦆" * 40, f"{DAY}.jsonl.partial"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"n": 2}))
    planned = make_plan(lake.settings, get_datasets(["readings"]))
    assert [p.partition for p in planned if p.source_version] == [DAY]
    lake.load("readings", DAY)
    assert lake.column("SELECT n FROM raw.readings") == [1]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_key_or_partition_is_refused(name: str) -> None:
    if name != "day":
        with pytest.raises(BadInput):
            Dataset(key=name, source=lambda partition: [])
    with pytest.raises(BadInput):
        get_datasets([name])
    for grain in Grain:
        with pytest.raises(BadInput):
            parse_partition(name, grain)
