MODEL (
  name bronze.entries,
  description 'Departure boards as in the source, one row per airport and scheduled hour.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column entry_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (airport, scheduled_hour),
  signals (
    published(dataset := 'entries')
  ),
  audits (
    not_null(columns := (airport, scheduled_hour, scheduled, departed)),
    every_row_of(source := raw.entries, day := entry_date)
  )
);

SELECT
  entry_date,
  airport,
  scheduled_hour,
  scheduled,
  departed
FROM raw.entries
WHERE
  entry_date BETWEEN @start_date AND @end_date
