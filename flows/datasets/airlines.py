"""Airlines by carrier code: a reference table, refreshed whole."""

from flows.datasets.files import Files
from flows.datasets.model import Contract, Dataset, Grain

DATASET = Dataset(
    key="airlines",
    source=Files("airlines.csv", "csv"),
    grain=Grain.full,
    primary_key=("carrier",),
    contract=Contract(columns={"carrier": "text", "name": "text"}, new_columns="freeze"),
    hour=5,
)
