"""Airports by FAA code: a reference table, refreshed whole."""

from flows.datasets.files import Files
from flows.datasets.model import Contract, Dataset, Grain

DATASET = Dataset(
    key="airports",
    source=Files("airports.csv", "csv", nulls=("NA", "")),
    grain=Grain.full,
    primary_key=("faa",),
    contract=Contract(
        columns={
            "faa": "text",
            "name": "text",
            "lat": "double",
            "lon": "double",
            "alt": "bigint",
            "tz": "bigint",
            "dst": "text",
            "tzone": "text",
        },
        new_columns="freeze",
    ),
    hour=5,
)
