"""Departures from New York's airports in 2013, one CSV file a day."""

from datetime import date

from ducklake_flows import Contract, Dataset, Files, at_least, expect

DATASET = Dataset(
    key="flights",
    source=Files("flights/{partition}.csv", "csv", nulls=("NA", "")),
    partition_column="flight_date",
    primary_key=("time_hour", "carrier", "flight", "origin"),
    contract=Contract(
        columns={
            "year": "bigint",
            "month": "bigint",
            "day": "bigint",
            "dep_time": "bigint",
            "sched_dep_time": "bigint",
            "dep_delay": "bigint",
            "arr_time": "bigint",
            "sched_arr_time": "bigint",
            "arr_delay": "bigint",
            "carrier": "text",
            "flight": "bigint",
            "tailnum": "text",
            "origin": "text",
            "dest": "text",
            "air_time": "bigint",
            "distance": "bigint",
            "hour": "bigint",
            "minute": "bigint",
            "time_hour": "timestamp",
        },
        schema_contract="freeze",
    ),
    audits=(
        at_least(1),
        expect("the rows are of this day", "make_date(year, month, day) = flight_date"),
        expect("distance is positive", "distance > 0"),
    ),
    start=date(2013, 1, 1),
    end=date(2013, 12, 31),
    schedule="0 6 * * *",
)
