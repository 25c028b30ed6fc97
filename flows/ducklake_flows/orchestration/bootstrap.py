"""Initialisation: creates the gate, then the catalog and its tables while holding the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ducklake_flows import storage
from ducklake_flows.lake.connect import connected
from ducklake_flows.lake.fence import check_release
from ducklake_flows.lake.schema import bootstrap
from ducklake_flows.orchestration import automations, gate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ducklake_flows.datasets.dataset import Dataset
    from ducklake_flows.settings import Settings


def initialise(settings: Settings, datasets: Sequence[Dataset]) -> list[str]:
    """Create what is missing: Prefect limits, automations, buckets, catalog, schemas and tables. Safe to repeat.

    Returns:
        What was created.

    Raises:
        CatalogError: the catalog or the data path cannot be created.
        StorageError: a bucket cannot be created or used.
        GateError: the gate could not be entered.
    """
    made = [f"the gate {name}" for name in gate.ensure()]
    made += automations.ensure(settings)
    made += storage.check(settings, create=True)
    with gate.hold():
        return made + bootstrap(settings, datasets)


def check(settings: Settings) -> None:
    """Check the buckets, the catalog and the gate before a run starts.

    Raises:
        StorageError: a bucket is missing or cannot be used.
        CatalogError: the lake does not exist yet, cannot be opened, or belongs to an earlier release.
        GateError: a limit is missing or does not have exactly one slot.
    """
    storage.check(settings)
    with connected(settings, read_only=True) as con:
        check_release(con)
        gate.check()
