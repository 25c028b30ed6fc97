"""Partitioned lakehouse flows: Prefect maps partitions, Dask extracts, one gated DuckLake commit publishes."""
