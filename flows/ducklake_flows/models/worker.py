"""The build process: reads one request, writes one JSON event per line, asks its parent for the gate.

The parent holds the Prefect limit on behalf of the build. If the build is killed, the pipe closes and the parent frees
the gate at once. If the parent is gone, the build cannot enter the gate and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ducklake_flows.errors import LakeError

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> int:
    """Serve one request; see `ducklake_flows.models.build`.

    ``{"environment", "changed", "replan", "refused"}`` builds models, ``{"environment", "janitor": true}`` cleans up,
    ``{"environment", "drop": true}`` drops an environment's views and tables.
    """
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # library output goes to stderr, so that stdout holds only events

    def report(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    @contextlib.contextmanager
    def gate() -> Iterator[None]:
        report({"event": "enter"})
        if sys.stdin.readline().strip() != "entered":
            raise LakeError("The run that started this build has ended.", "lake transform")
        try:
            yield
        finally:
            report({"event": "leave"})

    from ducklake_flows.models.adapter import LakeAdapter
    from ducklake_flows.models.build import build, clean_up, drop

    LakeAdapter.gate = gate
    if not (line := sys.stdin.readline()):
        return 0  # no request: there is nothing to build
    request = json.loads(line)
    try:
        if request.get("janitor"):
            clean_up(report)
        elif request.get("drop"):
            drop(request["environment"], report)
        else:
            build(request["environment"], request["changed"], request["replan"], report, request["refused"])
    except LakeError as error:
        report({"event": "failed", "message": error.message, "fix": error.fix})
        return 1
    report({"event": "done"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
