"""Versions of `RestApi` against a real HTTP server: exactly the partition that has changed there is loaded again."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ducklake_flows import Dataset, RestApi, Secret, Versions
from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import BadInput, SourceError, SourceUnavailable
from ducklake_flows.plan import make_plan
from ducklake_flows.project import get_dataset
from ducklake_flows.sources import rest_versions
from ducklake_flows.states import Mode
from tests.conftest import DATASETS, DEMO, make_project
from tests.sources.api import Answer, Api, Asked, serving

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.conftest import Lake

DAYS = [f"2024-01-{day:02}" for day in range(1, 5)]
TOKEN = "s3cr3t-and-long-enough"  # noqa: S105 - of this test's own server


@dataclass
class Shop:
    """What an API has: for each day its rows and when it was last changed."""

    days: dict[str, tuple[list[dict[str, Any]], str]] = field(default_factory=dict)

    def set(self, day: str, *values: int, at: str) -> None:
        self.days[day] = [{"id": n, "value": value} for n, value in enumerate(values)], at

    def __call__(self, asked: Asked) -> Any:
        if asked.path == "/changes":
            found = [{"of": {"day": day}, "at": at} for day, (_, at) in sorted(self.days.items())]
            start = int(asked.query.get("offset", 0))
            return {"rows": found[start : start + 2], "total": len(found)}
        day = asked.path.split("/")[2]
        if day not in self.days:
            return Answer(status=404)
        rows, at = self.days[day]
        if asked.path.startswith("/meta/"):
            return {"meta": {"at": at, "count": len(rows)}}
        return Answer(rows, headers={"ETag": f'W/"{at}"', "Last-Modified": at})


def dataset(source: RestApi, **options: Any) -> Dataset:
    given = {"partition_column": "day", "start": date(2024, 1, 1), "retries": 0, **options}
    return Dataset("readings", source, **given)


def versions(source: RestApi, *days: str) -> Mapping[str, str]:
    return source.versions([parse_partition(day, Grain.day) for day in days or DAYS])


def of(api: Api, version: str | Versions, **options: Any) -> RestApi:
    return RestApi(f"{api.url}/days/{{partition}}", version=version, **options)


def listing(api: Api, **options: Any) -> Versions:
    given = {"version": "at", "partition": "of.day", "rows": "rows", **options}
    paginator = {"type": "offset", "limit": 2, "total_path": "total"}
    return Versions(f"{api.url}/changes", paginator=paginator, **given)


WAYS = ["etag", "Last-Modified", "answer", "listing"]


def way(api: Api, name: str) -> str | Versions:
    if name == "answer":
        return Versions(f"{api.url}/meta/{{partition}}", version=("meta.at", "meta.count"))
    return listing(api) if name == "listing" else name


@pytest.mark.parametrize("name", WAYS)
def test_a_version_changes_with_its_partition_and_a_partition_that_the_api_lacks_has_none(name: str) -> None:
    shop = Shop()
    for day in DAYS[:3]:
        shop.set(day, 1, 2, at=f"{day}T10")
    with serving(shop) as api:
        source = of(api, way(api, name))
        before = versions(source)
        assert list(before) == DAYS[:3]
        assert versions(source) == before
        shop.set(DAYS[1], 1, 2, at="2024-02-01T10")
        after = versions(source)
        assert [day for day in DAYS[:3] if after[day] != before[day]] == [DAYS[1]]
        # The API has not sent the rows of any day, and a listing is asked for once, page by page.
        sent = Counter((asked.method, asked.path.split("/")[1]) for asked in api.asked)
        expected = {"answer": {("GET", "meta"): 12}, "listing": {("GET", "changes"): 6}}
        assert sent == expected.get(name, {("HEAD", "days"): 12})


def test_an_api_without_head_answers_a_get() -> None:
    def answer(asked: Asked) -> Any:
        return Answer(status=405) if asked.method == "HEAD" else Answer("[]", headers={"ETag": '"1"'})

    with serving(answer) as api:
        assert versions(of(api, "ETag")) == dict.fromkeys(DAYS, '"1"')


def test_versions_are_asked_for_eight_at_a_time_with_the_credentials_and_again_if_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server answers when as many requests wait as may at once: the first alone, then eight."""
    monkeypatch.setenv("API_TOKEN", TOKEN)
    days = [f"{date(2024, 1, 1) + timedelta(n)}" for n in range(1 + 3 * rest_versions.TOGETHER)]
    together = threading.Barrier(rest_versions.TOGETHER)
    refused = Counter[str]()
    now, most, lock = 0, 0, threading.Lock()

    def answer(asked: Asked) -> Any:
        nonlocal now, most
        assert asked.headers["authorization"] == f"Bearer {TOKEN}"
        day = asked.query["day"]
        refused[day] += 1
        if refused[day] == 1 and day == days[0]:
            return Answer(status=429, headers={"Retry-After": "1"})
        with lock:
            now += 1
            most = max(most, now)
        if day != days[0]:
            together.wait(60)
        with lock:
            now -= 1
        return {"at": f"of {day}"}

    with serving(answer) as api:
        source = RestApi(
            f"{api.url}/{{partition}}",
            auth={"type": "bearer", "token": Secret("API_TOKEN")},
            version=Versions(f"{api.url}/version", "at", params={"day": "{partition}"}),
        )
        assert versions(source, *days) == {day: f"of {day}" for day in days}
    assert most == rest_versions.TOGETHER
    assert refused == Counter(dict.fromkeys(days, 1) | {days[0]: 2})


ONE = Versions("http://api/v/{partition}", "at")
LIST = Versions("http://api/c", "at", "day", "rows")


@pytest.mark.parametrize(
    ("version", "answer", "error"),
    [
        ("etag", [], "{of}/days/2024-01-01: the answer has no header 'etag'"),
        ("etag", Answer("no", 403), "{of}/days/2024-01-01: 403"),
        (ONE, {"of": 1}, "{of}/v/2024-01-01: there is no at: it is an object with of"),
        (ONE, "<html>", "{of}/v/2024-01-01: the answer is not JSON"),
        (ONE, Answer(f"key {TOKEN}", 400), "{of}/v/2024-01-01: 400 key ***"),
        (LIST, {"rows": [{"at": 1}]}, "row 1 of GET {url}/c: there is no day: it is an object with at"),
        (LIST, {"rows": [{"day": DAYS[0]}]}, "row 1 of GET {url}/c: there is no at: it is an object with day"),
        (LIST, {"rows": [{"day": "soon", "at": 1}]}, "row 1 of GET {url}/c: 'soon' is not a partition of grain day"),
        (LIST, {"days": []}, "page 1: the answer has no rows: it is an object with days"),
        (LIST, Answer(status=404), "page 1 of GET {url}/c: 404"),
    ],
)
def test_an_answer_without_a_version_is_an_error_that_names_the_partition_and_no_secret(
    version: str | Versions, answer: Any, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", TOKEN)
    with serving(lambda _: answer) as api:
        if isinstance(version, Versions):
            version = replace(version, url=version.url.replace("http://api", api.url))
        auth = {"type": "api_key", "name": "key", "api_key": Secret("API_TOKEN"), "location": "query"}
        with pytest.raises(SourceError) as found:
            versions(of(api, version, auth=auth))
        assert found.value.message.startswith(error.format(url=api.url, of=f"{DAYS[0]}: GET {api.url}"))
        assert TOKEN not in str(found.value)
        assert found.value.fix


def test_an_api_that_stays_away_is_asked_for_one_version_only() -> None:
    with serving(lambda _: Answer("busy", 503)) as api:
        with pytest.raises(SourceUnavailable, match=f"{DAYS[0]}: GET {api.url}/days/{DAYS[0]}: 503"):
            versions(of(api, "etag", tries=2))
        assert len(api.asked) == 2


def test_an_oauth2_token_that_has_ended_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", TOKEN)
    given = list[str]()

    def answer(asked: Asked) -> Any:
        if asked.path == "/token":
            given.append(f"token{len(given)}")
            return {"access_token": given[-1], "expires_in": 3600}
        if asked.headers["authorization"] != f"Bearer {given[-1]}":
            return Answer(status=401)
        return Answer("[]", headers={"ETag": '"1"'})

    with serving(answer) as api:
        auth = {
            "type": "oauth2_client_credentials",
            "access_token_url": f"{api.url}/token",
            "client_id": "me",
            "client_secret": Secret("API_TOKEN"),
        }
        source = of(api, "etag", auth=auth)
        assert len(versions(source, DAYS[0])) == 1
        given.append("another")
        assert len(versions(source)) == 4
        assert given[:2] == ["token0", "another"]
        assert len([asked for asked in api.asked if asked.path == "/token"]) >= 2


def test_a_listing_may_name_keys_dates_and_times_and_a_partition_several_times() -> None:
    """The number of rows of a partition and each of their versions count, in any order."""
    found: list[dict[str, Any]] = [
        {"day": "2024-01-01", "at": 1},
        {"day": "2024-01-02T23:59:59.5Z", "at": 1},
        {"day": "2024-01-03T01:00:00+02:00", "at": {"n": 2}},
        {"day": "20240103", "at": None},
        {"day": "2023-12-31", "at": 1},
    ]

    def answer(asked: Asked) -> Any:
        assert asked.query == {"from": "2024-01-01T00:00:00Z", "to": "2024-01-04"}
        return found

    with serving(answer) as api:
        params = {"from": "{start}", "to": "{last}"}
        source = of(api, Versions(f"{api.url}/changes", "at", "day", params=params))
        first = versions(source)
        assert first == {"2024-01-01": "1", "2024-01-02": first["2024-01-02"], "2024-01-03": "null"}
        assert first["2024-01-02"].startswith("2:")
        found.reverse()
        assert versions(source) == first
        found[0]["at"] = found[1]["at"] = "new"
        assert versions(source) == {**first, "2024-01-03": "new"}
        found.append({"day": "2024-01-02", "at": 1})
        assert versions(source)["2024-01-02"].startswith("3:")


def test_months_and_hours_are_listed_by_their_keys_or_by_a_date_in_them() -> None:
    with serving(lambda _: [{"day": "2024-02", "at": 1}, {"day": "2024-03-15", "at": 2}]) as api:
        source = RestApi(f"{api.url}/{{partition}}", version=Versions(f"{api.url}/c", "at", "day"))
        months = [parse_partition(f"2024-0{n}", Grain.month) for n in (1, 2, 3)]
        assert source.versions(months) == {"2024-02": "1", "2024-03": "2"}
        hour = parse_partition("2024-03-15T00", Grain.hour)
        assert RestApi(f"{api.url}/{{partition}}", version=Versions(f"{api.url}/c", "at", "day")).versions([]) == {}
    with serving(lambda _: [{"day": "2024-03-15T00:30:00Z", "at": 2}]) as api:
        source = RestApi(f"{api.url}/{{partition}}", version=Versions(f"{api.url}/c", "at", "day"))
        assert source.versions([hour]) == {"2024-03-15T00": "2"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"version": "e tag"}, "version is 'e tag'"),
        ({"version": 7}, "version is 7"),
        ({"version": "etag", "method": "POST"}, "version='etag' is a header of a GET"),
        ({"version": Versions("https://example.com/", "at")}, "does not say which day"),
        ({"version": Versions("https://example.com/{day}", "at")}, r"'\{day\}' in .* is not a placeholder"),
        (
            {"version": Versions("https://example.com/{partition}", "at", "day")},
            r"'\{partition\}' in .* is not a",
        ),
        ({"version": Versions("example.com/", "at", "day")}, "is not a URL"),
        ({"version": Versions("https://me:pw@example.com/", "at", "day")}, "contains a user or password"),
        ({"version": Versions("https://example.com/", "at", "day", paginator="pages")}, "'pages' is not a paginator"),
    ],
)
def test_a_wrong_version_is_refused_when_the_dataset_is_defined(options: dict[str, Any], error: str) -> None:
    with pytest.raises(BadInput, match=error):
        dataset(RestApi(**{"url": "https://example.com/{partition}", **options}))


def test_a_listing_of_a_whole_table_and_one_without_a_partition_are_refused() -> None:
    with pytest.raises(BadInput, match="needs no listing"):
        dataset(
            RestApi("https://example.com/", version=Versions("https://example.com/c", "at", "day")),
            grain=Grain.full,
            partition_column=None,
        )
    whole = RestApi("https://example.com/", version=Versions("https://example.com/c", "at"))
    assert dataset(whole, grain=Grain.full, partition_column=None)
    with pytest.raises(BadInput, match="belong to a listing"):
        Versions("https://example.com/c", "at", lists_all=False)
    with pytest.raises(BadInput, match="lacks the place"):
        Versions("https://example.com/c", "")


DEFINITION = """
from datetime import date

from ducklake_flows import Dataset, RestApi, Versions

URL = {url!r}
DATASET = Dataset(
    key="shop",
    source=RestApi(f"{{URL}}/days/{{{{partition}}}}", version={version}),
    partition_column="day",
    start={start!r},
    recheck="7 days",
)
"""


def project(monkeypatch: pytest.MonkeyPatch, folder: Path, api: Api, version: str, start: date) -> None:
    """Make a project with the dataset `shop` the current one."""
    (folder / "shop").mkdir()
    text = DEFINITION.format(url=api.url, version=version, start=start).replace("datetime.date", "date")
    (folder / "shop" / "shop.py").write_text(text)
    monkeypatch.setenv("LAKE_PROJECT", str(make_project(folder / "project", DEMO, DATASETS, folder / "shop")))


def ingest(**options: Any) -> dict[str, Any]:
    from ducklake_flows.ingest import ingest

    found: dict[str, Any] = ingest(["shop"], **options)
    return found


@pytest.mark.parametrize(
    "version",
    [
        '"etag"',
        'Versions(f"{URL}/changes", "at", "of.day", "rows", paginator={"type": "offset", "limit": 2})',
    ],
)
@pytest.mark.short("sqlite+folder")
def test_a_scheduled_run_loads_exactly_the_changed_partition_within_recheck_and_mode_stale_the_others(
    gated_lake: Lake, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, today = Shop(), date.today()
    days = [f"{today - timedelta(n)}" for n in range(20, 0, -1)]
    for day in days:
        shop.set(day, 1, 2, at=f"{day}T10")
    with serving(shop) as api:
        project(monkeypatch, tmp_path, api, version, date.fromisoformat(days[0]))
        assert ingest(workers=1)["published"] == 20
        api.asked.clear()
        assert ingest(workers=1)["published"] == 0
        assert not [asked for asked in api.asked if asked.method == "GET" and asked.path.startswith("/days/")]
        shop.set(days[-3], 1, 2, 3, at="later")
        shop.set(days[1], 7, at="later")
        assert ingest(workers=1)["published"] == 1
        assert read(gated_lake, days[-3]) == [1, 2, 3]
        assert read(gated_lake, days[1]) == [1, 2], "older than 7 days"
        assert ingest(workers=1, mode=Mode.stale)["published"] == 1
        assert read(gated_lake, days[1]) == [7]
        assert ingest(workers=1, mode=[Mode.missing_failed, Mode.stale])["published"] == 0
        read_again = Counter(asked.path for asked in api.asked if asked.method == "GET" and "/days/" in asked.path)
        assert read_again == {f"/days/{days[-3]}": 1, f"/days/{days[1]}": 1}
        # A day that the API has only now.
        assert make_plan(gated_lake.settings, [get_dataset("shop")], today, today)[0].state == "no_source"


@pytest.mark.usefixtures("gated_lake")
@pytest.mark.short("sqlite+folder")
def test_an_endpoint_of_changes_makes_stale_what_it_lists_and_the_rest_is_read_all_the_same(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lake.settings
    changed: list[dict[str, Any]] = [{"day": "2024-01-02", "at": 1}]

    def answer(asked: Asked) -> Any:
        return changed if asked.path == "/changes" else [{"id": 1, "value": json.dumps(changed)}]

    with serving(answer) as api:
        version = 'Versions(f"{URL}/changes", "at", "day", lists_all=False)'
        project(monkeypatch, tmp_path, api, version, date(2024, 1, 1))
        given = {"start": date(2024, 1, 1), "end": date(2024, 1, 4), "workers": 1, "mode": Mode.stale}
        assert ingest(**{**given, "mode": Mode.missing})["published"] == 4
        assert ingest(**given)["published"] == 0
        changed += [{"day": "2024-01-03", "at": 2}, {"day": "2024-01-02", "at": 3}]
        assert ingest(**given)["published"] == 2
        assert ingest(**given)["published"] == 0


def read(lake: Lake, day: str) -> list[int]:
    found: list[int] = lake.column(f"SELECT value FROM raw.shop WHERE day = '{day}' ORDER BY 1")
    return found
