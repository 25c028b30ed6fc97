"""Planes by tail number: a reference table, refreshed whole."""

from flows.datasets.files import Files
from flows.datasets.model import Contract, Dataset, Grain

DATASET = Dataset(
    key="planes",
    source=Files("planes.csv", "csv", nulls=("NA", "")),
    grain=Grain.full,
    primary_key=("tailnum",),
    contract=Contract(
        columns={
            "tailnum": "text",
            "year": "bigint",
            "type": "text",
            "manufacturer": "text",
            "model": "text",
            "engines": "bigint",
            "seats": "bigint",
            "speed": "bigint",
            "engine": "text",
        },
        new_columns="freeze",
    ),
    hour=5,
)
