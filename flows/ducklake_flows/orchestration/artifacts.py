"""Artifacts of the Prefect UI: a run's table and summary, and one standing partition grid per dataset."""

from __future__ import annotations

import base64
import contextlib
from itertools import groupby
from typing import TYPE_CHECKING, Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.utilities.urls import url_for

from ducklake_flows.lake import history
from ducklake_flows.lake.connect import connected
from ducklake_flows.plan import counts, plan_each
from ducklake_flows.project import get_datasets
from ducklake_flows.report import causes
from ducklake_flows.report.grid import make_grid
from ducklake_flows.report.svg import grid_svg
from ducklake_flows.report.words import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ducklake_flows.orchestration.summary import Summary
    from ducklake_flows.plan import Planned
    from ducklake_flows.settings import Settings

RUNS = 5
"""Number of latest runs that a grid links to."""

REUSE_SECONDS = 300.0
"""Maximum age of a run's plan for which a grid shows it: after a longer run, the sources are listed again."""


@contextlib.contextmanager
def optional(artifact: str) -> Iterator[None]:
    """Log an error of Prefect's server in the block: what a run does must not depend on what the UI shows of it."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("the artifact %s is not up to date: %s", artifact, error)


def show_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Create an artifact with a table; see `optional`."""
    with optional(key):
        create_table_artifact([dict(row) for row in rows], key=key, description=description)


def show_text(key: str, lines: Sequence[str], description: str) -> None:
    """Create an artifact with lines of Markdown; see `optional`."""
    with optional(key):
        create_markdown_artifact("\n".join(lines), key=key, description=description)


def create_artifacts(summary: Summary, settings: Settings) -> None:
    """Create a run's artifacts: a table of its partitions, and a summary with the failures by cause."""
    table = _table(summary)
    if table:
        show_table("partitions-done", table, "every partition of this run")
    found = summary.causes
    lines = [
        f"## {summary.flow_run}",
        "" if table or summary.no_source else "Nothing to do.",
        f"- published: **{count(len(summary.published), 'partition')}**, {count(summary.rows, 'row')}, "
        f"{count(summary.commits, 'commit')}",
        f"- unchanged: {len(summary.unchanged)}",
        f"- dropped because a newer attempt is published: {len(summary.older)}",
        f"- failed: **{len(summary.failed)}**",
        *(f"    - {_code(line)}" for line in causes.lines(found, "")),
        *(f"- next: {_code(step)}" for step in causes.steps(found)),
        f"- no source: {len(summary.no_source)} {', '.join(summary.no_source[:10])}",
        *(f"- left out: `{out.dataset}` {_code(out.error.message)}" for out in summary.left_out),
        *(f"- {line}" for line in summary.stale),
        "",
        "| stage | seconds |",
        "| --- | ---: |",
        *(f"| {stage} | {seconds:.1f} |" for stage, seconds in summary.seconds.items()),
    ]
    show_text("ingest-summary", lines, summary.flow_run)
    update_grids(settings, summary.datasets, summary.plan if summary.seconds["total"] < REUSE_SECONDS else ())


def _table(summary: Summary) -> list[dict[str, Any]]:
    """One row per partition of a run, the failed ones first."""
    table = [
        {
            "dataset": f.dataset,
            "partition": f.partition,
            "state": f.state,
            "rows": None,
            "bytes": None,
            "seconds": round(f.seconds, 3),
            "error": f.error,
        }
        for f in sorted(summary.failed, key=lambda f: (f.dataset, f.partition))
    ]
    found = {"published": summary.published, "unchanged": summary.unchanged, "older": summary.older}
    for state, receipts in found.items():
        table += [
            {
                "dataset": r.dataset,
                "partition": r.partition,
                "state": state,
                "rows": r.rows,
                "bytes": r.bytes,
                "seconds": round(r.seconds, 3),
                "error": "; ".join(r.warnings),
            }
            for r in sorted(receipts, key=lambda r: (r.dataset, r.partition))
        ]
    return table


def update_grids(settings: Settings, datasets: Sequence[str], plan: Sequence[Planned] = ()) -> None:
    """Bring the partition grids of these datasets up to date. A failure to do so is logged, never raised.

    Reads the ledger, and lists the sources for what the run's plan does not know.

    Args:
        settings: Where the lake is.
        datasets: Keys of the datasets; nothing happens if there are none.
        plan: The plan of the run that has just ended.
    """
    if not datasets:
        return  # `get_datasets` would take none for all
    try:
        with connected(settings, read_only=True) as con:
            planned, _ = plan_each(settings, get_datasets(datasets), recorded=True, known=plan, con=con)
            runs = {key: history.runs(con, key, RUNS) for key in datasets}
        for key, group in groupby(planned, key=lambda p: p.dataset):
            text = grid_markdown(list(group), runs[key])
            create_markdown_artifact(text, key=grid_key(key), description=f"the state of every partition of {key}")
    except Exception as error:  # noqa: BLE001 - the run's own result must not depend on a picture
        get_run_logger().warning("the partition grids are not up to date: %s", settings.redact(str(error)))


def grid_key(dataset: str) -> str:
    """The artifact key of a dataset's grid. Dataset keys have no dashes, so two datasets never share one."""
    return f"{dataset.replace('_', '-')}-partitions"


def grid_markdown(planned: Sequence[Planned], runs: Sequence[dict[str, Any]]) -> str:
    """The text of one dataset's grid artifact: picture, counts, failures by cause, latest runs.

    The picture is an image with a data URI: Prefect's UI (3.8.8, both versions) shows it, and removes inline SVG.
    """
    grid = make_grid([(p.partition, p.state.value) for p in planned])
    picture = base64.b64encode(grid_svg(grid).encode()).decode()
    total = sum(p.entry.rows for p in planned if p.entry)
    told = ", ".join(f"{n:,} {state.replace('_', ' ')}" for state, n in counts(planned).items())
    coarse = (
        f"One mark per {grid.unit}; it shows the most severe state in it." if len(grid.marks) < len(planned) else ""
    )
    found = causes.failures(planned)
    return "\n".join(
        [
            f"## {planned[0].dataset}",
            "",
            f"**{told}**, {count(total, 'row')}. {coarse}",
            "",
            f"![{told}](data:image/svg+xml;base64,{picture})",
            *(["", "### Failures", ""] if found else []),
            *(f"- {_code(line)}" for line in causes.lines(found, "")),
            *(f"- next: {_code(step)}" for step in causes.steps(found)),
            "",
            "### Latest runs",
            "",
            "| run | last commit (UTC) | published | failed | rows |",
            "| --- | --- | ---: | ---: | ---: |",
            *(
                f"| {_link(run['flow_run_id'])} | {run['at']:%Y-%m-%d %H:%M} | {run['published']:,} "
                f"| {run['failed']:,} | {run['rows']:,} |"
                for run in runs
            ),
        ]
    )


def _link(flow_run_id: str) -> str:
    """A link to a run in the UI; just its id if it is not one of a Prefect run."""
    url = url_for("flow-run", flow_run_id) if len(flow_run_id) == len("00000000-0000-0000-0000-000000000000") else None
    return f"[{flow_run_id[:8]}]({url})" if url else _code(flow_run_id)


def _code(text: str) -> str:
    """A text as Markdown code, so that nothing in it is taken for Markdown or HTML."""
    return f"`{text.strip().replace('`', chr(39))}`"
