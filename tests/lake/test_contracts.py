"""What a contract changes in a filled table is told before anything runs, and a contract that cannot fit is refused."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.contracts import schema_changes
from ducklake_flows.lake.schema import table_columns
from ducklake_flows.models.lineage import readers
from ducklake_flows.plan import make_plan, plan_each
from tests.cases import DAYS, Case, case
from tests.projects import Project, model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder")

FIRST = {"id": "bigint", "v": "bigint", "t": "text"}


def changed(
    lake: Lake, columns: dict[str, str], **more: Any
) -> tuple[Case, list[tuple[str, str | None, str | None, bool]]]:
    """A filled table of the first contract, and what another one changes."""
    case(lake, contract=FIRST).each([{"id": 1, "v": 2, "t": "x"}])
    other = case(lake, contract=columns, **more)
    with connected(lake.settings, read_only=True) as con:
        found = schema_changes(con, [other.dataset], table_columns(con))
    return other, [(change.column, change.before, change.after, change.is_blocked) for change in found]


@pytest.mark.parametrize(
    ("columns", "more", "right"),
    [
        (FIRST, {}, []),
        ({**FIRST, "n": "double"}, {}, [("n", None, "DOUBLE", False)]),
        ({**FIRST, "v": "double"}, {}, [("v", "BIGINT", "DOUBLE", False)]),
        ({**FIRST, "v": "decimal(38,0)"}, {}, [("v", "BIGINT", "DECIMAL(38,0)", False)]),
        ({**FIRST, "v": "date"}, {}, [("v", "BIGINT", "DATE", True)]),
        ({**FIRST, "t": "json"}, {}, []),
        ({"id": "bigint", "v": "bigint"}, {}, []),
        ({"id": "bigint", "v": "bigint"}, {"schema_contract": "freeze"}, [("t", "VARCHAR", None, False)]),
    ],
)
def test_each_change_is_what_the_next_publish_does(
    lake: Lake, columns: dict[str, str], more: Any, right: list[Any]
) -> None:
    other, told = changed(lake, columns, **more)
    assert told == right
    values = {"id": 2, "v": date(2024, 1, 1) if columns["v"] == "date" else 3, "t": "{}", "n": 1.5}
    said = other.each(*([{name: values[name] for name in columns}] for _ in range(2)))[1]
    blocked = [name for name, _, _, is_blocked in right if is_blocked]
    assert bool(said) == bool(blocked), said
    if blocked:
        return
    there = other.columns
    for name, _, after, _ in right:
        if after is not None:
            assert there[name] == after
        else:
            assert lake.column(f"SELECT count({name}) FROM raw.things WHERE day = '{DAYS[1]}'") == [0]
    before = {"id": "BIGINT", "v": "BIGINT", "t": "VARCHAR", "day": "DATE"}
    assert {name: kind for name, kind in there.items() if name not in {r[0] for r in right}} == {
        name: kind for name, kind in before.items() if name not in {r[0] for r in right}
    }


def test_a_contract_that_cannot_fit_stops_its_dataset_before_anything_is_read(lake: Lake) -> None:
    other, _ = changed(lake, {**FIRST, "v": "date"})

    def never(_: Any) -> Any:
        raise AssertionError("nothing is read")

    broken = Dataset("things", never, partition_column="day", contract=other.dataset.contract, start=date(2024, 1, 1))
    fine = Dataset("fine", never, partition_column="day", start=date(2024, 1, 1), contract=Contract({"a": "text"}))
    day = date(2024, 1, 3)
    with pytest.raises(
        BadInput, match=r"The contract does not fit the table: raw\.things\.v: BIGINT -> DATE"
    ) as raised:
        make_plan(lake.settings, [broken], day, day)
    assert '"v": "bigint"' in raised.value.fix
    planned, left_out = plan_each(lake.settings, [broken, fine], day, day)
    assert ([p.dataset for p in planned], [(left.dataset, left.is_fault) for left in left_out]) == (
        ["fine"],
        [("things", True)],
    )
    # What is recorded is shown all the same.
    planned, left_out = plan_each(lake.settings, [broken], date(2024, 1, 1), day, recorded=True)
    assert (len(planned), left_out) == (3, [])


def test_a_table_without_rows_is_made_anew(lake: Lake) -> None:
    case(lake, contract=FIRST).each([])
    other = case(lake, contract={"id": "date"})
    with connected(lake.settings, read_only=True) as con:
        assert schema_changes(con, [other.dataset], table_columns(con)) == []
    assert other.each([{"id": date(2024, 1, 1)}]) == [""]


def test_the_models_that_are_built_from_a_column_are_named(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path / "models", lake, monkeypatch)
    days = "WHERE day BETWEEN @start_date AND @end_date"
    lake.land("readings/2024-01-01.jsonl", [{"id": 1, "value": 2.0, "unit": "m"}])
    lake.load("readings", "2024-01-01")
    for name, query in (
        ("bronze.a", f"SELECT id, value AS v, day FROM raw.readings {days}"),
        ("silver.b", f"SELECT id, v * 2 AS w, day FROM bronze.a {days}"),
        ("silver.c", f"SELECT id, day FROM bronze.a {days}"),
        ("silver.d", f"SELECT id, day FROM raw.readings {days} AND unit = 'm'"),
        ("gold.e", f"SELECT max(w) AS most, day FROM silver.b {days} GROUP BY day"),
    ):
        project.write(f"models/{name}.sql", model(name, query, "day"))
    asked = {("raw.readings", "value"), ("raw.readings", "unit"), ("raw.readings", "nobody")}
    from ducklake_flows.settings import load_settings

    assert readers(load_settings(), asked) == {
        ("raw.readings", "value"): ["bronze.a", "silver.b", "gold.e"],
        ("raw.readings", "unit"): ["silver.d"],
    }
