"""The run as the UI shows it: whether it is a backfill, and whether someone has paused or suspended it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Self
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import Pause
from prefect.runtime import flow_run
from prefect.states import Suspended

from ducklake_flows.errors import LakeError
from ducklake_flows.orchestration.automations import SUSPENDED, TAG

if TYPE_CHECKING:
    from types import TracebackType

    from prefect.client.schemas.objects import State

log = logging.getLogger(__name__)

BACKFILL = "backfill"
"""The tag of runs whose chunks let those of all other runs go first."""

POLL_SECONDS = 3.0
"""Seconds between two readings of the run's state: a suspended run stops submitting within this time."""


class RootRun:
    """Enter it for the length of a run. A thread then reads the state that the server has for the outermost run.

    When a run is suspended, Prefect frees the slot of its deployment. Its process still renews the lease of the slot
    every few minutes; if that fails while the last chunks are published, Prefect cancels the process and marks the run
    as crashed. So the end of the context turns this cancellation into a suspension.
    """

    def __init__(self) -> None:
        self._id = UUID(str(flow_run.root_flow_run_id or flow_run.id))
        self._client = get_client(sync_client=True)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="root run", daemon=True)
        self._state: State | None = None
        self._suspended: State | None = None

    def __enter__(self) -> Self:
        self._held = contextlib.ExitStack()
        self._held.enter_context(self._client)
        found = self._client.read_flow_run(self._id)
        self.tags = set(found.tags)
        self._is_deployed = found.deployment_id is not None
        self._seen(found.state)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with self._held:
            # Cancelled by Prefect for the lost slot, not by someone: that would be a TerminationSignal.
            is_cancelled = isinstance(error, asyncio.CancelledError) and self.is_held
            if not (is_cancelled or isinstance(error, Pause)):
                return
            # The last sign of life, after the last heartbeat; otherwise the run would be marked as crashed.
            tag = {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
            emit_event(SUSPENDED, resource={"prefect.resource.id": f"prefect.flow-run.{self._id}"}, related=[tag])
            if is_cancelled:
                raise Pause(state=self._suspended or self._state) from None

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            try:
                self._seen(self._client.read_flow_run(self._id).state)
            except httpx.HTTPError as error:
                log.debug("the state of the run was not read: %s", error)

    def _seen(self, state: State | None) -> None:
        self._state = state
        if state is not None and state.is_paused() and state.state_details.pause_reschedule:
            self._suspended = state

    @property
    def is_backfill(self) -> bool:
        """Whether the run has the tag `BACKFILL`."""
        return BACKFILL in self.tags

    @property
    def is_held(self) -> bool:
        """Whether the run is paused or was suspended. A suspended one stays so: resuming starts another process."""
        return self._suspended is not None or (self._state is not None and self._state.is_paused())

    def wait(self) -> None:
        """Call it when a paused run has nothing in flight. Returns once the run is resumed.

        A run of a deployment does not wait: its process ends, and resuming starts another one.

        Raises:
            Pause: the process must end; the run is suspended.
            LakeError: the run has ended, for example because it was not resumed in time.
        """
        logger = get_run_logger()
        if self._is_deployed and self._suspended is None and self._state is not None:
            # Prefect would cancel a process that waits; see above.
            suspended: State = Suspended(pause_expiration_time=self._state.state_details.pause_timeout)
            self._suspended = self._client.set_flow_run_state(self._id, suspended, force=True).state
        if self._suspended is not None:
            logger.info("suspended: what was in flight is published; resume the run to go on")
            raise Pause(state=self._suspended)
        logger.info("paused: what was in flight is published; resume the run to go on")
        while self.is_held:
            self._ended.wait(POLL_SECONDS)
        if self._state is not None and self._state.is_final():
            raise LakeError(f"The run was paused, then it was {self._state.name}.", "run the same command again")
        logger.info("resumed")
