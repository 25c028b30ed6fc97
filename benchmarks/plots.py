"""The benchmarks' plots for the documentation, as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.measure import Bench

# A fixed salt, so that the same values give the same file.
mpl.rcParams.update({"svg.hashsalt": "lake", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False})
mpl.rcParams.update({"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})

OURS, OTHERS = "#1f6feb", "#8b949e"


def _year(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    best: dict[str, float] = {}
    for row in rows:
        name = row["run"].removesuffix(" again")
        best[name] = max(best.get(name, 0.0), row["partitions/s"])
    names = list(best)[::-1]
    bars = axes.barh(names, [best[n] for n in names], color=[OURS if n == "this project" else OTHERS for n in names])
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.set(xscale="log", xlabel="partitions a second")
    axes.grid(visible=False, axis="y")


def _groups(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    sizes = [row for row in rows if isinstance(row["group"], int)]
    for kind, line in (("replaced", "o-"), ("new", "o--")):
        of = [row for row in sizes if row["partitions"] == kind]
        axes.plot([r["group"] for r in of], [r["times DuckDB"] for r in of], line, color=OURS, label=kind)
    axes.axhline(1.3, color=OTHERS, linestyle="--", label="target from 64 on")
    axes.set(xscale="log", yscale="log", xlabel="partitions in a group", ylabel="times one DuckDB transaction")
    axes.legend(frameon=False)


def _growth(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    of = {row["operation"]: row for row in rows}
    for name in ("new", "replace", "transform replaced", "select", "plan", "status", "verify since", "verify"):
        sizes = {int(size.replace(",", "")): seconds for size, seconds in of[name].items() if size != "operation"}
        axes.plot(list(sizes), list(sizes.values()), "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="published partitions", ylabel="seconds")
    axes.legend(frameon=False)


def _workers(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    free = [r for r in rows if not r["rate"]]
    count = [r["workers"] for r in free]
    axes.plot(count, [r["pages a second"] for r in free], "o-", color=OURS, label="measured")
    axes.plot(count, [n * free[0]["pages a second"] for n in count], "--", color=OTHERS, label="linear")
    axes.set(xlabel="Dask workers", ylabel="pages a second", xticks=count)
    axes.legend(frameon=False)


def _simulation(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        workers = {int(name.removesuffix(" w")): rate for name, rate in row.items() if name.endswith(" w")}
        seconds = row["seconds a partition"]
        axes.plot(list(workers), list(workers.values()), "o-", label=f"{seconds:g} s a partition")
    axes.set(xscale="log", yscale="log", xlabel="Dask workers", ylabel="partitions a second")
    axes.legend(frameon=False)


PLOTS: dict[str, Callable[[Axes, Sequence[dict[str, Any]]], None]] = {
    "year": _year,
    "year-s3": _year,
    "groups": _groups,
    "workers": _workers,
    "growth": _growth,
    "growth-postgres": _growth,
    "simulation": _simulation,
}


def draw(name: str, bench: Bench, folder: Path) -> None:
    """Draw a benchmark's plot into ``<folder>/bench-<name>.svg``, if it has one."""
    if name not in PLOTS:
        return
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    PLOTS[name](axes, bench.rows)
    axes.set_title(bench.title, fontsize=9)
    figure.savefig(folder / f"bench-{name}.svg", metadata={"Date": None})
