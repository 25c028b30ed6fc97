"""Initialise: the gate first, then, within it, the catalog and its tables."""

from __future__ import annotations

from collections.abc import Sequence

from ducklake_flows import storage
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.orchestration import automations, gate
from ducklake_flows.settings import Settings


def initialise(settings: Settings, datasets: Sequence[Dataset]) -> list[str]:
    """Make what is missing: the Prefect limit, the catalog, the schemas and tables. Safe to repeat.

    Returns:
        What was made.

    Raises:
        CatalogError: the catalog or the data path cannot be made.
        StorageError: a bucket cannot be made or used.
        GateError: the gate could not be entered.
    """
    made = [f"the gate {name}" for name in gate.ensure()]
    made += automations.ensure(settings)
    made += storage.check(settings, create=True)
    with gate.hold():
        return made + bootstrap(settings, datasets)


def check(settings: Settings) -> None:
    """Make sure, before a run starts any work, of what it needs: the buckets, the catalog, the gate.

    Raises:
        StorageError: a bucket is missing or cannot be used.
        CatalogError: there is no lake yet, or it cannot be opened.
        GateError: a limit is missing or has another number of slots.
    """
    storage.check(settings)
    with connected(settings, read_only=True):
        gate.check()
