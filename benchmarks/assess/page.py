"""Writes the tables and plots of docs/honest-assessment.md from the results: no figure on the page is typed."""

from __future__ import annotations

import json
import re
import statistics
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from benchmarks.measure import ROOT
from benchmarks.plots import OTHERS, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from matplotlib.axes import Axes

PAGE = ROOT / "docs" / "honest-assessment.md"
RESULTS = ROOT / "benchmarks" / "results"
GATE = "gate of one"
CASE = ("part", "catalog", "kind", "retries", "writers", "contender", "storage", "group", "builder")
"""The columns that tell the cases apart."""
Rows = list[dict[str, Any]]


def write() -> None:
    """Fill the page's tables from ``benchmarks/results/assess-*.json``, and draw its plots.

    Raises:
        ValueError: the page lacks a table that there are results for.
    """
    text = PAGE.read_text()
    for part, tables in TABLES.items():
        path = RESULTS / f"assess-{part}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        text = fill(text, f"scale {part}", _scale(result))
        for name, make in tables.items():
            text = fill(text, name, make(result["rows"]))
        for name, draw in PLOTS.get(part, {}).items():
            _plot(name, draw, result["rows"])
    PAGE.write_text(text)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between a table's two comments.

    Raises:
        ValueError: the text does not have them once.
    """
    filled, count = re.subn(
        rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.S
    )
    if count != 1:
        raise ValueError(f"the page has {count} places for {name!r}")
    return filled


def _scale(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    small = " **at the small scale of `--quick`: figures of a busy machine, for the form of the table only**"
    cases: dict[str, int] = {}
    for row in result["rows"]:
        case = json.dumps([row.get(key) for key in CASE])
        cases[case] = cases.get(case, 0) + 1
    runs = f"{min(cases.values())} to {max(cases.values())} runs of each case" if cases else "no runs"
    return (
        f"Measured on {result['when']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB"
        f"{small if result['quick'] else ''}; {runs}, medians with their spread. {versions}."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are aligned to the right."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def grouped(rows: Rows, *keys: str) -> dict[tuple[Any, ...], Rows]:
    """Rows by the values of some columns, in order of appearance."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def middle(rows: Rows, key: str, digits: int = 3) -> str:
    """The median of a column, with its spread if the runs differ."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return "-"
    low, high, median = (_figure(value, digits) for value in (min(values), max(values), statistics.median(values)))
    return median if low == high else f"{median} ({low} to {high})"


def most(rows: Rows, key: str) -> str:
    """The largest value of a column: one wrong run is one too many."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return _figure(max(values)) if values else "-"


def _figure(value: float, digits: int = 3) -> str:
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def _yes(rows: Rows, key: str) -> str:
    values = {row.get(key) for row in rows}
    if values == {None}:
        return "-"
    return "yes" if values == {True} else "no" if values <= {False, None} else "not always"


def _bold(value: str) -> str:
    """Bold if it is a number above zero: a fault."""
    return value if value in ("0", "-", "yes") else f"**{value}**"


def _scaling(rows: Rows) -> str:
    scaling = [row for row in rows if row["part"] == "scaling"]
    counts = sorted({row["writers"] for row in scaling})

    def cell(found: Rows) -> str:
        if not found:
            return "-"
        bad = most(found, "failed")
        asleep = most(found, "asleep")
        wrong = most(found, "wrong")
        faults = [f"{bad} failed"] if bad != "0" else []
        faults += [f"{asleep} asleep"] if asleep != "0" else []
        faults += [f"{wrong} wrong"] if wrong != "0" else []
        rate = middle([row for row in found if row["commits"]], "commits/s", 2).partition(" ")[0]
        return rate + (f", **{', '.join(faults)}**" if faults else "")

    body = []
    for (catalog, retries), found in grouped(scaling, "catalog", "retries").items():
        by = grouped(found, "writers")
        body.append([catalog, retries.partition(" (")[0], *(cell(by.get((n,), [])) for n in counts)])
    total = scaling[0]["commits"] + scaling[0]["failed"]
    head = ["catalog", "retries", *(f"{n} writer{'s' * (n > 1)}" for n in counts)]
    return table(head, body) + f"\n\nCommits a second, of {total} commits in all; the worst of the runs for failures."


def _settings(rows: Rows) -> str:
    found = grouped([row for row in rows if row["part"] == "settings"], "retries")
    return table(
        ["6 writers, PostgreSQL", "commits/s", "worst commit, s", "failed", "asleep when stopped", "wrong"],
        [
            [
                retries,
                middle(runs, "commits/s"),
                middle(runs, "worst, s"),
                *(_bold(most(runs, key)) for key in ("failed", "asleep", "wrong")),
            ]
            for (retries,), runs in found.items()
        ],
    )


def _kinds(rows: Rows) -> str:
    body = []
    for (kind,), runs in grouped([row for row in rows if row["part"] == "kinds"], "kind").items():
        alone = [row for row in runs if row["retries"] != GATE]
        gated = [row for row in runs if row["retries"] == GATE]
        why = sorted({error for row in alone for error in row["errors"]})
        body.append(
            [
                kind,
                middle(alone, "commits"),
                _bold(most(alone, "failed")),
                _bold(most(alone, "wrong")),
                middle(gated, "commits"),
                _bold(most(gated, "failed")),
                _bold(most(gated, "wrong")),
                "; ".join(why)[:120] or "-",
            ]
        )
    return table(
        ["4 writers, PostgreSQL", "done", "failed", "wrong", "gate: done", "failed", "wrong", "errors without a gate"],
        body,
    )


def _trio(rows: Rows) -> str:
    found = grouped([row for row in rows if row["part"] == "trio"], "retries")
    return table(
        ["3 writers, a partition each", "done", "worst commit, s", "failed", "asleep"],
        [
            [r, middle(runs, "commits"), middle(runs, "worst, s"), most(runs, "failed"), most(runs, "asleep")]
            for (r,), runs in found.items()
        ],
    )


def _by_contender(rows: Rows, storage: str) -> Iterable[tuple[Any, Rows]]:
    """The runs of each contender and size of a group on a storage."""
    return grouped([row for row in rows if row["storage"] == storage], "contender", "group").items()


def _filled(storage: str) -> Callable[[Rows], str]:
    def make(rows: Rows) -> str:
        body = []
        for (name, group), runs in _by_contender(rows, storage):
            body.append(
                [
                    name,
                    str(group),
                    middle(runs, "days"),
                    middle(runs, "days/s"),
                    middle(runs, "worst commit, s"),
                    middle(runs, "commits"),
                    most(runs, "conflicts"),
                    _bold(most(runs, "failed")),
                    _bold(most(runs, "wrong days")),
                    middle(runs, "files"),
                    middle(runs, "MiB"),
                    middle(runs, "read a day, s", 2),
                    middle(runs, "read the year, s", 2),
                ]
            )
        head = [
            "contender",
            "days a commit",
            "days done",
            "days/s",
            "slowest group, s",
            "commits",
            "conflicts",
            "failed",
            "wrong days",
        ]
        lines = [table([*head, "files", "MiB", "read a day, s", "read all, s"], body)]
        lines += [
            f"\n{row['contender']}, {row['group']} a commit: DuckDB cannot read it back: `{row['unreadable']}`"
            for row in rows
            if row["storage"] == storage and "unreadable" in row
        ]
        return "\n".join(lines)

    return make


def _kept(storage: str) -> Callable[[Rows], str]:
    def make(rows: Rows) -> str:
        body = []
        for (name, group), runs in _by_contender(rows, storage):
            body.append(
                [
                    name,
                    str(group),
                    middle(runs, "replace, s"),
                    most(runs, "replace, conflicts"),
                    _bold(most(runs, "replace, failed")),
                    _bold(most(runs, "replace, wrong days")),
                    f"{_bold(most(runs, 'torn looks'))} of {most(runs, 'looks')}",
                    _bold(most(runs, "refused looks")),
                    _yes(runs, "time travel"),
                    _bold(most(runs, "killed: torn days")),
                    most(runs, "killed: files left"),
                    _bold(most(runs, "killed, continued: wrong days")),
                ]
            )
        head = ["contender", "days a commit", "replace 32 days, s", "conflicts", "failed", "wrong days", "torn looks"]
        head += ["refused looks", "time travel", "killed: torn days", "files left", "then continued: wrong days"]
        return table(head, body)

    return make


def _models(rows: Rows) -> str:
    body = []
    for (name, where), runs in sorted(grouped(rows, "builder", "where").items()):
        bad = next((row["error"] for row in runs if "error" in row), "")
        body.append(
            [
                name,
                where,
                middle(runs, "build, s"),
                _yes(runs, "right"),
                middle(runs, "one day, s"),
                _yes(runs, "one day right"),
                middle(runs, "snapshots"),
                middle(runs, "rows written"),
                _bold(most(runs, "torn snapshots")),
                bad[:160].replace("|", "\\|") or "-",
            ]
        )
    head = ["way", "gold is in", "build all, s", "right", "one day, s", "right", "snapshots", "rows written"]
    return table([*head, "of them torn", "error"], body)


TABLES: dict[str, dict[str, Callable[[Rows], str]]] = {
    "writers": {"scaling": _scaling, "settings": _settings, "kinds": _kinds, "trio": _trio},
    "backfill": {
        "filled folder": _filled("folder"),
        "kept folder": _kept("folder"),
        "filled S3": _filled("S3"),
        "kept S3": _kept("S3"),
    },
    "models": {"models": _models},
}


def _draw_writers(axes: Axes, rows: Rows) -> None:
    scaling = [row for row in rows if row["part"] == "scaling"]
    colours = dict(
        zip(sorted({row["catalog"] for row in scaling}), ("#bf8700", "#8250df", "#1a7f37", "#cf222e"), strict=False)
    )
    for (catalog, retries), found in grouped(scaling, "catalog", "retries").items():
        by = grouped(found, "writers")
        count = [n for (n,) in by]
        rate = [statistics.median(row["commits/s"] for row in runs) for runs in by.values()]
        style = "o-" if retries == GATE else "x--"
        axes.plot(count, rate, style, color=colours[catalog], label=f"{catalog}, {retries.partition(' (')[0]}")
    axes.set(xscale="log", yscale="log", xlabel="writers", ylabel="commits a second", xticks=[1, 2, 4, 8, 16])
    axes.set_xticklabels(["1", "2", "4", "8", "16"])
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("One table of one DuckLake: retries (dashed) and a gate (solid)", fontsize=9)


def _draw_backfill(axes: Axes, rows: Rows) -> None:
    local = grouped([row for row in rows if row["storage"] == "folder" and row["days"]], "contender", "group")
    names = [f"{name}, {'a day' if group == 1 else f'{group} days'} a commit" for name, group in local][::-1]
    rate = [statistics.median(row["days/s"] for row in runs) for runs in local.values()][::-1]
    bars = axes.barh(names, rate, color=[OURS if "our gate" in name else OTHERS for name in names])
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=7)
    axes.set(xscale="log", xlabel="days a second")
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(visible=False, axis="y")
    axes.set_title("A year of flights into a folder", fontsize=9)


PLOTS: dict[str, dict[str, Callable[[Axes, Rows], None]]] = {
    "writers": {"assess-writers": _draw_writers},
    "backfill": {"assess-backfill": _draw_backfill},
}


def _plot(name: str, draw: Callable[[Axes, Rows], None], rows: Rows) -> None:
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    draw(figure.subplots(), rows)
    figure.savefig(ROOT / "docs" / "images" / f"{name}.svg", metadata={"Date": None})
