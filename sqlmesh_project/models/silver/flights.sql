MODEL (
  name silver.flights,
  description 'Flights with times in UTC, delays in minutes and their outcome.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column flight_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (scheduled_departure, carrier, flight_number, origin),
  audits (
    not_null(columns := (scheduled_departure, carrier, origin, destination, outcome)),
    unique_combination_of_columns(columns := (scheduled_departure, carrier, flight_number, origin)),
    accepted_values(column := outcome, is_in := ('on time', 'late', 'diverted', 'cancelled')),
    every_row_of(source := bronze.flights, day := flight_date)
  )
);

SELECT
  flight_date,
  time_hour AS scheduled_hour,
  time_hour + TO_MINUTES(minute) AS scheduled_departure,
  time_hour + TO_MINUTES(minute + dep_delay) AS departure,
  carrier,
  flight AS flight_number,
  tailnum AS tail_number,
  origin,
  dest AS destination,
  distance AS distance_miles,
  air_time AS air_minutes,
  dep_delay AS departure_delay_minutes,
  arr_delay AS arrival_delay_minutes,
  CASE
    WHEN dep_time IS NULL
    THEN 'cancelled'
    WHEN arr_delay IS NULL
    THEN 'diverted'
    WHEN arr_delay < 15
    THEN 'on time'
    ELSE 'late'
  END AS outcome
FROM bronze.flights
WHERE
  flight_date BETWEEN @start_date AND @end_date
