"""The build's process, from the side of the run: send it a request, hold the gate when it asks, collect its reports."""

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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

from ducklake_flows.errors import LakeError, RunFailed
from ducklake_flows.settings import Settings

LINGER_SECONDS = 0.2
"""How long the gate is kept after a model's commit for the next one, which usually follows at once."""

HOLD_SECONDS = 2.0
"""How long the gate is kept across commits at most."""


Gate = Callable[[], AbstractContextManager[None]]
"""Holds the gate for the length of a block."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

_prepared: list[subprocess.Popen[str]] = []


def start(settings: Settings) -> subprocess.Popen[str]:
    """The build's process: it imports SQLMesh and waits for its request. Takes one that is `prepared`."""
    if _prepared:
        return _prepared.pop()
    return subprocess.Popen(
        [sys.executable, "-m", "ducklake_flows.models.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings.environment()},
    )


@contextlib.contextmanager
def prepared(settings: Settings) -> Iterator[None]:
    """Have a build's process ready within a block, to hide the time of its imports; end it if nothing took it."""
    process = start(settings)
    _prepared.append(process)
    try:
        yield
    finally:
        if process in _prepared:
            _prepared.remove(process)
            with process:
                process.kill()


def run(request: dict[str, Any], settings: Settings, models: list[dict[str, Any]], gate: Gate, log: Log) -> None:
    """Run the build's process to its end.

    Args:
        request: What to do; see `ducklake_flows.models.worker`.
        settings: Where the lake is.
        models: Every interval built is appended, as it is reported.
        gate: Held on the build's behalf.
        log: Where progress and warnings go.

    Raises:
        RunFailed: a model or an audit failed, or the process died.
    """
    failure: LakeError | None = None
    process = start(settings)
    assert process.stdin and process.stdout and process.stderr  # noqa: S101
    noise = _Tail(process.stderr)
    with _Held(gate) as held, contextlib.ExitStack() as cancelled:
        # Whoever cancels a run does not wait for its model; what was committed stays, and is whole.
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
                elif event["event"] == "warning":
                    log.warning(event["text"])
                elif event["event"] == "failed":
                    failure = RunFailed(event["message"], event["fix"])
        cancelled.pop_all()
        code = process.wait()
    if failure is not None:
        raise failure
    if code != 0:
        raise RunFailed(f"The build's process ended with {code}.\n{noise.text()}", "lake transform")


def _say(pipe: IO[str], line: str) -> None:
    pipe.write(line + "\n")
    pipe.flush()


class _Tail:
    """Keeps the last lines of a stream, and keeps the stream from filling up."""

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
    """The gate on the build's behalf: kept for a moment between commits, since each entry costs a round trip."""

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
        """The build committed; release at once only when it was held for long."""
        self._inside = False
        if self._since is not None and time.monotonic() - self._since > HOLD_SECONDS:
            self._release()

    def events(self, stream: IO[str]) -> Any:
        """The build's events as they come; releases the gate when none comes for a moment."""
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
