"""The run's side of the build process: sends the request, holds the gate on demand, collects reports."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from ducklake_flows.errors import LakeError, RunFailed
from ducklake_flows.lake.builds import AuditedInterval, RefusedInterval
from ducklake_flows.staging.receipt import Checked

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from ducklake_flows.settings import Settings

LINGER_SECONDS = 0.2
"""Seconds to keep the gate after a model's commit. The next commit usually follows within this time."""

HOLD_SECONDS = 2.0
"""Maximum seconds to keep the gate across commits."""


Gate = Callable[[], AbstractContextManager[None]]
"""Holds the gate for the length of a block."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class _Build:
    """A build process, which imports SQLMesh and waits for its request.

    It is no `multiprocessing.Process`: that would import the caller's main module again, and inherit its output.
    """

    def __init__(self, settings: Settings, environment: str) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter and module
                [sys.executable, "-m", "ducklake_flows.models.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, **settings.environment(), "LAKE_MODELS_ENVIRONMENT": environment},
            )
        self._last: deque[str] = deque(maxlen=20)
        self._thread = threading.Thread(target=self._drain, args=(self.process.stdout,), daemon=True)
        self._thread.start()

    def _drain(self, output: IO[str]) -> None:
        """Read the output, so that its writer never blocks."""
        with output:
            self._last.extend(line.rstrip() for line in output)

    def wait(self) -> int:
        """Wait until the process has ended. Returns its exit code."""
        code = self.process.wait()
        self._thread.join(timeout=5)
        self.pipe.close()
        return code

    def kill(self) -> None:
        """Kill the process at once. This is safe: each committed interval is complete."""
        self.process.kill()
        self.wait()

    @property
    def output(self) -> str:
        """The last 20 lines that it wrote to stdout and stderr."""
        return "\n".join(self._last)


_prepared: list[_Build] = []


@contextlib.contextmanager
def prepared(settings: Settings, environment: str) -> Iterator[None]:
    """Start a build process early to hide its import time. It is killed at the end of the block if unused."""
    build = _Build(settings, environment)
    _prepared.append(build)
    try:
        yield
    finally:
        if build in _prepared:
            _prepared.remove(build)
            build.kill()


def run(
    request: dict[str, Any],
    settings: Settings,
    models: list[dict[str, Any]],
    gate: Gate,
    log: Log,
    watch: Callable[[Mapping[str, Any]], None] = lambda _: None,
    audited: Callable[[AuditedInterval], None] = lambda _: None,
) -> list[RefusedInterval]:
    """Run the build process until it ends.

    Args:
        request: What to do; see `ducklake_flows.models.worker`.
        settings: Where the lake is.
        models: Every interval that is built is appended, in order of the reports.
        gate: Held on behalf of the build.
        log: Receives progress and warnings.
        watch: Called with each report of an interval: ``begun``, ``model`` (built) or ``refused``.
        audited: Called with the results of the audits of each stretch.

    Returns:
        The intervals that were refused; all others are built.

    Raises:
        RunFailed: a model failed, or the process died.
    """
    failure: LakeError | None = None
    refused: list[RefusedInterval] = []
    build = _prepared.pop() if _prepared else _Build(settings, request["environment"])
    with _Held(gate) as held, contextlib.ExitStack() as cancelled:
        cancelled.callback(build.kill)
        with contextlib.suppress(BrokenPipeError):
            build.pipe.send(request)
            for event in held.events(build.pipe):
                if event["event"] == "enter":
                    held.enter()
                    build.pipe.send("entered")
                elif event["event"] == "leave":
                    held.leave()
                elif event["event"] == "model":
                    log.info("built %(model)s %(start)s..%(end)s in %(seconds)s s", event)
                    models.append({k: v for k, v in event.items() if k != "event"})
                    watch(event)
                elif event["event"] == "begun":
                    watch(event)
                elif event["event"] == "audited":
                    audited(results(event))
                elif event["event"] == "refused":
                    for each in event["refusals"]:
                        each["error"] = settings.redact(each["error"])
                    refused += refusals(event)
                    watch(event)
                    log.error("refused %s", refused[-1])
                elif event["event"] == "warning":
                    log.warning(settings.redact(event["text"]))
                elif event["event"] == "failed":
                    failure = RunFailed(settings.redact(event["message"]), event["fix"])
        cancelled.pop_all()
        code = build.wait()
    if failure is not None:
        raise failure
    if code != 0:
        raise RunFailed(
            f"The build process ended with exit code {code}.\n{settings.redact(build.output)}", "lake transform"
        )
    return refused


def refusals(event: Mapping[str, Any]) -> list[RefusedInterval]:
    """The reasons for which a build refused an interval, from its report."""
    return [
        RefusedInterval(
            event["model"],
            *_moments(event),
            each["check"],
            each["rows"],
            each["sample"],
            each["error"],
            event["datasets"],
        )
        for each in event["refusals"]
    ]


def results(event: Mapping[str, Any]) -> AuditedInterval:
    """The results of the audits of an interval, from the build's report."""
    return AuditedInterval(event["model"], *_moments(event), tuple(Checked(**each) for each in event["results"]))


def _moments(event: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """Start and end of an interval, UTC, from its report."""
    start, end = (datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None) for ms in event["interval"])
    return start, end


class _Held:
    """Holds the gate on behalf of the build; keeps it briefly between commits, since each entry costs a round trip."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._held = gate, contextlib.ExitStack()
        self._since: float | None = None
        self._inside = False

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def enter(self) -> None:
        """Enter the gate, unless it is still held."""
        self._inside = True
        if self._since is None:
            self._held.enter_context(self._gate())
            self._since = time.monotonic()

    def leave(self) -> None:
        """The build committed. Release the gate at once only after `HOLD_SECONDS`."""
        self._inside = False
        if self._since is not None and time.monotonic() - self._since > HOLD_SECONDS:
            self._release()

    def events(self, pipe: Connection) -> Iterator[dict[str, Any]]:
        """Yield the build's events as they arrive; releases the gate after `LINGER_SECONDS` without an event."""
        while True:
            idle = self._since is not None and not self._inside
            if not pipe.poll(LINGER_SECONDS if idle else None):
                self._release()
                continue
            try:
                event = pipe.recv()
            except (EOFError, OSError):  # the build has ended, or was killed within a message
                return
            yield event

    def _release(self) -> None:
        self._since = None
        self._held.close()
