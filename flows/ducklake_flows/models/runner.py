"""The run's side of the build process: sends the request, holds the gate on demand, collects reports."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from ducklake_flows.errors import LakeError, RunFailed
from ducklake_flows.lake.builds import RefusedInterval
from ducklake_flows.settings import PROD

if TYPE_CHECKING:
    from ducklake_flows.settings import Settings

LINGER_SECONDS = 0.2
"""Seconds to keep the gate after a model's commit. The next commit usually follows within this time."""

HOLD_SECONDS = 2.0
"""Maximum seconds to keep the gate across commits."""


Gate = Callable[[], AbstractContextManager[None]]
"""Holds the gate for the length of a block."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

_prepared: list[subprocess.Popen[str]] = []


def start(settings: Settings, environment: str = PROD) -> subprocess.Popen[str]:
    """Start the build process, which imports SQLMesh and waits for its request; or take the one that is `prepared`."""
    if _prepared:
        return _prepared.pop()
    return subprocess.Popen(
        [sys.executable, "-m", "ducklake_flows.models.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings.environment(), "LAKE_MODELS_ENVIRONMENT": environment},
    )


@contextlib.contextmanager
def prepared(settings: Settings, environment: str) -> Iterator[None]:
    """Start a build process early to hide its import time. It is killed at the end of the block if unused."""
    process = start(settings, environment)
    _prepared.append(process)
    try:
        yield
    finally:
        if process in _prepared:
            _prepared.remove(process)
            with process:
                process.kill()


def run(
    request: dict[str, Any],
    settings: Settings,
    models: list[dict[str, Any]],
    gate: Gate,
    log: Log,
    watch: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> list[RefusedInterval]:
    """Run the build process until it ends.

    Args:
        request: What to do; see `ducklake_flows.models.worker`.
        settings: Where the lake is.
        models: Every interval that is built is appended, in order of the reports.
        gate: Held on behalf of the build.
        log: Receives progress and warnings.
        watch: Called with each report of an interval: ``begun``, ``model`` (built) or ``refused``.

    Returns:
        The intervals that were refused; all others are built.

    Raises:
        RunFailed: a model failed, or the process died.
    """
    failure: LakeError | None = None
    refused: list[RefusedInterval] = []
    process = start(settings, request["environment"])
    assert process.stdin is not None  # noqa: S101 - all three are pipes
    assert process.stdout is not None  # noqa: S101
    assert process.stderr is not None  # noqa: S101
    noise = _Tail(process.stderr)
    with _Held(gate) as held, contextlib.ExitStack() as cancelled:
        # A cancelled run kills the build at once. This is safe: each committed interval is complete.
        cancelled.callback(process.wait)
        cancelled.callback(process.kill)
        with contextlib.suppress(BrokenPipeError):
            _say(process.stdin, json.dumps(request))
            for event in held.events(process.stdout):
                if event["event"] == "enter":
                    held.enter()
                    _say(process.stdin, "entered")
                elif event["event"] == "leave":
                    held.leave()
                elif event["event"] == "model":
                    log.info("built %(model)s %(start)s..%(end)s in %(seconds)s s", event)
                    models.append({k: v for k, v in event.items() if k != "event"})
                    watch(event)
                elif event["event"] == "begun":
                    watch(event)
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
        code = process.wait()
    if failure is not None:
        raise failure
    if code != 0:
        raise RunFailed(
            f"The build process ended with exit code {code}.\n{settings.redact(noise.text())}", "lake transform"
        )
    return refused


def refusals(event: Mapping[str, Any]) -> list[RefusedInterval]:
    """The reasons for which a build refused an interval, from its report."""
    start, end = (datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None) for ms in event["interval"])
    return [
        RefusedInterval(
            event["model"],
            start,
            end,
            each["check"],
            each["rows"],
            each["sample"],
            each["error"],
            event["datasets"],
        )
        for each in event["refusals"]
    ]


def _say(pipe: IO[str], line: str) -> None:
    pipe.write(line + "\n")
    pipe.flush()


class _Tail:
    """Drains a stream so that its writer never blocks, and keeps the last 20 lines."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._drain, args=(stream,), daemon=True)
        self._thread.start()

    def _drain(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines = [*self._lines[-19:], line.rstrip()]

    def text(self) -> str:
        self._thread.join(timeout=5)
        return "\n".join(self._lines)


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

    def events(self, stream: IO[str]) -> Any:
        """Yield the build's events as they arrive; releases the gate after `LINGER_SECONDS` without an event."""
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def read() -> None:
            for line in stream:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            idle = self._since is not None and not self._inside
            try:
                line = lines.get(timeout=LINGER_SECONDS if idle else None)
            except queue.Empty:
                self._release()
                continue
            if line is None:
                return
            yield json.loads(line)

    def _release(self) -> None:
        self._since = None
        self._held.close()
