"""Totals by month, Parquet; a month without a file is a failure."""

from flows.datasets.files import Files
from flows.datasets.model import Contract, Dataset, Grain

DATASET = Dataset(
    key="monthly",
    source=Files("monthly/{partition}.parquet", "parquet"),
    grain=Grain.month,
    partition_column="month_from",
    contract=Contract(columns={"name": "text", "total": "double"}),
    complete=True,
)
