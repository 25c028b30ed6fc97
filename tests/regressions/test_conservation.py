"""Rows and values are counted at the source and in the staged files: a partition whose counts differ is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ducklake_flows.extract import dlt_run
from ducklake_flows.staging.inspect import MARK
from tests.cases import DAYS, Case, case, failure
from tests.conftest import Lake, receipts

if TYPE_CHECKING:
    from collections.abc import Iterable

ROWS = [{"v": 1, "w": "a", "n": [1]}, {"v": None, "w": "b", "n": None}, {"v": 3, "w": None}]


def things(lake: Lake) -> Case:
    made = case(lake)
    for day in DAYS[:2]:
        made.given[day] = ROWS
    return made


def test_a_receipt_has_the_counts_of_the_source_and_of_the_staged_file(lake: Lake) -> None:
    made = things(lake)
    made.given[DAYS[1]] = lambda: pa.table({"v": [1.5, None], "s": [{"a": 1}, None], "l": [[1], []]})
    one, other = receipts(made.extract(*DAYS[:2]))
    assert one.source_values == one.values == {"": 3, "v": 2, "w": 2, "n": 1, "day": 3}
    assert other.source_values == {"": 2, "v": 1, "s": 1, "l": 2, "day": 2}
    assert {name: other.values[name] for name in other.source_values} == other.source_values


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        (lambda table: table.slice(1), "the source gave 3 rows, but 2 are in the staged file"),
        (
            lambda table: table.set_column(0, "v", pa.nulls(len(table), pa.int64())),
            "the source gave 2 values of column v, but 0 are in the staged file",
        ),
    ],
    ids=["a row", "a column's values"],
)
@pytest.mark.parametrize("days", [1, 2])
def test_a_row_or_value_lost_between_source_and_staged_file_is_refused(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, lose: Any, says: str, days: int
) -> None:
    """No known input makes dlt lose a value, so the test removes values from the files that dlt wrote."""
    run = dlt_run.run

    def losing(tables: Iterable[pa.Table], *rest: Any) -> list[dlt_run.Shape]:
        shapes = run(tables, *rest)
        for file in shapes[0].files:
            table = pq.read_table(file)
            first = table if days == 1 else table.filter(pa.compute.equal(table.column(MARK), 0))
            others = table.slice(len(first))
            pq.write_table(pa.concat_tables([lose(first), others]), file)
        return shapes

    monkeypatch.setattr(dlt_run, "run", losing)
    made = things(lake)
    outcomes = made.extract(*DAYS[:days])
    assert says in failure(outcomes[0])
    assert len(receipts(outcomes[1:])) == days - 1
