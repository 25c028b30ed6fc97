"""The tables in docs/data.md match the lake's behaviour: each cell of the first is tested with published partitions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Partition
from ducklake_flows.errors import Rejected
from ducklake_flows.extract.attempt import Attempt
from ducklake_flows.sources.files import Files
from ducklake_flows.staging.lattice import exact
from tests.cases import Case
from tests.values import oracle
from tests.values.forms import (
    FUNCTIONS,
    NUMBER,
    Column,
    Given,
    Unwritable,
    Written,
    csv_text,
    has_arrow,
    is_csv,
    is_json,
    json_text,
    pyarrow_parquet,
)
from tests.values.kinds import BY_NAME, KINDS, Kind
from tests.values.world import read

if TYPE_CHECKING:
    import pytest

    from tests.conftest import Lake

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
BY_FORM = {form.name: form for form in FUNCTIONS}
FORMS = {
    "Python rows": BY_FORM["dict rows"].carries,
    "Arrow": has_arrow,
    "pandas": BY_FORM["pandas frame"].carries,
    "DuckDB": BY_FORM["DuckDB relation"].carries,
    "CSV": lambda kind: is_csv(kind) and "binary" not in kind.name,
    "JSON": is_json,
    "Parquet": has_arrow,
}

LATTICE = (
    *(
        "INTEGER",
        "BIGINT",
        "UBIGINT",
        "DECIMAL(10,2)",
        "DECIMAL(38,0)",
        "FLOAT",
        "DOUBLE",
        "BOOLEAN",
        "VARCHAR",
        "JSON",
    ),
    *("DATE", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "BLOB", "INTEGER[]", "BIGINT[]", "STRUCT(a INTEGER)"),
    *("STRUCT(a BIGINT, b VARCHAR)", "MAP(VARCHAR, INTEGER)", '"NULL"'),
)


NAMES = {"Python rows": "dict rows", "Arrow": "Arrow table", "pandas": "pandas frame", "DuckDB": "DuckDB relation"}
FILES: dict[str, Any] = {"CSV": "csv", "JSON": "jsonl", "Parquet": "parquet"}


def _laid(form: str, columns: Sequence[Column], lake: Lake, path: str, folder: Path) -> tuple[Any, Given]:
    """Columns in a form, as a function's result or a landed file, and the values in it."""
    given: Given | None = None
    item: Any = None
    if form == "CSV":
        content, given = csv_text(columns, Written(), folder)
        lake.land(f"{path}.csv", content)
    elif form == "JSON":
        text, given = json_text(columns, array=False)
        lake.land(f"{path}.jsonl", text)
    elif form == "Parquet":
        lake.land(f"{path}.parquet", pyarrow_parquet(columns))
    else:
        item, given = BY_FORM[NAMES[form]].make(columns)
        item = item if not isinstance(item, Iterator) else list(item)  # because it is read twice
    return item, given or {c.name: c.values for c in columns}


def _columns(kinds: Mapping[str, Kind]) -> list[Column]:
    """The samples of some kinds as columns of equal length; shorter samples are repeated."""
    size = max(len(kind.sample) for kind in kinds.values())
    samples = {name: (kind.sample * size)[:size] for name, kind in kinds.items()}
    return [
        Column(NUMBER, BY_NAME["int64"], list(range(size))),
        *(Column(name, kinds[name], list(values)) for name, values in samples.items()),
    ]


def _verdicts(form: str, lake: Lake, folder: Path) -> dict[str, str]:
    """The result for each kind in a form: its stored type, or the reason of the refusal.

    Each refused kind is a separate partition; all others are one partition together.
    """
    key = form.lower().replace(" ", "_")
    items: dict[str, Any] = {}
    suffix = FILES.get(form)
    source: Any = Files(f"{key}/{{partition}}.{suffix}", suffix) if suffix else lambda partition: items[partition.key]
    dataset = Dataset(key, source, partition_column="day")
    kept: dict[str, Kind] = {}
    refused: dict[str, tuple[str, Kind]] = {}
    for number, kind in enumerate(KINDS):
        if FORMS[form](kind):
            day, name = (date(2024, 1, 1) + timedelta(number)).isoformat(), f"v{number}"
            try:
                items[day], _ = _laid(form, _columns({name: kind}), lake, f"{key}/{day}", folder)
            except Unwritable:
                continue
            if read(dataset, day)[2]:
                refused[day] = name, kind
            else:
                kept[name] = kind
    together = "2023-12-31"
    items[together], given = _laid(form, _columns(kept), lake, f"{key}/{together}", folder)
    case = Case(lake, dataset, {})
    result = case.load(together, *refused)
    assert [receipt.partition for receipt in result.receipts] == [together], result.failures
    types, rows = case.types(), lake.sql(f"SELECT * FROM raw.{key} ORDER BY row_number")
    found: dict[str, str] = {}
    for failure in result.failures:
        name, kind = refused[failure.partition]
        assert f"column {name}: " in failure.error, failure.error
        found[kind.name] = "refused: " + failure.error.partition(f"column {name}: ")[2].replace(name, "v")
    for name, kind in kept.items():
        stored = types.get(name, "NULL")
        for row, wanted in zip(rows, given[name], strict=True):
            assert oracle.stands_for(row.get(name), wanted, stored), (form, kind.name, stored, row.get(name), wanted)
        found[kind.name] = stored
    return found


def _types_table(verdicts: Mapping[str, Mapping[str, str]]) -> str:
    """The first table: one row per kind, one column per form, with the numbered reasons of refusals below."""
    reasons: dict[str, int] = {}
    lines = [f"| values | {' | '.join(FORMS)} |", f"| --- |{' --- |' * len(FORMS)}"]
    for kind in KINDS:
        cells = []
        for form in FORMS:
            verdict = verdicts[form].get(kind.name, "")
            if verdict.startswith("refused: "):
                number = reasons.setdefault(verdict.removeprefix("refused: "), len(reasons) + 1)
                cells.append(f"refused ({number})")
            else:
                cells.append(verdict)
        lines.append(f"| {kind.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {_escaped(reason)}" for reason, number in reasons.items())])


def _escaped(text: str) -> str:
    return re.sub(r"([*_<>|])", r"\\\1", text)


def _lattice_table() -> str:
    """The second table: the new type of a column when values of another type arrive."""
    lines = ["| the column is | and stays that for | and becomes |", "| --- | --- | --- |"]
    dataset = Dataset("things", lambda partition: [], partition_column="day")
    for there in LATTICE[:-1]:
        same, wider = [], []
        for new in LATTICE:
            attempt = Attempt(Partition("2024-01-01"), "", natural={"v": new})
            try:
                joined = attempt.target(dataset, {"v": there})["v"]
            except Rejected:
                continue
            is_read = new == "VARCHAR" != joined
            is_exact = not is_read and all(exact("v", one, joined) == "true" for one in (there, new))
            name = new.replace('"', "") + ("" if is_exact else " (\\*)")
            if joined == there:
                same.append(name)
            else:
                wider.append(f"{joined} for {name}")
        lines.append(f"| {there} | {', '.join(same)} | {', '.join(wider)} |")
    return "\n".join([*lines, "", "(\\*) Where every value is exact in it. Everything else is refused."])


def _check(marker: str, table: str, *, write: bool) -> None:
    """Compare a table to the one between the markers in the documentation, or write it there."""
    begin, end = f"<!-- {marker}:begin -->\n", f"\n<!-- {marker}:end -->"
    text = DOCS.read_text()
    before, _, rest = text.partition(begin)
    there, _, after = rest.partition(end)
    if write:
        DOCS.write_text(f"{before}{begin}{table}{end}{after}")
    else:
        assert there == table, "the table is outdated; run: make test ARGS='tests/values/test_tables.py --write-docs'"


def test_the_documented_types_are_the_stored_types(request: pytest.FixtureRequest, lake: Lake, tmp_path: Path) -> None:
    verdicts = {form: _verdicts(form, lake, tmp_path) for form in FORMS}
    _check("table", _types_table(verdicts), write=request.config.getoption("--write-docs"))


def test_the_documented_lattice_is_the_lattice_in_use(request: pytest.FixtureRequest) -> None:
    _check("lattice", _lattice_table(), write=request.config.getoption("--write-docs"))
