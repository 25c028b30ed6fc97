"""The dataset on which the first attempt hung: entries of a JSON source, by day, no declared columns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.datasets.model import Dataset, Partition
from flows.errors import NoSource
from flows.settings import load_settings


def entries(partition: Partition) -> Iterator[dict[str, Any]]:
    path = Path(load_settings().landing) / "entries" / f"{partition}.json"
    if not path.exists():
        raise NoSource(f"no entries for {partition}")
    yield from json.loads(path.read_text())


DATASET = Dataset(key="entries", source=entries, partition_column="entry_date", primary_key=("id",))
