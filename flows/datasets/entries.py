"""Departure boards of New York's airports in 2013: one entry for each airport and hour, from an HTTP API.

`lake demo` serves the API while it runs, and gives its address to its workers in ``DEMO_API``. Without that variable,
as in the deployments, the partitions are `no source`, which fails no run. So there is no schedule.
"""

import os
from datetime import date
from typing import NoReturn

from ducklake_flows import Contract, Dataset, NoSource, Partition, RestApi, Table, at_least, expect

URL = os.environ.get("DEMO_API")


def not_served(partition: Partition) -> NoReturn:
    """The source without an API."""
    raise NoSource(f"{partition}: DEMO_API is not set; `lake demo` serves the entries while it runs")


DATASET = Dataset(
    key="entries",
    source=RestApi(
        f"{URL}/board",
        params={"day": "{partition}"},
        rows="entries",
        paginator={"type": "page_number", "base_page": 1, "total_path": "pages"},
        tries=2,
    )
    if URL
    else not_served,
    partition_column="entry_date",
    timezone="America/New_York",  # 2013-03-10 has 23 hours, 2013-11-03 has 25
    primary_key=("airport", "scheduled_hour"),
    contract=Contract(
        columns={
            "airport": "text",
            "scheduled_hour": "timestamp",  # local at the source, UTC in the lake
            "scheduled": "bigint",
            "departed": "bigint",
        },
        schema_contract="freeze",
    ),
    children={
        "delays": Table(
            contract=Contract(
                columns={
                    "carrier": "text",
                    "flight": "bigint",
                    "destination": "text",
                    "scheduled_departure": "timestamp",
                    "status": "text",
                    "minutes": "bigint",
                },
                schema_contract="freeze",
            ),
            audits=(expect("only cancelled flights have no minutes", "(status = 'cancelled') = (minutes IS NULL)"),),
        ),
    },
    audits=(at_least(1), expect("no more flights depart than are scheduled", "departed BETWEEN 0 AND scheduled")),
    start=date(2013, 1, 1),
    end=date(2013, 12, 31),
    retries=1,
    retry_delay=1,
)
