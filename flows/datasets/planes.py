"""Planes by tail number: a reference table, refreshed whole."""

from ducklake_flows import Contract, Dataset, Files, Grain

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
    schedule="0 5 * * *",
)
