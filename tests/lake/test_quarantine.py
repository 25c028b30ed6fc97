"""Rows that break a rule are set aside with the reason and the place, in the commit of the rest; none is lost."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ducklake_flows.datasets.audits import Audit, expect, not_null
from ducklake_flows.datasets.contract import Contract, Refused
from ducklake_flows.datasets.dataset import Dataset, Table
from ducklake_flows.errors import BadInput
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.restore import stage_previous
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.lake.verify import verify
from ducklake_flows.sources.files import Files
from ducklake_flows.sources.sift import sifted
from ducklake_flows.sources.values import conform
from tests.cases import DAYS, Case, case

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conftest import Lake

ONE, TWO, THREE = DAYS[:3]
CONTRACT = {"id": "bigint", "amount": "bigint"}
DISCARD = {"columns": "discard_row", "data_type": "discard_row"}
POSITIVE = expect("positive", "amount > 0", on_fail="quarantine")

pytestmark = pytest.mark.short("sqlite+folder")


def things(lake: Lake, source: Any = None, key: str = "things", modes: Any = DISCARD, **divided: Any) -> Case:
    made = case(lake, key, source, CONTRACT, divided={"audits": (POSITIVE,), **divided}, schema_contract=modes)
    bootstrap(lake.settings, [made.dataset])
    return made


def aside(lake: Lake, columns: str = "reason, column_name, content", key: str = "things") -> list[tuple[Any, ...]]:
    query = f"SELECT strftime(day, '%d') AS d, {columns} FROM raw.{key}__quarantine ORDER BY ALL"
    return [tuple(row.values()) for row in lake.sql(query)]


def counted(lake: Lake, key: str = "things") -> dict[str, tuple[int, int, int]]:
    """The rows of each day according to the last ledger row: extracted, published, set aside."""
    found = lake.sql(
        "SELECT partition, arg_max((rows_in, rows_published, rows_quarantined), token)::VARCHAR AS n FROM ops.ledger "
        f"WHERE dataset = '{key}' AND state IN ('published', 'rolled_back') GROUP BY ALL ORDER BY ALL"
    )
    return {row["partition"]: tuple(map(int, row["n"].strip("()").split(", "))) for row in found}  # type: ignore[misc]


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_rows_that_break_a_rule_are_set_aside_with_the_reason(lake: Lake) -> None:
    one = things(lake)
    one.given |= {
        ONE: [
            {"id": 1, "amount": 5},
            {"id": 2, "amount": "many"},
            {"id": 3, "amount": -7},
            {"id": 4, "amount": 1, "extra": "x"},
            {"id": 5, "amount": None},
        ],
        TWO: [{"id": 6, "amount": 6}],
    }
    assert len(one.load(ONE, TWO).receipts) == 2
    assert lake.column("SELECT id FROM raw.things ORDER BY id") == [1, 5, 6]
    assert aside(lake) == [
        ("01", "'many' cannot be bigint", "amount", '{"id":2,"amount":"many"}'),
        ("01", "audit positive failed", None, f'{{"id":3,"amount":-7,"day":"{ONE}"}}'),
        ("01", "is not in the contract, but holds 'x'", "extra", '{"id":4,"amount":1,"extra":"x"}'),
    ]
    assert counted(lake) == {ONE: (5, 2, 3), TWO: (1, 1, 0)}
    assert one.errors() == []
    assert len(one.load(ONE, TWO).unchanged) == 2
    # A partition that never had such a row has no ledger row in the quarantine table.
    assert set(counted(lake, "things__quarantine")) == {ONE}
    # After a fix the rows are there once, and nothing is left in the quarantine.
    one.given[ONE] = [{"id": number, "amount": 1} for number in range(1, 6)]
    assert one.load(ONE).receipts
    assert lake.column("SELECT id FROM raw.things ORDER BY id") == [1, 2, 3, 4, 5, 6]
    assert aside(lake) == []
    assert counted(lake) == {ONE: (5, 5, 0), TWO: (1, 1, 0)}
    assert one.errors() == []
    # Back, with the rows that were set aside then.
    one.publish([stage_previous(lake.settings, one.dataset, one.dataset.partition(ONE))])
    assert lake.column("SELECT id FROM raw.things ORDER BY id") == [1, 5, 6]
    assert len(aside(lake)) == 3
    assert counted(lake)[ONE] == (5, 2, 3)
    assert one.errors() == []


def test_a_rollback_to_before_the_quarantine_leaves_it_empty(lake: Lake) -> None:
    one = things(lake)
    one.each([{"id": 1, "amount": 1}])
    one.each([{"id": 1, "amount": 1}, {"id": 2, "amount": 0}])
    assert len(aside(lake)) == 1
    one.publish([stage_previous(lake.settings, one.dataset, one.dataset.partition(ONE))])
    assert (lake.column("SELECT id FROM raw.things"), aside(lake), counted(lake)) == ([1], [], {ONE: (1, 1, 0)})
    assert one.errors() == []


def test_lines_that_cannot_be_read_are_set_aside_with_their_text(lake: Lake) -> None:
    csv = things(lake, Files("csv/{partition}.csv", "csv"), "csv")
    lake.land(f"csv/{ONE}.csv", b'id,amount\n1,5\n2\n3,x\n\n4,5,6\n5,\xff\n6,"7"\n7,0x7\n8,9\n')
    assert csv.load(ONE).receipts
    assert lake.column("SELECT id FROM raw.csv ORDER BY id") == [1, 6, 8]
    found = aside(lake, "line, column_name, reason, content, file", "csv")
    file = f"csv/{ONE}.csv"
    assert found == [
        ("01", 3, None, "it has 1 columns instead of 2", "2", file),
        ("01", 4, "amount", "'x' cannot be bigint", '{"id":"3","amount":"x"}', file),
        ("01", 6, None, "it has 3 columns instead of 2", "4,5,6", file),
        (
            "01",
            7,
            None,
            "it is not UTF-8; set the encoding in the dataset, such as encoding='latin-1'",
            "5,\\xff",
            file,
        ),
        ("01", 9, "amount", "'0x7' cannot be bigint", '{"id":"7","amount":"0x7"}', file),
    ]
    assert counted(lake, "csv") == {ONE: (8, 3, 5)}
    lake.land(f"csv/{TWO}.csv", 'id,amount\n1,5\n2,"6\n3,7\n')
    assert "line 3: a quote is not closed" in csv.load(TWO).failures[0].error

    lines = things(lake, Files("lines/{partition}.jsonl", "jsonl"), "lines")
    lake.land(f"lines/{ONE}.jsonl", b'{"id": 1, "amount": 5}\n{"id": 2\n\n[]\n{"id": 3, "amount": "\xff"}\n{"id": 4}\n')
    assert lines.load(ONE).receipts
    assert lake.column("SELECT id FROM raw.lines ORDER BY id") == [1, 4]
    found = aside(lake, "line, reason, content, file", "lines")
    assert [(line, text, where) for _, line, _, text, where in found] == [
        (2, '{"id": 2', f"lines/{ONE}.jsonl"),
        (4, "[]", f"lines/{ONE}.jsonl"),
        (5, '{"id": 3, "amount": "\\xff"}', f"lines/{ONE}.jsonl"),
    ]
    assert "is not JSON" in found[0][2]
    assert (csv.errors(), lines.errors()) == ([], [])


def test_more_than_the_limit_reject_the_partition(lake: Lake) -> None:
    rows = [{"id": n, "amount": 0 if n < 3 else n} for n in range(1, 101)]
    for number, (limit, is_rejected) in enumerate(
        (("2 %", False), ("1.5%", True), (2, False), (1, True), (None, False))
    ):
        one = things(lake, key=f"things{number}", quarantine_limit=limit)
        said = one.each(rows)
        assert bool(said[0]) == is_rejected, limit
        if is_rejected:
            assert said == [
                f"2 of 100 rows would be set aside, more than the dataset's limit of {limit}: audit positive failed: 2"
            ]
            assert lake.column(f"SELECT count(*) FROM raw.things{number}") == [0] if limit is None else True


def test_verify_compares_the_counts(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "ruled.py").write_text(
        "from ducklake_flows import Contract, Dataset, Files\n"
        'RULED = Dataset("ruled", Files("ruled/{partition}.csv", "csv"), partition_column="day",\n'
        '    contract=Contract({"id": "bigint"}, schema_contract={"data_type": "discard_row"}))\n'
    )
    monkeypatch.setenv("LAKE_DATASETS", str(tmp_path / "rules"))
    lake.land(f"ruled/{ONE}.csv", "id\n1\nx\n")
    assert lake.load("ruled", ONE).receipts
    assert lake.errors() == []
    con = connect(lake.settings)
    con.execute("UPDATE lake.ops.ledger SET rows_quarantined = 0 WHERE dataset = 'ruled'")
    con.close()
    (found,) = [finding for finding in verify(lake.settings) if finding.check == "quarantine"]
    assert (found.subject, found.message) == (
        f"ruled {ONE}",
        "extracted: 2 rows, published: 1, set aside: 0; raw.ruled__quarantine has 1",
    )


FORMS = ("rows", "arrow", "csv", "jsonl", "parquet")
AMOUNTS = st.one_of(st.integers(-3, 3), st.sampled_from(["x", "", "4", "1.5", "5\n6"]), st.none())


def _is_good(amount: Any) -> bool:
    if amount in (None, "4"):
        return True
    return isinstance(amount, int) and amount > 0


@pytest.mark.parametrize("form", FORMS)
@given(days=st.lists(st.lists(AMOUNTS, max_size=30), min_size=1, max_size=3))
@settings(max_examples=4, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
def test_every_row_is_published_or_set_aside(lake: Lake, form: str, days: Sequence[Sequence[Any]]) -> None:
    key = f"p{next(_KEYS)}"
    source = None if form in ("rows", "arrow") else Files(f"{key}/{{partition}}.{form}", form, empty=True)  # type: ignore[arg-type]
    one = things(lake, source, key)
    in_text = form not in ("rows", "jsonl")
    if in_text:  # in such a column, an empty text of CSV is a null
        days = [[str(v) if v is not None else None for v in amounts if v != "" or form != "csv"] for amounts in days]
    for day, amounts in zip(DAYS, days, strict=False):
        rows = [{"id": number, "amount": amount} for number, amount in enumerate(amounts)]
        if form == "rows":
            one.given[day] = rows
            continue
        schema = pa.schema([("id", pa.int64()), ("amount", pa.string())])
        if form == "jsonl":
            lake.land(f"{key}/{day}.jsonl", rows)
            continue
        table = pa.Table.from_pylist(rows, schema)
        if form == "arrow":
            one.given[day] = table
        elif form == "parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            lake.land(f"{key}/{day}.parquet", sink.getvalue().to_pybytes())
        else:
            quoted = ("" if row["amount"] is None else f'"{row["amount"]}"' for row in rows)
            lines = [f"{row['id']},{amount}\n" for row, amount in zip(rows, quoted, strict=True)]
            lake.land(f"{key}/{day}.csv", "id,amount\n" + "".join(lines))
    wanted = list(DAYS[: len(days)])
    result = one.load(*wanted)
    assert not result.failures, result.failures
    for day, amounts in zip(wanted, days, strict=True):
        values = [int(v) if in_text and v not in (None,) and v.lstrip("-").isdigit() else v for v in amounts]
        good = [number for number, value in enumerate(values) if _is_good(value)]
        assert lake.column(f"SELECT id FROM raw.{key} WHERE day = '{day}' ORDER BY id") == good
        texts = lake.column(f"SELECT content FROM raw.{key}__quarantine WHERE day = '{day}'")
        set_aside = Counter(int(json.loads(text)["id"]) for text in texts)
        assert set_aside == Counter(number for number in range(len(amounts)) if number not in good)
        assert counted(lake, key)[day] == (len(amounts), len(good), len(amounts) - len(good))
    assert one.errors() == []


_KEYS = iter(range(10_000))


def test_many_rows_are_set_aside_among_many(lake: Lake) -> None:
    numbers = range(50_000)
    one = things(lake)
    one.given[ONE] = pa.table({"id": numbers, "amount": [f"{n}x" if n % 7 == 0 else "1" for n in numbers]})
    assert one.load(ONE).receipts
    assert lake.column("SELECT count(*) FROM raw.things") == [50_000 - 7143]
    wanted = [n for n in numbers if n % 7 == 0]
    assert lake.column("SELECT line FROM raw.things__quarantine ORDER BY line") == [n + 1 for n in wanted]
    assert one.errors() == []


def test_rules_that_cannot_set_rows_aside_are_refused_where_they_are_defined() -> None:
    def defined(**more: Any) -> Dataset:
        return Dataset("d", lambda _: [], partition_column="day", **more)

    discard = Contract({"id": "bigint"}, schema_contract={"data_type": "discard_row"})
    for more, message in (
        ({"quarantine_limit": 5}, "no rule sets rows aside"),
        ({"contract": discard, "quarantine_limit": "many"}, "quarantine_limit is 'many'"),
        ({"contract": discard, "resources": {"quarantine": Table()}}, "quarantine is that of rows which are set aside"),
        ({"primary_key": ("id",), "children": {"items": Table(discard)}}, "items cannot set rows aside"),
    ):
        with pytest.raises(BadInput, match=message):
            defined(**more)
    with pytest.raises(BadInput, match="an aggregate does not say which rows"):
        Audit("few", "count(*) < 5", "quarantine", aggregate=True)
    assert not_null("id", on_fail="quarantine").on_fail == "quarantine"


def test_rows_with_nested_values_are_kept_and_set_aside(lake: Lake) -> None:
    one = case(lake, divided={"audits": (expect("positive", "v > 0", on_fail="quarantine"),)})
    one.each([{"v": 1, "o": {"a": [1, 2]}}, {"v": -1, "o": {"a": [3]}}, {"v": 2, "o": None}])
    assert lake.column("SELECT o::VARCHAR FROM raw.things ORDER BY v") == ['{"a":[1,2]}', None]
    assert one.types()["o"] == "JSON"
    assert [json.loads(content)["v"] for _, content in aside(lake, "content")] == [-1]
    assert one.errors() == []


ORDERS: dict[str, Any] = {"primary_key": ("id",), "children": {"items": Table(Contract({"sku": "text"}))}}
SKUS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=3)


@pytest.mark.parametrize("form", ["rows", "arrow", "jsonl"])
@given(days=st.lists(st.lists(st.tuples(AMOUNTS, SKUS), max_size=20), min_size=1, max_size=3))
@settings(max_examples=4, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
def test_a_row_is_set_aside_with_its_list(
    lake: Lake, form: str, days: Sequence[Sequence[tuple[Any, list[str]]]]
) -> None:
    key = f"nested{next(_KEYS)}"
    one = things(
        lake, Files(f"{key}/{{partition}}.jsonl", "jsonl", empty=True) if form == "jsonl" else None, key, **ORDERS
    )
    in_text = form == "arrow"
    if in_text:
        days = [[(str(v) if v is not None else None, skus) for v, skus in orders] for orders in days]
    for day, orders in zip(DAYS, days, strict=False):
        rows = [
            {"id": number, "amount": amount, "items": [{"sku": sku} for sku in skus]}
            for number, (amount, skus) in enumerate(orders)
        ]
        if form == "jsonl":
            lake.land(f"{key}/{day}.jsonl", rows)
        elif in_text:
            elements = pa.list_(pa.struct([("sku", pa.string())]))
            one.given[day] = pa.Table.from_pylist(
                rows, pa.schema([("id", pa.int64()), ("amount", pa.string()), ("items", elements)])
            )
        else:
            one.given[day] = rows
    wanted = list(DAYS[: len(days)])
    result = one.load(*wanted)
    assert not result.failures, result.failures
    for day, orders in zip(wanted, days, strict=True):
        values = [int(v) if in_text and v is not None and v.lstrip("-").isdigit() else v for v, _ in orders]
        good = {number for number, value in enumerate(values) if _is_good(value)}
        assert lake.column(f"SELECT id FROM raw.{key} WHERE day = '{day}' ORDER BY id") == sorted(good)
        found = lake.sql(f"SELECT {key}_id AS id, sku FROM raw.{key}__items WHERE day = '{day}' ORDER BY id, position")
        assert [(row["id"], row["sku"]) for row in found] == [
            (number, sku) for number, (_, skus) in enumerate(orders) if number in good for sku in skus
        ]
        texts = lake.column(f"SELECT content FROM raw.{key}__quarantine WHERE day = '{day}'")
        contents = [json.loads(text) for text in texts]
        assert {int(row["id"]): _skus(row.get("items")) for row in contents} == {
            number: skus for number, (_, skus) in enumerate(orders) if number not in good
        }
        assert counted(lake, key)[day] == (len(orders), len(good), len(orders) - len(good))
    assert one.errors() == []


def _skus(given: Any) -> list[str]:
    """The elements of a list in the content of a row: as it came, or as the text of JSON."""
    return [element["sku"] for element in (json.loads(given) if isinstance(given, str) else given or [])]


def test_rows_of_one_key_with_lists_are_not_told_apart(lake: Lake) -> None:
    one = things(lake, key="orders", **ORDERS)
    items = [{"sku": "a"}]
    one.given[ONE] = [{"id": 1, "amount": 1, "items": items}, {"id": 1, "amount": -1, "items": items}]
    one.given[TWO] = [{"id": 1, "amount": -1, "items": items}, {"id": 1, "amount": -2, "items": items}]
    result = one.load(ONE, TWO)
    assert [failure.error for failure in result.failures] == [
        "the key id=1 is that of a row that an audit sets aside and of another one, so that their items cannot be told "
        "apart"
    ]
    assert [r.partition for r in result.receipts] == [TWO]
    contents = [json.loads(text) for _, text in aside(lake, "content", "orders")]
    assert [(row["amount"], row.get("items")) for row in contents] == [(-1, items * 2), (-2, None)]
    # A null in a key is a key, too.
    one = things(lake, key="visits", modes={}, audits=(not_null("id", on_fail="quarantine"),), **ORDERS)
    one.given[ONE] = [{"id": None, "amount": 1, "items": items}, {"id": 2, "amount": 1, "items": items}]
    assert one.load(ONE).receipts
    assert lake.column("SELECT visits_id FROM raw.visits__items") == [2]
    assert [json.loads(text)["items"] for _, text in aside(lake, "content", "visits")] == [items]
    assert one.errors() == []


def test_a_list_that_is_none_rejects_the_partition(lake: Lake) -> None:
    one = things(lake, key="orders", **ORDERS)
    one.given[ONE] = [{"id": 1, "amount": "x"}, {"id": 2, "amount": 1, "items": 5}]
    assert "items: holds values of type int64, not lists" in one.load(ONE).failures[0].error
    one.given[ONE] = [{"id": 1, "amount": "x"}, {"id": 2, "amount": 1, "items": {"sku": "a"}}]
    assert 'items: is not a list, but {"sku":"a"}' in one.load(ONE).failures[0].error


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_late_rows_are_set_aside_once(lake: Lake) -> None:
    one = things(lake, key="late", late=1)
    one.given |= {
        ONE: [{"id": 1, "amount": 1, "day": ONE}, {"id": 2, "amount": "x", "day": ONE}],
        TWO: [
            {"id": 3, "amount": 3, "day": TWO},
            {"id": 4, "amount": 4, "day": ONE},
            {"id": 5, "amount": -5, "day": ONE},
            {"id": 6, "amount": "y", "day": ONE},
            {"id": 7, "amount": 7, "day": "soon"},
        ],
        THREE: [],
    }
    assert len(one.load(ONE, TWO).receipts) == 2
    assert lake.column("SELECT id FROM raw.late ORDER BY id") == [1, 3, 4]
    # A row whose day cannot be read is set aside with the day of its source.
    found = [(day, json.loads(text)["id"], reason) for day, text, reason in aside(lake, "content, reason", "late")]
    assert sorted(found) == [
        ("01", 2, "'x' cannot be bigint"),
        ("01", 5, "audit positive failed"),
        ("01", 6, "'y' cannot be bigint"),
        ("02", 7, "'soon' cannot be date"),
    ]
    assert counted(lake, "late") == {ONE: (5, 2, 3), TWO: (2, 1, 1)}
    assert one.errors() == []
    # From tables.
    given = {
        day: pa.table({n: [str(row[n]) for row in rows] for n in rows[0]}) for day, rows in one.given.items() if rows
    }
    other = things(lake, key="tables", late=1)
    other.given |= {**given, THREE: []}
    assert len(other.load(ONE, TWO).receipts) == 2
    assert lake.column("SELECT id FROM raw.tables ORDER BY id") == [1, 3, 4]
    texts = aside(lake, "content", "tables")
    assert sorted((day, int(json.loads(text)["id"])) for day, text in texts) == [
        ("01", 2),
        ("01", 5),
        ("01", 6),
        ("02", 7),
    ]
    assert counted(lake, "tables") == {ONE: (5, 2, 3), TWO: (2, 1, 1)}
    assert other.errors() == []


TEXTS = st.sampled_from(["1", "x", "-2", "1.5", "", "99999999999999999999", None])


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=40), first=st.integers(0, 5), in_table=st.booleans())
@settings(max_examples=60, derandomize=True, deadline=None)
def test_each_row_is_kept_or_set_aside_for_its_first_column_that_does_not_fit(
    rows: list[tuple[str | None, str | None]], first: int, in_table: bool
) -> None:
    def fits(text: str | None) -> bool:
        return text is None or (text.lstrip("-").isdigit() and len(text) < 10)

    dicts: list[dict[str, Any]] = [{"a": a, "b": b, "n": n} for n, (a, b) in enumerate(rows)]
    found: list[Refused] = []
    contract = Contract({"a": "bigint", "b": "bigint", "n": "bigint"}, {"data_type": "discard_row"}, aside=found.append)
    schema = pa.schema([("a", pa.string()), ("b", pa.string()), ("n", pa.int64())])
    given_rows: Any = pa.Table.from_pylist(dicts, schema) if in_table else dicts

    def convert(part: Any) -> pa.Table:
        return conform(part if in_table else pa.Table.from_pylist(part, schema), contract)

    parts = list(sifted(given_rows, convert, contract, lambda row: ("file", row), first))
    kept = [row for part, _ in parts for row in (part.to_pylist() if in_table else part)]
    good = [row for row in dicts if fits(row["a"]) and fits(row["b"])]
    assert kept == good
    converted = [row for _, made in parts for row in made.to_pylist()]
    as_numbers = [{k: int(v) if v is not None else None for k, v in row.items()} for row in good]
    assert converted == as_numbers
    assert sorted((one.line - first, one.column, one.reason) for one in found) == [
        (n, column, f"{row[column]!r} cannot be bigint")
        for n, row in enumerate(dicts)
        if (column := next((c for c in ("a", "b") if not fits(row[c])), ""))
    ]
    assert all(json.loads(one.content) == dicts[one.line - first] for one in found)
