"""`RestApi` against a real HTTP server: every row of every page exactly, or an error that names the page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args

import pytest

from ducklake_flows import Dataset, RestApi, Secret
from ducklake_flows.datasets.partitions import Grain, parse_partition
from ducklake_flows.errors import BadInput
from ducklake_flows.extract.chunk import extract
from ducklake_flows.sources import rest_api
from ducklake_flows.staging.receipt import Failure, Receipt
from tests.sources.api import Answer, Api, Asked, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ducklake_flows.staging.receipt import Outcome
    from tests.conftest import Lake

DAYS = [f"2024-01-{day:02}" for day in range(1, 5)]
SIZE = 10


def rows(day: str, count: int = 25) -> list[dict[str, Any]]:
    return [{"id": f"{day}-{number:02}", "value": number} for number in range(count)]


def dataset(source: RestApi, **options: Any) -> Dataset:
    given = {"partition_column": "day", "start": date(2024, 1, 1), "retries": 0, **options}
    return Dataset("readings", source, **given)


def read(lake: Lake, source: RestApi, *days: str, **options: Any) -> list[Outcome]:
    return extract(dataset(source, **options), dict.fromkeys(days or DAYS, ""), lake.settings)


def stored(lake: Lake, outcomes: list[Outcome]) -> list[str]:
    assert all(isinstance(outcome, Receipt) for outcome in outcomes), outcomes
    lake.publish(outcomes)
    assert lake.errors() == []
    return lake.column("SELECT id FROM raw.readings ORDER BY id")


EVERY = sorted(row["id"] for day in DAYS for row in rows(day))


def link(api: list[Api], asked: Asked, page: int) -> str:
    return f"{api[0].url}{asked.path}?day={asked.query['day']}&page={page}"


def by_offset(asked: Asked) -> Any:
    start = int(asked.query["offset"])
    assert int(asked.query["limit"]) == SIZE
    found = rows(asked.query["day"])
    return {"total": len(found), "rows": found[start : start + SIZE]}


def by_page(asked: Asked) -> Any:
    page = int(asked.query["page"])
    return {"rows": rows(asked.query["day"])[page * SIZE : (page + 1) * SIZE]}


def by_cursor(asked: Asked) -> Any:
    start = int(asked.query.get("cursor", 0))
    found = rows(asked.query["day"])
    more = start + SIZE < len(found)
    return {"rows": found[start : start + SIZE], "next": {"cursor": start + SIZE if more else None}}


def by_link(asked: Asked) -> Any:
    page = int(asked.query.get("page", 0))
    found = rows(asked.query["day"])
    more = (page + 1) * SIZE < len(found)
    url = f"http://{asked.headers['host']}{asked.path}?day={asked.query['day']}&page={page + 1}"
    return Answer(
        {"rows": found[page * SIZE : (page + 1) * SIZE], "links": {"next": url if more else None}},
        headers={"Link": f'<{url}>; rel="next"'} if more else {},
    )


@pytest.mark.parametrize(
    ("answer", "paginator"),
    [
        (by_offset, {"type": "offset", "limit": SIZE, "total_path": "total"}),
        (by_offset, {"type": "offset", "limit": SIZE, "total_path": None}),
        (by_page, {"type": "page_number", "base_page": 0, "total_path": None}),
        (by_cursor, {"type": "cursor", "cursor_path": "next.cursor", "cursor_param": "cursor"}),
        (by_link, {"type": "json_link", "next_url_path": "links.next"}),
        (by_link, "header_link"),
        (by_link, "auto"),
    ],
)
@pytest.mark.short("sqlite+folder")
def test_every_row_of_every_page_is_stored_once(
    lake: Lake, answer: Callable[[Asked], Any], paginator: str | Mapping[str, Any]
) -> None:
    with serving(answer) as api:
        source = RestApi(f"{api.url}/entries", rows="rows", params={"day": "{partition}"}, paginator=paginator)
        outcomes = read(lake, source)
        assert stored(lake, outcomes) == EVERY
        # The second partition begins at its own first page.
        assert {asked.query["day"] for asked in api.asked} == set(DAYS)
        assert [o.source for o in outcomes if isinstance(o, Receipt)] == [
            f"GET {api.url}/entries?day={day}" for day in DAYS
        ]


def test_a_window_is_asked_in_the_path_the_query_the_headers_and_the_body(lake: Lake) -> None:
    def answer(asked: Asked) -> Any:
        day = asked.path.rpartition("/")[2]
        start = date.fromisoformat(day)
        after = start + timedelta(days=1)
        assert asked.query["from"] == f"{day}T00:00:00Z"
        assert asked.query["to"] == f"{after}T00:00:00Z"
        assert asked.query["last"] == day
        assert asked.headers["x-day"] == f"{start:%d.%m.%Y}"
        assert asked.method == "POST"
        body = json.loads(asked.body)
        page = body["page"]
        assert body["window"] == {"since": (start - date(1970, 1, 1)).days * 86400, "query": "{id}"}
        return {"rows": rows(day)[(page - 1) * SIZE : page * SIZE]}

    with serving(answer) as api:
        source = RestApi(
            f"{api.url}/of/{{partition}}",
            rows="rows",
            params={"from": "{start}", "to": "{end}", "last": "{last}"},
            headers={"X-Day": "{start:%d.%m.%Y}"},
            method="POST",
            json={"window": {"since": "{start:unix}", "query": "{id}"}},
            paginator={"type": "page_number", "base_page": 1, "page_body_path": "page", "total_path": None},
        )
        assert stored(lake, read(lake, source)) == EVERY


def test_numbers_keep_all_their_digits(lake: Lake) -> None:
    text = '[{"id": "a", "exact": 0.1234567890123456789, "big": 12345678901234567890, "plain": 1.5}]'
    with serving(lambda _: text) as api:
        outcomes = read(lake, RestApi(f"{api.url}/{{partition}}"), DAYS[0])
    assert stored(lake, outcomes) == ["a"]
    found = lake.sql("SELECT exact, big, plain FROM raw.readings")
    assert found == [{"exact": Decimal("0.1234567890123456789"), "big": Decimal(12345678901234567890), "plain": 1.5}]


def errors(outcomes: list[Outcome]) -> dict[str, str]:
    return {o.partition: o.error for o in outcomes if isinstance(o, Failure)}


@pytest.mark.short("sqlite+folder")
def test_a_page_that_fails_in_the_middle_fails_the_partition_and_no_other(lake: Lake) -> None:
    def answer(asked: Asked) -> Any:
        if asked.query["day"] == DAYS[1] and asked.query["offset"] == "10":
            return Answer({"why": "broken"}, 400)
        return by_offset(asked)

    with serving(answer) as api:
        paginator = {"type": "offset", "limit": SIZE, "total_path": "total"}
        outcomes = read(lake, RestApi(api.url, rows="rows", params={"day": "{partition}"}, paginator=paginator))
    assert errors(outcomes) == {DAYS[1]: f'page 2 of GET {api.url}?day={DAYS[1]}: 400 {{"why": "broken"}}'}
    lake.publish(outcomes)
    assert lake.column("SELECT id FROM raw.readings ORDER BY 1") == [i for i in EVERY if not i.startswith(DAYS[1])]


@pytest.mark.parametrize(
    ("body", "rows", "error"),
    [
        ({"data": []}, "", "page 1: the answer is an object with data, not a list"),
        ({"error": "quota"}, "data", "page 1: the answer has no data: it is an object with error"),
        ({}, "data.items", "page 1: the answer has no data.items: it is an empty object"),
        ({"data": [1]}, "data", "page 1: row 1 is a number, not an object"),
        ({"data": "x"}, "data", "page 1: row 1 is text, not an object"),
        ("<html>busy</html>", "data", "page 1: the answer is not JSON: Expecting value at character 1"),
        ('[{"a": 1, "a": 2}]', "", "page 1: the answer has the key 'a' twice"),
        ('[{"a": 1}', "", "page 1: the answer is not JSON: Expecting ',' delimiter at character 10"),
    ],
)
@pytest.mark.short("sqlite+folder")
def test_an_answer_without_the_rows_is_an_error_and_no_empty_partition(
    lake: Lake, body: Any, rows: str, error: str
) -> None:
    with serving(lambda _: body) as api:
        assert errors(read(lake, RestApi(f"{api.url}/{{partition}}", rows=rows), DAYS[0])) == {DAYS[0]: error}


@pytest.mark.parametrize(
    ("body", "rows", "expected"),
    [
        ([], "", []),
        ({"data": []}, "data", []),
        ({"data": []}, "data[*]", []),
        ({"data": None}, "data", []),
        ({"data": {"id": "a"}}, "data", ["a"]),
        ({"groups": [{"of": [{"id": "a"}]}, {"of": [{"id": "b"}, {"id": "c"}]}]}, "groups[*].of", ["a", "b", "c"]),
        ({"groups": [{"of": [{"id": "a"}]}]}, "groups[*].of", ["a"]),
    ],
)
@pytest.mark.short("sqlite+folder")
def test_rows_are_found_where_the_dataset_says(lake: Lake, body: Any, rows: str, expected: list[str]) -> None:
    with serving(lambda _: body) as api:
        source = RestApi(f"{api.url}/{{partition}}", rows=rows, paginator="single_page")
        outcomes = read(lake, source, DAYS[0])
    assert [o.rows for o in outcomes if isinstance(o, Receipt)] == [len(expected)]
    assert not expected or stored(lake, outcomes) == expected


@pytest.mark.short("sqlite+folder")
def test_a_partition_that_the_api_does_not_have_is_no_source_and_a_later_page_is_an_error(lake: Lake) -> None:
    def answer(asked: Asked) -> Any:
        found = by_link(asked)
        return Answer(status=404) if asked.query["day"] == DAYS[0] or asked.query.get("page") == "1" else found

    with serving(answer) as api:
        outcomes = read(lake, RestApi(api.url, rows="rows", params={"day": "{partition}"}), *DAYS[:2])
    assert [o.state for o in outcomes if isinstance(o, Failure)] == ["no_source", "failed"]
    assert errors(outcomes)[DAYS[0]] == f"GET {api.url}?day={DAYS[0]} answers 404"
    assert errors(outcomes)[DAYS[1]].startswith("page 2 of GET ")


@pytest.mark.short("sqlite+folder")
def test_more_pages_than_allowed_and_a_paginator_that_never_ends_are_errors(lake: Lake) -> None:
    paginator = {"type": "cursor", "cursor_path": "next", "cursor_param": "cursor"}

    def endless(asked: Asked) -> Any:
        return {"rows": [{"id": "a"}], "next": int(asked.query.get("cursor", 0)) + 1}

    with serving(endless) as api:
        source = RestApi(f"{api.url}/{{partition}}", rows="rows", paginator=paginator, max_pages=3)
        assert errors(read(lake, source, DAYS[0])) == {DAYS[0]: "page 4: there are more than 3 pages"}
        assert len(api.asked) == 4
    with serving(lambda _: {"rows": [{"id": "a"}], "next": "same"}) as api:
        source = RestApi(f"{api.url}/{{partition}}", rows="rows", paginator=paginator)
        assert errors(read(lake, source, DAYS[0])) == {DAYS[0]: "page 3: the paginator asks for the same page twice"}


@pytest.mark.parametrize(
    "failure", [Answer(status=429, headers={"Retry-After": "1"}), Answer(status=503), Answer("[", cut=5)]
)
@pytest.mark.short("sqlite+folder")
def test_a_request_is_sent_again_if_the_api_refuses_it_for_a_moment(lake: Lake, failure: Answer) -> None:
    asked_for = Counter[str]()

    def answer(asked: Asked) -> Any:
        asked_for[asked.path] += 1
        return failure if asked_for[asked.path] == 1 else rows(asked.path[1:])

    with serving(answer) as api:
        outcomes = read(lake, RestApi(f"{api.url}/{{partition}}"), DAYS[0])
        assert len(api.asked) == 2
    assert stored(lake, outcomes) == [row["id"] for row in rows(DAYS[0])]


@pytest.mark.short("sqlite+folder")
def test_an_api_that_stays_away_fails_the_partition_after_the_tries(lake: Lake) -> None:
    with serving(lambda _: Answer("busy", 503)) as api:
        source = RestApi(f"{api.url}/{{partition}}", tries=2)
        found = errors(read(lake, source, DAYS[0]))
        assert found == {DAYS[0]: f"page 1 of GET {api.url}/{DAYS[0]}: 503 busy"}
        assert len(api.asked) == 2
    (gone,) = errors(read(lake, replace(source, tries=1), DAYS[0])).values()
    assert gone.startswith("page 1: ConnectionError: ")


TOKEN = "s3cr3t-and-long-enough"  # noqa: S105 - of this test's own server


@pytest.mark.parametrize(
    ("auth", "accepted"),
    [
        ({"type": "bearer", "token": Secret("API_TOKEN")}, lambda a: a.headers["authorization"] == f"Bearer {TOKEN}"),
        (
            {"type": "api_key", "name": "appid", "api_key": Secret("API_TOKEN"), "location": "query"},
            lambda a: a.query["appid"] == TOKEN,
        ),
        (
            {"type": "api_key", "name": "X-Key", "api_key": Secret("API_TOKEN"), "location": "header"},
            lambda a: a.headers["x-key"] == TOKEN,
        ),
        (
            {"type": "http_basic", "username": "ada", "password": Secret("API_TOKEN")},
            lambda a: a.headers["authorization"] == "Basic YWRhOnMzY3IzdC1hbmQtbG9uZy1lbm91Z2g=",
        ),
    ],
)
@pytest.mark.short("sqlite+folder")
def test_credentials_are_sent_and_never_shown(
    lake: Lake, auth: Mapping[str, Any], accepted: Callable[[Asked], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", TOKEN)

    def answer(asked: Asked) -> Any:
        if not accepted(asked):
            return Answer(status=401)
        if asked.path.endswith(DAYS[1]):
            return Answer(f"bad: {asked.query} {dict(asked.headers)}", 400)
        return rows(asked.path[1:])

    with serving(answer) as api:
        source = RestApi(f"{api.url}/{{partition}}", auth=auth, tries=1)
        outcomes = read(lake, source, *DAYS[:2])
        gone = read(lake, replace(source, url="http://127.0.0.1:9/{partition}"), DAYS[2])
    assert [o.rows for o in outcomes if isinstance(o, Receipt)] == [25]
    assert list(errors(outcomes)) == [DAYS[1]]
    assert TOKEN not in repr([outcomes, gone, source])
    lake.publish([*outcomes, *gone])
    assert TOKEN not in str(lake.sql("FROM ops.ledger"))


@pytest.mark.short("sqlite+folder")
def test_an_oauth2_token_serves_many_partitions_and_is_asked_for_again_when_it_ends(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", TOKEN)
    given = list[str]()

    def answer(asked: Asked) -> Any:
        if asked.path == "/token":
            assert f"client_secret={TOKEN}" in asked.body
            given.append(f"token{len(given)}")
            return {"access_token": given[-1], "expires_in": 3600}
        # The first token ends early, in the middle of the run.
        if asked.headers["authorization"] != f"Bearer {given[-1]}" or (len(given) == 1 and asked.path == f"/{DAYS[2]}"):
            return Answer(status=401)
        return rows(asked.path[1:])

    with serving(answer) as api:
        source = RestApi(
            f"{api.url}/{{partition}}",
            auth={
                "type": "oauth2_client_credentials",
                "access_token_url": f"{api.url}/token",
                "client_id": "me",
                "client_secret": Secret("API_TOKEN"),
            },
        )
        outcomes = read(lake, source, retries=1, retry_delay=0)
    assert stored(lake, outcomes) == EVERY
    assert given == ["token0", "token1"]


@pytest.mark.short("sqlite+folder")
def test_a_secret_comes_from_the_environment_the_projects_env_file_or_a_secrets_folder(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    secret = Secret("API_TOKEN")
    with pytest.raises(BadInput, match="The secret API_TOKEN is not set"):
        secret.reveal()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "api_token").write_text("of the folder\n")
    monkeypatch.setenv("LAKE_SECRETS_DIR", str(tmp_path / "secrets"))
    assert secret.reveal() == "of the folder"
    assert lake.settings.project is not None
    (lake.settings.project / ".env").write_text("API_TOKEN='of ${HOME} the project'\n")
    assert secret.reveal() == "of ${HOME} the project"
    monkeypatch.setenv("API_TOKEN", "of the environment")
    assert secret.reveal() == "of the environment"
    with serving(lambda _: []) as api:
        monkeypatch.delenv("API_TOKEN")
        (lake.settings.project / ".env").unlink()
        monkeypatch.delenv("LAKE_SECRETS_DIR")
        source = RestApi(f"{api.url}/{{partition}}", auth={"type": "bearer", "token": secret})
        assert errors(read(lake, source, DAYS[0])) == {DAYS[0]: "The secret API_TOKEN is not set."}
        assert api.asked == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"url": "api.example.com/{partition}"}, "is not a URL"),
        ({"url": "https://me:pw@example.com/{partition}"}, "contains a user or password"),
        ({"url": "https://example.com/{day}"}, r"'\{day\}' in 'https://example.com/\{day\}' is not a placeholder"),
        ({"url": "https://example.com/"}, "does not say which day"),
        ({"url": "https://example.com/", "params": {"m": "{start:%Y-%m}"}}, "does not say which day"),
        ({"url": "https://example.com/{start:%s}"}, "%s depends on the machine"),
        ({"paginator": "pages"}, "'pages' is not a paginator"),
        ({"paginator": {"type": "offset", "limit": 5, "maximum_offset": 50}}, "maximum_offset would drop the pages"),
        ({"auth": {"type": "bearer", "token": "plain"}}, "auth contains token as text"),
        ({"auth": {"type": "digest"}}, "'digest' is no way to authenticate"),
        ({"method": "PUT"}, "method is 'PUT'"),
        ({"json": {"day": "{partition}"}}, "only a POST has a body"),
        ({"max_pages": 0}, "max_pages must be above 0"),
    ],
)
def test_a_wrong_description_is_refused_when_the_dataset_is_defined(options: dict[str, Any], error: str) -> None:
    with pytest.raises(BadInput, match=error):
        dataset(RestApi(**{"url": "https://example.com/{partition}", **options}))


def test_hours_months_and_a_whole_table_are_told_apart() -> None:
    url = "https://example.com/{start:%Y-%m-%d}"
    with pytest.raises(BadInput, match="does not say which hour"):
        dataset(RestApi(url), grain=Grain.hour)
    dataset(RestApi(f"{url}/{{start:%H}}"), grain=Grain.hour)
    dataset(RestApi("https://example.com/{start:%Y}/{start:%m}"), grain=Grain.month)
    month = RestApi("https://example.com/", params={"from": "{start:%Y-%m-%d}", "to": "{last}", "x": 1})
    assert month.origin(parse_partition("2024-02", Grain.month)) == (
        "GET https://example.com/?from=2024-02-01&to=2024-02-29"
    )
    with pytest.raises(BadInput, match="stands for a time"):
        dataset(RestApi(url), grain=Grain.full, partition_column=None)
    dataset(RestApi("https://example.com/"), grain=Grain.full, partition_column=None)


def test_the_names_of_paginators_and_ways_to_authenticate_are_those_of_dlt() -> None:
    from dlt.sources.rest_api import typing as dlts

    assert {*rest_api.PAGINATORS, "json_response"} == set(get_args(dlts.PaginatorType))
    assert set(rest_api.AUTHS) == set(get_args(dlts.AuthType))
