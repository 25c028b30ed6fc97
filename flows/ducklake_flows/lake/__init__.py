"""The lake: DuckDB and DuckLake. Connect, bootstrap, publish, read the ledger, verify."""
