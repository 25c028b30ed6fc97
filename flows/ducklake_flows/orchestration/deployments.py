"""A build step of `prefect.yaml`: computes the ingest deployment's schedule from the datasets."""

from __future__ import annotations

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
