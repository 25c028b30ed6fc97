"""Commands with broken datasets, sources and services (issue 17, parts 3 and 4)."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from distributed import KilledWorker
from rich.console import Console

from ducklake_flows.cli import show
from ducklake_flows.cli.common import plain
from ducklake_flows.cli.main import app
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain, Partition
from ducklake_flows.errors import BadInput, CatalogError, LakeError, SourceError, StorageError
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.query import query
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.lake.verify import Finding, verify
from ducklake_flows.orchestration.cluster import DEATHS
from ducklake_flows.orchestration.executor import WorkerDied
from ducklake_flows.orchestration.extraction import lost_because
from ducklake_flows.plan import Planned, make_plan, plan_each, stale_left, strays
from ducklake_flows.project import all_datasets, broken_datasets, get_dataset, get_datasets
from ducklake_flows.settings import load_settings
from ducklake_flows.states import Mode, State
from ducklake_flows.storage import check, open_storage
from tests.conftest import Lake, Services, settings_from
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from ducklake_flows.datasets.contract import Contract

Define = Callable[[str, str], Path]


@pytest.fixture
def define(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Define:
    """Writes a dataset file into LAKE_DATASETS, a folder that starts empty."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    monkeypatch.setenv("LAKE_DATASETS", str(folder))
    # Isolate from this machine's .env and from a lake in the current folder.
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = folder / f"{name}.py"
        path.write_text(text)
        return path

    return write


def good(key: str, more: str = "") -> str:
    return (
        "from datetime import date\nfrom ducklake_flows.datasets.dataset import Dataset\n"
        f'DATASET = Dataset("{key}", lambda partition: [{{"n": 1}}], partition_column="day", '
        f"start=date(2024, 1, 1), end=date(2024, 1, 2){more})\n"
    )


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Returns what an 80-column terminal has shown since the last call."""
    monkeypatch.setattr(show.console, "width", 80)  # Rich reads COLUMNS only once, at import
    return lambda: capsys.readouterr().out


@dataclass(frozen=True)
class Said:
    """A source that returns the given listing, or raises the given error."""

    found: Mapping[str, str]
    stray: tuple[str, ...] = ()
    error: Exception | None = None

    def versions(self, partitions: Sequence[Partition]) -> Mapping[str, str]:
        if self.error:
            raise self.error
        return self.found

    def unmatched(self, partitions: Sequence[Partition]) -> list[str]:
        assert [p.key for p in partitions] == ["2024-01-01", "2024-01-02"], "the dataset's own range"
        return list(self.stray)

    def read(self, partition: Partition, contract: Contract) -> list[Any]:
        return [{"n": 1}]


def two_days(key: str, source: Said, **more: Any) -> Dataset:
    return Dataset(key, source, partition_column="day", start=date(2024, 1, 1), end=date(2024, 1, 2), **more)


# --- Datasets without a start, sources that cannot be listed ---


def test_a_dataset_without_a_start_does_not_stop_the_plan_of_others(lake: Lake) -> None:
    planned, left_out = plan_each(lake.settings, list(all_datasets().values()))
    assert {"readings", "flights", "airlines"} <= {p.dataset for p in planned}
    assert {(out.dataset, out.is_fault) for out in left_out} == {(k, False) for k in ("deadly", "hourly", "monthly")}
    assert left_out[0].error.message == "deadly has no start date."
    with pytest.raises(BadInput, match="hourly has no start"):
        make_plan(lake.settings, get_datasets(["readings", "hourly"]))
    named, left_out = plan_each(lake.settings, get_datasets(["hourly"]), date(2024, 1, 1), date(2024, 1, 1), named=True)
    assert (len(named), left_out) == (24, [])


def test_status_shows_the_ledger_entries_of_a_dataset_without_a_start(lake: Lake) -> None:
    lake.land("hourly/2024-01-01T05/a.csv", "name,count\nx,1\n")
    lake.load("hourly", "2024-01-01T05")
    planned, left_out = plan_each(lake.settings, get_datasets(["hourly", "monthly"]), named=True, recorded=True)
    assert [(p.dataset, p.partition, p.state) for p in planned] == [("hourly", "2024-01-01T05", State.published)]
    assert left_out == []


def test_a_source_that_cannot_be_listed_is_an_error_of_its_dataset_only(lake: Lake) -> None:
    bad = two_days("bad", Said({}, error=RuntimeError("no route to postgresql://u:hunter2@db/x")))
    planned, (out,) = plan_each(lake.settings, [bad, two_days("fine", Said({"2024-01-01": "v"}))])
    assert [(p.partition, p.state) for p in planned] == [
        ("2024-01-01", State.missing),
        ("2024-01-02", State.no_source),
    ]
    assert (out.dataset, out.is_fault) == ("bad", True)
    assert out.error.message == (
        "The source of bad cannot be listed: RuntimeError: no route to postgresql://u:***@db/x"
    )
    with pytest.raises(SourceError, match="The source of bad"):
        make_plan(lake.settings, [bad])


def test_a_grid_asks_the_source_only_for_what_the_run_does_not_know(lake: Lake) -> None:
    asked: list[list[str]] = []

    class Counted(Said):
        def versions(self, partitions: Sequence[Partition]) -> Mapping[str, str]:
            asked.append([p.key for p in partitions])
            return {p.key: self.found[p.key] for p in partitions if p.key in self.found}

    def states(source: Said, known: Sequence[Planned] = ()) -> tuple[list[Planned], list[str]]:
        planned, _ = plan_each(lake.settings, [replace(readings, source=source)], known=known)
        return planned, [p.state.value for p in planned][:3]

    (readings,) = get_datasets(["readings"])
    first, second, third = (f"2024-01-0{day}" for day in (1, 2, 3))
    lake.land(f"readings/{first}.jsonl", [{"id": 1}])
    lake.land(f"readings/{second}.jsonl", [{"id": 1}])
    lake.load("readings", first)
    before = {p.partition: p.source_version for p in plan_each(lake.settings, [readings])[0]}
    plan, now = states(Counted({first: before[first], second: "older", third: "v"}))
    assert (asked.pop()[:1], now) == ([first], ["published", "missing", "missing"])
    lake.load("readings", second)
    # The run read a newer version than it had planned with; the third was gone when it was read.
    plan, now = states(Counted({}), plan)
    assert (asked, now) == ([[third]], ["published", "published", "no_source"])


@pytest.mark.short("sqlite+folder", "postgres+s3")
def test_a_missing_landing_zone_is_one_error(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = get_datasets(["airlines", "readings", "weather"])
    assert {p.state for p in make_plan(lake.settings, datasets)} == {State.no_source}, "an empty one is fine"
    local = not lake.settings.landing.startswith("s3://")
    monkeypatch.setenv("LAKE_LANDING", str(lake.settings.home / "nowhere") if local else "s3://nowhere/landing")
    for chosen in (datasets, datasets[:1], datasets[1:2]):
        with pytest.raises(
            StorageError, match="landing zone does not exist" if local else "There is no bucket 'nowhere'"
        ):
            plan_each(load_settings(), chosen)


def test_a_symlink_loop_is_an_error_of_its_dataset_only(lake: Lake) -> None:
    lake.land("weather/2013-01-01.jsonl", [{"origin": "EWR"}])
    landing = Path(lake.settings.landing)
    (landing / "elsewhere" / "below").mkdir(parents=True)
    (landing / "elsewhere" / "below" / "2024-01-01.jsonl").write_text("{}\n")
    (landing / "readings").symlink_to(landing / "elsewhere" / "below")
    datasets = get_datasets(["readings", "weather"])
    assert [f.path for f in open_storage(lake.settings.landing, lake.settings).list("readings")] == [
        str(landing / "readings" / "2024-01-01.jsonl")
    ]
    for link, target in (("self", "self"), ("up", "."), ("across", landing / "elsewhere")):
        loop = landing / "readings" / link
        loop.symlink_to(target)
        (landing / "elsewhere" / "back").unlink(missing_ok=True)
        (landing / "elsewhere" / "back").symlink_to(landing / "readings")
        planned, (out,) = plan_each(lake.settings, datasets)
        assert {p.dataset for p in planned} == {"weather"}
        assert out.dataset == "readings"
        assert str(landing / "readings") in out.error.message
        assert "S3" not in str(out.error)
        loop.unlink()


# --- Dataset files that cannot be loaded ---

BROKEN = {
    "syntax": ("x = (\n", "line 1 cannot be loaded: SyntaxError"),
    "imports": ("\nimport nowhere.at_all\n", "line 2 cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
    "raises": ("def f():\n    1 / 0\n\n\nf()\n", "line 2 cannot be loaded: ZeroDivisionError"),
    "leaves": ("raise SystemExit(3)\n", "line 1 cannot be loaded: SystemExit: 3"),
    "other": ("DATASET = {'key': 'other'}\n", "cannot be loaded: DATASET is dict, not a Dataset"),
    "grained": (good("grained", ', grain="monthly"'), "line 3 cannot be loaded: grained: 'monthly' is not a grain"),
    "started": (good("started").replace("date(2024, 1, 1)", "'2024-01-01'"), "start is '2024-01-01', not a day"),
    "typed": (
        good("typed", ', contract=Contract({"v": "int64"})').replace("Dataset\n", "Contract, Dataset\n", 1),
        "cannot be loaded: v: 'int64' is not a column type",
    ),
    "leaks": ("raise ValueError('postgresql://u:hunter2@db/x')\n", "ValueError: postgresql://u:***@db/x"),
}


def test_a_broken_dataset_file_is_one_error_with_its_line_and_affects_no_other(define: Define) -> None:
    for name, (text, _) in BROKEN.items():
        define(name, text)
    define("fine", good("fine"))
    define("helper", "HELP = 1\n")
    one, two = define("one", good("twice")), define("two", good("twice"))
    known = all_datasets()
    assert "fine" in known
    assert not known.keys() & {*BROKEN, "twice"}
    found = broken_datasets()
    assert found.keys() == {*BROKEN, "twice"}
    for name, (_, says) in BROKEN.items():
        assert f"datasets/{name}.py" in found[name].message
        assert says in found[name].message
        assert found[name].fix
        with pytest.raises(BadInput) as caught:
            get_datasets([name])
        assert caught.value.message == found[name].message
    assert found["twice"].message == f"Two datasets have the key twice: {one} and {two}."
    with pytest.raises(BadInput, match="Unknown dataset: 'nowhere'") as caught:
        get_datasets(["nowhere"])
    assert "broken: grained, imports" in caught.value.fix


def test_a_fixed_dataset_file_is_loaded_again(define: Define) -> None:
    define("again", "1 / 0\n")
    assert "again" in broken_datasets()
    define("again", good("again"))
    assert "again" in all_datasets()


# --- How failures are reported ---


def test_only_a_dead_worker_is_reported_as_dead() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.parquet")
    assert lost_because(full) == "No space left on device: x.parquet"
    assert lost_because(BadInput("Bad settings: LAKE_HOME", "x")) == "Bad settings: LAKE_HOME"
    assert (
        lost_because(ModuleNotFoundError("No module named 'flows'")) == "ModuleNotFoundError: No module named 'flows'"
    )
    assert lost_because(RuntimeError("Error during deserialization")) == "RuntimeError: Error during deserialization"
    assert lost_because(ValueError("password=hunter2")) == "ValueError: password=***"
    assert lost_because(WorkerDied("KilledWorker")) == "its worker died: KilledWorker"
    assert KilledWorker in DEATHS


# --- Services that are down ---


def test_a_catalog_that_is_down_is_named_by_every_command(services: Services, tmp_path: Path) -> None:
    environment = services.environment("postgres+s3", tmp_path)
    with Proxy(services.postgres.port) as postgres:
        catalog = environment["LAKE_CATALOG"].replace(f"port={services.postgres.port}", f"port={postgres.port}")
        settings = settings_from(environment, catalog=catalog)
        check(settings, create=True)
        bootstrap(settings, get_datasets(["airlines"]))
        commands: dict[str, Callable[[], Any]] = {
            "sql": lambda: query(settings, "FROM raw.airlines"),
            "verify": lambda: list(verify(settings)),
            "plan": lambda: plan_each(settings, get_datasets(["flights", "airlines"])),
        }
        within = connected(settings, read_only=True)
        with pytest.raises(CatalogError, match="The Postgres catalog cannot be opened"), within as con:  # noqa: PT012
            postgres.__exit__()
            con.execute("FROM __ducklake_metadata_lake.ducklake_snapshot").fetchall()
        for name, command in commands.items():
            with pytest.raises(
                CatalogError, match=r"The Postgres catalog cannot be opened .*Connection refused"
            ) as down:
                command()
            assert down.value.fix, name


def test_an_object_store_that_is_down_is_named_by_every_command(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"LAKE_S3_KEY_ID": "k", "LAKE_S3_SECRET": "s", "LAKE_S3_ENDPOINT": "127.0.0.1:1"}
    for name, value in {**keys, "LAKE_S3_USE_SSL": "false", "LAKE_LANDING": "s3://lake/landing"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=r"S3 at 127\.0\.0\.1:1 does not answer") as down:
        plan_each(load_settings(), get_datasets(["readings", "airlines"]))
    assert down.value.fix.startswith("start the server")


# --- Plans ---


def test_a_failed_partition_whose_file_is_gone_still_shows_its_failure(lake: Lake) -> None:
    lake.land("readings/2024-01-01.jsonl", "")
    lake.load("readings", "2024-01-01")
    Path(lake.settings.landing, "readings/2024-01-01.jsonl").unlink()
    (planned, *_) = make_plan(lake.settings, get_datasets(["readings"]), mode=[Mode.failed, Mode.all])
    assert (planned.state, planned.runs) == (State.failed, False)
    assert "is empty" in planned.why
    assert planned.why.endswith("; the source has no data for it now")


def test_several_modes_select_their_union(lake: Lake) -> None:
    lake.land("readings/2024-01-01.jsonl", [{"n": 1}])
    lake.land("readings/2024-01-02.jsonl", "")
    lake.load("readings", "2024-01-01", "2024-01-02")
    lake.land("readings/2024-01-01.jsonl", [{"n": 1}, {"n": 2}])
    lake.land("readings/2024-01-03.jsonl", [{"n": 1}])

    def chosen(*modes: Mode) -> list[str]:
        return [p.partition[-1] for p in make_plan(lake.settings, get_datasets(["readings"]), mode=modes) if p.runs]

    assert chosen(Mode.missing, Mode.failed, Mode.stale) == ["1", "2", "3"]
    assert chosen(Mode.stale, Mode.missing) == ["1", "3"]
    assert chosen(Mode.missing_failed) == chosen(Mode.missing, Mode.failed) == ["2", "3"]


def test_a_changed_source_is_loaded_again_within_its_recheck_window(lake: Lake, shown: Callable[[], str]) -> None:
    """O8: three old files changed; the scheduled run did nothing and said nothing."""
    days = ("2024-01-01", "2024-01-02", "2024-01-03")
    for rows in (1, 2):
        for day in days:
            lake.land(f"readings/{day}.jsonl", [{"n": n} for n in range(rows)])
        if rows == 1:
            lake.load("readings", *days)
    since = datetime.now(UTC).replace(tzinfo=None) - datetime(2024, 1, 3, 1)
    dataset = replace(get_dataset("readings"), recheck=since)  # only the last day ended later

    def chosen(*modes: Mode) -> list[str]:
        return [p.partition for p in make_plan(lake.settings, [dataset], mode=modes) if p.runs]

    assert chosen(Mode.missing_failed) == ["2024-01-03"]
    assert chosen(Mode.missing) == []
    assert chosen(Mode.stale) == list(days)
    planned = make_plan(lake.settings, [dataset])
    show.plan(planned, {})
    told = "readings: 2 partitions are stale (2024-01-01..2024-01-02): lake backfill readings --mode stale"
    assert stale_left(planned) == [told]
    assert told in shown()


def test_a_stale_partition_that_failed_is_still_run_by_the_mode_stale(lake: Lake) -> None:
    """O7: the changed file was bad and was put right; the same command found nothing to do."""
    day = "2024-01-01"
    for content in ([{"n": 1}], "", [{"n": 2}]):
        lake.land(f"readings/{day}.jsonl", content)
        if content != [{"n": 2}]:
            lake.load("readings", day)
    (planned, *_) = make_plan(lake.settings, get_datasets(["readings"]), mode=Mode.stale)
    assert (planned.state, planned.runs) == (State.failed, True)


def test_the_plan_names_files_that_belong_to_no_partition(lake: Lake, shown: Callable[[], str]) -> None:
    datasets = [two_days("tidy", Said({})), two_days("messy", Said({}, ("a/2024-1-2.csv", "b", "c", "[d]")))]
    assert strays(datasets) == {"messy": ["a/2024-1-2.csv", "b", "c", "[d]"]}
    assert strays([Dataset("a", lambda p: [], partition_column="day")]) == {}
    show.plan(make_plan(lake.settings, datasets), strays(datasets))
    assert "messy: 4 files belong to no partition: a/2024-1-2.csv, b, c and 1 more" in shown()


def planned(*states: State, grain: Grain = Grain.hour) -> list[Planned]:
    days = Dataset("hourly", Said({}), grain, "at", start=date(2023, 1, 1)).partitions(end=date(2023, 12, 31))
    return [
        Planned("hourly", p.key, states[n] if n < len(states) else states[-1], False, "", None)
        for n, p in enumerate(days)
    ]


def test_a_cell_shows_published_only_if_all_its_partitions_are(shown: Callable[[], str]) -> None:
    show.grid(planned(State.published, State.no_source))
    lines = shown().splitlines()
    assert lines[1].split() == ["2023-01", "▣" + "·" * 30]
    assert lines[-1].split("  ") == ["▣ published in part", "· no source", ""]
    show.grid(planned(*[State.published] * 24, State.published, State.missing))
    assert "2023-01    ■□□□" in shown()


# --- What the terminal shows ---


def test_markup_in_values_is_printed_literally(shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "[/] [red]x[/red] :smile: [bold"
    monkeypatch.setattr(show.console, "width", 200)
    entries = [Planned("readings", odd, State.no_source, False, "", None)]
    show.plan(entries, {"readings": [odd]})
    show.answer(["a", odd], [(1, odd)])
    show.rows([{"a": odd}], odd)
    summary = {
        "published": 0,
        "unchanged": 0,
        "older": 0,
        "no_source": [odd],
        "left_out": [{"dataset": "a", "error": odd}],
        "stale": [odd],
    }
    show.ingested(summary)
    assert shown().count(odd) == 9
    assert Console(file=io.StringIO()).render_str("[red]x").plain == "x", "Rich's own default"


def test_findings_are_grouped_and_end_with_the_commands_that_repair_them(shown: Callable[[], str]) -> None:
    rows = [Finding("error", "rows", f"readings {n}", "has 0 rows") for n in range(5)]
    show.verified([*rows, Finding("note", "models", "readings", "2 are newer", "lake transform")])
    assert shown().splitlines() == [
        *(f"error: readings {n}: has 0 rows (rows)" for n in range(3)),
        "error: 2 more of this kind (rows); --json lists all",
        "note: readings: 2 are newer (models)",
        "next:  lake repair  (rows)",
        "next:  lake transform  (models)",
        "5 broken.",
    ]


def test_query_results_are_not_truncated(shown: Callable[[], str]) -> None:
    show.answer(["year", "zip", "missing"], [(2024, 8001, None)])
    assert shown().splitlines()[1].split() == ["2024", "8001", "NULL"]
    wide = {f"column_{n}": "value " * 4 + str(n) for n in range(30)}
    show.answer(list(wide), [tuple(wide.values()), tuple(wide.values())])
    lines = shown().splitlines()
    assert lines[0] == "row 1"
    assert lines[1] == "column_0   value value value value 0"
    assert len(lines) == 62
    show.answer(["text"], [("x" * 300,)])
    assert "x" * 300 in shown()
    show.csv(["a", "b"], [(2024, 'say "so"'), (None, "x\ny")], out := io.StringIO())
    assert out.getvalue() == 'a,b\n2024,"say ""so"""\n,"x\ny"\n'


def test_the_command_prints_csv_and_names_the_refused_input(
    lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> str:
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    assert command("sql", "SELECT 2024 AS year, NULL AS b, 'x,y' AS c", "--csv") == 'year,b,c\n2024,,"x,y"\n'
    with pytest.raises(BadInput, match="--mode 'missing,often' is not known"):
        command("plan", "--mode", "missing,often")
    with pytest.raises(BadInput, match="writes a file only with --allow-export") as refused:
        command("sql", "COPY (SELECT 1) TO 'x.csv'")
    assert refused.value.fix.startswith("lake sql --allow-export")
    assert command("sql", "COPY (SELECT 1 AS n) TO 'x.csv'", "--allow-export")
    assert (tmp_path / "x.csv").read_text() == "n\n1\n"


def test_json_output_represents_values_that_json_lacks() -> None:
    value = {"x": [float("nan"), float("-inf")], "m": {date(2024, 1, 1): 1}, "n": None, "i": 2024}
    assert plain(value) == {"x": ["nan", "-inf"], "m": {"2024-01-01": 1}, "n": None, "i": 2024}


def test_every_error_of_a_plan_names_the_next_step(lake: Lake) -> None:
    for out in plan_each(lake.settings, list(all_datasets().values()))[1]:
        assert isinstance(out.error, LakeError)
        assert out.error.fix
