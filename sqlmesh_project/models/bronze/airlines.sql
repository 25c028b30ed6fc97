MODEL (
  name bronze.airlines,
  description 'The reference table of airlines, as it was last refreshed.',
  kind VIEW,
  grain carrier
);

SELECT
  carrier,
  name
FROM raw.airlines
