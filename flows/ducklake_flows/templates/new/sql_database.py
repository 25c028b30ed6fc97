"""__Dataset__ by day, from a database: ``__DATASET___DATABASE`` is its SQLAlchemy URL."""

import os
from collections.abc import Iterator
from datetime import date
from typing import Any

from ducklake_flows import Dataset, Partition, at_least


def __dataset__(partition: Partition) -> Iterator[list[dict[str, Any]]]:
    """The rows of one day, in lists."""
    import sqlalchemy as sa

    engine = sa.create_engine(os.environ["__DATASET___DATABASE"])
    query = sa.text("SELECT * FROM __dataset__ WHERE day = :day")
    try:
        with engine.connect() as connection:
            found = connection.execution_options(stream_results=True).execute(query, {"day": partition.key})
            for rows in found.mappings().partitions(10_000):
                yield [dict(row) for row in rows]
    finally:
        engine.dispose()


DATASET = Dataset(
    key="__dataset__",
    source=__dataset__,
    partition_column="day",
    audits=(at_least(1),),
    start=date(2024, 1, 1),
)
