"""Build steps of `prefect.yaml`: compute the schedules of `ingest` and `freshness` from the datasets."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from ducklake_flows.orchestration.names import DUE
from ducklake_flows.project import all_datasets, broken_datasets


def due() -> dict[str, list[dict[str, Any]]]:
    """The schedules of all datasets: ``{"schedules": [...]}``, one for each cron and zone, as in `prefect.yaml`.

    Raises:
        BadInput: a dataset's file cannot be loaded, so its schedule is unknown.
    """
    for error in broken_datasets().values():
        raise error
    found = sorted({(d.schedule, d.timezone) for d in all_datasets().values() if d.schedule})
    return {
        "schedules": [
            {
                "slug": re.sub(r"[^a-z0-9]+", "-", f"{cron.replace('*', 'x')} {zone}".lower()).strip("-"),
                "cron": cron,
                "timezone": zone,
                "parameters": {"datasets": [f"{DUE}{cron} {zone}"]},
            }
            for cron, zone in found
        ]
    }


def checks() -> dict[str, str]:
    """When to look for overdue datasets, for cron: ``{"cron": "20 * * * *"}``.

    Every 15 minutes if a dataset must be published within less than a day, hourly if one has a longer `freshness`,
    and daily if none has one.
    """
    limits = [d.freshness for d in all_datasets().values() if isinstance(d.freshness, timedelta)]
    if not limits:
        return {"cron": "20 4 * * *"}
    return {"cron": "5,20,35,50 * * * *" if min(limits) < timedelta(days=1) else "20 * * * *"}
