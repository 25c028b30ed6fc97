MODEL (
  name gold.carrier_performance,
  description 'On-time performance by carrier over all days.',
  kind VIEW,
  grain carrier
);

SELECT
  daily.carrier,
  airlines.name AS airline,
  SUM(daily.flights)::BIGINT AS flights,
  ROUND(100 * SUM(daily.on_time) / SUM(daily.flights), 1) AS on_time_percent,
  ROUND(100 * SUM(daily.cancelled) / SUM(daily.flights), 1) AS cancelled_percent,
  ROUND(SUM(daily.arrival_delay_minutes) / NULLIF(SUM(daily.on_time + daily.late), 0), 1) AS mean_arrival_delay_minutes
FROM gold.carrier_daily AS daily
LEFT JOIN bronze.airlines AS airlines
  ON airlines.carrier = daily.carrier
GROUP BY
  daily.carrier,
  airlines.name
