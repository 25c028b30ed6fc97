"""The gate for SQLMesh's own commands, which have no run of ours as a parent: this process enters Prefect's itself."""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Iterator

from sqlmesh.core.console import get_console
from sqlmesh.utils.errors import SQLMeshError

from flows import server
from flows.errors import GateBusy, LakeError
from flows.settings import load_settings

TURN_SECONDS = 6 * 3600.0
"""How long a command waits for the transform that is running."""


@contextlib.contextmanager
def hold() -> Iterator[None]:
    """The gate for one transaction. The first one also takes the transforms' limit, kept until this process ends.

    Raises:
        SQLMeshError: the gate could not be entered, so nothing was written. SQLMesh's command prints it.
    """
    with contextlib.ExitStack() as held:
        try:
            _take_turn()
            from flows import gate

            held.enter_context(gate.hold())
        except LakeError as error:
            _say(str(error))
            raise SQLMeshError(str(error)) from None
        yield


@functools.cache
def _say(text: str) -> None:
    """Print an error once: SQLMesh tries again, and in the end names only the model at which it stopped."""
    get_console().log_error(text)


@functools.cache
def _take_turn() -> None:
    """Find the lake's Prefect server, or start it, and wait until no transform runs."""
    server.use(load_settings())
    # Only now: Prefect reads where its server is when it is imported.
    from flows import gate

    gate.check()
    held = contextlib.ExitStack()
    try:
        held.enter_context(gate.hold(gate.TRANSFORM, 0))
    except GateBusy:
        get_console().log_warning("A transform is running. Waiting for it to end.")
        held.enter_context(gate.hold(gate.TRANSFORM, TURN_SECONDS))
    atexit.register(held.close)
