"""Dagster's partitioned asset over dlt and DuckLake, written as Dagster's users do, with three ways to backfill it."""

import os
import sys
import time
from pathlib import Path

import dagster as dg

from benchmarks.dlt_destination import WARM, pipeline_of, resource
from benchmarks.measure import DAYS, Run, peak_rss, report
from ducklake_flows.settings import load_settings

PARTITIONS = dg.StaticPartitionsDefinition(DAYS)


@dg.asset(partitions_def=PARTITIONS)
def flights(context: dg.AssetExecutionContext) -> None:
    """One run per partition."""
    pipeline_of(load_settings()).run(resource(context.partition_key))


@dg.asset(name="flights", partitions_def=PARTITIONS, backfill_policy=dg.BackfillPolicy.single_run())
def flights_at_once(context: dg.AssetExecutionContext) -> None:
    """One run and one dlt load for all partitions."""
    pipeline_of(load_settings()).run(resource(*context.partition_keys))


@dg.op(out=dg.DynamicOut())
def days(context: dg.OpExecutionContext):  # type: ignore[no-untyped-def]
    for day in os.environ["BENCH_DAYS"].split():
        yield dg.DynamicOutput(day, mapping_key=day.replace("-", "_"))


@dg.op
def load(context: dg.OpExecutionContext, day: str) -> None:
    pipeline_of(load_settings(), f"flights_{day}").run(resource(day))


@dg.job(executor_def=dg.multiprocess_executor.configured({"max_concurrent": 2}))
def in_parallel() -> None:
    days().map(load)


def run(how: str, limit: float) -> Run:
    """Time one of the `WAYS`."""
    settings = load_settings()
    settings.home.mkdir(parents=True, exist_ok=True)
    os.environ["DAGSTER_HOME"] = str(settings.home)
    (settings.home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    pipeline_of(settings).run(resource(*WARM))
    rest = DAYS[len(WARM) :]
    failed = 0
    with dg.DagsterInstance.get() as instance:
        began = time.monotonic()
        if how == "single-run":
            bounds = {
                "dagster/asset_partition_range_start": rest[0],
                "dagster/asset_partition_range_end": rest[-1],
            }
            dg.materialize([flights_at_once], instance=instance, tags=bounds)
            done = rest
        elif how == "multi-run":
            done = []
            for day in rest:
                dg.materialize([flights], partition_key=day, instance=instance)
                done.append(day)
                if time.monotonic() - began >= limit:
                    break
        else:
            # As many as should finish within the limit, at 3 s each: every step starts a process.
            chosen = rest[: max(4, int(limit / 3))]
            os.environ["BENCH_DAYS"] = " ".join(chosen)
            with dg.execute_job(dg.reconstructable(in_parallel), instance=instance, raise_on_error=False) as result:
                good = {e.step_key for e in result.all_events if e.event_type_value == "STEP_SUCCESS"}
                done = [day for day in chosen if f"load[{day.replace('-', '_')}]" in good]
                failed = len(chosen) - len(done)
        wall = time.monotonic() - began
    return Run(WAYS[how], done, wall, {"limit": limit}, {"process": peak_rss()}, failed)


WAYS = {
    "single-run": "BackfillPolicy.single_run, in process: one dlt load for the year, appended, nothing replaced",
    "multi-run": "a run a partition, in process, one after the other",
    "parallel": "a step a partition, multiprocess_executor of 2",
}

if __name__ == "__main__":
    lake = load_settings()
    report(lake, run(sys.argv[2], float(sys.argv[3])), WARM)
    Path(lake.home, "dagster.yaml").unlink()
