"""The configuration of SQLMesh's own commands. They have no flow run as a parent, so their process enters the gate."""

from __future__ import annotations

import atexit
import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from sqlmesh.core.console import get_console
from sqlmesh.utils.errors import SQLMeshError

from ducklake_flows.errors import GateBusy, LakeError
from ducklake_flows.models.adapter import LakeAdapter
from ducklake_flows.models.config import lake_settings, project_config
from ducklake_flows.orchestration import server
from ducklake_flows.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmesh.core.config import Config

TURN_SECONDS = 6 * 3600.0
"""Maximum seconds that a command waits for a running transform."""


def sqlmesh_config(file: str) -> Config:
    """Create the configuration for a project's `config.py`.

    ``config = sqlmesh_config(__file__)`` contains the lake's gateway and state, every dataset's raw table as an
    external model, and the gate around every write transaction.

    Args:
        file: The path of `config.py` in the folder of models.

    Raises:
        BadInput: a setting is malformed.
    """
    settings = lake_settings(Path(file).absolute().parent)
    if LakeAdapter.gate is None:  # the build's worker has set it: its parent run holds the gate
        LakeAdapter.gate = hold
    return project_config(settings)


@contextlib.contextmanager
def hold() -> Iterator[None]:
    """Hold the gate for one transaction. The first call also takes the transforms' limit until this process ends.

    Raises:
        SQLMeshError: the gate could not be entered, so nothing was written. SQLMesh's command prints the error.
    """
    with contextlib.ExitStack() as held:
        try:
            _take_turn()
            from ducklake_flows.orchestration import gate

            held.enter_context(gate.hold())
        except LakeError as error:
            _say(str(error))
            raise SQLMeshError(str(error)) from None
        yield


@functools.cache
def _say(text: str) -> None:
    """Print an error once: SQLMesh retries, and its final message names only the model at which it stopped."""
    get_console().log_error(text)


@functools.cache
def _take_turn() -> None:
    """Find or start the lake's Prefect server, and wait until no transform runs."""
    server.use(load_settings())
    # Not at the top: Prefect reads its server's address when it is imported.
    from ducklake_flows.orchestration import gate

    gate.check()
    held = contextlib.ExitStack()
    try:
        held.enter_context(gate.hold(gate.TRANSFORM, 0))
    except GateBusy:
        get_console().log_warning("A transform is running; waiting until it ends.")
        held.enter_context(gate.hold(gate.TRANSFORM, TURN_SECONDS))
    atexit.register(held.close)
