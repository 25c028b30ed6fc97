"""One large Parquet file a day, with a primary key: what must stream through a small worker."""

from datetime import date

from flows.datasets.files import Files
from flows.datasets.model import Contract, Dataset

DATASET = Dataset(
    key="big",
    source=Files("big/{partition}.parquet", "parquet"),
    partition_column="big_date",
    primary_key=("id",),
    contract=Contract({"id": "bigint", "name": "text", "amount": "double"}, new_columns="freeze"),
    start=date(2024, 1, 1),
    end=date(2024, 1, 1),
)
