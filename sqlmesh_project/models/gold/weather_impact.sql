MODEL (
  name gold.weather_impact,
  description 'Departures by weather at the scheduled hour, over all days.',
  kind VIEW,
  grain condition
);

SELECT
  condition,
  SUM(flights)::BIGINT AS flights,
  ROUND(100 * SUM(on_time) / SUM(flights), 1) AS on_time_percent,
  ROUND(100 * SUM(cancelled) / SUM(flights), 1) AS cancelled_percent,
  ROUND(SUM(departure_delay_minutes) / NULLIF(SUM(departures), 0), 1) AS mean_departure_delay_minutes
FROM gold.weather_daily
GROUP BY
  condition
