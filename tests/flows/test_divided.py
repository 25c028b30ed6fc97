"""Datasets that are divided by regions and tenants, in a zone: planned, loaded, shown, built and restored."""

from __future__ import annotations

import shutil
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.cli import show
from ducklake_flows.errors import BadInput
from ducklake_flows.ingest import ingest
from ducklake_flows.plan import make_plan, strays
from ducklake_flows.project import get_dataset
from ducklake_flows.report.grid import make_grid
from ducklake_flows.report.lineage import lineage
from ducklake_flows.report.overdue import overdue
from ducklake_flows.report.svg import grid_svg
from ducklake_flows.rollback import rollback
from ducklake_flows.settings import load_settings
from tests.projects import Project, model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Lake

DATASETS = """
from datetime import date

from ducklake_flows import Contract, Dataset, Files

SALES = Dataset(
    "sales",
    Files("sales/{segment}/{period}.csv", "csv"),
    partition_column="day",
    segment_column="region",
    timezone="Europe/Brussels",
    contract=Contract({"id": "bigint", "at": "timestamp"}),
    start=date(2024, 1, 1),
    end=date(2024, 1, 3),
    freshness="2 days",
)
TENANTS = Dataset(
    "tenants",
    Files("tenants/{segment}.csv", "csv"),
    "full",
    segment_column="tenant",
    segments=("acme", "zeta"),
    contract=Contract({"id": "bigint"}),
)
"""


@pytest.fixture
def project(gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The models of a test."""
    return Project(tmp_path / "models", gated_lake, monkeypatch)


@pytest.fixture
def divided(gated_lake: Lake, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake with the two datasets above, and a project without models."""
    project.write("models/gold.sql", "MODEL (name gold.one, kind FULL);\nSELECT 1 AS one")
    (tmp_path / "divided").mkdir()
    (tmp_path / "divided" / "regional.py").write_text(DATASETS)
    monkeypatch.setenv("LAKE_DATASETS", str(tmp_path / "divided"))
    return gated_lake


def land(lake: Lake, region: str, *days: int, first: int = 1) -> None:
    for day in days:
        rows = "".join(f"{first + n},2024-01-0{day} 0{n}:30:00\n" for n in range(2))
        lake.land(f"sales/{region}/2024-01-0{day}.csv", f"id,at\n{rows}")


def states(lake: Lake, key: str) -> dict[str, str]:
    return {p.partition: p.state.value for p in make_plan(lake.settings, [get_dataset(key)])}


def loaded(datasets: list[str], *arguments: Any, **more: Any) -> int:
    summary: Any = ingest(datasets, *arguments, workers=1, **more)
    return int(summary["published"])


def there(lake: Lake) -> dict[str, list[int]]:
    found = lake.sql("SELECT region || '/' || day AS key, list(id ORDER BY id) AS ids FROM raw.sales GROUP BY ALL")
    return {row["key"]: row["ids"] for row in found}


def test_regions_are_listed_loaded_and_replaced(divided: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    land(divided, "eu", 1, 2, 3)
    land(divided, "us", 1, 2)
    divided.land("sales/us/2023-12-31.csv", "id,at\n")
    divided.land("sales/us/2024-13-01.csv", "id,at\n")
    found = {f"eu/2024-01-0{day}": "missing" for day in (1, 2, 3)}
    found |= {"us/2024-01-01": "missing", "us/2024-01-02": "missing", "us/2024-01-03": "no_source"}
    assert states(divided, "sales") == found
    assert strays([get_dataset("sales")]) == {"sales": ["sales/us/2023-12-31.csv", "sales/us/2024-13-01.csv"]}
    assert loaded(["sales"], partitions=["us/*"]) == 2
    assert loaded(["sales"], date(2024, 1, 2), date(2024, 1, 3), partitions=["eu/*"]) == 2
    assert loaded(["sales"]) == 1
    assert loaded(["sales"]) == 0
    right = {key: [1, 2] for key, state in found.items() if state == "missing"}
    assert there(divided) == right
    # Midnight in Brussels is 23:00 in UTC.
    assert divided.column('SELECT min("at")::VARCHAR FROM raw.sales') == ["2023-12-31 23:30:00+00"]
    land(divided, "us", 2, first=7)
    assert states(divided, "sales")["us/2024-01-02"] == "stale"
    assert loaded(["sales"], mode="stale") == 1
    assert there(divided) == {**right, "us/2024-01-02": [7, 8]}
    rollback("sales", "us/2024-01-02")
    assert there(divided) == right
    assert divided.errors() == []

    # A region that the source lists no more keeps its partitions, and they are shown.
    if divided.settings.landing.startswith("/"):
        shutil.rmtree(f"{divided.settings.landing}/sales/us")
        shown = states(divided, "sales")
        assert {key: state for key, state in shown.items() if key.startswith("us")} == {
            "us/2024-01-01": "published",
            "us/2024-01-02": "rolled_back",
        }

    with pytest.raises(BadInput, match=r"no partition matches 'apac/\*'"):
        make_plan(divided.settings, [get_dataset("sales")], only=["apac/*"])
    with pytest.raises(BadInput, match="a segment and a slash are missing"):
        make_plan(divided.settings, [get_dataset("sales")], only=["2024-01-01"])

    show.grid(make_plan(divided.settings, [get_dataset("sales")]))
    assert "eu 2024-01" in capsys.readouterr().out
    assert "eu 2024-01" in grid_svg(make_grid([(key, state) for key, state in found.items()]), tips=True)
    late = overdue(divided.settings, [get_dataset("sales")], datetime(2024, 1, 5, 23, 1))
    assert [(one.dataset, one.partitions, one.last) for one in late] == [("sales", ("us/2024-01-03",), "eu/2024-01-03")]
    assert overdue(divided.settings, [get_dataset("sales")], datetime(2024, 1, 5, 22, 59)) == []


def test_models_wait_for_all_regions_and_follow_each(divided: Lake, project: Project) -> None:
    query = "SELECT day, count(*)::INT AS n FROM raw.sales WHERE day BETWEEN @start_date AND @end_date GROUP BY day"
    project.write("models/gold.sql", model("gold.daily", query, "day", "signals (published(dataset := 'sales'))"))
    land(divided, "eu", 1, 2, 3)
    land(divided, "us", 1, 3)
    divided.land("sales/us/2024-01-02.csv", "id,at\nx,2024-01-02 00:30:00\n")
    with pytest.raises(Exception, match="1 partition failed"):
        loaded(["sales"])
    # The day that failed in one region is not built.
    assert {start for start, _ in project.built("gold.daily")} == {"2024-01-01", "2024-01-03"}
    land(divided, "us", 2)
    assert loaded(["sales"]) == 1
    assert project.built("gold.daily") == [("2024-01-02", "2024-01-02")]
    # A region that comes later restates its day, and no other.
    land(divided, "apac", 2)
    assert loaded(["sales"]) == 1
    assert project.built("gold.daily") == [("2024-01-02", "2024-01-02")]
    assert divided.sql("SELECT day::VARCHAR AS day, n FROM gold.daily ORDER BY day") == [
        {"day": "2024-01-01", "n": 4},
        {"day": "2024-01-02", "n": 6},
        {"day": "2024-01-03", "n": 4},
    ]
    found = lineage(load_settings(), "gold.daily.n", "us/2024-01-02")["partitions"]
    assert [(one["partition"], [a["state"] for a in one["attempts"]]) for one in found] == [
        ("us/2024-01-02", ["failed", "published"])
    ]
    found = lineage(load_settings(), "gold.daily.n", "2024-01-02")["partitions"]
    assert [one["partition"] for one in found] == ["apac/2024-01-02", "eu/2024-01-02", "us/2024-01-02"]


def test_tenants_are_refreshed_alone_and_their_model_follows(divided: Lake, project: Project) -> None:
    project.write(
        "models/gold.sql",
        "MODEL (name gold.tenants, kind FULL, signals (published(dataset := 'tenants')));\n"
        "SELECT tenant, count(*)::INT AS n FROM raw.tenants GROUP BY tenant",
    )
    divided.land("tenants/acme.csv", "id\n1\n")
    assert states(divided, "tenants") == {"acme": "missing", "zeta": "no_source"}
    assert loaded(["tenants"]) == 1
    assert project.build() == []  # zeta is declared, too
    divided.land("tenants/zeta.csv", "id\n1\n2\n")
    assert loaded(["tenants"], partitions=["z*"]) == 1
    assert [e["model"] for e in project.build()] == ["gold.tenants"]
    divided.land("tenants/acme.csv", "id\n1\n2\n3\n")
    assert loaded(["tenants"], mode="stale") == 1
    assert [e["model"] for e in project.build()] == ["gold.tenants"]
    assert divided.sql("SELECT * FROM gold.tenants ORDER BY 1") == [
        {"tenant": "acme", "n": 3},
        {"tenant": "zeta", "n": 2},
    ]
    assert divided.errors() == []


def test_a_model_by_partition_builds_the_changed_tenants_alone(divided: Lake, project: Project) -> None:
    """`seen` shows which tenants were built: its value is another in each build."""
    kind = "kind INCREMENTAL_BY_PARTITION, partitioned_by (tenant)"
    for name, table, seen in (("bronze", "raw.tenants", "now()::VARCHAR"), ("silver", "bronze.tenants", "max(seen)")):
        project.write(
            f"models/{name}.sql",
            f"MODEL (name {name}.tenants, {kind}, audits (few), signals (published(dataset := 'tenants')));\n"
            f"SELECT tenant, id, {seen} AS seen FROM {table} GROUP BY tenant, id",
        )
    # The key is computed: which rows of `named` a tenant has is not known, so all are built.
    upper = "SELECT upper(tenant) AS tenant, count(*)::INT AS n FROM raw.tenants GROUP BY 1"
    project.write("models/named.sql", f"MODEL (name gold.named, {kind});\n{upper}")
    project.write(
        "models/unique.sql",
        "MODEL (name gold.ids, kind INCREMENTAL_BY_UNIQUE_KEY (unique_key (tenant, id)));\n"
        "SELECT tenant, id FROM silver.tenants",
    )
    project.write("audits/few.sql", "AUDIT (name few);\nSELECT * FROM @this_model WHERE id > 90")

    def check(tenants: dict[str, list[int]]) -> dict[str, set[str]]:
        wanted = [{"tenant": name, "ids": ids} for name, ids in sorted(tenants.items()) if ids]
        for table in ("bronze.tenants", "silver.tenants", "gold.ids"):
            query = f"SELECT tenant, list(id ORDER BY id) AS ids FROM {table} GROUP BY 1 ORDER BY 1"
            assert divided.sql(query) == wanted, table
        counts = [{"tenant": name.upper(), "n": len(ids)} for name, ids in sorted(tenants.items()) if ids]
        assert divided.sql("SELECT * FROM gold.named ORDER BY 1") == counts
        seen = "SELECT tenant, list(DISTINCT seen) AS seen FROM silver.tenants GROUP BY 1"
        assert divided.errors() == []
        return {row["tenant"]: set(row["seen"]) for row in divided.sql(seen)}

    for tenant in ("acme", "zeta"):
        divided.land(f"tenants/{tenant}.csv", "id\n1\n2\n")
    assert loaded(["tenants"]) == 2
    assert len(project.build()) == 5
    first = check({"acme": [1, 2], "zeta": [1, 2]})
    divided.land("tenants/acme.csv", "id\n3\n")
    assert loaded(["tenants"], mode="stale") == 1
    assert len(project.build()) == 4
    second = check({"acme": [3], "zeta": [1, 2]})
    assert second["zeta"] == first["zeta"]
    assert not second["acme"] & first["acme"]
    # A tenant without rows has none in the models.
    divided.land("tenants/acme.csv", "id\n")
    assert loaded(["tenants"], mode="stale") == 1
    project.build()
    assert check({"zeta": [1, 2]}) == {"zeta": first["zeta"]}
    # A part that an audit refuses keeps its rows. The next build has them all, though it is of another tenant.
    divided.land("tenants/acme.csv", "id\n91\n")
    assert loaded(["tenants"], mode="stale") == 1
    project.build()
    assert {(r.model, r.name) for r in project.refused} == {("bronze.tenants", "few")}
    assert divided.sql("SELECT DISTINCT tenant FROM silver.tenants") == [{"tenant": "zeta"}]
    project.write("audits/few.sql", "AUDIT (name few);\nSELECT * FROM @this_model WHERE id > 99")
    divided.land("tenants/zeta.csv", "id\n5\n")
    assert loaded(["tenants"], mode="stale") == 1
    project.build()
    third = check({"acme": [91], "zeta": [5]})
    # And after that, again the changed one alone.
    divided.land("tenants/zeta.csv", "id\n6\n")
    assert loaded(["tenants"], mode="stale") == 1
    project.build()
    assert check({"acme": [91], "zeta": [6]})["acme"] == third["acme"]


def test_a_history_of_a_full_dataset_is_kept_by_a_model(divided: Lake, project: Project) -> None:
    """SCD type 2. Former fault: each change of the dataset began the history again."""
    kind = "kind SCD_TYPE_2_BY_COLUMN (unique_key (tenant, id), columns (name), invalidate_hard_deletes true)"
    project.write(
        "models/scd.sql",
        f"MODEL (name silver.customers, {kind});\nSELECT tenant, id, 'v' || (id % 10) AS name FROM raw.tenants",
    )
    project.write(
        "models/named.sql",
        "MODEL (name silver.named, kind SCD_TYPE_2_BY_COLUMN (unique_key (id), columns (n)));\n"
        "SELECT id, count(*)::INT AS n FROM raw.tenants GROUP BY id",
    )

    def history() -> list[tuple[int, int, bool]]:
        found = divided.sql("SELECT id, n, valid_to IS NULL AS current FROM silver.named ORDER BY id, valid_from")
        return [(row["id"], row["n"], row["current"]) for row in found]

    def customers() -> list[tuple[str, int, bool]]:
        found = divided.sql("SELECT tenant, id, valid_to IS NULL AS current FROM silver.customers ORDER BY 1, 2, 3")
        return [(row["tenant"], row["id"], row["current"]) for row in found]

    divided.land("tenants/acme.csv", "id\n1\n2\n")
    divided.land("tenants/zeta.csv", "id\n1\n")
    loaded(["tenants"])
    project.build()
    assert history() == [(1, 2, True), (2, 1, True)]
    assert customers() == [("acme", 1, True), ("acme", 2, True), ("zeta", 1, True)]
    divided.land("tenants/zeta.csv", "id\n2\n3\n")
    loaded(["tenants"], mode="stale")
    project.build()
    assert history() == [(1, 2, False), (1, 1, True), (2, 1, False), (2, 2, True), (3, 1, True)]
    assert customers() == [
        ("acme", 1, True),
        ("acme", 2, True),
        ("zeta", 1, False),
        ("zeta", 2, True),
        ("zeta", 3, True),
    ]
    # Built again without a change, it has the same history.
    project.write("models/other.sql", "MODEL (name gold.other, kind FULL);\nSELECT 1 AS one")
    before = divided.sql("FROM silver.named ORDER BY ALL")
    project.build()
    assert divided.sql("FROM silver.named ORDER BY ALL") == before
    spans = divided.sql("SELECT id FROM silver.named WHERE valid_to <= valid_from")
    assert spans == []
    assert divided.errors() == []


def test_many_segments_are_shown_together() -> None:
    few = make_grid([(f"{s}/2024-01-0{d}", "published") for s in ("eu", "us") for d in (1, 2)])
    assert (few.unit, list(few.lines)) == ("day", ["eu 2024-01", "us 2024-01"])
    marks = [
        (f"s{s:03}/2024-01-0{d}", "failed" if (s, d) == (7, 2) else "published") for s in range(200) for d in (1, 2)
    ]
    many = make_grid(marks)
    assert (many.unit, many.lines) == ("day", {"2024-01": ["published", "failed"]})
    assert many.marks[1].counts == (("failed", 1), ("published", 199))
    tenants = make_grid([(f"t{number:03}", "published") for number in range(40)])
    assert (tenants.unit, [len(line) for line in tenants.lines.values()]) == ("segment", [31, 9])
    assert make_grid([("a", "missing"), ("b", "published")]).lines == {"a": ["missing"], "b": ["published"]}
