"""Orders by day, from a database: ``ORDERS_DATABASE`` is its SQLAlchemy URL, by default the sample beside this file."""

import os
from datetime import date
from pathlib import Path

from ducklake_flows import Contract, Dataset, SqlDatabase, at_least, expect

SAMPLE = Path(__file__).resolve().parent.parent / "sample" / "orders.sqlite"

DATASET = Dataset(
    key="orders",
    source=SqlDatabase(os.environ.get("ORDERS_DATABASE", f"sqlite:///{SAMPLE}"), table="orders", window="ordered_at"),
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
