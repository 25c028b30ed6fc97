"""__Dataset__ by day, from an API."""

from collections.abc import Iterator
from datetime import date
from typing import Any

from ducklake_flows import Dataset, Partition, at_least


def __dataset__(partition: Partition) -> Iterator[Any]:
    """The rows of one day, by dlt's REST client, which retries and follows pages."""
    from dlt.sources.helpers.rest_client.client import RESTClient

    client = RESTClient("https://api.example.com")
    yield from client.paginate("__dataset__", params={"day": partition.key})


DATASET = Dataset(
    key="__dataset__",
    source=__dataset__,
    partition_column="day",
    audits=(at_least(1),),
    start=date(2024, 1, 1),
)
