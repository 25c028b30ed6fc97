"""Airlines by carrier code: a reference table, refreshed whole."""

from ducklake_flows import Contract, Dataset, Files, Grain

DATASET = Dataset(
    key="airlines",
    source=Files("airlines.csv", "csv"),
    grain=Grain.full,
    primary_key=("carrier",),
    contract=Contract(columns={"carrier": "text", "name": "text"}, schema_contract="freeze"),
    schedule="0 5 * * *",
)
