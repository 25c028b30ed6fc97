"""A build step of `prefect.yaml`: the hours at which the ingest deployment is scheduled, from the datasets."""

from __future__ import annotations

from ducklake_flows.project import all_datasets, broken_datasets


def due() -> dict[str, str]:
    """The hours (UTC) of all datasets, for cron: ``{"hours": "5,6"}``. Midnight when no dataset has one.

    Raises:
        BadInput: a dataset's file cannot be loaded: its hour is not known.
    """
    for error in broken_datasets().values():
        raise error
    hours = {d.schedule_hour for d in all_datasets().values() if d.schedule_hour is not None}
    return {"hours": ",".join(map(str, sorted(hours))) or "0"}
