MODEL (
  name bronze.planes,
  description 'The reference table of planes, as it was last refreshed.',
  kind VIEW,
  grain tailnum
);

SELECT
  tailnum,
  year,
  type,
  manufacturer,
  model,
  seats
FROM raw.planes
