"""dlt's own `ducklake` destination: one pipeline run per partition, in one or several processes, with a time limit."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pyarrow as pa
from dlt.common.configuration.specs import AwsCredentials
from dlt.common.storages.configuration import FilesystemConfiguration
from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials

from benchmarks.measure import DATASET, DAYS, Run, peak_rss, report
from ducklake_flows.datasets.partitions import parse_partition
from ducklake_flows.lake.connect import prepare
from ducklake_flows.settings import Settings, load_settings

WARM = DAYS[:1]
"""Loaded before timing: the first run creates the lake, and a process's first run takes extra seconds."""


def pipeline_of(settings: Settings, name: str = "flights") -> dlt.Pipeline:
    """A pipeline into the lake of these settings."""
    with duckdb.connect() as con:
        # Installs the extensions where dlt's connections find them.
        prepare(con, settings)
    credentials = DuckLakeCredentials("lake", catalog=f"sqlite:///{settings.catalog_file}", storage=settings.data_path)
    if not settings.embedded:
        given = dict(part.split("=") for part in settings.catalog.removeprefix("postgres:").split())
        assert settings.catalog_password
        assert settings.s3_key_id
        assert settings.s3_secret
        credentials = DuckLakeCredentials(
            "lake",
            metadata_schema="public",
            catalog=f"postgres://{given['user']}:{settings.catalog_password.get_secret_value()}"
            f"@{given['host']}:{given['port']}/{given['dbname']}",
            storage=FilesystemConfiguration(
                bucket_url=settings.data_path,
                credentials=AwsCredentials(
                    aws_access_key_id=settings.s3_key_id.get_secret_value(),
                    aws_secret_access_key=settings.s3_secret.get_secret_value(),
                    endpoint_url=f"http://{settings.s3_endpoint}",
                    region_name=settings.s3_region,
                ),
            ),
        )
    return dlt.pipeline(
        name,
        destination=dlt.destinations.ducklake(credentials=credentials),
        dataset_name="raw",
        pipelines_dir=str(settings.home / "pipelines"),
    )


def resource(*days: str) -> Any:
    """The days' files as Arrow tables, read by this project's source."""

    def tables() -> Any:
        for day in days:
            partition = parse_partition(day, DATASET.grain)
            table = pa.concat_tables(DATASET.read(partition))
            date = pa.repeat(pa.scalar(partition.start.date()), table.num_rows)
            yield table.append_column("flight_date", date)

    return dlt.resource(
        tables,
        name="flights",
        write_disposition="append",
        columns={"flight_date": {"data_type": "date", "partition": True}},
    )


def sequential(settings: Settings, limit: float) -> Run:
    """Load partitions one after the other until the limit, in seconds, is reached; time them."""
    pipeline = pipeline_of(settings)
    for day in WARM:
        pipeline.run(resource(day))
    done: list[str] = []
    began = time.monotonic()
    for day in DAYS[len(WARM) :]:
        pipeline.run(resource(day))
        done.append(day)
        if time.monotonic() - began >= limit:
            break
    wall = time.monotonic() - began
    return Run(
        "pipeline.run for each partition, write_disposition append (its cheapest), sequential",
        done,
        wall,
        {"limit": limit},
        {"process": peak_rss()},
    )


def _work(settings: Settings, number: int, workers: int, limit: float, barrier: Any, told: Any) -> None:
    """Load every ``workers``-th day in this process, after a warm-up that extracts and normalizes the first of them."""
    pipeline = pipeline_of(settings, f"flights_{number}")
    mine = DAYS[len(WARM) + number :: workers]
    pipeline.extract(resource(mine[0]))
    pipeline.normalize()
    pipeline.drop_pending_packages()
    barrier.wait()
    done: list[str] = []
    failed = 0
    began = time.monotonic()
    for day in mine:
        try:
            pipeline.run(resource(day))
            done.append(day)
        except Exception as error:  # noqa: BLE001 - counted and printed
            print(f"{day}: {' '.join(str(error).split())[-160:]}", file=sys.stderr)
            failed += 1
            pipeline.drop_pending_packages()
        if time.monotonic() - began >= limit:
            break
    told.put((done, failed, time.monotonic() - began, peak_rss()))


def concurrent(settings: Settings, limit: float, workers: int) -> Run:
    """The same in several concurrent processes, each with its own pipeline, as dlt's documentation advises."""
    pipeline_of(settings).run(resource(*WARM))
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_work, args=(settings, number, workers, limit, barrier, told))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    results = [told.get() for _ in processes]
    for process in processes:
        process.join()
    return Run(
        f"the same by {workers} processes at once",
        sorted(day for done, *_ in results for day in done),
        max(wall for _, _, wall, _ in results),
        {"limit": limit},
        {"process": max(rss for *_, rss in results)},
        sum(failed for _, failed, *_ in results),
    )


if __name__ == "__main__":
    lake = load_settings()
    Path(lake.home).mkdir(parents=True, exist_ok=True)
    seconds, at_once = float(sys.argv[2]), int(sys.argv[3])
    report(lake, sequential(lake, seconds) if at_once == 1 else concurrent(lake, seconds, at_once), WARM)
