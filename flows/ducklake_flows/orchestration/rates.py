"""Shares of a dataset's rate: all runs that extract from a dataset take together no more than its rate.

Prefect's own `rate_limit` is not used. Its slots decay by whole ones, counted from the last change of the limit, and
each refused try is such a change: several clients that ask more often than a slot decays are refused forever.

Instead, each run holds a slot of a concurrency limit for each dataset, with a lease. The slots that are taken are the
runs that share the rate, and each takes an equal share. A run looks at their number every `LOOK_SECONDS`, and tells its
workers their pace. A run that joins others waits `JOIN_SECONDS` before its first item, so that they have slowed down.
A run that was killed frees its share when its lease expires. A run that could not renew its lease for as long holds
its chunks back until it has joined again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import httpx
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from ducklake_flows.errors import GateError
from ducklake_flows.orchestration import leases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from uuid import UUID

log = logging.getLogger(__name__)

PREFIX = "ducklake-rate-"
"""A limit's name begins with it; the dataset's key follows."""

RUNS = 1000
"""Slots of a limit: runs that can share a rate. One more waits."""

LOOK_SECONDS = 2.0
"""Seconds between two looks at the number of runs."""

JOIN_SECONDS = 5.0
"""How long a run that joins others waits: they look, tell their workers, and those look, too."""

HELD = 3600.0
"""The pace, in seconds, of a run that must not ask for items now."""


@dataclass
class _Share:
    """A run's share of a dataset's rate.

    Args:
        rate: Items per second of all runs.
        lease: None if the run holds no slot.
        renewed: When the lease was last renewed; this and the next one by `time.monotonic`.
        begins: When the run may ask for items.
        is_reached: Whether the server answered at the last look.
        runs: The runs that share the rate.
        chunks: The run's chunks in flight.
        is_over: Whether the run has no chunks of the dataset left.
        told: The pace that the workers know, in seconds.
    """

    rate: float
    lease: UUID | None = None
    renewed: float = 0.0
    begins: float = 0.0
    is_reached: bool = True
    runs: int = 1
    chunks: int = 0
    is_over: bool = False
    told: float = 0.0

    @property
    def is_held(self) -> bool:
        """Whether the run must not ask for items now."""
        now = time.monotonic()
        return now < self.begins or now > self.renewed + leases.LEASE_SECONDS

    @property
    def pace(self) -> float:
        """Seconds between two items of each chunk. A chunk that waits for a worker counts, too."""
        return HELD if self.is_held else max(self.chunks, 1) * self.runs / self.rate


class Shares:
    """A run's shares of the rates of its datasets. Enter it for as long as the run extracts.

    Args:
        rates: Items per second by dataset; may be empty.
        tell: Tells the workers the pace of a dataset's chunks, in seconds. Called in any thread. Returns whether they
            can know it.
    """

    def __init__(self, rates: Mapping[str, float], tell: Callable[[str, float], bool]) -> None:
        self._shares = {dataset: _Share(rate) for dataset, rate in rates.items()}
        self._tell, self._lock = tell, threading.Lock()

    def __enter__(self) -> Self:
        """Join the runs that extract from the datasets.

        Raises:
            GateError: the server does not answer, or a limit cannot be created.
        """
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rates", daemon=True)
        if self._shares:
            self._client = leases.open_client()
            try:
                for dataset, share in self._shares.items():
                    if not share.is_over:
                        self._join(dataset, share)
            except BaseException:
                self._leave()
                raise
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._shares:
            self._thread.join()
            self._leave()

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Leave the rates to the other runs for the length of a block, and join them again unless it fails."""
        self.__exit__()
        yield
        self.__enter__()

    def most(self, slots: int) -> dict[str, int]:
        """How many chunks of each dataset may be in flight: an equal part of the slots, since runs may share them.

        Args:
            slots: Tasks that run at the same time.
        """
        return {key: 0 if share.is_held else max(slots // share.runs, 1) for key, share in self._shares.items()}

    def in_flight(self, chunks: Mapping[str, int]) -> None:
        """Tell the workers their pace if the number of chunks has changed. Call it before a chunk is submitted.

        Args:
            chunks: The chunks in flight of each dataset that is not finished.
        """
        for dataset, share in self._shares.items():
            share.is_over = dataset not in chunks
            share.chunks = chunks.get(dataset, 0)
            self._told(dataset, share)

    def pace(self, dataset: str) -> float:
        """Seconds between two items of each of a dataset's chunks; 0: no limit."""
        return self._shares[dataset].pace if dataset in self._shares else 0.0

    def _told(self, dataset: str, share: _Share) -> None:
        with self._lock:
            pace = share.pace
            if pace != share.told and not share.is_over and self._tell(dataset, pace):
                share.told = pace

    def _watch(self) -> None:
        while not self._left.wait(LOOK_SECONDS):
            for dataset, share in self._shares.items():
                if share.is_over:
                    self._release(dataset, share)
                    continue
                try:
                    self._look(dataset, share)
                    share.is_reached = True
                except (httpx.HTTPError, GateError) as error:
                    share.is_reached = False
                    log.warning("the runs that share the rate of %s were not counted: %s", dataset, error)
                self._told(dataset, share)

    def _look(self, dataset: str, share: _Share) -> None:
        """Count the runs, and renew the lease: also after an error, since a new server may have dropped it."""
        if not share.is_reached or time.monotonic() > share.renewed + leases.LEASE_SECONDS / 3:
            if share.lease is None or not leases.renew(self._client, share.lease):
                share.lease = None
                self._join(dataset, share)
                return
            share.renewed = time.monotonic()
        try:
            share.runs = self._runs(dataset)
        except ObjectNotFound:
            self._join(dataset, share)  # someone has deleted the limit

    def _join(self, dataset: str, share: _Share) -> None:
        name = PREFIX + dataset
        try:
            share.lease = leases.acquire(self._client, name, leases.RESTART_SECONDS)
            if share.lease is None:
                # Another run may create it now.
                with contextlib.suppress(ObjectAlreadyExists):
                    self._client.upsert_global_concurrency_limit_by_name(name, RUNS)
                share.lease = leases.acquire(self._client, name, leases.RESTART_SECONDS)
            share.renewed = time.monotonic()
            share.runs = self._runs(dataset)
        except (httpx.HTTPError, ObjectNotFound) as error:
            raise GateError(
                f"The rate of {dataset} cannot be shared with other runs: {error}", f"prefect gcl inspect {name}"
            ) from None
        if share.lease is None:
            raise GateError(f"The limit {name!r} was deleted.", f"prefect gcl create {name} --limit {RUNS}")
        share.begins = time.monotonic() + JOIN_SECONDS if share.runs > 1 else 0.0

    def _runs(self, dataset: str) -> int:
        """The runs that hold a slot. One, if someone has set the limit's slots back or switched it off."""
        found = self._client.read_global_concurrency_limit_by_name(PREFIX + dataset)
        return max(int(found.active_slots or 0), 1)

    def _leave(self) -> None:
        for dataset, share in self._shares.items():
            self._release(dataset, share)

    def _release(self, dataset: str, share: _Share) -> None:
        if share.lease is not None:
            leases.release(self._client, PREFIX + dataset, share.lease)
            share.lease = None
