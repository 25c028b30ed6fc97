"""Hourly counts in CSV, several files per hour."""

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.sources.files import Files

DATASET = Dataset(
    key="hourly",
    source=Files("hourly/{partition}/*.csv", "csv"),
    grain=Grain.hour,
    partition_column="hour_at",
    contract=Contract(columns={"name": "text", "count": "bigint"}, schema_contract="freeze"),
)
