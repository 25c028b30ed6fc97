MODEL (
  name silver.orders,
  description 'Orders with the size of their amount in a word.',
  kind INCREMENTAL_BY_TIME_RANGE (
    time_column order_date,
    batch_size 366,
    partition_by_time_column FALSE
  ),
  grain order_id,
  audits (
    not_null(columns := (order_id, size)),
    unique_values(columns := (order_id))
  )
);

SELECT
  order_date,
  order_id,
  customer,
  amount,
  CASE WHEN amount >= 100 THEN 'large' WHEN amount >= 10 THEN 'medium' ELSE 'small' END AS size,
  ordered_at
FROM bronze.orders
WHERE
  order_date BETWEEN @start_date AND @end_date
