"""__Dataset__ by day, from a database."""

from datetime import date

from ducklake_flows import Dataset, SqlDatabase, at_least

DATASET = Dataset(
    key="__dataset__",
    source=SqlDatabase(
        "postgresql+psycopg://reader@db.example.com/shop",  # needs: pip install "psycopg[binary]"
        table="public.__dataset__",
        window="created_at",
        # password=Secret("__DATASET___PASSWORD"),
    ),
    partition_column="day",
    audits=(at_least(1),),
    start=date(2024, 1, 1),
)
