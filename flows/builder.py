"""The build's process, from its parent's side: hand it a request, hold the gate when it asks, collect its reports."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from typing import IO, Any

from prefect import get_run_logger

from flows import ahead, gate
from flows.errors import LakeError, RunFailed
from flows.settings import Settings

LINGER_SECONDS = 0.2
"""How long the gate is kept after a model's commit for the next one, which usually follows at once."""

HOLD_SECONDS = 2.0
"""How long the gate is kept across commits at most."""


def run(request: dict[str, Any], settings: Settings, models: list[dict[str, Any]]) -> None:
    """Run the build's process to its end.

    Args:
        request: What to do; see `flows.build.__main__`.
        settings: Where the lake is.
        models: Takes up every interval built, as it is reported.

    Raises:
        RunFailed: a model or an audit failed, or the process died.
    """
    logger = get_run_logger()
    failure: LakeError | None = None
    process = ahead.start_build(settings)
    assert process.stdin and process.stdout and process.stderr  # noqa: S101
    noise = _Tail(process.stderr)
    with _Gate() as held, contextlib.ExitStack() as cancelled:
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
                    logger.info("built %(model)s %(start)s..%(end)s in %(seconds)s s", event)
                    models.append({k: v for k, v in event.items() if k != "event"})
                elif event["event"] == "warning":
                    logger.warning(event["text"])
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


class _Gate:
    """The gate on the build's behalf: kept for a moment between commits, since each entry costs a round trip."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._since: float | None = None
        self._inside = False

    def __enter__(self) -> _Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def enter(self) -> None:
        """Enter the gate, unless it is still held."""
        self._inside = True
        if self._since is None:
            self._held.enter_context(gate.hold())
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
