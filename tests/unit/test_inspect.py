"""The fingerprint: equal rows have equal fingerprints, however they are stored. And the audits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets.audits import at_least, expect
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain, Partition
from ducklake_flows.staging.inspect import Inspection, inspect

if TYPE_CHECKING:
    from pathlib import Path

DATASET = Dataset(key="things", source=lambda p: [], grain=Grain.full)
FULL = Partition("full", Grain.full)
ROWS = st.lists(
    st.fixed_dictionaries({"a": st.none() | st.integers(-5, 5), "b": st.none() | st.text(max_size=3)}), max_size=8
)


def look(path: Path, table: pa.Table, dataset: Dataset = DATASET) -> Inspection:
    pq.write_table(table, path)
    return inspect(dataset, [FULL], [str(path)])[0]


def table(rows: list[dict[str, object]], a: str = "int64") -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([("a", pa.type_for_alias(a)), ("b", pa.string())]))


@given(rows=ROWS, data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_the_fingerprint_depends_only_on_the_rows(
    tmp_path: Path, rows: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path / "f.parquet"
    plain = look(path, table(rows)).fingerprint
    shuffled = table(data.draw(st.permutations(rows)))
    assert look(path, shuffled).fingerprint == plain
    assert look(path, shuffled.select(["b", "a"])).fingerprint == plain
    assert look(path, table(rows, "int8")).fingerprint == plain, "a wider integer is the same integer"
    assert look(path, table(rows).append_column("c", pa.nulls(len(rows), pa.string()))).fingerprint == plain
    changed = [*rows, {"a": 1, "b": "more"}]
    assert look(path, table(changed)).fingerprint != plain


def test_swapped_values_change_the_fingerprint(tmp_path: Path) -> None:
    one = table([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}])
    other = table([{"a": 1, "b": "y"}, {"a": 2, "b": "x"}])
    assert look(tmp_path / "f.parquet", one).fingerprint != look(tmp_path / "f.parquet", other).fingerprint


def test_audits_count_the_rows_that_break_them(tmp_path: Path) -> None:
    dataset = Dataset(
        key="things",
        source=lambda p: [],
        grain=Grain.full,
        primary_key=("a",),
        audits=(at_least(5), expect("short", "length(b) < 3"), expect("no x", "b <> 'x'", on_fail="warn")),
    )
    rows: list[dict[str, object]] = [{"a": 1, "b": "x"}, {"a": 1, "b": "long"}, {"a": None, "b": None}]
    found = look(tmp_path / "f.parquet", table(rows), dataset)
    assert found.broken == (
        "null in the primary key (a): 1 row",
        "duplicate of the primary key (a): 1 row",
        "audit 'at_least(5)' failed: 3, expected at least 5",
        "audit 'short' failed: 1 row",
    )
    assert found.warnings == ("audit 'no x' failed: 1 row",)


def test_audits_without_rows_pass_except_at_least() -> None:
    dataset = Dataset(
        key="things", source=lambda p: [], grain=Grain.full, audits=(at_least(1), at_least(0)), primary_key=()
    )
    found = inspect(dataset, [FULL], [])[0]
    assert found.rows == 0
    assert found.broken == ("audit 'at_least(1)' failed: 0, expected at least 1",)


@pytest.mark.parametrize("said", ["2024-01-01", "2024-01-02"])
def test_rows_of_another_partition_are_found(tmp_path: Path, said: str) -> None:
    from datetime import date

    dataset = Dataset(key="things", source=lambda p: [], partition_column="day")
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"day": [date(2024, 1, 1)] * 3}), path)
    found = inspect(dataset, [Partition(said)], [str(path)])[0]
    assert bool(found.broken) == (said == "2024-01-02")
