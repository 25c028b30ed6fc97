"""The drop flow: removes published partitions, or a dataset, in one audited commit, then transforms the models."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from ducklake_flows.datasets.dataset import Member
from ducklake_flows.errors import BadInput, RunFailed
from ducklake_flows.lake.drop import emptied, retire, undefined
from ducklake_flows.orchestration import gate
from ducklake_flows.orchestration.bootstrap import check
from ducklake_flows.orchestration.failures import ends_failed
from ducklake_flows.orchestration.restoring import publish_together
from ducklake_flows.project import all_tables, broken_datasets
from ducklake_flows.settings import load_settings
from ducklake_flows.transform import transform


def _flow_run_name() -> str:
    asked = [flow_run.parameters.get(name) for name in ("dataset", "partition")]
    return " ".join(["drop", *(text for text in asked if text)])


@flow(name="drop", flow_run_name=_flow_run_name)
@ends_failed
def drop(dataset: str, reason: str, partition: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Remove what is published of a dataset, in one commit, and restate the models built from it.

    A dropped partition is loaded again if its source changes, or by ``lake backfill --mode all``. The tables of a
    dataset that the project no longer defines are dropped, too.

    Args:
        dataset: The dataset's key.
        reason: Why; kept in the ledger.
        partition: The partition's key, or a pattern such as ``eu/*``; None: all.
        dry_run: Change nothing; return what would be dropped.

    Returns:
        The summary: ``dataset``, ``partitions``, ``rows`` (of all tables), ``tables`` that are dropped, the
        ``snapshot_id`` (None if there was nothing), and the transform's summary.

    Raises:
        BadInput: there is no such dataset or partition, or no reason.
        LakeError: nothing was dropped.
        RunFailed: some models failed; the rows are dropped nevertheless.
    """
    settings = load_settings()
    check(settings)
    if not reason.strip():
        raise BadInput("Why is it dropped?", 'give a reason, which the ledger keeps: --reason "..."')
    known = {one.key: one for one in all_tables()}
    summary: dict[str, Any] = {"dataset": dataset, "partitions": [], "rows": 0, "tables": [], "snapshot_id": None}
    if dataset in broken_datasets():
        raise broken_datasets()[dataset]
    if dataset not in known:
        found = undefined(settings, dataset)
        if partition is not None:
            raise BadInput(f"The project defines no dataset {dataset}.", f"drop it as a whole: lake drop {dataset}")
        summary |= {"tables": [f"raw.{name}" for name in found if name not in known], "rows": sum(found.values())}
        if not dry_run:
            with gate.hold():
                summary["snapshot_id"] = retire(settings, dataset, set(known), reason, str(flow_run.id))
        return summary
    one = known[dataset]
    if isinstance(one, Member):
        raise BadInput(f"{one.table} is dropped with its dataset.", f"lake drop {one.parent}")
    receipts, rows = emptied(settings, one, partition)
    summary |= {"partitions": [receipt.partition for receipt in receipts], "rows": rows}
    if dry_run or not receipts:
        return summary
    result = publish_together(settings, receipts, str(flow_run.id), reason, "Nothing was dropped")
    get_run_logger().info("%s: dropped %d partitions, %d rows", dataset, len(receipts), rows)
    summary["snapshot_id"] = result.snapshot_id
    try:
        return {**summary, "transform": transform()}
    except RunFailed as error:
        why = f"{dataset} is dropped, but {error.message}"
        raise RunFailed(why, error.fix, {**summary, "transform": error.summary}) from error
