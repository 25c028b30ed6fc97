"""Planes by tail number: a reference table in a database, refreshed whole.

`lake demo` writes the database, a SQLite file in ``LAKE_HOME``. Without it (on the workers of a stack) the partition is
`no source`, which fails no run.
"""

from typing import NoReturn

from ducklake_flows import Contract, Dataset, Grain, NoSource, Partition, SqlDatabase, load_settings

FILE = load_settings().home / "demo.sqlite"


def not_written(partition: Partition) -> NoReturn:
    """The source without a database."""
    raise NoSource(f"{partition}: {FILE} does not exist; `lake demo` writes it")


DATASET = Dataset(
    key="planes",
    source=SqlDatabase(f"sqlite:///{FILE}", table="planes") if FILE.exists() else not_written,
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
        schema_contract="freeze",
    ),
    schedule="0 5 * * *",
)
