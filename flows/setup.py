"""Initialise: the gate first, then, within it, the catalog and its tables."""

from __future__ import annotations

from collections.abc import Sequence

from flows import gate
from flows.datasets.model import Dataset
from flows.lake.schema import bootstrap
from flows.settings import Settings


def initialise(settings: Settings, datasets: Sequence[Dataset]) -> list[str]:
    """Make what is missing: the Prefect limit, the catalog, the schemas and tables. Safe to repeat.

    Returns:
        What was made.

    Raises:
        CatalogError: the catalog or the data path cannot be made.
        GateError: the gate could not be entered.
    """
    made = [f"the gate {gate.NAME}"] if gate.ensure() else []
    with gate.hold():
        return made + bootstrap(settings, datasets)
