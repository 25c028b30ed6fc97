MODEL (
  name bronze.airports,
  description 'The reference table of airports, as of its last refresh.',
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
