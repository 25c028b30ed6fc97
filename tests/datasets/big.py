"""One large Parquet file per day, with a primary key: a worker with little memory must stream it."""

from datetime import date

from ducklake_flows.datasets.contract import Contract
from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.sources.files import Files

DATASET = Dataset(
    key="big",
    source=Files("big/{partition}.parquet", "parquet"),
    partition_column="big_date",
    primary_key=("id",),
    contract=Contract({"id": "bigint", "name": "text", "amount": "double"}, schema_contract="freeze"),
    start=date(2024, 1, 1),
    end=date(2024, 1, 1),
)
