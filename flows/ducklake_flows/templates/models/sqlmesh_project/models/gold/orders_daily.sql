MODEL (
  name gold.orders_daily,
  description 'Orders and their amount by day.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column order_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  grain order_date,
  audits (
    not_null(columns := (order_date, orders)),
    unique_values(columns := (order_date))
  )
);

SELECT
  order_date,
  COUNT(*) AS orders,
  COUNT(DISTINCT customer) AS customers,
  SUM(amount) AS amount
FROM silver.orders
WHERE
  order_date BETWEEN @start_date AND @end_date
GROUP BY
  order_date
