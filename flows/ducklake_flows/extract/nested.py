"""Rows of a dataset's other tables: cut from the lists in its own rows, or read from other resources of its source.

They are kept in local Arrow files until the dataset itself is extracted. Then each table is extracted from them like a
dataset of its own, with its contract and its audits.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ducklake_flows.errors import LakeError, SourceError
from ducklake_flows.extract.items import ROWS, tables_of
from ducklake_flows.sources.json_files import parsed
from ducklake_flows.sources.values import Unfit, fit
from ducklake_flows.staging.inspect import matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ducklake_flows.datasets.contract import Refused
    from ducklake_flows.datasets.dataset import Member
    from ducklake_flows.extract.attempt import Attempt

VALUE = "value"
"""The column of a list's elements that are not objects."""


class Spool:
    """Tables of rows in local Arrow files, by member and attempt.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._files: dict[tuple[str, str], list[Path]] = defaultdict(list)

    def put(self, member: Member, attempt: Attempt, table: pa.Table) -> None:
        """Keep a table of rows."""
        if table.num_rows:
            found = self._files[member.key, attempt.id]
            found.append(self._folder / f"{member.key}-{attempt.id}-{len(found)}.arrow")
            with pa.OSFile(str(found[-1]), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)

    def take(self, member: Member, attempt: Attempt, keys: pa.Table) -> dict[int, list[dict[str, Any]]]:
        """Take the elements of some parents out.

        Args:
            member: A child.
            attempt: The attempt of the parents.
            keys: Their primary keys, as they are staged.

        Returns:
            The elements by the row in ``keys``, without the columns that the pipeline adds.
        """
        taken: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for path in self._files[member.key, attempt.id]:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            own = [fit(table.column(f"{member.parent}_{field.name}"), field.type, field.name) for field in keys.schema]
            rows, parents = matches(keys, pa.table(own, keys.column_names))
            if rows:
                elements = table.take(rows).drop_columns(list(member.added)).to_pylist()
                for parent, element in zip(parents, elements, strict=True):
                    taken[parent].append(element)
                is_taken = pc.is_in(pa.array(range(table.num_rows), pa.int64()), pa.array(rows, pa.int64()))
                rest = table.filter(pc.invert(is_taken))
                path.unlink()
                with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rest.schema) as writer:
                    writer.write_table(rest)
        return taken

    def tables(self, member: Member, attempt: Attempt) -> Iterator[pa.Table]:
        """The tables, in order."""
        for path in self._files[member.key, attempt.id]:
            with pa.memory_map(str(path)) as file:
                yield pa.ipc.open_file(file).read_all()


def refused_rows(rows: Sequence[Refused]) -> pa.Table:
    """Rows that are set aside, as rows of the quarantine table."""
    columns = {
        "reason": [_plain(row.reason) for row in rows],
        "column_name": [row.column or None for row in rows],
        "file": [_plain(row.file) or None for row in rows],
        "content": [_plain(row.content) for row in rows],
    }
    texts = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    return pa.table({**texts, "line": pa.array([row.line or None for row in rows], pa.int64())})


def _plain(text: str) -> str:
    """A text that can be stored: without a NUL, and without halves of characters."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def rows_of(member: Member, column: pa.ChunkedArray, parents: pa.Table) -> Iterator[pa.Table]:
    """The rows of a child table: its elements, with the key of their parent and their position.

    Args:
        member: The child.
        column: The lists, a row for each parent; JSON texts or Arrow lists.
        parents: The parents' rows, in the types of their table.

    Raises:
        Unfit: a value is not a list, an element's name is one that the pipeline adds, or a parent has no key column.
            The row is that of the parent.
    """
    keys = list(member.added)[:-1]  # the last is the position
    of = [key.removeprefix(f"{member.parent}_") for key in keys]
    if missing := [name for name in of if name not in parents.column_names]:
        raise Unfit(missing[0], f"is the parent's key of {member.key}, but the rows have no such column")
    if pa.types.is_null(column.type):
        return
    made = _from_arrow(column) if not isinstance(column.type, pa.BaseExtensionType) else _from_json(column)
    try:
        for indices, positions, given in made:
            (found,) = (t for t in tables_of([given], member.contract) if t is not None)
            if clash := [name for name in member.added if name in found.column_names]:
                raise Unfit(clash[0], "is the name of a column that the pipeline adds")
            for name, source in zip(keys, of, strict=True):
                found = found.append_column(name, parents.column(source).take(indices))
            yield found.append_column("position", pa.chunked_array([positions]))
    except Unfit as error:
        raise _inside(error, member.name, None) from None


def _from_json(column: pa.ChunkedArray) -> Iterator[tuple[pa.Array, pa.Array, list[Mapping[str, Any]]]]:
    """The elements of lists in JSON: the parent's row, the position, and the rows."""
    indices: list[int] = []
    positions: list[int] = []
    rows: list[Mapping[str, Any]] = []
    for number, text in enumerate(text for chunk in column.chunks for text in chunk.storage.to_pylist()):
        try:
            found = parsed(text.encode(), "it") if text is not None else None
        except SourceError as error:
            raise Unfit("", error.message, number) from None
        if found is None:
            continue
        if not isinstance(found, list):
            raise Unfit("", f"is not a list, but {text[:60]}", number)
        for position, element in enumerate(found):
            indices.append(number)
            positions.append(position)
            rows.append(element if isinstance(element, dict) else {VALUE: element})
        if len(rows) >= ROWS:
            yield pa.array(indices, pa.int64()), pa.array(positions, pa.int64()), rows
            indices, positions, rows = [], [], []
    if rows:
        yield pa.array(indices, pa.int64()), pa.array(positions, pa.int64()), rows


def _from_arrow(column: pa.ChunkedArray) -> Iterator[tuple[pa.Array, pa.Array, pa.Table]]:
    """The elements of Arrow lists: the parent's row, the position, and the rows."""
    before = 0
    for chunk in column.chunks:
        if not (pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type) or _is_fixed(chunk.type)):
            raise Unfit("", f"holds values of type {chunk.type}, not lists")
        indices = pc.list_parent_indices(chunk).cast(pa.int64())
        values = pc.list_flatten(chunk)
        if len(values):
            # The first element of each list is where the parent changes.
            numbers = pa.array(range(len(values)), pa.int64())
            lengths = pc.fill_null(pc.list_value_length(chunk), 0).cast(pa.int64())
            firsts = pc.subtract(pc.cumulative_sum(lengths), lengths)
            positions = pc.subtract(numbers, firsts.take(indices))
            is_object = pa.types.is_struct(values.type)
            names = [field.name for field in values.type] if is_object else [VALUE]
            columns = values.flatten() if is_object else [values]
            yield pc.add(indices, before), positions, pa.Table.from_arrays(columns, names=names)
        before += len(chunk)


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _inside(error: Unfit, name: str, row: int | None) -> Unfit:
    """The error of a value in another table, with that table's name before the column's."""
    return Unfit(f"{name}.{error.column}" if error.column else name, error.why, row if row is not None else error.row)


def named(member: Member, error: Exception) -> Exception:
    """The error of a member as that of its parent's partition."""
    if isinstance(error, LakeError):
        return type(error)(f"{member.key}: {error.message}", error.fix)
    return SourceError(f"{member.key}: {type(error).__name__}: {error}")
