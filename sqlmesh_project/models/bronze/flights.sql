MODEL (
  name bronze.flights,
  description 'Flights as in the source, one row per scheduled departure.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column flight_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (time_hour, carrier, flight, origin),
  signals (
    published(dataset := 'flights')
  ),
  audits (
    not_null(columns := (time_hour, carrier, flight, origin, dest)),
    every_row_of(source := raw.flights, day := flight_date)
  )
);

SELECT
  flight_date,
  time_hour,
  carrier,
  flight,
  tailnum,
  origin,
  dest,
  dep_time,
  sched_dep_time,
  dep_delay,
  arr_time,
  sched_arr_time,
  arr_delay,
  air_time,
  distance,
  hour,
  minute
FROM raw.flights
WHERE
  flight_date BETWEEN @start_date AND @end_date
