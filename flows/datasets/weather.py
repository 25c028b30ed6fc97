"""Hourly weather at New York's airports in 2013, one file of JSON lines a day."""

from datetime import date

from ducklake_flows import Contract, Dataset, Files, at_least, expect

DATASET = Dataset(
    key="weather",
    source=Files("weather/{partition}.jsonl", "jsonl"),
    partition_column="weather_date",
    primary_key=("origin", "time_hour"),
    contract=Contract(
        columns={
            "origin": "text",
            "year": "bigint",
            "month": "bigint",
            "day": "bigint",
            "hour": "bigint",
            "temp": "double",
            "dewp": "double",
            "humid": "double",
            "wind_dir": "bigint",
            "wind_speed": "double",
            "wind_gust": "double",
            "precip": "double",
            "pressure": "double",
            "visib": "double",
            "time_hour": "timestamp",
        },
        schema_contract="freeze",
    ),
    audits=(
        at_least(1),
        expect("the rows are of this day", "make_date(year, month, day) = weather_date"),
        # The source has one of 1,048 mph: 2013-02-12 in Newark.
        expect("winds are below 200 mph", "wind_speed < 200", on_fail="quarantine"),
    ),
    start=date(2013, 1, 1),
    end=date(2013, 12, 31),
    schedule="0 6 * * *",
)
