-- Every day has as many rows as the same day in the table it was built from.
AUDIT (
  name every_row_of
);

SELECT
  @day AS day,
  SUM(here) AS here,
  SUM(there) AS there
FROM (
  SELECT
    @day,
    1 AS here,
    0 AS there
  FROM @this_model
  WHERE
    @day BETWEEN @start_date AND @end_date
  UNION ALL
  SELECT
    @day,
    0 AS here,
    1 AS there
  FROM @source
  WHERE
    @day BETWEEN @start_date AND @end_date
)
GROUP BY
  @day
HAVING
  SUM(here) <> SUM(there)
