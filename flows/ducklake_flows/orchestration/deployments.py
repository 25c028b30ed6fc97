"""Build steps of `prefect.yaml`: compute the schedules of `ingest` and `freshness` from the datasets."""

from __future__ import annotations

from datetime import timedelta

from ducklake_flows.project import all_datasets, broken_datasets


def due() -> dict[str, str]:
    """The schedule hours (UTC) of all datasets, for cron: ``{"hours": "5,6"}``. Midnight if no dataset has one.

    Raises:
        BadInput: a dataset's file cannot be loaded, so its hour is unknown.
    """
    for error in broken_datasets().values():
        raise error
    hours = {d.schedule_hour for d in all_datasets().values() if d.schedule_hour is not None}
    return {"hours": ",".join(map(str, sorted(hours))) or "0"}


def checks() -> dict[str, str]:
    """When to look for overdue datasets, for cron: ``{"cron": "20 * * * *"}``.

    Every 15 minutes if a dataset must be published within less than a day, hourly if one has a longer `freshness`,
    and daily if none has one.
    """
    limits = [d.freshness for d in all_datasets().values() if isinstance(d.freshness, timedelta)]
    if not limits:
        return {"cron": "20 4 * * *"}
    return {"cron": "5,20,35,50 * * * *" if min(limits) < timedelta(days=1) else "20 * * * *"}
