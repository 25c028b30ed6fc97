"""Orders by day, one CSV file a day in the landing zone."""

from datetime import date

from ducklake_flows import Contract, Dataset, Files, at_least, expect

DATASET = Dataset(
    key="orders",
    source=Files("orders/{partition}.csv", "csv"),
    partition_column="order_date",
    primary_key=("order_id",),
    contract=Contract(
        {"order_id": "bigint", "customer": "text", "amount": "decimal(12, 2)", "ordered_at": "timestamp"},
        schema_contract="freeze",
    ),
    audits=(at_least(1), expect("amounts are positive", "amount > 0")),
    start=date(2024, 1, 1),
    end=date(2024, 1, 3),  # where the sample ends; without it, the last day that is over
    schedule="0 6 * * *",
)
