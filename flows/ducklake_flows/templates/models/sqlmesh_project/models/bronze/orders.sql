MODEL (
  name bronze.orders,
  description 'Orders as the source has them, one row an order.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column order_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  grain order_id,
  signals (
    published(dataset := 'orders')
  ),
  audits (
    not_null(columns := (order_id))
  )
);

SELECT
  order_date,
  order_id,
  customer,
  amount,
  ordered_at
FROM raw.orders
WHERE
  order_date BETWEEN @start_date AND @end_date
