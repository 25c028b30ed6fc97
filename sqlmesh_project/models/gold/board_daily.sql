MODEL (
  name gold.board_daily,
  description 'Scheduled, late and cancelled departures by day and airport, from the departure boards.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column entry_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (entry_date, airport),
  audits (
    not_null(columns := (entry_date, airport, scheduled)),
    unique_combination_of_columns(columns := (entry_date, airport)),
    delays_are_scheduled
  )
);

SELECT
  entries.entry_date,
  entries.airport,
  SUM(entries.scheduled)::BIGINT AS scheduled,
  SUM(entries.departed)::BIGINT AS departed,
  COALESCE(SUM(delays.late), 0)::BIGINT AS late,
  COALESCE(SUM(delays.cancelled), 0)::BIGINT AS cancelled,
  COALESCE(SUM(delays.minutes), 0)::BIGINT AS late_minutes
FROM bronze.entries AS entries
LEFT JOIN (
  SELECT
    airport,
    scheduled_hour,
    COUNT(*) FILTER(WHERE
      status = 'late') AS late,
    COUNT(*) FILTER(WHERE
      status = 'cancelled') AS cancelled,
    SUM(minutes) AS minutes
  FROM bronze.entry_delays
  WHERE
    entry_date BETWEEN @start_date AND @end_date
  GROUP BY
    airport,
    scheduled_hour
) AS delays
  ON delays.airport = entries.airport AND delays.scheduled_hour = entries.scheduled_hour
WHERE
  entries.entry_date BETWEEN @start_date AND @end_date
GROUP BY
  entries.entry_date,
  entries.airport
