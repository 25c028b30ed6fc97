MODEL (
  name gold.weather_daily,
  description 'Flights and delays by day, airport of departure and weather at the scheduled hour. A day is missing until its weather has landed.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column flight_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (flight_date, origin, condition),
  audits (
    not_null(columns := (flight_date, origin, condition)),
    unique_combination_of_columns(columns := (flight_date, origin, condition)),
    every_flight_once
  )
);

SELECT
  flights.flight_date,
  flights.origin,
  COALESCE(weather.condition, 'not observed') AS condition,
  COUNT(*) AS flights,
  COUNT(*) FILTER(WHERE
    flights.outcome = 'on time') AS on_time,
  COUNT(*) FILTER(WHERE
    flights.outcome = 'cancelled') AS cancelled,
  SUM(flights.departure_delay_minutes)::BIGINT AS departure_delay_minutes,
  COUNT(flights.departure_delay_minutes) AS departures
FROM silver.flights AS flights
LEFT JOIN silver.weather AS weather
  ON weather.origin = flights.origin
  AND weather.observed_hour = flights.scheduled_hour
  AND weather.weather_date = flights.flight_date
  AND weather.weather_date BETWEEN @start_date AND @end_date
WHERE
  flights.flight_date BETWEEN @start_date AND @end_date
GROUP BY
  flights.flight_date,
  flights.origin,
  COALESCE(weather.condition, 'not observed')
