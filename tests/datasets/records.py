"""The dataset that the first version of the pipeline hung on: daily JSON records without declared columns."""

import json
from collections.abc import Iterator
from datetime import date
from typing import Any

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Partition
from ducklake_flows.errors import NoSource
from ducklake_flows.settings import load_settings
from ducklake_flows.storage import open_storage


def records(partition: Partition) -> Iterator[dict[str, Any]]:
    settings = load_settings()
    landing = open_storage(settings.landing, settings)
    path = f"records/{partition}.json"
    if not landing.find(path):
        raise NoSource(f"no records for {partition}")
    with landing.fs.open_input_stream(landing.path(path)) as stream:
        yield from json.loads(stream.read())


DATASET = Dataset(
    key="records",
    source=records,
    partition_column="record_date",
    primary_key=("id",),
    start=date(2024, 10, 13),
    end=date(2024, 10, 15),
)
