MODEL (
  name bronze.airlines,
  description 'The reference table of airlines, as of its last refresh.',
  kind VIEW,
  grain carrier
);

SELECT
  carrier,
  name
FROM raw.airlines
