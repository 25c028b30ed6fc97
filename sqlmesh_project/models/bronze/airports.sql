MODEL (
  name bronze.airports,
  description 'The reference table of airports, as it was last refreshed.',
  kind VIEW,
  grain faa
);

SELECT
  faa,
  name,
  lat,
  lon,
  alt,
  tzone
FROM raw.airports
