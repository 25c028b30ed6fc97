"""Drop or promote an environment of models."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ducklake_flows.errors import BadInput
from ducklake_flows.lake.builds import environments, record_dropped
from ducklake_flows.models import runner
from ducklake_flows.orchestration import gate
from ducklake_flows.settings import PROD

if TYPE_CHECKING:
    from ducklake_flows.settings import Settings

TURN_SECONDS = 600.0
"""Maximum seconds to wait for a running transform."""


def drop(settings: Settings, name: str) -> None:
    """Drop an environment's views, tables and SQLMesh state. Its next transform builds it again.

    Raises:
        BadInput: it is ``prod``, or not declared.
        GateError: the gate could not be entered, or a transform runs.
        RunFailed: SQLMesh failed.
    """
    settings.check_environment(name)
    if name == PROD:
        raise BadInput("prod cannot be dropped.", "lake environments")
    with gate.hold(gate.TRANSFORM, TURN_SECONDS):
        runner.run({"drop": True, "environment": name}, settings, [], gate.hold, logging.getLogger(__name__))
        with gate.hold():
            record_dropped(settings, name)


def check_promotion(settings: Settings, name: str) -> None:
    """Check that an environment shows what ``prod`` would become.

    Raises:
        BadInput: it is not declared, not built, not built from the current models and partitions, or has refused
            intervals.
    """
    settings.check_environment(name)
    (found,) = (e for e in environments(settings) if e.name == name)
    again = f"lake transform --environment {name}"
    if found.built_at is None or not found.is_current or found.changed:
        raise BadInput(f"{name} was not built from the current models and partitions.", again)
    if found.refused:
        raise BadInput(f"{name} has {found.refused} refused intervals.", f"correct them, then run: {again}")
