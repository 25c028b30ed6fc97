"""`lake report`: one self-contained HTML page about the lake. It needs no network and holds no secret."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ducklake_flows.lake import checks, history, ledger
from ducklake_flows.lake.connect import connected
from ducklake_flows.plan import Planned, counts
from ducklake_flows.project import all_datasets
from ducklake_flows.report import causes
from ducklake_flows.report.grid import WARNED, make_grid, marked
from ducklake_flows.report.overdue import overdue_in
from ducklake_flows.report.svg import COLOURS, bars_svg, grid_svg, number, strip_svg
from ducklake_flows.report.words import count
from ducklake_flows.states import State

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ducklake_flows.lake.verify import Finding
    from ducklake_flows.plan import LeftOut
    from ducklake_flows.settings import Settings

BARS = 366
"""Maximum bars of a chart: the latest partitions or days."""

RESULTS = 30
"""Number of last results of an audit that the page shows."""

RUNS = 15
"""Number of latest runs that the page lists."""

STAGES = ("dask", "prefect", "extract", "normalize", "inspect", "stage", "receipt", "gate_wait", "gate")
"""Stages in their order; each has its own colour."""

_SIZES = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Chart:
    """A bar chart: its picture, largest value with unit, first and last label."""

    title: str
    svg: Markup
    most: str
    first: str
    last: str


@dataclass(frozen=True)
class Audited:
    """The results of one audit of a dataset or a model: of each partition or interval the last, and a picture."""

    subject: str
    is_model: bool
    name: str
    on_fail: str
    passed: int
    failed: int
    last_failed: str | None
    strip: Markup


@dataclass(frozen=True)
class Section:
    """One dataset's part of the page."""

    key: str
    counts: Mapping[str, int]
    rows: int
    bytes: int
    latest: datetime | None
    colour: str
    grid: Markup
    unit: str
    charts: Sequence[Chart]
    audits: Sequence[Audited]


@dataclass(frozen=True)
class Past:
    """Failures of one cause in one run: when, in which run, the cause, and how many are published since."""

    at: datetime
    run: str
    cause: causes.Cause
    fixed: int


def render(
    settings: Settings, planned: Sequence[Planned], left_out: Sequence[LeftOut], findings: Sequence[Finding] | None
) -> str:
    """The page as HTML.

    Args:
        settings: Where the lake is.
        planned: The state of the partitions, as `lake status` reads it.
        left_out: Datasets whose source cannot be listed.
        findings: What `lake verify` found; None if it did not run.
    """
    with connected(settings, read_only=True) as con:
        runs = history.runs(con, limit=RUNS)
        failures = history.failures(con)
        growth = history.growth(con, BARS)
        stages = history.stages(con)
        size = history.size(con)
        behind = len(ledger.unbuilt(con, "prod")) if ledger.built_project(con, "prod") else None
        late = overdue_in(con, all_datasets().values())
        warnings = checks.warnings(con)
        audits = [_audited(row) for row in checks.recent(con, RESULTS)]
    environment = Environment(
        loader=PackageLoader("ducklake_flows", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        # Before it is escaped: redacting the finished page could take markup for a part of a secret.
        finalize=lambda value: settings.redact(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "size": size_text, "utc": _utc, "count": count, "words": _words}
    found = causes.failures(planned)
    return environment.get_template("report.html").render(
        title=settings.project.name if settings.project else "lake",
        now=datetime.now(UTC),
        total=counts(planned),
        rows=sum(p.entry.rows for p in planned if p.entry),
        size=size,
        behind=behind,
        late=late,
        causes=found,
        left_out=[left for left in left_out if left.is_fault],
        warnings=causes.warning_lines(warnings),
        sections=[
            _section(
                key,
                list(group),
                {(each.subject, partition) for each in warnings for partition in each.partitions},
                [a for a in audits if a.subject in _tables(key)],
            )
            for key, group in groupby(planned, key=lambda p: p.dataset)
        ],
        models=[a for a in audits if a.is_model],
        growth=[
            _chart("Rows in raw", [(str(g["day"]), g["rows"]) for g in growth], "rows"),
            _chart("Size of raw", [(str(g["day"]), g["bytes"] / 1e6) for g in growth], "MB"),
        ]
        if growth
        else [],
        runs=runs,
        stages=_stages(stages),
        failures=_past(failures)[:RUNS],
        order=STAGES,
        findings=findings,
    )


def _tables(key: str) -> set[str]:
    """The keys of a dataset and of its other tables."""
    found = all_datasets().get(key)
    return {key, *(member.key for member in found.members)} if found else {key}


def _audited(row: Mapping[str, Any]) -> Audited:
    failed = WARNED if row["on_fail"] == "warn" else State.rejected.value
    told = [
        (f"{r['partition']}: {r['observed'] or ('passed' if r['passed'] else 'failed')}", r["passed"])
        for r in row["results"]
    ]
    strip = strip_svg([(text, State.published.value if passed else failed) for text, passed in told])
    rest = {name: value for name, value in row.items() if name != "results"}
    return Audited(**rest, strip=Markup(strip))  # noqa: S704 - `strip_svg` escapes its texts


def _section(
    key: str, planned: Sequence[Planned], warned: Collection[tuple[str, str]], audits: Sequence[Audited]
) -> Section:
    grid = make_grid(marked(planned, warned))
    entries = [(p.partition, p.entry) for p in planned if p.entry and p.entry.attempt_id]
    several = len(planned) > 1
    recent = entries[-BARS:]
    charts = []
    if several and recent:
        charts = [
            _chart("Rows by partition", [(label, entry.rows) for label, entry in recent], "rows"),
            _chart("Seconds by partition", [(label, entry.seconds) for label, entry in recent], "s"),
        ]
    return Section(
        key,
        counts(planned),
        sum(entry.rows for _, entry in entries),
        sum(entry.bytes for _, entry in entries),
        max((entry.recorded_at for _, entry in entries), default=None),
        COLOURS[grid.marks[0].state] if grid.unit == "full" else "",
        Markup("" if grid.unit == "full" else grid_svg(grid, tips=True)),  # noqa: S704 - `grid_svg` escapes its texts
        grid.unit if len(grid.marks) < len(planned) else "",
        charts,
        audits,
    )


def _chart(title: str, values: Sequence[tuple[str, float]], unit: str) -> Chart:
    most = f"{number(max(value for _, value in values))} {unit}"
    picture = Markup(bars_svg(values, unit))  # noqa: S704 - `bars_svg` escapes its texts
    return Chart(title, picture, most, values[0][0], values[-1][0])


def _past(failures: Sequence[Mapping[str, Any]]) -> list[Past]:
    """Failed attempts grouped by run and cause, the latest run first."""
    found = []
    for run in dict.fromkeys(f["flow_run_id"] for f in failures):
        mine = [f for f in failures if f["flow_run_id"] == run]
        fixed = {(f["dataset"], f["partition"]) for f in mine if f["fixed"]}
        told = causes.causes(causes.Failed(f["dataset"], f["partition"], f["state"], f["error"] or "") for f in mine)
        at = max(f["at"] for f in mine)
        found += [Past(at, run, c, sum((c.dataset, key) in fixed for key in c.partitions)) for c in told]
    return found


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, list[tuple[str, float]]]]:
    """Seconds per partition by stage: dataset, sum, and each stage with its seconds."""
    found = []
    for dataset, group in groupby(stages, key=lambda s: s["dataset"]):
        seconds = {str(s["stage"]): s["seconds"] / s["count"] for s in group}
        each = [(stage, seconds[stage]) for stage in STAGES if stage in seconds]
        found.append((str(dataset), sum(seconds for _, seconds in each), each))
    return found


def size_text(size_bytes: float) -> str:
    """A size with its unit: ``4.1 MB``."""
    unit = 0
    while size_bytes >= 1000 and unit < len(_SIZES) - 1:
        size_bytes, unit = size_bytes / 1000, unit + 1
    return f"{size_bytes:.0f} {_SIZES[unit]}" if unit == 0 or size_bytes >= 100 else f"{size_bytes:.1f} {_SIZES[unit]}"


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _words(state: str) -> str:
    return state.replace("_", " ")
