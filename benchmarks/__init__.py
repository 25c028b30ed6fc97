"""Benchmarks on one machine: DuckDB alone, this project, dlt's own destination, and Dagster."""
