"""__Dataset__ by day, one CSV file a day in the landing zone."""

from datetime import date

from ducklake_flows import Dataset, Files, at_least

DATASET = Dataset(
    key="__dataset__",
    source=Files("__dataset__/{partition}.csv", "csv"),
    partition_column="day",
    # primary_key=("id",),
    # contract=Contract({"id": "bigint", "value": "double"}, schema_contract="freeze"),
    audits=(at_least(1),),
    start=date(2024, 1, 1),
)
