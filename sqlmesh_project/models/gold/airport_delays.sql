MODEL (
  name gold.airport_delays,
  description 'Late and cancelled departures by airport, over all days.',
  kind VIEW,
  grain airport
);

SELECT
  daily.airport,
  airports.name,
  SUM(daily.scheduled)::BIGINT AS departures,
  ROUND(100 * SUM(daily.late) / SUM(daily.scheduled), 1) AS late_percent,
  ROUND(100 * SUM(daily.cancelled) / SUM(daily.scheduled), 1) AS cancelled_percent,
  ROUND(SUM(daily.late_minutes) / NULLIF(SUM(daily.late), 0), 1) AS mean_late_minutes
FROM gold.board_daily AS daily
LEFT JOIN bronze.airports AS airports
  ON airports.faa = daily.airport
GROUP BY
  daily.airport,
  airports.name
