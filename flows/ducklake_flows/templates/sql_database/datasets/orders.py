"""Orders by day, from a database: ``ORDERS_DATABASE`` is its SQLAlchemy URL, by default the sample beside this file."""

import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from ducklake_flows import Contract, Dataset, Partition, at_least, expect

SAMPLE = Path(__file__).resolve().parent.parent / "sample" / "orders.sqlite"


def orders(partition: Partition) -> Iterator[list[dict[str, Any]]]:
    """The orders of one day, in lists of rows."""
    import sqlalchemy as sa

    engine = sa.create_engine(os.environ.get("ORDERS_DATABASE", f"sqlite:///{SAMPLE}"))
    query = sa.text("SELECT order_id, customer, amount, ordered_at FROM orders WHERE substr(ordered_at, 1, 10) = :day")
    try:
        with engine.connect() as connection:
            found = connection.execution_options(stream_results=True).execute(query, {"day": partition.key})
            for rows in found.mappings().partitions(10_000):
                yield [dict(row) for row in rows]
    finally:
        engine.dispose()


DATASET = Dataset(
    key="orders",
    source=orders,
    partition_column="order_date",
    primary_key=("order_id",),
    contract=Contract(
        {"order_id": "bigint", "customer": "text", "amount": "decimal(12, 2)", "ordered_at": "timestamp"},
        new_columns="freeze",
    ),
    audits=(at_least(1), expect("amounts are positive", "amount > 0")),
    start=date(2024, 1, 1),
    end=date(2024, 1, 3),  # where the sample ends; without it, the last day that is over
    schedule_hour=6,
)
