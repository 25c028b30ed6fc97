"""In every form, the lake holds exactly the source's values, or the partition is refused and the column named."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, note, settings

from ducklake_flows.lake import verify as verification
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.verify import verify
from tests.values.stories import DAYS, Story, plain_stories, stories
from tests.values.world import Reader, Told, compare, is_named, read, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Lake

_CHECKS = (
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.filter_too_much,
    HealthCheck.data_too_large,
)


@pytest.fixture
def examples(request: pytest.FixtureRequest) -> Callable[[int, int], Any]:
    """Hypothesis' settings: a fixed short run, or a long run with different examples every time."""
    soak = request.config.getoption("--soak")

    def of(short: int, long: int, *, in_lake: bool = False) -> Any:
        return settings(
            max_examples=long if soak else short,
            # No shrinking: finding the smallest failing story of a lake takes minutes.
            phases=set(Phase) - ({Phase.shrink, Phase.explain} if in_lake and not soak else set()),
            derandomize=not soak,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=_CHECKS,
        )

    return of


def check_read(told: Told) -> None:
    """Check each partition separately: its values are right, or its error names a column."""
    for day in range(len(told.given)):
        values, types, error = read(told.case.dataset, DAYS[day])
        if error:
            event("refused")
            note(error)
            assert is_named(told, day, error), error
        else:
            assert compare(told, day, values, types) == []


def check_published(told: Told, reader: Reader, *, refusal: bool = True) -> list[str]:
    """Publish a story and check the lake. Returns the errors of the refused partitions."""
    case, story = told.case, told.story
    began = datetime.now(UTC)
    outcomes: dict[str, str] = {}
    groups = [[DAYS[day] for day in group] for group in story.groups]
    extracted = [case.extract(*group) for group in groups] if story.early else None
    for number, group in enumerate(groups):
        before = set(outcomes)
        result = case.publish(extracted[number] if extracted else case.extract(*group))
        outcomes |= {receipt.partition: "" for receipt in (*result.receipts, *result.unchanged)}
        outcomes |= {failure.partition: failure.error for failure in result.failures}
        assert set(outcomes) - before == set(group)
    errors = []
    for key, error in outcomes.items():
        if error:
            errors.append(error)
            note(f"{key}: {error}")
            assert is_named(told, DAYS.index(key), error), error
    event(f"{story.mode}: {len(errors)} of {len(outcomes)} refused")
    if not refusal:
        assert errors == []
    if case.dataset.table in _tables(reader):
        check_lake(told, reader, outcomes)
    else:
        assert all(error or not any(map(len, told.given[DAYS.index(key)].values())) for key, error in outcomes.items())
    found = [f"{f.check}: {f.subject}: {f.message}" for f in verify(case.lake.settings, began) if f.severity == "error"]
    assert found == []
    return errors


def _tables(reader: Reader) -> set[str]:
    return {f"raw.{row[0]}" for row in reader.sql("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'raw'")}


def check_lake(told: Told, reader: Reader, outcomes: dict[str, str]) -> None:
    """Check that the lake holds exactly the published partitions and answers all queries accordingly."""
    table = told.case.dataset.table
    types, rows = reader.table(table)
    columns = list(types)
    day_at, number_at = columns.index("day"), columns.index("row_number")
    for key, error in outcomes.items():
        own = [row for row in rows if str(row[day_at]) == key]
        if error:
            assert own == []
        else:
            values = {name: [row[place] for row in own] for place, name in enumerate(columns)}
            assert compare(told, DAYS.index(key), values, types) == []
    known = {column for day in range(len(told.given)) for column in told.names(day).values()}
    assert set(columns) <= known | set(told.story.contract) | {"day"}
    for place, name in enumerate(columns):
        triples = [(str(row[day_at]), row[number_at], row[place]) for row in rows]
        assert list(reader.wrong(table, name, types[name], triples)) == []


@pytest.fixture
def reader(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    with connected(lake.settings, read_only=True) as con:
        yield Reader(con)


def _run(
    strategy: Any, examples: settings, check: Callable[[Told], Any], lake: Lake, folder: Path, monkeypatch: Any
) -> Counter[str]:
    """Run a check on examples of a strategy. Returns the number of examples by mode."""
    tried: Counter[str] = Counter()

    @examples
    @given(strategy)
    def example(story: Story) -> None:
        told = tell(story, lake, folder)
        monkeypatch.setattr(verification, "all_tables", lambda: [told.case.dataset])
        tried[story.mode] += 1
        check(told)

    example()
    return tried


@pytest.mark.parametrize("mode", ["function", "csv", "json", "parquet"])
def test_a_partition_is_read_exactly_or_refused_by_its_column(
    mode: str, examples: Any, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(stories(mode), examples(40, 500), check_read, lake, tmp_path, monkeypatch)


@pytest.mark.parametrize("mode", ["function", "csv", "json", "parquet"])
def test_plain_good_data_is_never_refused(
    mode: str, examples: Any, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(told: Told) -> None:
        for day in range(len(told.given)):
            values, types, error = read(told.case.dataset, DAYS[day])
            assert error == ""
            assert compare(told, day, values, types) == []

    _run(plain_stories(mode), examples(40, 500), check, lake, tmp_path, monkeypatch)


def test_the_lake_holds_the_sources_values_or_names_the_column(
    examples: Any, lake: Lake, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(
        stories(),
        examples(10, 1500, in_lake=True),
        lambda told: check_published(told, reader),
        lake,
        tmp_path,
        monkeypatch,
    )
    assert lake.errors() == []


def test_plain_good_data_is_published(
    examples: Any, lake: Lake, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(told: Told) -> None:
        check_published(told, reader, refusal=False)

    _run(plain_stories(), examples(6, 500, in_lake=True), check, lake, tmp_path, monkeypatch)
    assert lake.errors() == []
