"""Orders by day, from an API: ``GET {ORDERS_URL}/orders/2024-01-01.json`` returns a list of objects."""

import os
from collections.abc import Iterator
from datetime import date
from typing import Any

from ducklake_flows import Contract, Dataset, NoSource, Partition, at_least, expect


def orders(partition: Partition) -> Iterator[Any]:
    """The orders of one day, by dlt's REST client, which retries and follows pages."""
    from dlt.sources.helpers.requests import HTTPError
    from dlt.sources.helpers.rest_client.client import RESTClient
    from dlt.sources.helpers.rest_client.paginators import SinglePagePaginator

    client = RESTClient(os.environ.get("ORDERS_URL", "http://127.0.0.1:8000"), paginator=SinglePagePaginator())
    try:
        yield from client.paginate(f"orders/{partition}.json")
    except HTTPError as error:
        if error.response is not None and error.response.status_code == 404:
            raise NoSource(f"the API has no orders of {partition}") from None
        raise


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
