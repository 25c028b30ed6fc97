MODEL (
  name silver.weather,
  description 'Hourly weather in SI units, with a summary of the flying conditions.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column weather_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (origin, observed_hour),
  audits (
    not_null(columns := (origin, observed_hour, condition)),
    unique_combination_of_columns(columns := (origin, observed_hour)),
    every_row_of(source := bronze.weather, day := weather_date)
  )
);

SELECT
  weather_date,
  origin,
  time_hour AS observed_hour,
  (
    temp - 32
  ) * 5 / 9 AS temperature_celsius,
  humid AS humidity_percent,
  wind_dir AS wind_degrees,
  wind_speed * 0.44704 AS wind_metres_per_second,
  precip * 25.4 AS rain_millimetres,
  visib * 1.609344 AS visibility_kilometres,
  CASE
    WHEN visib < 2
    THEN 'fog or snow'
    WHEN precip >= 0.05
    THEN 'heavy rain'
    WHEN precip > 0
    THEN 'light rain'
    WHEN wind_speed >= 25
    THEN 'strong wind'
    ELSE 'fair'
  END AS condition
FROM bronze.weather
WHERE
  weather_date BETWEEN @start_date AND @end_date
