"""Lost rows and files: verify names the command, the command repairs, and the lake is right afterwards."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.errors import RunFailed
from ducklake_flows.ingest import ingest
from ducklake_flows.lake import damage
from ducklake_flows.lake.connect import connect
from ducklake_flows.lake.restore import stage_previous
from ducklake_flows.lake.verify import verify as check
from ducklake_flows.maintain import maintain
from ducklake_flows.project import get_dataset
from ducklake_flows.repair import repair
from ducklake_flows.states import Mode
from ducklake_flows.transform import transform
from ducklake_flows.verify import verify
from tests.projects import PUBLISHED, Project, model

if TYPE_CHECKING:
    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder")


def day(number: int) -> str:
    return f"2024-01-{number:02}"


def land(lake: Lake, number: int, rows: int) -> None:
    lake.land(f"readings/{day(number)}.jsonl", [{"id": i} for i in range(rows)])


def lose(lake: Lake, number: int, *, corrupt: bool = False) -> None:
    """Delete the file of a published day from storage, or overwrite its middle."""
    files = lake.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")
    file = Path(next(path for path in files if f"day={day(number)}" in path))
    if corrupt:
        content = file.read_bytes()
        file.write_bytes(content[:4] + b"\xff" * (len(content) - 12) + content[-8:])
    else:
        file.unlink()


def by_hand(lake: Lake, *statements: str) -> None:
    con = connect(lake.settings)
    for statement in statements:
        con.execute(statement)
    con.close()


def gone(lake: Lake, number: int) -> None:
    Path(lake.settings.landing, f"readings/{day(number)}.jsonl").unlink()


def done(summary: dict[str, Any]) -> dict[str, str]:
    return {row["partition"][-2:]: row["done"] for row in summary["damaged"]}


def test_lost_rows_and_files_are_restored_from_the_source_or_a_snapshot(gated_lake: Lake) -> None:
    lake = gated_lake
    for number in range(1, 9):
        land(lake, number, 10 * number)
    lake.load("readings", *map(day, range(1, 9)))
    land(lake, 8, 5)
    lake.load("readings", day(8))
    dataset = get_dataset("readings")
    lake.publish([stage_previous(lake.settings, dataset, parse_partition(day(8), dataset.grain))])  # back to 80 rows

    lose(lake, 1)
    lose(lake, 2, corrupt=True)
    by_hand(
        lake,
        "DELETE FROM raw.readings WHERE day = '2024-01-03'",
        "UPDATE raw.readings SET id = -1 WHERE day = '2024-01-04' AND id = 0",
        "DELETE FROM raw.readings WHERE day = '2024-01-05' AND id < 3",
        "DELETE FROM raw.readings WHERE day = '2024-01-08'",
        "INSERT INTO raw.readings (id, day) VALUES (1, '2024-01-20')",
    )
    for number in (4, 5):
        gone(lake, number)

    found = [f for f in check(lake.settings) if f.severity == "error"]
    assert {f.subject for f in found} == {f"readings {day(n)}" for n in (1, 2, 3, 4, 5, 8, 20)}
    assert {f.check for f in found} == {"file exists", "file readable", "rows"}
    assert {f.fix for f in found} == {"lake repair"}
    with pytest.raises(RunFailed, match=r"7 broken\.\n") as caught:
        verify()
    assert caught.value.fix == "lake repair"

    assert done(repair(dry_run=True)) == dict.fromkeys(("01", "02", "03", "04", "05", "08", "20"), "")
    assert len(lake.errors()) == 7, "a dry run changes nothing"

    summary = repair()
    source, snapshot = "published from its source", "published from a snapshot"
    assert done(summary) == {
        "01": source,
        "02": source,
        "03": source,
        "04": snapshot,
        "05": snapshot,
        "08": snapshot,
        "20": "removed: neither the ledger nor the source has it",
    }
    assert lake.errors() == []
    assert lake.column("SELECT count(*) FROM raw.readings GROUP BY day ORDER BY day") == [10 * n for n in range(1, 9)]
    states = lake.sql("SELECT partition, arg_max(state, token) AS state FROM ops.ledger GROUP BY ALL ORDER BY ALL")
    assert [row["state"] for row in states] == ["published"] * 7 + ["rolled_back"]
    assert verify(whole=True)["findings"] == []
    assert verify()["since"], "the next check begins at the last good one"
    assert repair()["damaged"] == []


def test_a_partition_that_nothing_can_restore_stays_an_error_with_its_next_step(gated_lake: Lake) -> None:
    lake = gated_lake
    for number in (1, 2):
        land(lake, number, number)
    lake.load("readings", day(1), day(2))
    lose(lake, 1)
    gone(lake, 1)
    with pytest.raises(RunFailed, match="1 of 1 damaged partitions could not be repaired") as caught:
        repair()
    assert "No snapshot of the lake has the published rows of readings 2024-01-01" in caught.value.message
    assert "make the source right" in caught.value.fix
    assert [f.partition for f in damage.find_all(lake.settings, [get_dataset("readings")])] == [day(1)]
    land(lake, 1, 1)
    assert done(repair()) == {"01": "published from its source"}
    assert lake.errors() == []


def test_a_lost_file_of_many_partitions_is_replaced_as_far_as_their_sources_go(gated_lake: Lake) -> None:
    lake = gated_lake
    for number in range(1, 5):
        land(lake, number, number)
    lake.load("readings", *map(day, range(1, 5)))
    maintain()
    (merged,) = lake.column("SELECT data_file FROM ducklake_list_files('lake', 'readings', schema => 'raw')")
    Path(merged).unlink()
    gone(lake, 2)
    assert {f.subject for f in check(lake.settings) if f.severity == "error"} == {
        f"readings {day(n)}" for n in range(1, 5)
    }
    with pytest.raises(RunFailed, match=r"1 of 4 damaged partitions could not be repaired\.\n.*readings 2024-01-02"):
        repair()
    assert lake.column("SELECT count(*) FROM raw.readings GROUP BY day ORDER BY day") == [1, 3, 4]
    (error,) = lake.errors()
    assert error.startswith("rows: readings 2024-01-02: has 0 rows, but the ledger says 2")
    land(lake, 2, 2)
    assert done(repair()) == {"02": "published from its source"}
    assert lake.errors() == []


def test_force_publishes_unchanged_partitions_again(gated_lake: Lake) -> None:
    land(gated_lake, 1, 3)
    first = date(2024, 1, 1)
    assert ingest(["readings"], first, first)["published"] == 1
    assert ingest(["readings"], first, first, Mode.all)["unchanged"] == 1
    assert ingest(["readings"], first, first, force=True)["published"] == 1
    assert gated_lake.column("SELECT count(DISTINCT attempt_id) FROM ops.ledger") == [2]
    assert gated_lake.column("SELECT count(*) FROM raw.readings") == [3]
    assert gated_lake.errors() == []


def test_a_lost_file_of_a_model_is_built_again(
    gated_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = gated_lake
    project = Project(tmp_path / "models", lake, monkeypatch)
    project.write(
        "models/all.sql",
        model(
            "bronze.readings",
            "SELECT id, day FROM raw.readings WHERE day BETWEEN @start_date AND @end_date",
            "day",
            PUBLISHED,
        ),
    )
    for number in (1, 2):
        land(lake, number, number)
    lake.load("readings", day(1), day(2))
    transform()
    (table,) = lake.column("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'sqlmesh__bronze'")
    files = lake.column(f"SELECT data_file FROM ducklake_list_files('lake', '{table}', schema => 'sqlmesh__bronze')")
    for file in files:
        Path(file).unlink()
    found = [f for f in check(lake.settings) if f.severity == "error"]
    assert {(f.check, f.subject, f.fix) for f in found} == {("file exists", f"sqlmesh__bronze.{table}", "lake repair")}
    summary = repair()
    assert {row["done"] for row in summary["damaged"]} == {"built again"}
    assert {m["model"] for m in summary["transform"]["models"]} == {"bronze.readings"}
    assert lake.column("SELECT count(*) FROM bronze.readings GROUP BY day ORDER BY day") == [1, 2]
    assert lake.errors() == []
