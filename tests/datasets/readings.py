"""Daily readings in JSON lines. The schema is inferred and may evolve."""

from datetime import date

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.sources.files import Files

DATASET = Dataset(
    key="readings",
    source=Files("readings/{partition}.jsonl", "jsonl"),
    partition_column="day",
    start=date(2024, 1, 1),
    end=date(2024, 1, 31),
)
