MODEL (
  name bronze.planes,
  description 'The reference table of planes, as of its last refresh.',
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
