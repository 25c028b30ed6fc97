"""__Dataset__ by day, from an API."""

from datetime import date

from ducklake_flows import Dataset, RestApi, at_least

DATASET = Dataset(
    key="__dataset__",
    source=RestApi(
        "https://api.example.com/__dataset__",
        params={"from": "{start}", "to": "{end}"},
        # rows="data",  # where an answer has its rows, if it is not a list
        # paginator={"type": "offset", "limit": 100, "total_path": "total"},
        # auth={"type": "bearer", "token": Secret("__DATASET___TOKEN")},
        # version="etag",  # what tells that a day has changed; then recheck="7 days" loads it again
    ),
    partition_column="day",
    audits=(at_least(1),),
    start=date(2024, 1, 1),
)
