-- Every flight that did not depart is listed as cancelled, and no more flights are late than departed.
AUDIT (
  name delays_are_scheduled
);

SELECT
  entry_date,
  airport,
  scheduled,
  departed,
  late,
  cancelled
FROM @this_model
WHERE
  entry_date BETWEEN @start_date AND @end_date
  AND (
    departed + cancelled <> scheduled OR late > departed
  )
