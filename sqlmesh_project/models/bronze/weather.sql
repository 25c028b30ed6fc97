MODEL (
  name bronze.weather,
  description 'Hourly weather as in the source, one row per airport and hour.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column weather_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  start '2013-01-01',
  grain (origin, time_hour),
  signals (
    published(dataset := 'weather')
  ),
  audits (
    not_null(columns := (origin, time_hour)),
    every_row_of(source := raw.weather, day := weather_date)
  )
);

SELECT
  weather_date,
  origin,
  time_hour,
  temp,
  dewp,
  humid,
  wind_dir,
  wind_speed,
  wind_gust,
  precip,
  pressure,
  visib
FROM raw.weather
WHERE
  weather_date BETWEEN @start_date AND @end_date
