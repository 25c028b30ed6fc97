MODEL (
  name bronze.entry_delays,
  description 'Late and cancelled departures of the boards, in the order of the source.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column entry_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (airport, scheduled_hour, position),
  signals (
    published(dataset := 'entries')
  ),
  audits (
    not_null(columns := (airport, scheduled_hour, position, carrier, status)),
    every_row_of(source := raw.entries__delays, day := entry_date)
  )
);

SELECT
  entry_date,
  entries_airport AS airport,
  entries_scheduled_hour AS scheduled_hour,
  position,
  carrier,
  flight,
  destination,
  scheduled_departure,
  status,
  minutes
FROM raw.entries__delays
WHERE
  entry_date BETWEEN @start_date AND @end_date
