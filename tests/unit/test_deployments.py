"""The deployments as data: names, schedules, limits and triggers; and every entrypoint exists."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.exceptions import ParameterTypeError

from ducklake_flows.errors import BadInput
from ducklake_flows.ingest import ingest
from ducklake_flows.maintain import maintain
from ducklake_flows.orchestration import automations, events
from ducklake_flows.orchestration.deployments import checks, due
from ducklake_flows.orchestration.names import DUE
from ducklake_flows.orchestration.root_run import BACKFILL
from ducklake_flows.pipeline import pipeline
from ducklake_flows.project import due_datasets

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"


@pytest.fixture(scope="module")
def deployments() -> dict[str, dict[str, Any]]:
    return {d["name"]: d for d in yaml.safe_load(FILE.read_text())["deployments"]}


def test_the_deployments_have_exactly_these_schedules_limits_and_triggers(
    deployments: dict[str, dict[str, Any]],
) -> None:
    found = {
        name: (
            d["schedules"] if isinstance(d["schedules"], str) else {s["slug"]: s["cron"] for s in d["schedules"]},
            (d["concurrency_limit"]["limit"], d["concurrency_limit"]["collision_strategy"]),
            [t["expect"][0] for t in d.get("triggers", [])],
            d["work_pool"].get("work_queue_name"),
        )
        for name, d in deployments.items()
    }
    assert found == {
        "ingest": ("{{ due.schedules }}", (2, "ENQUEUE"), [], "ingest"),
        "arrived": ({}, (2, "ENQUEUE"), [events.ARRIVED], "arrived"),
        "transform": ({"daily": "45 7 * * *"}, (1, "ENQUEUE"), [events.PUBLISHED], None),
        "maintain": ({"nightly": "15 3 * * *"}, (1, "CANCEL_NEW"), [], None),
        "verify": ({"nightly": "45 3 * * 1-6", "weekly": "45 3 * * 0"}, (1, "CANCEL_NEW"), [], None),
        "freshness": ({"regular": "{{ checks.cron }}"}, (1, "CANCEL_NEW"), [], None),
        "backfill": ({}, (1, "ENQUEUE"), [], "backfill"),
        "pipeline": ({}, (1, "ENQUEUE"), [], "backfill"),
    }
    # The order in which the queues are created is the order of their priority.
    names = ["ingest", "arrived", "transform", "maintain", "verify", "freshness", "backfill", "pipeline"]
    assert list(found) == names
    assert deployments["transform"]["triggers"][0]["match"][events.TRANSFORM] == "wanted"
    assert [name for name, d in deployments.items() if BACKFILL in d["tags"]] == ["backfill", "pipeline"]


def test_every_entrypoint_is_a_flow_that_accepts_the_given_parameters(deployments: dict[str, dict[str, Any]]) -> None:
    for name, deployment in deployments.items():
        module, _, function = deployment["entrypoint"].rpartition(".")
        flow = getattr(import_module(module), function)
        assert flow.name == ("ingest" if name in ("arrived", "backfill") else name)
        schedules = due()["schedules"] if name == "ingest" else deployment["schedules"]
        given = [s.get("parameters", {}) for s in schedules]
        given += [t.get("parameters", {}) for t in deployment.get("triggers", [])]
        for parameters in given:
            assert parameters.keys() <= flow.parameters.properties.keys()
        # As the server gives them to a run: in JSON.
        days = {"start": "2024-01-01", "end": "2024-01-02"}
        form = {day: text for day, text in days.items() if day in flow.parameters.properties}
        assert flow.validate_parameters(form).keys() == flow.parameters.properties.keys()
        assert automations.TAG in deployment["tags"]
        assert deployment["work_pool"]["name"] == "lake"
        assert deployment["description"]
        # Nothing to pull. The list must be present and empty: without it Prefect prompts the user.
        assert deployment["pull"] == []


def test_the_form_of_a_load_has_bounds_on_its_numbers_and_pickers_for_days_and_order() -> None:
    for flow in (ingest, pipeline):
        form = flow.parameters.properties
        numbers = {name for name in ("workers", "limit") if "integer" in str(form[name])}
        assert {name for name in numbers if "'minimum': 1" in str(form[name])} == {"workers", "limit"}
        assert all("'format': 'date'" in str(form[name]) for name in ("start", "end"))
        assert "Order" in str(form["order"])
        assert "due" not in form


def test_a_retention_below_zero_is_refused_however_a_run_is_started() -> None:
    """O10. All history would expire."""
    assert maintain.parameters.properties["retention_days"]["anyOf"][0]["minimum"] == 0
    with pytest.raises(ParameterTypeError, match="greater than or equal to 0"):
        maintain.validate_parameters({"retention_days": -1})


def test_a_transform_starts_only_after_its_event_window_has_ended(deployments: dict[str, dict[str, Any]]) -> None:
    trigger = deployments["transform"]["triggers"][0]
    assert trigger["threshold"] == 1
    assert int(trigger["schedule_after"].removeprefix("PT").removesuffix("S")) > trigger["within"] > 0


def test_each_schedule_of_the_datasets_is_one_of_the_ingest_deployment() -> None:
    early, late = due()["schedules"]
    assert early == {
        "slug": "0-5-x-x-x-utc",
        "cron": "0 5 * * *",
        "timezone": "UTC",
        "parameters": {"datasets": ["@due 0 5 * * * UTC"]},
    }
    assert late["cron"] == "0 6 * * *"
    asked = [due_datasets(s["parameters"]["datasets"][0].removeprefix(DUE)) for s in (early, late)]
    assert [sorted(d.key for d in found) for found in asked] == [
        ["airlines", "airports", "planes"],
        ["flights", "weather"],
    ]
    with pytest.raises(BadInput, match="No dataset has the schedule '0 4"):
        due_datasets("0 4 * * * UTC")


@pytest.mark.parametrize(
    ("limits", "cron"),
    [
        ([], "20 4 * * *"),
        ([None, None], "20 4 * * *"),
        (["2 days", None, "1 day"], "20 * * * *"),
        (["2 days", "90 minutes"], "5,20,35,50 * * * *"),
    ],
)
def test_overdue_datasets_are_looked_for_as_often_as_they_need(
    limits: list[str | None], cron: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKE_DATASETS", str(tmp_path))
    lines = [
        f'D{n} = Dataset("d{n}", lambda p: [], partition_column="day", freshness={limit!r})'
        for n, limit in enumerate(limits)
    ]
    (tmp_path / f"limits{len(limits)}.py").write_text("\n".join(["from ducklake_flows import Dataset", *lines]))
    assert checks() == {"cron": cron}
