"""Convert what a source yields to Arrow tables: rows, tables, batches and frames of every library with Arrow export."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ducklake_flows.datasets.names import clash, clash_text, columns_of
from ducklake_flows.errors import SourceError
from ducklake_flows.sources.rows import column_of, rows_to_table
from ducklake_flows.sources.sift import sifted
from ducklake_flows.sources.values import Unfit

if TYPE_CHECKING:
    from ducklake_flows.datasets.contract import Contract
    from ducklake_flows.datasets.dataset import Dataset, Member

ROWS = 10_000
"""Python rows converted to columns at once."""

YIELDED = (
    "rows (dict, or a list of them), Arrow tables, batches and readers, pandas and polars frames, DuckDB relations"
)


def parts_of(given: Any, dataset: Dataset) -> tuple[Any, list[tuple[Member, Any]]]:
    """What a source returned for the dataset itself, and for each of its tables that is another resource.

    Raises:
        SourceError: the dlt source lacks one of these resources, or has others.
    """
    wanted = {member.name: member for member in dataset.members if member.name in dataset.resources}
    left_out = dataset.contract.mode("tables") == "discard_row"
    resources = dict(_resources(given) or {})
    if not wanted and not (left_out and len(resources) > 1):
        return given, []
    if lacking := wanted.keys() - resources.keys():
        raise SourceError(
            f"the dataset has a table for {min(lacking)}, but the source has these resources: {', '.join(resources)}",
            "return a dlt source or a list of resources, and name its resources in the dataset",
        )
    others = [(member, resources.pop(name)) for name, member in wanted.items()]
    if left_out and len(resources) > 1:
        if dataset.key not in resources:
            raise SourceError(
                f"none of the resources is the dataset's: {', '.join(resources)}", f"name one of them {dataset.key}"
            )
        return [resources[dataset.key]], others
    return list(resources.values()), others


def items_of(given: Any) -> Iterator[Any]:
    """The items of what a source returned: the object itself if it is an item, otherwise what it yields.

    Raises:
        SourceError: the object is a dlt source or a list with several resources, or it cannot contain items.
    """
    resources = _resources(given)
    if resources is not None:
        if len(resources) != 1:
            raise SourceError(
                f"a dataset is one table, but the dlt source has {len(resources)} resources: {', '.join(resources)}",
                "name the others in the dataset, resources={...}, or select one with source.with_resources(...)",
            )
        (given,) = resources.values()
    if given is None:
        return iter(())
    if isinstance(given, Mapping) or _speaks_arrow(given) or (isinstance(given, list) and _are_rows(given)):
        return iter((given,))
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise SourceError(f"a source returned a {_kind(given)}", f"return or yield {YIELDED}")
    return iter(given)


def _resources(given: Any) -> Mapping[str, Any] | None:
    """The resources of a dlt source, or of a list of resources, by name; None for anything else."""
    dlt = sys.modules.get("dlt")  # no resource exists before dlt is imported
    if isinstance(given, list | tuple) and given and dlt:
        resources = [item for item in given if isinstance(item, dlt.sources.DltResource)]
        return {item.name: item for item in resources} if len(resources) == len(given) else None
    found = getattr(given, "selected_resources", None)
    return found if isinstance(found, Mapping) else None


def tables_of(items: Iterable[Any], contract: Contract) -> Iterator[pa.Table | None]:
    """Convert a source's items to tables with column names as in the lake.

    Args:
        items: See `items_of`.
        contract: Column names, and types of columns whose values are of several kinds.

    Yields:
        After every item a table, or None if its rows are buffered to be converted together with later rows.

    Raises:
        Unfit: a value cannot be stored unchanged, or a name is invalid. The row is counted from the partition's first.
        SourceError: an item is of a type that holds no rows.
    """
    waiting: list[Mapping[str, Any]] = []
    done = 0

    def gathered() -> Iterator[pa.Table]:
        nonlocal waiting, done
        try:
            for _, table in sifted(waiting, lambda rows: rows_to_table(rows, contract), contract, first=done):
                yield table
        except Unfit as error:
            raise _later(error, done) from None
        done += len(waiting)
        waiting = []

    for item in items:
        if isinstance(item, Mapping):
            waiting.append(item)
        elif isinstance(item, list | tuple) and _are_rows(item):
            waiting += item
        else:
            if waiting:
                yield from gathered()
            for table in _arrow(item, contract):
                try:
                    yield _named(table, contract)
                except Unfit as error:
                    raise _later(error, done) from None
                done += table.num_rows
            continue
        if len(waiting) >= ROWS:
            yield from gathered()
        yield None
    if waiting:
        yield from gathered()


def _later(error: Unfit, rows: int) -> Unfit:
    return Unfit(error.column, error.why, None if error.row is None else error.row + rows)


def _are_rows(items: Any) -> bool:
    return all(isinstance(item, Mapping) for item in items)


def _speaks_arrow(item: Any) -> bool:
    return hasattr(item, "__arrow_c_stream__") or hasattr(item, "__arrow_c_array__")


def _arrow(item: Any, contract: Contract) -> Iterator[pa.Table]:
    if isinstance(item, list | tuple):
        for inner in item:
            yield from _arrow(inner, contract)
    elif type(item).__module__.partition(".")[0] == "pandas" and hasattr(item, "dtypes"):
        yield _from_pandas(item, contract)
    elif isinstance(item, pa.Table):
        yield item
    elif isinstance(item, pa.RecordBatch):
        yield pa.Table.from_batches([item])
    elif hasattr(item, "__arrow_c_stream__"):
        for batch in pa.RecordBatchReader.from_stream(item):
            yield pa.Table.from_batches([batch])
    elif isinstance(item, Mapping):
        yield rows_to_table([item], contract)
    else:
        raise SourceError(f"a source yielded a {_kind(item)}", f"yield {YIELDED}")


def _kind(item: Any) -> str:
    kind = type(item)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _from_pandas(frame: Any, contract: Contract) -> pa.Table:
    """Convert a pandas frame. Missing values, including NaN, become null; a named index becomes a column."""
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    columns, names = [], []
    for place, name in enumerate(frame.columns):
        series = frame.iloc[:, place]
        names.append(str(name))
        if series.dtype == object:
            values = [None if missing else value for value, missing in zip(series, _is_missing(series), strict=True)]
            columns.append(column_of(values, str(name), contract))
        else:
            columns.append(pa.chunked_array([pa.Array.from_pandas(series)]))
    return pa.Table.from_arrays(columns, names=names)


def _is_missing(series: Any) -> Iterator[bool]:
    """Whether each value of an object column is missing. A list is never missing."""
    for value in series:
        found = value is None or (isinstance(value, float) and value != value) or str(value) in ("NaT", "<NA>")  # noqa: PLR0124
        yield found and not isinstance(value, str)


def _named(table: pa.Table, contract: Contract) -> pa.Table:
    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise Unfit(twice[0], "the table has this column twice")
    try:
        columns = columns_of(names, contract.rename)
    except ValueError as error:
        raise Unfit("", str(error)) from None
    if pair := clash(columns):
        raise Unfit(columns[pair[0]], clash_text(*pair, columns[pair[0]]))
    return table.rename_columns(list(columns.values())).replace_schema_metadata(table.schema.metadata)
