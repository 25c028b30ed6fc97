"""The build process: takes one request from its pipe, sends events, asks its parent for the gate.

The parent holds the Prefect limit on behalf of the build. If the build is killed, the pipe closes and the parent frees
the gate at once. If the parent is gone, the build cannot enter the gate and ends.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from ducklake_flows.errors import LakeError

if TYPE_CHECKING:
    from collections.abc import Iterator


def main(handle: int) -> int:
    """Serve one request; see `ducklake_flows.models.build`.

    ``{"environment", "changed", "replan", "refused"}`` builds models, ``{"environment", "janitor": true}`` cleans up,
    ``{"environment", "drop": true}`` drops an environment's views and tables.

    Args:
        handle: The file descriptor of the pipe to the parent. What libraries print does not get into it.
    """
    gc.set_threshold(100_000)  # collections during the imports of SQLMesh find nothing and take 0.2 s
    pipe = Connection(handle)
    report = pipe.send

    @contextlib.contextmanager
    def gate() -> Iterator[None]:
        report({"event": "enter"})
        try:
            pipe.recv()
        except EOFError:
            raise LakeError("The run that started this build has ended.", "lake transform") from None
        try:
            yield
        finally:
            report({"event": "leave"})

    from ducklake_flows.models.adapter import LakeAdapter
    from ducklake_flows.models.build import build, clean_up, drop

    LakeAdapter.gate = gate
    try:
        request = pipe.recv()
    except EOFError:
        return 0  # no request: there is nothing to build
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
    sys.exit(main(int(sys.argv[1])))
