"""Counts by hour, CSV, several files an hour."""

from flows.datasets.files import Files
from flows.datasets.model import Contract, Dataset, Grain

DATASET = Dataset(
    key="hourly",
    source=Files("hourly/{partition}/*.csv", "csv"),
    grain=Grain.hour,
    partition_column="hour_at",
    contract=Contract(columns={"name": "text", "count": "bigint"}, new_columns="freeze"),
)
