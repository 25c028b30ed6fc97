"""Side by side on one machine: DuckDB alone, this project, and dlt's own destination."""
