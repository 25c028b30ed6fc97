"""Planes by tail number: a reference table in a database, refreshed whole.

`lake demo` writes the database, a SQLite file in ``LAKE_HOME``. Workers on other machines do not have it, so the
dataset has no schedule.
"""

from ducklake_flows import Contract, Dataset, Grain, SqlDatabase, load_settings

FILE = load_settings().home / "demo.sqlite"

DATASET = Dataset(
    key="planes",
    source=SqlDatabase(f"sqlite:///{FILE.as_uri()}?mode=ro&uri=true", table="planes"),
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
)
