"""Datasets of several tables: lists within rows, and resources of a dlt source; replaced together or not at all."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ducklake_flows.datasets.audits import Audit, expect
from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset, Table
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.publish import Publisher
from ducklake_flows.lake.restore import stage_previous, stage_published
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.sources.files import Files
from ducklake_flows.staging.receipt import Failure
from tests.cases import DAYS, Case, case

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Lake

ONE, TWO, THREE = DAYS[:3]
ITEMS = {"items": Table()}

pytestmark = pytest.mark.short("sqlite+folder")


def orders(lake: Lake, key: str = "orders", source: Any = None, **divided: Any) -> Case:
    return case(lake, key, source, divided={"primary_key": ("id",), "children": ITEMS, **divided})


def items(lake: Lake, columns: str = "sku", key: str = "orders") -> list[tuple[Any, ...]]:
    found = lake.sql(
        f"SELECT strftime(day, '%d') AS day, {key}_id AS id, position, {columns} FROM raw.{key}__items ORDER BY ALL"
    )
    return [tuple(row.values()) for row in found]


def order(number: int, *skus: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "items": [{"sku": sku, **more} for sku in skus]}


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_a_list_becomes_a_table_with_partition_parent_and_position(lake: Lake) -> None:
    things = orders(lake)
    things.given |= {
        ONE: [order(1, "a", "b"), {"id": 2, "items": []}, {"id": 3}, {"id": 4, "items": None}, order(5, "c")],
        TWO: [order(6, "d")],
        THREE: [],
    }
    assert len(things.load(ONE, TWO, THREE).receipts) == 3
    assert items(lake) == [("01", 1, 0, "a"), ("01", 1, 1, "b"), ("01", 5, 0, "c"), ("02", 6, 0, "d")]
    assert set(things.columns) == {"id", "day"}
    assert lake.column("SELECT count(*) FROM raw.orders") == [6]
    assert things.errors() == []
    assert len(things.load(ONE, TWO, THREE).unchanged) == 3
    # Only an element changes: the parent's rows are the same, and the partition is published again as a whole.
    things.given[ONE][0]["items"][1]["sku"] = "B"
    result = things.load(ONE, TWO)
    assert ([r.partition for r in result.receipts], [r.partition for r in result.unchanged]) == ([ONE], [TWO])
    assert items(lake)[1] == ("01", 1, 1, "B")
    # Only the parent changes; then nothing is left of the children.
    things.given[ONE] = [order(9, "z")]
    assert things.load(ONE).receipts
    assert items(lake) == [("01", 9, 0, "z"), ("02", 6, 0, "d")]
    things.given[ONE] = [{"id": 9, "items": []}]
    assert things.load(ONE).receipts
    assert items(lake) == [("02", 6, 0, "d")]
    assert things.errors() == []
    rows = lake.sql("SELECT dataset, count(DISTINCT token) AS n FROM ops.ledger GROUP BY ALL ORDER BY ALL")
    assert rows == [{"dataset": "orders", "n": 4}, {"dataset": "orders__items", "n": 4}]


def test_elements_keep_their_values_exactly(lake: Lake) -> None:
    things = orders(lake)
    big, long = 12345678901234567890, Decimal("0.123456789012345678")
    things.given[ONE] = [
        {
            "id": 1,
            "items": [
                {"n": big, "x": 1.5},
                {"n": 1, "deep": {"a": [1, 2]}},
                None,
                {"d": Decimal("0.123456789012345678")},
            ],
        },
        {"id": 2, "items": ["text"]},
    ]
    assert things.load(ONE).receipts
    assert things.errors() == []
    found = lake.sql(
        'SELECT n, x, d, deep::VARCHAR AS deep, "value" FROM raw.orders__items ORDER BY orders_id, position'
    )
    assert [row["n"] for row in found] == [Decimal(big), Decimal(1), None, None, None]
    assert [row["d"] for row in found] == [None, None, None, long, None]
    assert [row["x"] for row in found] == [1.5, None, None, None, None]
    assert [row["deep"] for row in found] == [None, '{"a":[1,2]}', None, None, None]
    assert [row["value"] for row in found] == [None, None, None, None, "text"]


SOURCES: dict[str, Callable[[Lake], Any]] = {
    "function": lambda _: lambda _: [{"id": 1, "items": [{"sku": "a", "n": 2}, {"sku": "b", "n": None}]}],
    "arrow": lambda _: (
        lambda _: pa.table({"id": [1, 2, 3], "items": [[{"sku": "a", "n": 2}, {"sku": "b", "n": None}], None, []]})
    ),
    "large lists": lambda _: (
        lambda _: pa.table(
            {
                "id": [1],
                "items": pa.array(
                    [[{"sku": "a", "n": 2}, {"sku": "b", "n": None}]],
                    pa.large_list(pa.struct([("sku", pa.string()), ("n", pa.int64())])),
                ),
            }
        )
    ),
    "json file": lambda _: Files("orders/{partition}.jsonl", "jsonl"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_the_same_rows(lake: Lake, kind: str) -> None:
    rows = [{"id": 1, "items": [{"sku": "a", "n": 2}, {"sku": "b", "n": None}]}]
    lake.land(f"orders/{ONE}.jsonl", rows)
    things = orders(lake, source=SOURCES[kind](lake))
    assert things.load(ONE).receipts
    assert items(lake, "sku, n") == [("01", 1, 0, "a", 2), ("01", 1, 1, "b", None)]
    assert things.errors() == []


def test_many_rows_and_many_batches_keep_their_parents_and_positions(lake: Lake) -> None:
    made = [
        {"id": number, "items": [{"sku": f"{number}-{place}"} for place in range(number % 4)]}
        for number in range(25_000)
    ]
    split = [
        pa.table({"id": [r["id"] for r in made[at::2]], "items": [r["items"] for r in made[at::2]]}) for at in (0, 1)
    ]
    things = orders(lake, source=lambda partition: iter(made) if partition.key == ONE else iter(split))
    assert len(things.load(ONE, TWO).receipts) == 2
    for day in (ONE, TWO):
        found = lake.sql(
            "SELECT count(*) AS n, count_if(sku = orders_id || '-' || position) AS right_ "
            f"FROM raw.orders__items WHERE day = '{day}'"
        )
        assert found == [{"n": 37_500, "right_": 37_500}]
    assert things.errors() == []


@pytest.mark.parametrize(
    ("rows", "children", "why"),
    [
        ([{"id": 1, "items": "a"}], ITEMS, "column items: holds values of type string, not lists"),
        ([{"id": 1, "items": {"a": 1}}], ITEMS, 'row 1: column items: is not a list, but {"a":1}'),
        (
            [order(1, "a"), order(2, 5)],
            ITEMS,
            "column items.sku: 5 is an integer, but the earlier value",
        ),
        (
            [{"id": 1, "items": [{"position": 1}]}],
            ITEMS,
            "column items.position: is the name of a column",
        ),
        ([{"items": [1]}], ITEMS, "column id: is the parent's key of orders__items"),
        (
            [order(1, "a"), order(2, "x")],
            {"items": Table(Contract({"sku": "bigint"}))},
            "orders__items: row 1: column sku: 'a' cannot be bigint",
        ),
        (
            [order(1, "a", extra=1)],
            {"items": Table(Contract({"sku": "text"}, "freeze"))},
            "column extra: is not in the contract",
        ),
        (
            [order(1, *"abcd")],
            {"items": Table(audits=(Audit("few", "count(*) < 4", aggregate=True),))},
            "orders__items: audit 'few' failed",
        ),
        (
            [order(1, "a")],
            {"items": Table(audits=(expect("no a", "sku <> 'a'"),))},
            "orders__items: audit 'no a' failed: 1 row",
        ),
        ([order(1, "a"), order(1, "b")], ITEMS, "duplicate of the primary key (id)"),
        (
            [order(1, "a"), order(2, "a")],
            {"items": Table(primary_key=("sku",))},
            "orders__items: duplicate of the primary key (sku): 1 row",
        ),
    ],
)
def test_a_fault_of_an_element_refuses_its_partition_alone(
    lake: Lake, rows: list[dict[str, Any]], children: dict[str, Table], why: str
) -> None:
    things = orders(lake, children=children)
    things.given |= {ONE: rows, TWO: [{"id": 1, "items": []}]}
    (failure,) = things.load(ONE, TWO).failures
    assert isinstance(failure, Failure)
    assert (failure.dataset, failure.partition) == ("orders", ONE)
    assert why in failure.error
    assert lake.column("SELECT count(*) FROM raw.orders") == [1]
    assert things.errors() == []


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_a_table_of_another_type_refuses_the_parent_too(lake: Lake) -> None:
    things = orders(lake)
    things.given |= {ONE: [order(1, 5)], TWO: [order(2, "a")], THREE: [order(3, 6)]}
    assert things.load(ONE).receipts
    result = things.load(TWO, THREE)
    assert [r.partition for r in result.receipts] == [THREE]
    (failure,) = result.failures
    assert "orders__items: column sku is VARCHAR in this partition, but BIGINT in raw.orders__items" in failure.error
    assert lake.column("SELECT id FROM raw.orders ORDER BY 1") == [1, 3]
    assert items(lake) == [("01", 1, 0, 5), ("03", 3, 0, 6)]


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_a_rollback_restores_both_tables_together(lake: Lake) -> None:
    things = orders(lake)
    for given in ([order(1, "a")], [order(1, "b")], [order(2, "b")]):
        things.given[ONE] = given
        things.load(ONE)
    partition = things.dataset.partition(ONE)
    for right in ([("01", 1, 0, "b")], [("01", 1, 0, "a")]):
        things.publish([stage_previous(lake.settings, things.dataset, partition)])
        assert items(lake) == right
        assert lake.column("SELECT id FROM raw.orders") == [1]
        assert things.errors() == []
    with pytest.raises(BadInput, match="has no attempt before"):
        stage_previous(lake.settings, things.dataset, partition)


def test_lost_rows_of_a_child_are_found_and_restored(lake: Lake) -> None:
    things = orders(lake)
    things.given[ONE] = [order(1, "a", "b")]
    things.load(ONE)
    with connect(lake.settings) as con:
        con.execute("DELETE FROM lake.raw.orders__items WHERE position = 1")
    assert things.damaged() == [ONE]
    # From the last snapshot that has them, as `lake repair` does if the source is gone.
    (member,) = things.dataset.members
    receipt = stage_published(lake.settings, member, member.partition(ONE))
    publisher = Publisher(lake.settings, [member], "test", recheck=True)
    assert publisher.publish([receipt]).receipts
    publisher.close()
    assert items(lake) == [("01", 1, 0, "a"), ("01", 1, 1, "b")]
    assert things.errors() == []


def test_resources_of_one_dlt_source_are_tables_of_one_commit(lake: Lake) -> None:
    read: list[str] = []

    def source(partition: Any) -> Any:
        import dlt

        @dlt.source
        def tracker() -> Any:
            def issues() -> Any:
                read.append(partition.key)
                yield [{"id": 1, "title": "one"}, {"id": 2, "title": "two"}]

            def comments() -> Any:
                yield {"id": 10, "issue": 1, "text": "a"}
                yield pa.table({"id": [11], "issue": [2], "text": ["b"]})

            return dlt.resource(issues, name="issues"), dlt.resource(comments, name="comments")

        return tracker()

    tables = {"comments": Table(Contract({"id": "bigint", "issue": "bigint", "text": "text"}), ("id",))}
    things = case(lake, "issues", source, divided={"resources": tables})
    assert len(things.load(ONE, TWO).receipts) == 2
    assert read == [ONE, TWO]
    found = lake.sql("SELECT strftime(day, '%d') AS day, id, issue, text FROM raw.issues__comments ORDER BY ALL")
    assert [tuple(row.values()) for row in found] == [
        (day, *row) for day in ("01", "02") for row in ((10, 1, "a"), (11, 2, "b"))
    ]
    assert lake.column("SELECT count(*) FROM raw.issues") == [4]
    assert things.errors() == []
    # One that the dataset does not name, and one that the source does not have.
    alone = case(lake, "alone", source)
    assert "the dlt source has 2 resources: issues, comments" in alone.load(ONE).failures[0].error
    more = case(lake, "more", source, divided={"resources": {**tables, "users": Table()}})
    assert "a table for users, but the source has these resources: issues, comments" in more.load(ONE).failures[0].error


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"children": ITEMS}, "the rows of items need the key of their parent"),
        ({"children": {"It ems": Table()}, "primary_key": ("id",)}, "'It ems' is not the name of a table"),
        ({"children": {"id": Table()}, "primary_key": ("id",)}, "id has a table of its own"),
        (
            {"children": ITEMS, "primary_key": ("id",), "contract": Contract({"id": "bigint", "items": "json"})},
            "items has a table of its own",
        ),
        ({"children": ITEMS, "resources": ITEMS, "primary_key": ("id",)}, "items is both a column and a resource"),
        (
            {"children": {"items": Table(Contract({"position": "bigint"}))}, "primary_key": ("id",)},
            "the pipeline adds position to the rows of items",
        ),
        ({"resources": {"a": Table(Contract({"id": "bigint"}), ("no",))}}, "lacks columns of the primary key: no"),
    ],
)
def test_a_wrong_table_is_refused_at_its_definition(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        Dataset("orders", lambda _: [], Grain.day, "day", **arguments)


NESTED: dict[str, Any] = {
    "function": lambda _: [{"id": 1, "o": {"b": "x", "a": [1, 2]}}, {"id": 2, "o": None}],
    "arrow": lambda _: pa.table({"id": [1, 2], "o": [{"a": [1, 2], "b": "x"}, None]}),
    "json file": Files("orders/{partition}.jsonl", "jsonl"),
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize(
    ("nested", "data_type", "value"),
    [
        ("json", "JSON", ['{"a":[1,2],"b":"x"}', None]),
        ("struct", "STRUCT(a BIGINT[], b VARCHAR)", [{"a": [1, 2], "b": "x"}, None]),
    ],
)
def test_nested_values_are_stored_alike_from_every_source(
    lake: Lake, kind: str, nested: str, data_type: str, value: Any
) -> None:
    lake.land(f"orders/{ONE}.jsonl", [{"id": 1, "o": {"a": [1, 2], "b": "x"}}, {"id": 2, "o": None}])
    things = case(lake, "orders", NESTED[kind], nested=nested)
    assert things.load(ONE).receipts
    assert things.columns["o"] == data_type
    found = lake.column("SELECT o FROM raw.orders ORDER BY id")
    assert [json.loads(v) if isinstance(v, str) else v for v in found] == [
        json.loads(v) if isinstance(v, str) else v for v in value
    ]
    assert things.errors() == []


@pytest.mark.parametrize("mode", ["evolve", "freeze", "discard_row", "discard_value"])
@pytest.mark.parametrize("form", ["rows", "arrow", "jsonl", "parquet"])
def test_a_list_with_a_table_is_kept_whatever_the_contract_does_with_columns(lake: Lake, form: str, mode: str) -> None:
    source = Files(f"orders/{{partition}}.{form}", form) if form in ("jsonl", "parquet") else None  # type: ignore[arg-type]
    divided = {"primary_key": ("id",), "children": ITEMS}
    things = case(lake, "orders", source, {"id": "bigint"}, divided=divided, schema_contract={"columns": mode})
    bootstrap(lake.settings, [things.dataset])
    rows = [order(1, "a", "b"), {"id": 2, "items": []}]
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    if form == "jsonl":
        lake.land(f"orders/{ONE}.jsonl", rows)
    elif form == "parquet":
        lake.land(f"orders/{ONE}.parquet", sink.getvalue().to_pybytes())
    things.given[ONE] = table if form == "arrow" else rows
    assert not things.load(ONE).failures
    assert items(lake) == [("01", 1, 0, "a"), ("01", 1, 1, "b")]
    assert lake.column("SELECT id FROM raw.orders ORDER BY id") == [1, 2]
    assert things.errors() == []


def test_values_without_a_common_structure_are_refused_or_stay_json(lake: Lake) -> None:
    mixed = [{"id": 1, "o": {"a": 1}}, {"id": 2, "o": {"a": "x"}}]
    things = case(lake, "orders", nested="struct")
    assert "column o: its values have no common structure" in things.refused(mixed)
    assert case(lake, "others", nested="json").each(mixed) == [""]
    grown = case(lake, "grown", nested="struct")
    assert grown.each([{"o": {"a": 1}}], [{"o": {"a": 2, "b": "x"}}]) == ["", ""]
    assert grown.values("o", "day") == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    assert grown.errors() == []
