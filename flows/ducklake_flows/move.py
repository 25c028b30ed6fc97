"""The move flow: copies the lake to another catalog and data path, and makes that a lake once both were compared."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from ducklake_flows import storage
from ducklake_flows.errors import LakeError
from ducklake_flows.lake.move import Move
from ducklake_flows.lake.verify import verify
from ducklake_flows.models.state import copy_state, holds_models
from ducklake_flows.orchestration import gate
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.settings import file_settings, load_settings


@flow(name="move")
@ends_failed
def move(to: str, dry_run: bool = False) -> dict[str, Any]:
    """Copy the lake with its snapshots, ledger, checks and state of models; the source is only read.

    Args:
        to: A file in the form of ``.env``: the target's settings.
        dry_run: Change nothing; return what would be copied.

    Returns:
        The summary: the snapshot that was moved, whether it had been moved before, files and bytes that were copied,
        files that were there, versions of models, and what was compared. Of a dry run, all files and their bytes.

    Raises:
        BadInput: the target is the source, or not empty.
        LakeError: the lake could not be moved; the target is no lake. The same command goes on.
    """
    source, target, logger = load_settings(), file_settings(Path(to)), get_run_logger()
    check(source)
    with contextlib.closing(Move(source, target)) as moving:
        summary: dict[str, Any] = {"to": to, "snapshot": moving.snapshot, "done_before": moving.is_done()}
        if summary["done_before"]:
            moving.remove_mark()
            return summary
        if dry_run:
            files = moving.files()
            return {**summary, "files": len(files), "bytes": sum(file.size for file in files)}
        storage.check(target, create=True)
        moving.begin(holds_models(target))
        first = moving.copy_files()
        logger.info("copied %d files, %d were there", first.files, first.kept)
        with gate.hold(gate.TRANSFORM), gate.hold():
            second = moving.copy_files(last=True)
            moving.copy_catalog()
            models = copy_state(source, target)
        logger.info("copied the catalog as of snapshot %d", moving.snapshot)
        summary |= {
            "snapshot": moving.snapshot,
            "files": first.files + second.files,
            "bytes": first.bytes + second.bytes,
            "kept": first.kept + second.kept,
            "models": models,
            "compared": asdict(moving.compare()),
        }
        if errors := [finding for finding in verify(moving.staged) if finding.severity == "error"]:
            raise LakeError(
                f"The copied lake has {len(errors)} errors, for example {errors[0].subject}: {errors[0].message}",
                "lake verify of the source, and the command that it names; then run the same command again",
            )
        moving.finish()
    return summary
