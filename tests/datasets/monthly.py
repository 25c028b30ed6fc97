"""Monthly totals in Parquet. A month without a file is a failure."""

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.datasets.partitions import Grain
from ducklake_flows.sources.files import Files

DATASET = Dataset(
    key="monthly",
    source=Files("monthly/{partition}.parquet", "parquet"),
    grain=Grain.month,
    partition_column="month_from",
    contract=Contract(columns={"name": "text", "total": "double"}),
    complete=True,
)
