MODEL (
  name gold.carrier_daily,
  description 'Flights, delays and cancellations by day, carrier and airport of departure.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column flight_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (flight_date, carrier, origin),
  audits (
    not_null(columns := (flight_date, carrier, origin)),
    unique_combination_of_columns(columns := (flight_date, carrier, origin))
  )
);

SELECT
  flight_date,
  carrier,
  origin,
  COUNT(*) AS flights,
  COUNT(*) FILTER(WHERE
    outcome = 'on time') AS on_time,
  COUNT(*) FILTER(WHERE
    outcome = 'late') AS late,
  COUNT(*) FILTER(WHERE
    outcome = 'diverted') AS diverted,
  COUNT(*) FILTER(WHERE
    outcome = 'cancelled') AS cancelled,
  SUM(arrival_delay_minutes)::BIGINT AS arrival_delay_minutes,
  SUM(distance_miles)::BIGINT AS distance_miles
FROM silver.flights
WHERE
  flight_date BETWEEN @start_date AND @end_date
GROUP BY
  flight_date,
  carrier,
  origin
