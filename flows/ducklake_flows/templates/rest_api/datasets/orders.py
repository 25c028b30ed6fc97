"""Orders by day, from an API: ``GET {ORDERS_URL}/orders/2024-01-01.json`` answers with a list of objects."""

import os
from datetime import date

from ducklake_flows import Contract, Dataset, RestApi, at_least, expect

URL = os.environ.get("ORDERS_URL", "http://127.0.0.1:8000")

DATASET = Dataset(
    key="orders",
    source=RestApi(f"{URL}/orders/{{partition}}.json", paginator="single_page"),
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
