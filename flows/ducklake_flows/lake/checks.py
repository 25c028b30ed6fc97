"""The results of audits: those that need the lake are judged here, and all of them are rows of ``ops.checks``.

A worker evaluates conditions on a partition's rows. What is usual, and what is in another dataset, is compared when the
partition is published, in the same transaction.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ducklake_flows.datasets.audits import ENOUGH
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.datasets.types import quoted
from ducklake_flows.errors import BadInput, OldRelease
from ducklake_flows.lake.connect import connected, literal, one_snapshot, rows
from ducklake_flows.lake.diff import in_environment
from ducklake_flows.lake.evolve import READ
from ducklake_flows.lake.files import full_paths
from ducklake_flows.lake.ledger import PUBLISHED_STATES, append
from ducklake_flows.lake.lookup import results_before
from ducklake_flows.lake.schema import table_columns
from ducklake_flows.settings import LAKE, PROD
from ducklake_flows.staging.receipt import rows_text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from duckdb import DuckDBPyConnection

    from ducklake_flows.datasets.audits import Audit, Band, Reference
    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings
    from ducklake_flows.staging.receipt import Checked, Outcome, Receipt


def judge(
    con: DuckDBPyConnection,
    settings: Settings,
    token: int,
    dataset: Dataset,
    receipt: Receipt,
    tables: Mapping[str, Mapping[str, str]],
) -> tuple[Receipt, str]:
    """Judge the audits of a staged partition that compare it with the lake.

    Args:
        con: A connection with the publishing transaction open.
        settings: Where the staged files are.
        token: The token of the transaction.
        dataset: The partition's dataset.
        receipt: The staged partition.
        tables: The columns of the lake's tables.

    Returns:
        The receipt with the results, and why it is rejected; "" if it is not.
    """
    audits = {audit.name: audit for audit in dataset.audits if audit.band or audit.reference}
    if not audits or receipt.restores or receipt.supersedes:
        return receipt, ""
    found: list[Checked] = []
    broken: dict[str, list[str]] = {"reject": [], "warn": []}
    for check in receipt.checks:
        judged = check
        if audit := audits.get(check.name):
            if audit.band is not None:
                judged = _usual(check, audit.band, _before(con, settings, token, dataset, receipt.partition, audit))
            elif audit.reference is not None:
                judged = _referred(con, settings, check, audit.reference, receipt, tables)
            if not judged.passed:
                text = f"audit {audit.name!r} failed: {judged.observed}, expected {judged.expected}"
                broken[audit.on_fail].append(text)
        found.append(judged)
    warnings = (*receipt.warnings, *broken["warn"])
    return replace(receipt, checks=tuple(found), warnings=warnings), "; ".join(broken["reject"])


def _before(
    con: DuckDBPyConnection, settings: Settings, token: int, dataset: Dataset, partition: str, audit: Audit
) -> list[float]:
    """What was measured in the partitions before one, the newest last; of a dataset's only partition, before now."""
    last = audit.band.last if audit.band else 0
    found = results_before(con, settings, token, dataset, audit.name, partition, last)
    by = "token" if dataset.grain is Grain.full else "partition"
    values = con.execute(
        f"SELECT TRY_CAST(arg_max(observed, token) AS DOUBLE) FROM {found} "
        f"GROUP BY {by} ORDER BY {by} DESC LIMIT {last}"
    ).fetchall()
    return [value for (value,) in reversed(values) if value is not None]


def _usual(check: Checked, band: Band, before: Sequence[float]) -> Checked:
    """The result of a comparison with what is usual."""
    if len(before) < ENOUGH or not check.observed:
        return check
    middle = statistics.median(before)
    low, high = sorted((middle * band.low, middle * band.high))
    expected = f"{low:g} to {high:g} ({check.expected}, {middle:g})"
    return replace(check, passed=low <= float(check.observed) <= high, expected=expected)


def _referred(
    con: DuckDBPyConnection,
    settings: Settings,
    check: Checked,
    reference: Reference,
    receipt: Receipt,
    tables: Mapping[str, Mapping[str, str]],
) -> Checked:
    """The result of looking up a column's values in another dataset."""
    column, other = quoted(reference.column), quoted(reference.other)
    table = f"raw.{reference.dataset}"
    if not receipt.files:
        return replace(check, observed="0 rows")
    known = reference.other in tables.get(table, {})
    there = f"SELECT {other} AS known FROM {LAKE}.{table}" if known else "SELECT NULL AS known WHERE false"
    paths = full_paths(settings, receipt.files)
    # DuckDB reads the other table once for the few staged values, instead of keeping all of its values.
    ((count, sample),) = con.execute(
        f"""WITH staged AS MATERIALIZED (SELECT {column} AS given FROM {READ} WHERE {column} IS NOT NULL),
                 known AS (SELECT DISTINCT known FROM ({there}) SEMI JOIN staged ON known = given)
            SELECT count(*), to_json(list(given ORDER BY given)[:3])::VARCHAR
            FROM staged ANTI JOIN known ON known = given""",
        [paths],
    ).fetchall()
    return replace(
        check,
        passed=not count,
        observed=f"{rows_text(count)} with another value",
        failed_rows=count,
        sample=sample or "[]",
    )


def record(
    con: DuckDBPyConnection,
    outcomes: Sequence[Outcome],
    common: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, str]],
) -> None:
    """Append the results of audits to ``ops.checks``, within the caller's transaction.

    Args:
        con: A connection with the transaction open.
        outcomes: The outcomes that it writes.
        common: Values that all rows have.
        tables: The columns of the lake's tables.

    Raises:
        OldRelease: the table is of an earlier release.
    """
    found = [
        {
            **common,
            "dataset": one.dataset,
            "partition": one.partition,
            "attempt_id": one.attempt_id,
            "name": check.name,
            "on_fail": check.on_fail,
            "passed": check.passed,
            "observed": check.observed,
            "expected": check.expected,
            "failed_rows": check.failed_rows,
            "sample": check.sample,
        }
        for outcome in outcomes
        for one in getattr(outcome, "all", (outcome,))
        for check in one.checks
    ]
    if found and "observed" not in tables.get("ops.checks", {}):
        raise OldRelease("The lake's tables are of an earlier release: ops.checks lacks a column.", "lake init")
    append(con, "checks", found)


@dataclass(frozen=True, slots=True)
class Results:
    """The results of the audits of a dataset or a model. For a model, a partition is an interval or a stretch of them.

    Args:
        names: Of each audit: ``name``, ``on_fail``, ``passed`` and ``failed`` (numbers of partitions, each by its last
            result), and ``last_failed``, the last partition that failed; None if none did.
        found: Results: ``partition``, ``name``, ``passed``, ``on_fail``, ``observed``, ``expected``, ``failed_rows``,
            ``sample``, ``attempt_id``, ``recorded_at``; failures first, then the newest first.
    """

    names: Sequence[Mapping[str, Any]]
    found: Sequence[Mapping[str, Any]]


def failing(con: DuckDBPyConnection) -> dict[tuple[str, str], int]:
    """The number of results that fail, of the last of each audit and partition, by dataset and ``on_fail``."""
    if "observed" not in table_columns(con).get("ops.checks", {}):
        return {}
    found = con.execute(
        f"""SELECT dataset, on_fail, count(*) FILTER (NOT passed) FROM (
                FROM {LAKE}.ops.checks WHERE dataset IS NOT NULL
                QUALIFY token = max(token) OVER (PARTITION BY dataset, partition)
            ) GROUP BY ALL"""
    ).fetchall()
    return {(dataset, on_fail): number for dataset, on_fail, number in found}


@dataclass(frozen=True, slots=True)
class Warned:
    """An audit that warns of published rows.

    Args:
        subject: The dataset, or the model in ``prod``.
        name: The audit.
        partitions: Keys of the published partitions whose rows break it; of a model, its intervals. Sorted.
        observed: What was observed in the last of them.
        expected: What it should be.
    """

    subject: str
    name: str
    partitions: Sequence[str]
    observed: str
    expected: str


def warnings(con: DuckDBPyConnection, tables: Collection[str] | None = None) -> list[Warned]:
    """The audits that warn of what is published.

    Args:
        con: A connection with the lake attached.
        tables: Only those of these datasets and other tables of datasets; None: of all, and of the models of ``prod``.
    """
    if "observed" not in table_columns(con).get("ops.checks", {}):
        return []
    broken = f"(SELECT * FROM {LAKE}.ops.checks WHERE NOT passed AND on_fail = 'warn')"
    models = f"(SELECT * FROM {LAKE}.ops.checks WHERE environment = '{PROD}' AND model IS NOT NULL)"
    found = con.execute(
        f"""WITH published AS (
                SELECT dataset, partition, arg_max(attempt_id, token) AS attempt_id FROM {LAKE}.ops.ledger
                WHERE state IN {PUBLISHED_STATES} GROUP BY ALL
            ), restored AS (
                SELECT attempt_id, max(restores) AS restores FROM {LAKE}.ops.ledger WHERE restores <> '' GROUP BY ALL
            ), found AS (
                SELECT r.dataset AS subject, r.name, r.partition, r.partition AS place, r.observed, r.expected
                FROM {broken} r JOIN published p USING (dataset, partition) LEFT JOIN restored o
                     ON o.attempt_id = p.attempt_id
                WHERE r.attempt_id = coalesce(o.restores, p.attempt_id)
                UNION ALL
                SELECT r.model, r.name, {_SPAN}, r.interval_start::VARCHAR, r.observed, r.expected
                FROM {broken} r WHERE r.environment = '{PROD}' AND {_standing(models)}
            )
            SELECT subject, name, list(partition ORDER BY place), arg_max(observed, place), arg_max(expected, place)
            FROM found GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    return [Warned(*row) for row in found if tables is None or row[0] in tables]


def recent(con: DuckDBPyConnection, number: int) -> list[dict[str, Any]]:
    """The last results of all audits.

    Args:
        con: A connection with the lake attached.
        number: The most results of an audit.

    Returns:
        Of each audit: ``subject`` (a dataset, or a model of ``prod``), ``is_model``, and as in `Results`: ``name``,
        ``on_fail``, ``passed``, ``failed``, ``last_failed``. ``results`` are the last, each with ``partition``,
        ``passed`` and ``observed``, the newest partition last.
    """
    if "observed" not in table_columns(con).get("ops.checks", {}):
        return []
    models = f"(SELECT * FROM {LAKE}.ops.checks WHERE environment = '{PROD}' AND model IS NOT NULL)"
    return rows(
        con,
        f"""WITH last AS (
                SELECT dataset AS subject, false AS is_model, name, on_fail, passed, partition, partition AS place,
                       observed, token
                FROM {LAKE}.ops.checks WHERE dataset IS NOT NULL
                QUALIFY token = max(token) OVER (PARTITION BY dataset, partition)
                UNION ALL
                SELECT model, true, name, coalesce(on_fail, 'reject'), passed, {_SPAN}, interval_start::VARCHAR,
                       coalesce(observed, error), token
                FROM {models} r WHERE name IS NOT NULL AND {_standing(models)}
            )
            SELECT subject, is_model, name, arg_max(on_fail, token) AS on_fail, count(*) FILTER (passed) AS passed,
                   count(*) FILTER (NOT passed) AS failed, max(partition) FILTER (NOT passed) AS last_failed,
                   list_reverse(list({{partition: partition, passed: passed, observed: observed}}
                                     ORDER BY place DESC)[:{number}]) AS results
            FROM last GROUP BY subject, is_model, name ORDER BY is_model, subject, min(token), name""",
    )


def read(
    settings: Settings,
    dataset: Dataset,
    partitions: Sequence[str] = (),
    name: str | None = None,
    limit: int = 20,
    history: bool = False,
) -> Results:
    """Read the results of a dataset's audits.

    Args:
        settings: Where the lake is.
        dataset: The dataset.
        partitions: Only these; empty: all.
        name: Only this audit; None: all.
        limit: The most results.
        history: All results, the newest first; otherwise the last of each partition.
    """
    where = f"dataset = {literal(dataset.key)}"
    if partitions:
        where += f" AND partition IN ({', '.join(map(literal, partitions))})"
    if name is not None:
        where += f" AND name = {literal(name)}"
    every = f"(SELECT * FROM {LAKE}.ops.checks WHERE {where})"
    last = f"(FROM {every} QUALIFY token = max(token) OVER (PARTITION BY partition))"
    with connected(settings, read_only=True) as con, one_snapshot(con):
        return _read(con, every, last, limit, history)


def read_model(
    settings: Settings,
    model: str,
    environment: str = PROD,
    moments: Sequence[str] = (),
    name: str | None = None,
    limit: int = 20,
    history: bool = False,
) -> Results:
    """Read the results of a model's audits.

    Args:
        settings: Where the lake is.
        model: Schema and name.
        environment: SQLMesh's environment.
        moments: Only intervals with one of these: ``2024-01-31``, ``2024-01-31T05``. Empty: all.
        name: Only this audit; None: all.
        limit: The most results.
        history: All results, the newest first; otherwise those of intervals that were not built again since.

    Raises:
        BadInput: there is no such model, or a moment is no day or hour.
    """
    where = f"environment = {literal(environment)} AND model = {literal(model)}"
    if moments:
        times = [f"TIMESTAMP {literal(_moment(text).isoformat())}" for text in moments]
        where += f" AND ({' OR '.join(f'(interval_start <= {t} AND interval_end > {t})' for t in times)})"
    every = f"(SELECT * REPLACE ({_SPAN} AS partition) FROM {LAKE}.ops.checks WHERE {where})"
    wanted = f"name IS NOT NULL AND {'true' if name is None else f'name = {literal(name)}'}"
    last = f"(SELECT * FROM {every} r WHERE {wanted} AND {_standing(every)})"
    with connected(settings, read_only=True) as con, one_snapshot(con):
        view = in_environment(model, environment).replace(".", "' AND table_name = '")
        there = f"SELECT 1 FROM information_schema.tables WHERE table_catalog = '{LAKE}' AND table_schema = '{view}'"
        found = _read(con, f"(FROM {every} WHERE {wanted})", last, limit, history)
        if not found.names and not con.execute(there).fetchall():
            raise BadInput(f"{environment} has no model {model}.", "lake transform, or name a dataset")
    return found


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        raise BadInput(f"{text!r} is not a day or an hour.", "write it like this: 2024-01-31, 2024-01-31T05") from None


_SPAN = """CASE
    WHEN interval_end - interval_start >= INTERVAL 1 DAY THEN concat_ws(
        '..', interval_start::DATE, nullif((interval_end - INTERVAL 1 MICROSECOND)::DATE, interval_start::DATE))
    WHEN minute(interval_start) > 0 THEN strftime(interval_start, '%Y-%m-%dT%H:%M')
    ELSE strftime(interval_start, '%Y-%m-%dT%H') END"""
"""An interval of a model as text, see `ducklake_flows.lake.builds.RefusedInterval.span`."""


def _standing(every: str) -> str:
    """The condition that no later build covers the interval of a model's result ``r``."""
    return f"""NOT EXISTS (
        FROM (SELECT DISTINCT environment, model, interval_start, interval_end, token FROM {every}) o
        WHERE o.token > r.token AND o.environment = r.environment AND o.model = r.model
              AND o.interval_start <= r.interval_start AND o.interval_end >= r.interval_end)"""


def _read(con: DuckDBPyConnection, every: str, last: str, limit: int, history: bool) -> Results:
    """Read results from two relations: all, and the last of each partition and audit."""
    if "observed" not in table_columns(con).get("ops.checks", {}):
        return Results([], [])
    names = rows(
        con,
        f"""SELECT name, arg_max(on_fail, token) AS on_fail, count(*) FILTER (passed) AS passed,
                   count(*) FILTER (NOT passed) AS failed, max(partition) FILTER (NOT passed) AS last_failed
            FROM {last} GROUP BY name ORDER BY min(token), name""",
    )
    found = rows(
        con,
        f"""SELECT partition, name, passed, coalesce(on_fail, 'reject') AS on_fail,
                   coalesce(observed, error) AS observed, expected, failed_rows, sample, attempt_id, recorded_at
            FROM {every if history else last}
            ORDER BY {"" if history else "passed, "}token DESC, partition DESC, name
            LIMIT {limit}""",
    )
    return Results(names, found)
