"""Airports by FAA code: a reference table, refreshed whole."""

from ducklake_flows import Contract, Dataset, Files, Grain

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
        schema_contract="freeze",
    ),
    schedule="0 5 * * *",
)
