-- The join with the weather neither loses nor duplicates a flight.
AUDIT (
  name every_flight_once
);

SELECT
  counted.flight_date,
  counted.flights,
  wanted.flights
FROM (
  SELECT
    flight_date,
    SUM(flights) AS flights
  FROM @this_model
  WHERE
    flight_date BETWEEN @start_date AND @end_date
  GROUP BY
    flight_date
) AS counted
JOIN (
  SELECT
    flight_date,
    COUNT(*) AS flights
  FROM silver.flights
  WHERE
    flight_date BETWEEN @start_date AND @end_date
  GROUP BY
    flight_date
) AS wanted
  ON wanted.flight_date = counted.flight_date
WHERE
  wanted.flights <> counted.flights
