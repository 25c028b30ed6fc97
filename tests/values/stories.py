"""Hypothesis strategies for stories: a dataset's partitions over some days, in a form, with or without a contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hypothesis import assume
from hypothesis import strategies as st

from tests.values.forms import FUNCTIONS, NUMBER, Column, Form, Written, csv_cell, is_csv, is_json
from tests.values.kinds import BY_NAME, FAMILIES, KINDS, Kind
from tests.values.oracle import column

if TYPE_CHECKING:
    from collections.abc import Sequence

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")

NAMES = (
    *("alpha", "beta_2", "gamma", "Delta Col", "camelCase", "UPPER", "größe", "日期", "金额", "Amount €", "x-y"),
    *("select", "_dlt_id", "_dlt_load_id", "_lake_partition", "filename", "file_row_number", "rowid", "%s"),
    *('quo"te', "it's", "1st", "_", "v__v_double", "class_", "trailing ", "e\u0301te\u0301", "n" * 90, "Ünïcode Näme"),
    *("snapshot_id", "lake partition", "null", "true", "tab\there", "new\nline", "comma,name", "semi;colon", "ΑΣ"),
    *("key", "a.b.c", "value", "element", "list", "item", "entries", "c0", "c1", "file_index", "data_file_id", "day_"),
    *("ǅungla", "İstanbul"),
)  # fmt: skip

CONTRACT = ("text", "bigint", "double", "bool", "timestamp", "timestamp_ntz", "date", "time", "decimal", "binary",
            "json", "decimal(10,2)", "decimal(38,0)", "decimal(20,0)")  # fmt: skip


@dataclass
class Story:
    """What happens to one dataset.

    Args:
        mode: The type of its source.
        days: The columns of each day's partition, in the source's order.
        forms: For a function, the form of each day; for Parquet, the writer of each day's file.
        dialect: How its CSV files are written.
        array: Whether its JSON files are arrays.
        contract: The contract's columns.
        more: The contract's other arguments.
        groups: The groups of days that are extracted and published together, in order.
        early: Whether all groups are extracted before the first is published.
    """

    mode: Literal["function", "csv", "json", "parquet"]
    days: list[list[Column]]
    forms: list[Any] = field(default_factory=list)
    dialect: Written = field(default_factory=Written)
    array: bool = False
    contract: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=lambda: [[0]])
    early: bool = False


def _numbered(columns: list[Column], size: int) -> list[Column]:
    return [Column(NUMBER, BY_NAME["int64"], list(range(size))), *columns]


@st.composite
def values_of(draw: st.DrawFn, kind: Kind, size: int) -> list[Any]:
    return draw(st.lists(st.none() | kind.values | kind.values, min_size=size, max_size=size))


def _is_plain(kind: Kind, mode: str, forms: Sequence[Any]) -> bool:
    """Whether all values of a kind must be accepted. JSON has no NaN; pandas turns integers with nulls into doubles."""
    if (mode == "json" and "float" in kind.name) or (mode == "csv" and "NaN" in kind.name):
        return False
    in_pandas = any(getattr(form, "name", "") == "pandas frame" or form == "pandas" for form in forms)
    return kind.plain and not (in_pandas and ("list" in kind.name or kind.name in ("int64", "uint64", "struct")))


def _kinds(mode: str, forms: Sequence[Form]) -> list[Kind]:
    if mode == "csv":
        return [kind for kind in KINDS if is_csv(kind)]
    if mode == "json":
        return [kind for kind in KINDS if is_json(kind)]
    if mode == "parquet":
        return [kind for kind in KINDS if kind.arrow is not None]
    return [kind for kind in KINDS if all(form.carries(kind) for form in forms)]


@st.composite
def dialects(draw: st.DrawFn) -> Written:
    delimiter = draw(st.sampled_from([",", ",", ";", "\t", "|", "||", "\x01"]))
    writers = ["csv", "csv", "duckdb", "pandas"] if len(delimiter) == 1 else ["csv"]
    quote = draw(st.sampled_from(['"', '"', '"', '"', "'", ""]))
    encoding = draw(
        st.sampled_from(["utf-8", "utf-8", "utf-8", "latin-1", "cp1252", "utf-16", "utf-8-sig", "shift_jis"])
    )
    return Written(
        writer=draw(st.sampled_from(writers)),
        delimiter=delimiter,
        quote=quote,
        escape=draw(st.sampled_from([quote, quote, "\\"])) if quote else "",
        encoding=encoding,
        decimal="." if delimiter == "," else draw(st.sampled_from([".", ","])),
        comment=draw(st.sampled_from(["", "", "#"])),
        skip=draw(st.sampled_from([0, 0, 2])),
        nulls=draw(st.sampled_from([("",), ("",), ("NA",), ("NULL", "")])),
        all_quoted=draw(st.booleans()) and bool(quote),
        end=draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])),
        suffix=draw(st.sampled_from(["", "", ".gz", ".zst"])),
        bom=encoding == "utf-8" and draw(st.booleans()),
    )


@st.composite
def contracts(draw: st.DrawFn, columns: dict[str, Kind]) -> tuple[dict[str, str], dict[str, Any]]:
    """A contract for some of these columns, or none."""
    if draw(st.integers(0, 2)) == 0 or not columns:
        return {}, {}
    declared = {"row_number": "bigint"}
    for name, kind in columns.items():
        choice = draw(st.sampled_from(["natural", "natural", "natural", "any", "none"]))
        if choice == "any":
            declared[column(name)] = draw(st.sampled_from(CONTRACT))
        elif choice == "natural" and kind.contract:
            declared[column(name)] = kind.contract
    new = draw(st.sampled_from(["evolve", "evolve", "freeze", "discard_value"]))
    zone = draw(st.sampled_from([None, None, "Europe/Berlin"]))
    return declared, {"schema_contract": {"columns": new}, "timezone": zone}


@st.composite
def stories(draw: st.DrawFn, mode: Any = None, most: int = 3, kinds: Sequence[Kind] | None = None) -> Story:
    """Any story: values that may not fit, changing schemas, colliding names."""
    mode = mode or draw(st.sampled_from(["function", "function", "function", "csv", "json", "parquet"]))
    count = draw(st.integers(1, most))
    forms: list[Any] = []
    if mode == "function":
        forms = [draw(st.sampled_from(FUNCTIONS)) for _ in range(count)]
    elif mode == "parquet":
        forms = [draw(st.sampled_from(["pyarrow", "duckdb", "pandas"])) for _ in range(count)]
    able = _kinds(mode, forms if mode == "function" else ())
    if kinds:
        able = [kind for kind in able if kind in kinds]
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique_by=column))
    first = {name: draw(st.sampled_from(able)) for name in names}
    days: list[list[Column]] = []
    for day in range(count):
        size = draw(st.integers(0 if mode != "csv" else 1, 6))
        columns = []
        for name, kind in first.items():
            drift = draw(st.sampled_from(["same", "same", "same", "missing", "nulls", "family", "any", "case"]))
            now, spelt = kind, name
            if day == 0:
                drift = "same"
            if drift == "missing":
                continue
            if drift == "family":
                now = draw(st.sampled_from([k for k in FAMILIES[kind.family] if k in able] or [kind]))
            elif drift == "any":
                now = draw(st.sampled_from(able))
            elif drift == "case":
                spelt = next((s for s in (name.upper(), name.title()) if column(s) == column(name)), name)
            values = [None] * size if drift == "nulls" else draw(values_of(now, size))
            columns.append(Column(spelt, now, values))
        if draw(st.integers(0, 9)) == 0 and columns and mode in ("function", "json"):
            twin = columns[0].name.upper()
            if twin not in {c.name for c in columns} and draw(st.booleans()):
                columns.append(Column(twin, columns[0].kind, draw(values_of(columns[0].kind, size))))
        columns = draw(st.permutations(_numbered(columns, size)))
        days.append(list(columns))
    assume(any(len(c.values) for c in days[0]))
    contract, more = draw(contracts(first))
    order = draw(st.permutations(range(count)))
    groups: list[list[int]] = [[order[0]]]
    for day in order[1:]:
        if draw(st.booleans()):
            groups[-1].append(day)
        else:
            groups.append([day])
    return Story(
        mode,
        days,
        forms,
        draw(dialects()) if mode == "csv" else Written(),
        draw(st.booleans()),
        contract,
        more,
        groups,
        draw(st.integers(0, 4)) == 0,
    )


@st.composite
def plain_stories(draw: st.DrawFn, mode: Any = None) -> Story:
    """Plain good data: one type per column, the same columns every day. All of it must be accepted."""
    mode = mode or draw(st.sampled_from(["function", "function", "function", "csv", "json", "parquet"]))
    count = draw(st.integers(1, 2))
    forms: list[Any] = []
    if mode == "function":
        forms = [draw(st.sampled_from(FUNCTIONS))] * count
    elif mode == "parquet":
        forms = [draw(st.sampled_from(["pyarrow", "duckdb", "pandas"]))] * count
    able = [kind for kind in _kinds(mode, forms if mode == "function" else ()) if _is_plain(kind, mode, forms)]
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique_by=column))
    chosen = {name: draw(st.sampled_from(able)) for name in names}
    size = draw(st.integers(1, 6))
    days = [
        _numbered([Column(name, kind, draw(values_of(kind, size))) for name, kind in chosen.items()], size)
        for _ in range(count)
    ]
    contract: dict[str, str] = {}
    if draw(st.booleans()):
        contract = {"row_number": "bigint"} | {
            column(name): kind.contract
            for name, kind in chosen.items()
            if kind.contract and not (mode == "csv" and kind.contract == "binary")
        }
    groups = [[day] for day in range(count)] if draw(st.booleans()) else [list(range(count))]
    dialect = Written()
    if mode == "csv":
        dialect = draw(dialects())
        # A quoted null is read as text, and a character outside the encoding is replaced.
        is_quoted = dialect.all_quoted or dialect.escape != dialect.quote or len(dialect.delimiter) > 1
        assume(not is_quoted or not any(value is None for columns in days for c in columns for value in c.values))
        assume(dialect.quote and all(csv_cell(name, dialect) == name for name in names))
    return Story(mode, days, forms, dialect, draw(st.booleans()), contract, {}, groups)
