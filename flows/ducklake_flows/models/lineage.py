"""Column lineage of the models, from SQLMesh: which columns of which tables a column is computed from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlglot import exp
from sqlmesh.core.console import NoopConsole, set_console
from sqlmesh.core.context import Context
from sqlmesh.core.lineage import column_dependencies, lineage
from sqlmesh.utils.errors import SQLMeshError

from ducklake_flows.errors import BadInput
from ducklake_flows.settings import LAKE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlmesh.core.model import Model

    from ducklake_flows.settings import Settings


@dataclass(frozen=True)
class Step:
    """One table of a lineage.

    Args:
        table: Schema and name.
        columns: For each column: the columns that it is computed from, as ``schema.table.column``.
        rows_from: The tables whose rows it is built from: those in FROM and JOIN.
    """

    table: str
    columns: Mapping[str, Sequence[str]]
    rows_from: Sequence[str]


def trace(settings: Settings, table: str, column: str | None = None) -> list[Step]:
    """The lineage of a table or one of its columns, from the table down to the raw tables.

    Args:
        settings: Where the lake and the models are.
        table: Schema and name of a model or a raw table.
        column: One column; None means all.

    Raises:
        BadInput: there is no folder of models, or no such model or column.
    """
    if settings.models is None or not settings.models.is_dir():
        raise BadInput("There is no folder of models.", "correct `models` in pyproject.toml (or LAKE_MODELS)")
    context = _context(settings)
    known = {_name(model.fqn): model for model in context.models.values()}
    if table not in known:
        raise BadInput(f"There is no model {table!r}.", f"choose from {', '.join(sorted(known))}")
    there = list(known[table].columns_to_types_or_raise)
    if column is not None and column not in there:
        raise BadInput(f"{table} has no column {column!r}.", f"choose from {', '.join(there)}")
    wanted: dict[str, set[str]] = {table: {column} if column is not None else set(there)}
    steps = []
    # A table comes after all tables that read it, so that all its wanted columns are known.
    for name in reversed([_name(fqn) for fqn in context.dag.sorted]):
        if name in wanted and name in known:
            order = list(known[name].columns_to_types or wanted[name])
            step = _step(context, known[name], sorted(wanted[name], key=order.index))
            steps.append(step)
            for parent in step.rows_from:
                wanted.setdefault(parent, set())
            for source in (source for found in step.columns.values() for source in found):
                parent, _, part = source.rpartition(".")
                wanted.setdefault(parent, set()).add(part)
    return steps


def _context(settings: Settings) -> Context:
    """The project's models.

    Raises:
        BadInput: they cannot be loaded.
    """
    if settings.project is not None:
        # Otherwise SQLMesh's loader takes the project above the folder of models, which may be another one.
        os.environ["LAKE_PROJECT"] = str(settings.project)
    set_console(NoopConsole())
    try:
        return Context(paths=[str(settings.models)])
    except SQLMeshError as error:
        raise BadInput(f"The models cannot be loaded: {' '.join(str(error).split())[:400]}", "lake transform") from None


def _step(context: Context, model: Model, columns: Sequence[str]) -> Step:
    found: dict[str, list[str]] = {}
    for column in columns:
        parents = {} if model.kind.is_external else column_dependencies(context, model.fqn, column)
        found[column] = sorted(f"{_name(table)}.{part}" for table, parts in parents.items() for part in parts)
    return Step(_name(model.fqn), found, sorted(map(_name, model.depends_on or ())))


def readers(settings: Settings, columns: Collection[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """The models that are built from columns of raw tables, also through other models, by SQLMesh's column lineage.

    A column that only a condition or a join names has no lineage: so each model counts that reads its table and names a
    column like it.

    Args:
        settings: Where the lake and the models are.
        columns: Table and column of each.

    Returns:
        The models by table and column, in order of the project; columns that no model reads are left out.
    """
    if not columns or settings.models is None or not settings.models.is_dir():
        return {}
    context = _context(settings)
    found: dict[tuple[str, str], set[str]] = {column: set() for column in columns}
    affected: dict[tuple[str, str], set[tuple[str, str]]] = {}
    """Of each column of a table, the asked columns that it is computed from."""
    order: list[str] = []
    for fqn in context.dag.sorted:
        model = context.models.get(fqn)
        if model is None or model.kind.is_external or not model.is_sql:
            continue
        order.append(name := _name(fqn))
        named = {column.name for column in model.render_query_or_raise().find_all(exp.Column)}
        for asked in columns:
            if asked[0] in map(_name, model.depends_on or ()) and asked[1] in named:
                found[asked].add(name)
        for column in model.columns_to_types_or_raise:
            sources = {
                (_name(table), part)
                for table, parts in column_dependencies(context, fqn, column).items()
                for part in parts
            }
            for asked in columns:
                if any(source == asked or asked in affected.get(source, ()) for source in sources):
                    found[asked].add(name)
                    affected.setdefault((name, column), set()).add(asked)
    return {asked: sorted(names, key=order.index) for asked, names in found.items() if names}


def copied_from(context: Context, model: Model, column: str) -> set[str]:
    """The raw columns that a column is an unchanged copy of, through all models between, as ``raw.table.column``.

    Empty if any of its sources is an expression, or a model that is not written in SQL.
    """
    if model.kind.is_external:
        return {f"{_name(model.fqn)}.{column}"}
    if not model.is_sql:
        return set()
    found: set[str] = set()
    for node in lineage(column, model, trim_selects=False).walk():
        if node.downstream:
            # A whole query stands for the branches of a UNION.
            if not isinstance(node.expression.unalias(), exp.Column | exp.Query):
                return set()
            continue
        table = node.expression.find(exp.Table)
        parent = context.get_model(exp.table_name(table, identify=True)) if table else None
        sources = copied_from(context, parent, exp.to_column(node.name).name) if parent else set()
        if not sources:
            return set()
        found |= sources
    return found


def _name(fqn: str) -> str:
    return fqn.replace('"', "").removeprefix(f"{LAKE}.")
