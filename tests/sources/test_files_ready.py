"""`Files` with a file that says that a partition is complete, and with very many files."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows import Dataset, Files
from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import BadInput
from ducklake_flows.extract.chunk import extract
from ducklake_flows.staging.receipt import Failure, Receipt

if TYPE_CHECKING:
    from tests.conftest import Lake

DAYS = [f"2024-01-{day:02}" for day in range(1, 5)]


def dataset(source: Files) -> Dataset:
    return Dataset("things", source, partition_column="day", start=date(2024, 1, 1), end=date(2024, 1, 4))


@pytest.mark.parametrize(
    ("pattern", "ready"),
    [
        ("things/{partition}/*.csv", "things/{partition}/_SUCCESS"),
        ("things/{partition}/*.csv", "things/{partition}/0-done.csv"),
        ("things/{partition}.csv", "done/%Y/%m/%d"),
    ],
)
def test_a_partition_is_there_when_its_file_says_so(lake: Lake, pattern: str, ready: str) -> None:
    source = Files(pattern, "csv", ready=ready)
    things = dataset(source)
    partitions = things.partitions()

    def mark(day: str, text: str = "") -> None:
        lake.land(ready.replace("{partition}", day).replace("%Y/%m/%d", day.replace("-", "/")), text)

    def load(*days: str) -> list[Any]:
        versions = things.versions([parse_partition(day, Grain.day) for day in days])
        return extract(things, {day: versions.get(day, "") for day in days}, lake.settings)

    for day in DAYS[:3]:
        lake.land(pattern.replace("{partition}", day).replace("*", "a"), "v\n1\n")
    assert things.versions(partitions) == {}
    (absent,) = load(DAYS[0])
    assert isinstance(absent, Failure)
    assert (absent.state, absent.error) == (
        "no_source",
        f"no file is {ready}".replace("{partition}", DAYS[0]).replace("%Y/%m/%d", "2024/01/01"),
    )
    for day in (DAYS[0], DAYS[1], DAYS[3]):
        mark(day)
    before = things.versions(partitions)
    assert list(before) == [DAYS[0], DAYS[1], DAYS[3]]
    assert source.unmatched(partitions) == []
    outcomes = load(*before)
    # The last one has no other file: it is complete, and has no rows.
    assert {o.partition: o.rows for o in outcomes if isinstance(o, Receipt)} == {DAYS[0]: 1, DAYS[1]: 1, DAYS[3]: 0}
    mark(DAYS[1], "again")
    after = things.versions(partitions)
    assert {day for day in after if after[day] != before[day]} == {DAYS[1]}
    assert after[DAYS[1]] == things.versions(partitions[1:2])[DAYS[1]]


@pytest.mark.parametrize(
    ("ready", "error"),
    [
        ("things/_SUCCESS", "does not say which day"),
        ("things/{partition}/*", "one file says that a partition is complete"),
        ("../{partition}", "leaves the landing zone"),
        ("{day}", "is not a known placeholder"),
    ],
)
def test_a_wrong_file_of_readiness_is_refused(ready: str, error: str) -> None:
    with pytest.raises(BadInput, match=error):
        dataset(Files("things/{partition}.csv", "csv", ready=ready))
